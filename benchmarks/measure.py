"""What the benchmarks share: runs in turn, medians with quartiles, the machine, and where results are kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Each contestant's values, one a round: all run once a round, so that a noisy machine disturbs all alike."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-warm_up, rounds):
        for name, run in contestants.items():
            value = run()
            if turn >= 0:
                found[name].append(value)
                print(f"{name:32} round {turn + 1}/{rounds}  {value:,.4g}", file=sys.stderr, flush=True)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": rounded(middle), "lower": rounded(low), "upper": rounded(high), "rounds": len(values)}


def ratios(found: dict[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """Ours over each other's, round by round."""
    return {
        name: spread([a / b for a, b in zip(found[ours], values, strict=True)])
        for name, values in found.items()
        if name != ours
    }


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def save(name: str, result: dict[str, Any]) -> None:
    """Keep a result with the machine it is of, and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**result, "machine": machine()}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def filled(page: str, name: str, lines: Iterable[str]) -> str:
    """A page with its generated part, between the comments `name: begin` and `name: end`, written anew."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.split(begin)
    return before + "\n".join([begin, "", *lines, "", end]) + rest.split(end)[1]


def refuse_unknown(parser: argparse.ArgumentParser, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """End the command where one of the names is not known, and say which are near."""
    from vision_wrapper._lookup import check_names
    from vision_wrapper.errors import UnknownNameError

    try:
        check_names(kind, names, known)
    except UnknownNameError as error:
        parser.error(str(error))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    import vision_wrapper
    from vision_wrapper.trainer.precision import cpu_has_bf16

    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": cpu_has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vision_wrapper": vision_wrapper.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """The commit, and whether code was changed since then."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    return commit + (", changed" if commit and git("status", "--porcelain", "--", "*.py", "*.cpp").stdout else "")
