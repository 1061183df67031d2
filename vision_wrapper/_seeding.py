"""Random streams. What a sample looks like depends on the run's seed, the epoch and the sample's index alone."""

from __future__ import annotations

import random

import numpy as np

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
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= _MAX_SEED:
        raise SettingError(f"seed must be a whole number from 0 to {_MAX_SEED}, got {seed!r}.")
    return int(seed)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)` that depends on the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many indices as there are labels, each label equally often (to one), in a random order.

    Images of small classes occur several times, each as often as the others of its class (to one); of large classes,
    every epoch takes others.
    """
    random = np.random.default_rng([seed, epoch, 1])  # a stream beside the one of `shuffled`
    present = np.unique(labels)
    each, rest = divmod(len(labels), len(present))
    chosen = []
    for position, label in enumerate(random.permutation(present)):
        count = each + (position < rest)
        members = np.flatnonzero(labels == label)
        rounds = [random.permutation(members) for _ in range(-(-count // len(members)))]
        chosen.append(np.concatenate(rounds)[:count] if count else members[:0])
    return random.permutation(np.concatenate(chosen))


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
