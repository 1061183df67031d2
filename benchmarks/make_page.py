"""Write docs/benchmarks.md from benchmarks/results: python benchmarks/make_page.py

Nothing is measured here. A benchmark whose result is missing is listed as not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

How fast this library is, beside others and beside a bare loop, and what it does not reach. Each table is of one run of
one command, in which all that is compared took turns: the machines were shared and noisy, so **ratios say more than
rates**, and a spread is given as quartiles. A ratio is the median of the rounds' ratios, which need not be the quotient
of the two medians. The page is written by `python benchmarks/make_page.py` from the records in `benchmarks/results`;
`benchmarks/requirements.txt` lists what the others need.
"""


def spread(values: dict[str, float]) -> str:
    """median (lower to upper quartile)."""
    return f"{number(values['median'])} ({number(values['lower'])} to {number(values['upper'])})"


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def target(text: str, reached: float, holds: bool) -> str:
    return f"- {text}: **{number(reached)}**, {'met' if holds else 'not met'}."


# ---- a section a benchmark


def overhead(found: dict[str, Any]) -> Iterator[str]:
    yield "A step of `Trainer.fit` and the shortest step that trains, which keeps neither losses nor hits, in turn,"
    yield "step by step, on one thread. Microseconds, of a network of two layers:\n"
    small, large = found["two layers, microseconds"], found["custom ResNet, percent more"]
    yield from table(tuple(["", *small]), [("µs", *(spread(values) for values in small.values()))])
    yield f"Of the custom ResNet, in percent more: {spread(large)}.\n"
    median = small["more"]["median"]
    yield target("At most 50 µs a step more on two layers (median)", median, median <= 50)
    median = large["median"]
    yield target("At most 1% more on the custom ResNet (median)", median, median <= 1)


def training(found: dict[str, Any]) -> Iterator[str]:
    yield f"Images a second, custom ResNet, {found['steps a round']} steps a round in batches of {found['batch size']}"
    yield "of 32x32, each library in a process of its own.\n"
    ours = found["ours over theirs"]
    rows = [
        (name, spread(values), spread(ours[name]) if name in ours else "")
        for name, values in found["images a second"].items()
    ]
    yield from table(("", "images a second", "ours over theirs"), rows)


def training_defaults(found: dict[str, Any]) -> Iterator[str]:
    yield "Everybody as its documentation shows it: images in memory, crop and flip (torchvision's for the others)."
    yield from training(found)
    least = min(values["median"] for values in found["ours over theirs"].values())
    yield target("Ahead of every one (least ratio)", least, least > 1)
    plain = found["ours over theirs"]["plain PyTorch"]["median"]
    if found["machine"]["bf16"]:
        yield target("At least 4 times plain PyTorch on a CPU with AMX", plain, plain >= 4)
    else:
        yield "- At least 4 times plain PyTorch on a CPU with AMX: not measured, this machine has none;"
        yield f"  **{plain:.3g}** here, by channels_last, kept memory and batches made whole."


def training_tuned(found: dict[str, Any]) -> Iterator[str]:
    yield "Everybody alike: ready batches in channels_last, the same allocator settings, bf16 where the machine has it."
    yield from training(found)
    behind = [name for name, ratio in found["ours over theirs"].items() if ratio["upper"] < 1]
    yield f"- Behind none beyond the interval: **{'met' if not behind else 'not met, behind ' + ', '.join(behind)}**."


def matrix_rate(found: dict[str, Any]) -> Iterator[str]:
    yield f"Training of the custom ResNet in {found['precision']}, batches of {found['batch size']}, against the best"
    yield "of three sizes of matrix product in the same format.\n"
    rates = found["GFLOP/s"]
    row = ("GFLOP/s", spread(rates["product"]), spread(rates["training"]), spread(found["share"]))
    yield from table(("", "matrix product", "training", "share"), [row])


def winograd(found: dict[str, Any]) -> Iterator[str]:
    yield "What `measure_recipes.py --winograd` convolves with on CPUs; the package does not use it. Differences from"
    yield "float64, as parts of its values, of outputs, gradients of inputs and of filters (root mean squares); time of"
    yield "forward and backward over that of torch's convolution in the same precision.\n"
    rows = []
    for precision, layers in found["layers"].items():
        for layer, measured in layers.items():
            differences = (
                ", ".join(f"{value:.1e}" for value in measured["differences"][way]) for way in ("Winograd", "torch")
            )
            rows.append((precision, layer, *differences, spread(measured["seconds_of_torch"])))
    yield from table(("precision", "channels", "Winograd", "torch", "time"), rows)
    steps = "; ".join(f"in {precision} {spread(ratio)}" for precision, ratio in found["step_of_torch"].items())
    yield f"\nTime of a training step of the custom ResNet over that with torch's convolutions: {steps}."


