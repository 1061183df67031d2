"""Several processes that train together: on CPUs, with torch's gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_images
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from vision_wrapper import data, models, recipes
from vision_wrapper._distributed import _place, join
from vision_wrapper.errors import OtherRunError, ProcessError, SettingError
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
        f"import test_distributed as t; found = t.{work.__name__}(Path(sys.argv[1]));"
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_together(2, two_processes, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return run_together(3, three_processes, tmp_path_factory.mktemp("three"))


def same_bits(a, b):
    return a["rows"] == b["rows"] and all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])


def about_the_same(a, b, tolerance=2e-4):
    for row, other in zip(a["rows"], b["rows"], strict=True):
        assert row == pytest.approx(other, abs=tolerance)
    for name, value in a["weights"].items():
        torch.testing.assert_close(value, b["weights"][name], rtol=0, atol=tolerance)


# ---- tests


@pytest.mark.parametrize("case", ["plain", "several batches a step", "any batches", "without a length"])
def test_the_run_is_that_of_a_single_process(two, case):
    """With layer norm, which knows no batch: only the order of sums differs. The last batch has 13 images."""
    arguments = {
        "plain": {},
        "several batches a step": {"accumulate": 2, "clip_norm": 1.0, "l1": 1e-4},
        "any batches": {"loader": whole_batches()},
        "without a length": {"loader": WithoutLength(whole_batches()), "accumulate": 2},
    }
    about_the_same(two[0][case], trained(**arguments[case]))


@pytest.mark.parametrize("case, batch_size", [("plain", 16), ("fewer images than processes", 43)])
def test_the_run_of_three_is_that_of_a_single_process(three, case, batch_size):
    about_the_same(three[0][case], trained(batch_size))


def test_all_processes_end_with_the_same(two, three):
    for found in (two, three):
        for name, case in found[0].items():
            for other in found[1:] if isinstance(case, dict) and "rows" in case else ():
                assert same_bits(case, other[name]) and case["seconds"] == other[name]["seconds"], name
                assert (
                    torch.equal(case["logits"], other[name]["logits"])
                    and case["evaluation"] == other[name]["evaluation"]
                )


def test_predictions_do_not_depend_on_the_number_of_processes(two, three):
    """Nor does the evaluation, not in a bit: each process has whole batches."""
    for found in (two, three):
        for name in ("plain", "batch norm and averages") if "batch norm and averages" in found[0] else ("plain",):
            case, model = found[0][name], network("batch" if "norm" in name else "layer")
            model.load_state_dict(case["weights"])
            trainer, loader = trainer_of(model), loaders_of().test
            assert torch.equal(case["logits"], trainer.predict(loader).logits)
            assert torch.equal(case["indices"], torch.arange(15))
            assert case["evaluation"] == tuple(trainer.evaluate(loader))
            assert case["rows"][-1]["val_loss"] == case["evaluation"][0]


def test_a_part_frozen_at_first_is_trained_later(two):
    before, after = network("batch").state_dict(), two[0]["frozen at first"]["weights"]
    assert not torch.equal(before["prep.conv.weight"], after["prep.conv.weight"])


@pytest.mark.parametrize("count", ["two", "three"])
def test_ctrl_c_in_one_process_stops_all_and_the_resumed_run_is_the_run(count, request):
    for found in request.getfixturevalue(count):
        case = found["resumed"]
        assert case["stopped"]["interrupted"] and len(case["stopped"]["rows"]) == 1
        assert not case["resumed"]["interrupted"] and len(case["resumed"]["rows"]) == 3
        assert same_bits(case["whole"], case["resumed"])
        assert torch.equal(case["whole"]["logits"], case["resumed"]["logits"])


def test_a_run_of_two_does_not_go_on_with_one(two, tmp_path_factory):
    folder = two[0]["folder"]
    with pytest.raises(OtherRunError, match="processes: 2 there, 1 here"):
        trained(epochs=3, checkpoint=folder / "last.ckpt", norm="batch", ema=0.9)


def test_the_lr_finder_judges_by_all_processes(two):
    alone = lr_curve()
    for found in two:
        assert found["lr curve"]["unchanged"]
        assert found["lr curve"]["lrs"] == pytest.approx(alone["lrs"])
        assert found["lr curve"]["losses"] == pytest.approx(alone["losses"], abs=1e-3)
        assert found["lr curve"] == two[0]["lr curve"]


@pytest.mark.parametrize("name", ["sampled", "sampled in batches"])
def test_a_distributed_sampler_is_taken_as_it_is(two, name):
    for found in two:
        case = found[name]
        assert case["epoch"] == 1 and len(case["rows"]) == 2  # the sampler was told of the second epoch
        assert same_bits(case, two[0]["sampled"])
        assert "which repeats samples" in case["evaluate"] and "shuffle=False" in case["evaluate shuffling"]
        assert case["shuffling"].startswith("SettingError: This DataLoader shuffles")
        assert case["repeating"].startswith("SettingError: The DistributedSampler repeats 1 of 45 samples")


def test_a_callback_of_one_process_ends_the_run_of_all(two):
    assert [found["stopped"] for found in two] == [
        {"epochs": 1, "called": [1, 1]},
        {"epochs": 1, "called": [1, 0]},  # everywhere = False is the main process alone
    ]


def test_ctrl_c_while_one_process_validates_stops_all(two):
    for found in two:
        case = found["validating"]
        assert (case["interrupted"], case["epochs"], case["epochs in the end"]) == (True, 1, 2)
        assert all(torch.equal(value, two[0]["validating"]["weights"][name]) for name, value in case["weights"].items())


def test_a_run_goes_on_from_a_checkpoint_of_the_clock(two):
    for found in two:
        case = found["clock"]
        assert case["error"] == "ArithmeticError: in all processes"
        assert same_bits(case["whole"], case["resumed"])


def test_what_the_main_process_saved_all_can_load(two):
    assert [found["loaded"] for found in two] == [True, True]


@pytest.mark.parametrize(
    "name, error",
    [
        ("one of three", "DataError: Epoch 1, batch 3: "),
        ("no class", "DataError: "),
        (
            "checkpoint in one",
            "SettingError: Process 1 is to train another run than process 0 (checkpoint: False",
        ),
        ("unused in the finder", "SettingError: Several processes wait for the gradients"),
        ("graphs", 'SettingError: compile="graphs"'),
        ("twice", "SettingError: The model is a DistributedDataParallel already"),
    ],
)
def test_what_one_process_finds_ends_all(two, name, error):
    for found in two:
        assert (found[name] or "").startswith(error)


def test_processes_that_would_train_other_runs_are_refused(two):
    for found in two:
        assert found["other epochs"].startswith(
            "SettingError: Process 1 is to train another run than process 0 (epochs"
        )


def test_a_process_with_one_image_is_refused_with_batch_norm(two):
    """45 images in batches of 14: the last one has 3."""
    for found in two:
        assert found["last of three"].startswith("SettingError: The last batch has 3 images for 2 processes")


def test_parameters_without_use_are_named(two):
    for found in two:
        assert found["unused"].startswith("SettingError: ") and "requires_grad_(False)" in found["unused"]


def test_an_error_of_the_main_process_reaches_all(two):
    assert [found["fails on main"] for found in two] == [
        "ValueError: no room",
        "ProcessError: The main process ended with ValueError: no room",
    ]
    assert issubclass(ProcessError, RuntimeError)


def test_a_recipe_makes_one_run_folder(two):
    folder = two[0]["folder"] / "run"
    assert {"report.html", "history.csv", "lr_curve.json", "best.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    kept = recipes.evaluate_run(folder)
    assert len(kept) == len(two[0]["recipe"]["logits"])
    for found in two:
        assert torch.equal(found["recipe"]["logits"], two[0]["recipe"]["logits"])
        assert torch.equal(found["recipe"]["again"], found["recipe"]["logits"])
        assert found["recipe"]["other"].split(":")[0] == ("ProcessError" if found["rank"] else "OtherRunError")


@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_the_command_line_under_a_launcher(launch, tmp_path):
    """One process prints; SLURM's variables are those of a step of two tasks on a machine."""
    command = ["-m", "vision_wrapper", "train", "--epochs", "1", "--out", str(tmp_path / "run")]
    command += ["--set", 'model_args={"widths": [4, 8, 8, 8]}']
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if launch == "torchrun":
        start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        running = [subprocess.Popen([sys.executable, *start, *command], env=variables, stdout=-1, text=True)]
    else:
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
        running = [
            subprocess.Popen(
                [sys.executable, *command], env={**variables, **step, "SLURM_PROCID": rank}, stdout=-1, text=True
            )
            for rank in "01"
        ]
    printed = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    assert "".join(printed).count("epoch 1/1") == 1 and "".join(printed).count("report:") == 1
    assert '"processes": 2' in (tmp_path / "run" / "environment.json").read_text()


