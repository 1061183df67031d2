"""What every process of `test_distributed` does, and running it in several."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from vision_wrapper import data, models, recipes
from vision_wrapper._distributed import join
from vision_wrapper.trainer import Callback, FreezeBody, Trainer, schedules

# ---- what every process does; `run_together` has its results


def arrays():
    """45 training images: in batches of 16, the last one has 13; and 15 test images."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = rng.integers(0, 80, (60, 16, 16, 3)).astype(np.uint8)
    pixels[np.arange(60), :, :, labels] += 120
    return data.from_arrays((pixels[:45], labels[:45]), (pixels[45:], labels[45:]))


def network(norm="layer", dropout=0.0):
    torch.manual_seed(0)
    return models.CustomResNet(3, widths=(4, 8, 8, 8), norm=norm, dropout=dropout)


def trainer_of(model, **arguments):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Trainer(model, optimizer, callbacks=arguments.pop("callbacks", []), precision="fp32", **arguments)


def loaders_of(batch_size=16):
    loaders = data.make_loaders(arrays(), "crop_flip_cutout", batch_size, seed=1)
    loaders.test.batch_size = 4  # 15 images: four batches
    return loaders


def state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def trained(batch_size=16, loader=None, norm="layer", epochs=2, checkpoint=None, seconds=60, **arguments):
    """Weights, history without seconds, and logits of a fit."""
    loaders = loaders_of(batch_size)
    trainer = trainer_of(network(norm), **arguments)
    train_loader = loaders.train if loader is None else loader
    schedule = schedules.one_cycle(max_lr=0.05, peak_epoch=1) if hasattr(train_loader, "__len__") else None
    history = trainer.fit(
        train_loader, loaders.test, epochs=epochs, schedule=schedule, checkpoint=checkpoint, checkpoint_seconds=seconds
    )
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    return {
        "weights": state(trainer),
        "rows": rows,
        "seconds": [row["seconds"] for row in history.rows],
        "logits": trainer.predict(loaders.test).logits,
        "indices": trainer.predict(loaders.test).indices,
        "evaluation": tuple(trainer.evaluate(loaders.test)),
        "interrupted": trainer.interrupted,
    }


def whole_batches(count=45, size=16):
    """Batches that are no loader of the library, whole in every process."""
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 3
    return [(inputs[i : i + size], targets[i : i + size]) for i in range(0, count, size)]


def press_ctrl_c(processes):
    """In the last process."""
    if processes.rank == processes.count - 1:
        os.kill(os.getpid(), signal.SIGINT)


class CtrlC(Callback):
    """Presses Ctrl-C in the middle of the second epoch."""

    def on_batch_end(self, run):
        if (run.epoch, run.batch) == (1, 1):
            press_ctrl_c(run.trainer.processes)


class Validated:
    """A loader at whose second pass in a fit (the first looks at a batch) Ctrl-C is pressed: while it validates."""

    def __init__(self, loader, processes):
        self.loader, self.processes, self.passes = loader, processes, 0

    def __iter__(self):
        self.passes += 1
        yield from self.loader.batches(0)
        if self.passes == 2:
            press_ctrl_c(self.processes)


class Stopping(Callback):
    """Ends the run from one process; counts the hooks that are called."""

    everywhere = True

    def __init__(self, rank):
        self.rank, self.called = rank, 0

    def on_epoch_end(self, run):
        self.called += 1
        if run.trainer.processes.rank == self.rank:
            run.stop = "enough"


class InMain(Stopping):
    everywhere = False


def stopped():
    loaders, callbacks = loaders_of(), [Stopping(1), InMain(None)]
    history = trainer_of(network(), callbacks=callbacks).fit(loaders.train, epochs=3)
    return {"epochs": len(history), "called": [callback.called for callback in callbacks]}


def interrupted_while_validating(folder):
    loaders, trainer = loaders_of(), trainer_of(network())
    validated = Validated(loaders.test, trainer.processes)
    history = trainer.fit(loaders.train, validated, epochs=2, checkpoint=folder / "validating.ckpt")
    stopped = {"interrupted": trainer.interrupted, "epochs": len(history)}
    again = trainer_of(network())
    history = again.fit(loaders.train, loaders.test, epochs=2, checkpoint=folder / "validating.ckpt")
    return {**stopped, "epochs in the end": len(history), "weights": state(again)}


def saved_and_loaded(folder):
    trainer, other = trainer_of(network()), trainer_of(network())
    trainer.fit(loaders_of().train, epochs=1)
    trainer.save(folder / "saved.ckpt")
    other.load(folder / "saved.ckpt")
    weights = state(trainer)
    return all(torch.equal(value, weights[name]) for name, value in state(other).items())


def continued_by_the_clock(folder):
    """A checkpoint after every step; the second fit goes on from the one that the first leaves in its last epoch."""

    class Fails(Callback):
        def on_batch_end(self, run):
            if (run.epoch, run.batch) == (1, 2):
                raise ArithmeticError("in all processes")

    found = {"whole": trained(norm="batch")}
    path = folder / "clock.ckpt"
    found["error"] = error_of(lambda: trained(norm="batch", checkpoint=path, seconds=0, callbacks=[Fails()]))
    found["resumed"] = trained(norm="batch", checkpoint=path, callbacks=[Callback()])
    return found


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def fails_on_main():
    raise ValueError("no room")


def interrupted_and_resumed(folder, **arguments):
    whole = trained(epochs=3, **arguments)
    stopped = trained(epochs=3, checkpoint=folder / "last.ckpt", **{**arguments, "callbacks": [CtrlC()]})
    resumed = trained(epochs=3, checkpoint=folder / "last.ckpt", **{**arguments, "callbacks": [Callback()]})
    return {"whole": whole, "stopped": stopped, "resumed": resumed}