def input_pipelines(found: dict[str, Any]) -> Iterator[str]:
    yield "Images a second of processor time, one thread. Images in memory become normalised float batches of 512:\n"
    rows = []
    for name, chain in found["images of 32x32 in memory"].items():
        rates, ours = chain["images a second"], chain["ours over theirs"]
        others = [f"{spread(ours[other])} over {other}" for other in ours]
        rows.append((f"`{name}`", spread(rates["whole batches"]), "; ".join(others)))
    yield from table(("augmentation", "whole batches", "times as many"), rows)
    cutout = found["images of 32x32 in memory"]["crop_flip_cutout"]["ours over theirs"]["albumentations"]["median"]
    yield target("At least 10 times albumentations on `crop_flip_cutout`", cutout, cutout >= 10)
    yield '\nJPEG photographs, decoded and resized to 224x224 ("skipping" takes single pixels where others average):\n'
    files = found["photographs to 224x224"]
    names = list(next(iter(files.values()))["images a second"])
    rows = [
        (name, *(spread(each["images a second"][name]) for each in files.values()))
        for name in names
    ]  # fmt: skip
    yield from table(("", *files), rows)
    for size, each in files.items():
        ratios = {n: r for n, r in each["ours over theirs"].items() if n not in ("from the cache",)}
        best = min(ratios, key=lambda n: ratios[n]["median"])
        ratio = ratios[best]
        yield target(
            f"At least as fast as the best of the others at {size} ({best}), ratio {spread(ratio)}",
            ratio["median"],
            ratio["median"] >= 1,
        )


def tools(found: dict[str, Any]) -> Iterator[str]:
    yield "Seconds, custom ResNet on random images of 32x32.\n"
    yield from table(("", "seconds"), [(name, spread(values)) for name, values in found["seconds"].items()])


def start(found: dict[str, Any]) -> Iterator[str]:
    yield "Milliseconds, each in a new process; of the imports, the time of an empty process is taken off.\n"
    yield from table(("", "ms"), [(name, spread(values)) for name, values in found["milliseconds"].items()])
    median = found["milliseconds"]["import vision_wrapper"]["median"]
    yield target("`import vision_wrapper` under 50 ms", median, median < 50)
    median = found["milliseconds"]["vision-wrapper --help"]["median"]
    yield target("`vision-wrapper --help` under 300 ms", median, median < 300)


def memory(found: dict[str, Any]) -> Iterator[str]:
    for what, sizes in (("Folders", found["folders"]), ("Arrays", found["arrays"])):
        columns = next(iter(sizes.values())).keys()
        rows = [(name, *(number(values[column]) for column in columns)) for name, values in sizes.items()]
        yield from table((what, *columns), rows)
    peaks = found["peak of training steps, MB"]
    yield f"Three steps of the custom ResNet in batches of 128 take {number(peaks['fit'])} MB more by `fit` and"
    yield f"{number(peaks['bare loop'])} MB more by a bare loop.\n"


def speedrun(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        (name, spread(values["seconds"]), f"{values['mean accuracy']:.2%}", str(values["runs"]))
        for name, values in found.items()
        if name != "machine"
    ]
    yield from table(("", "seconds of training", "mean accuracy", "runs"), rows)


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], Iterator[str]]]] = {
    "training_defaults": ("Training, at everybody's defaults", training_defaults),
    "training_tuned": ("Training, everybody tuned alike", training_tuned),
    "overhead": ("What fit costs over a bare loop", overhead),
    "matrix_rate": ("Share of the machine's matrix rate", matrix_rate),
    "input_pipelines": ("Input pipelines", input_pipelines),
    "memory": ("Memory, as data grow", memory),
    "tools": ("Tools around training", tools),
    "start": ("Starting", start),
    "speedrun": ("Seconds to 94% on a GPU", speedrun),
    "winograd": ("Convolutions of long measurements on a CPU", winograd),
}


def section(name: str) -> Iterator[str]:
    title, write = SECTIONS[name]
    yield f"\n## {title}\n"
    how = name.replace("_", " ") if name.startswith("training") else name
    command = f"python benchmarks/{how.replace('training ', 'training.py ') if name != how else how + '.py'}"
    path = RESULTS / f"{name}.json"
    if not path.exists():
        yield f"Not measured yet: `{command}` needs a machine that was not at hand."
        return
    found = json.loads(path.read_text())
    yield from write(found)
    machine = found["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    yield f"\n`{command}`: {machine['date']}, {machine['processor']}, {machine['cores']} cores{gpu}, torch"
    yield f"{machine['torch']}, Python {machine['python']}, commit {machine['commit']}."


def page() -> str:
    lines = [INTRODUCTION.rstrip("\n")]
    for name in SECTIONS:
        lines += section(name)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
