"""Random streams. What a sample looks like depends on the run's seed, the epoch and the sample's index alone."""

from __future__ import annotations

import random

import numpy as np

from vision_wrapper._numbers import is_whole
from vision_wrapper.errors import SettingError

_MAX_SEED = 2**32 - 1  # numpy's global generator takes no more
_default_seed = 0


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (every device), and make `seed` the default of every `seed=` argument.

    Raises `SettingError` unless 0 <= seed < 2**32.
    """
    if seed is None:
        raise SettingError("seed_everything needs a seed, got None.")
    global _default_seed
    seed_generators(seed)
    _default_seed = checked_seed(seed)


def seed_generators(seed: int) -> None:
    """Seed python, numpy and torch (every device), and nothing else."""
    import torch

    seed = checked_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # the CPU, CUDA and MPS generators


def checked_seed(seed: int | None) -> int:
    """The given seed, or the default one where it is None. Raises `SettingError` for anything else."""
    if seed is None:
        return _default_seed
    if not is_whole(seed) or not 0 <= seed <= _MAX_SEED:
        raise SettingError(f"seed must be a whole number from 0 to {_MAX_SEED}, got {seed!r}.")
    return int(seed)


def shuffled_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)` that depends on the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many indices as there are labels, each label equally often (to one), in a random order.

    Images of small classes occur several times, each as often as the others of its class (to one); of large classes,
    every epoch takes others.
    """
    random = np.random.default_rng([seed, epoch, 1])  # a stream beside the one of `shuffled_order`
    present = np.unique(labels)
    each, rest = divmod(len(labels), len(present))
    chosen = []
    for position, label in enumerate(random.permutation(present)):
        count = each + (position < rest)
        members = np.flatnonzero(labels == label)
        rounds = [random.permutation(members) for _ in range(-(-count // len(members)))]
        chosen.append(np.concatenate(rounds)[:count] if count else members[:0])
    return random.permutation(np.concatenate(chosen))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: SplitMix64's increment


def hashed(key: np.ndarray | int, value: np.ndarray | int) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea & Flood 2014) of a key and a value, twice, uint64."""
    with np.errstate(over="ignore"):  # it counts modulo 2**64
        z = np.asarray(key, dtype=np.uint64) + (np.asarray(value, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) + _GOLDEN
    return z


class BatchRandom:
    """Uniform numbers for each sample of a batch: the k-th is a function of (seed, epoch, index, k) alone.

    Uses with different `stream`s draw independent numbers.
    """

    def __init__(self, seed: int, epoch: int, indices: np.ndarray, stream: int = 0):
        self.seed, self.epoch, self.indices = seed, epoch, indices
        self._keys = hashed(hashed(seed, stream << 32 | epoch), indices)
        self._drawn = 0

    def uniform(self) -> np.ndarray:
        """The next number of every sample, in [0, 1), float64 (N,)."""
        numbers = _to_unit(hashed(self._keys, self._drawn))
        self._drawn += 1
        return numbers

    def whole(self, count: int) -> np.ndarray:
        """The next whole number of every sample, in 0..count - 1, all as likely, int64 (N,)."""
        return (self.uniform() * count).astype(np.int64)

    def mirrored(self) -> np.ndarray:
        """Whether each sample is mirrored in this epoch: half of them in even epochs, the others in odd, bool (N,)."""
        begins_mirrored = _to_unit(hashed(hashed(self.seed, _EVERY_EPOCH), self.indices)) < 0.5
        return begins_mirrored ^ (self.epoch % 2 == 1)


_EVERY_EPOCH = 2**64 - 1  # in place of an epoch: numbers that stay


def _to_unit(bits: np.ndarray) -> np.ndarray:
    """The upper 53 bits as a number in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


class SampleRandom:
    """A numpy generator and a python one that can be put at the start of any sample's own stream.

    Philox is a counter-based generator (Salmon et al. 2011): the key is the seed, the two high words of the counter are
    the epoch and the index, so every sample has 2**128 numbers of its own. Moving it takes about 4 microseconds, a new
    generator 20.
    """

    def __init__(self, seed: int):
        self.numpy = np.random.Generator(np.random.Philox(key=seed))
        self.python = random.Random()
        self._start = self.numpy.bit_generator.state

    def move_to(self, epoch: int, index: int) -> None:
        """Put both generators at the start of the stream of this sample in this epoch."""
        bits = self.numpy.bit_generator  # taken from the generator, so that a pickled copy still has one, not two
        self._start["state"]["counter"][:] = (0, 0, epoch, index)
        bits.state = self._start
        self.python.seed(int(bits.random_raw()))