def lr_curve():
    trainer = trainer_of(network())
    before = state(trainer)
    curve = trainer.find_lr(loaders_of().train, num_iter=12)
    same = all(torch.equal(value, before[name]) for name, value in state(trainer).items())
    return {"lrs": curve.lrs, "losses": curve.losses, "unchanged": same}


def sampled(in_batches):
    """A torch DataLoader that gives each process samples of its own."""
    inputs, targets = (torch.cat(parts) for parts in zip(*whole_batches(), strict=True))
    images, trainer = TensorDataset(inputs, targets), trainer_of(network())
    sampler = DistributedSampler(images, shuffle=True, seed=1, drop_last=True)
    how = {"batch_sampler": BatchSampler(sampler, 8, False)} if in_batches else {"sampler": sampler, "batch_size": 8}
    found = trained(loader=DataLoader(images, **how))
    found["epoch"] = sampler.epoch
    found["evaluate"] = error_of(lambda: trainer.evaluate(DataLoader(images, batch_size=8, sampler=sampler)))
    repeating = DataLoader(images, batch_size=8, sampler=DistributedSampler(images))
    found["repeating"] = error_of(lambda: trainer.fit(repeating, epochs=1))
    shuffling = DataLoader(images, batch_size=8, shuffle=True)
    found["shuffling"] = error_of(lambda: trainer.fit(shuffling, epochs=1))
    found["evaluate shuffling"] = error_of(lambda: trainer.evaluate(shuffling))
    return found


def small_run(folder):
    small = {"epochs": 2, "model_args": {"widths": (4, 8, 8, 8)}, "find_lr": True}
    result = recipes.run("quickstart", data="digits", out=folder / "run", callbacks=[], **small)
    again = recipes.run("quickstart", data="digits", out=folder / "run", callbacks=[], **small)
    return {
        "logits": result.predictions.logits,
        "again": again.predictions.logits,
        "other": error_of(lambda: recipes.run("quickstart", data="digits", out=folder / "run", epochs=3)),
    }


def two_processes(folder):
    rank = join().rank
    return {
        "rank": rank,
        "folder": folder,
        "plain": trained(),
        "several batches a step": trained(accumulate=2, clip_norm=1.0, l1=1e-4),
        "batch norm and averages": trained(norm="batch", ema=0.9),
        "frozen at first": trained(norm="batch", callbacks=[FreezeBody(1)]),
        "any batches": trained(loader=whole_batches()),
        "without a length": trained(loader=WithoutLength(whole_batches()), accumulate=2),
        "lr curve": lr_curve(),
        "sampled": sampled(False),
        "sampled in batches": sampled(True),
        "stopped": stopped(),
        "validating": interrupted_while_validating(folder),
        "loaded": saved_and_loaded(folder),
        "clock": continued_by_the_clock(folder),
        "one of three": error_of(lambda: trained(loader=whole_batches(19, 8), norm="batch")),
        "no class": error_of(lambda: trainer_of(network()).fit(wrong_targets(), epochs=1)),
        "checkpoint in one": error_of(lambda: trained(checkpoint=folder / "one.ckpt" if rank else None)),
        "unused in the finder": error_of(lambda: trainer_of(WithoutUse()).find_lr(whole_batches(), num_iter=5)),
        "graphs": error_of(lambda: trainer_of(network(), compile="graphs")),
        "twice": error_of(lambda: trainer_of(DistributedDataParallel(network()))),
        "resumed": interrupted_and_resumed(folder, norm="batch", ema=0.9),
        "unused": error_of(lambda: trainer_of(WithoutUse()).fit(whole_batches(), epochs=1)),
        "other epochs": error_of(lambda: trained(epochs=1 + rank)),
        "last of three": error_of(lambda: trained(batch_size=14, norm="batch")),
        "fails on main": error_of(lambda: join().on_main(fails_on_main)),
        "recipe": small_run(folder),
    }


def wrong_targets():
    """A target that is no class, in the second process's part."""
    inputs, targets = whole_batches(16)[0]
    targets[3] = 7
    return [(inputs, targets)]


class WithoutUse(nn.Module):
    """Has a layer that its forward pass does not use."""

    def __init__(self):
        super().__init__()
        self.flat, self.used, self.unused = nn.Flatten(), nn.Linear(768, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(self.flat(x))


class WithoutLength:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def three_processes(folder):
    return {
        "plain": trained(),
        "fewer images than processes": trained(batch_size=43),  # 43 and 2
        "resumed": interrupted_and_resumed(folder, norm="batch"),
    }


# ---- running them


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(count, work, folder):
    """What `work` returns in each of `count` processes."""
    code = (
        f"import sys, torch; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        f"import process_runs as t; found = t.{work.__name__}(Path(sys.argv[1]));"
        "torch.save(found, Path(sys.argv[1]) / (sys.argv[2] + '.pt'))"
    )
    port = str(free_port())
    running = []
    for rank in range(count):
        place = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with open(folder / f"{rank}.txt", "w") as errors:
            command = [sys.executable, "-c", code, str(folder), str(rank)]
            running.append(
                subprocess.Popen(command, env={**os.environ, **place, "OMP_NUM_THREADS": "1"}, stderr=errors)
            )
    try:
        ended = [process.wait(timeout=400) for process in running]
    except subprocess.TimeoutExpired:
        ended = ["they wait"]
    finally:
        for process in running:
            process.kill()
    assert not any(ended), "\n".join((folder / f"{rank}.txt").read_text() for rank in range(count))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]