# ---- what a launcher says, and parts of batches


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "0"}, (1, 2, 0, "env://")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script: one process, before any srun
        (
            {
                "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
                "SLURM_STEP_NODELIST": "gpu[07-08,12],cpu1",
            },
            (3, 4, 1, "tcp://gpu07:18456"),
        ),
    ],
)  # fmt: skip
def test_the_place_that_a_launcher_gives(variables, expected):
    assert _place(variables) == expected


@pytest.mark.parametrize("rank, count", [("one", "2"), ("2", "2"), ("-1", "2")])
def test_no_place_in_a_group(rank, count):
    with pytest.raises(SettingError, match="The environment describes"):
        _place({"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "a", "MASTER_PORT": "1"})


@pytest.mark.parametrize("augment", ["crop_flip_cutout", "crop_flip_mixup"])
def test_parts_are_the_batch(augment):
    """No sample is in two parts, and each looks as it does in the whole batch."""
    arrays = data.from_arrays((random_images(45, 16), np.arange(45) % 3), (random_images(9, 16), np.arange(9) % 3))
    loader = data.make_loaders(arrays, augment, batch_size=16).train
    whole, parts = loader.batches(2, 1), [loader.batches(2, 1, part=(rank, 3)) for rank in range(3)]
    for (inputs, targets), *given in zip(whole, *parts, strict=True):
        assert sum(len(part) for _, part in given) == len(targets)
        for rank, (own, labels) in enumerate(given):
            assert torch.equal(own, inputs[rank::3]) and torch.equal(labels, targets[rank::3])


def test_every_other_batch():
    loader = loaders_of(4).test
    batches = list(loader.batches(0))
    for rank in range(3):
        for own, whole in zip(loader.batches(0, rank, step=3), batches[rank::3], strict=True):
            assert torch.equal(own[0], whole[0]) and torch.equal(own[1], whole[1])


def test_processes_of_a_launcher_can_go_their_own_ways(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VISION_WRAPPER_PROCESSES", "alone")
    assert join().count == 1
