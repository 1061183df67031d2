"""Several processes that train together: on CPUs, with torch's gloo."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import random_images
from process_runs import (
    WithoutLength,
    free_port,
    loaders_of,
    lr_curve,
    network,
    run_together,
    three_processes,
    trained,
    trainer_of,
    two_processes,
    whole_batches,
)

from vision_wrapper import data, recipes
from vision_wrapper._distributed import _place, join
from vision_wrapper.errors import OtherRunError, ProcessError, SettingError


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
