"""How soon the library answers: python benchmarks/start.py

Each is a new process; the time of an empty one is taken off `import`, and not off `--help`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from measure import in_turn, save, spread

ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import vision_wrapper": ["-c", "import vision_wrapper"],
    "import torch": ["-c", "import torch"],
    "vision-wrapper --help": ["-m", "vision_wrapper", "--help"],
    "vision-wrapper recipes": ["-m", "vision_wrapper", "recipes"],
}


def milliseconds(arguments: list[str]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return 1000 * (time.perf_counter() - started)

    return run


def main() -> None:
    found = in_turn({name: milliseconds(arguments) for name, arguments in COMMANDS.items()}, ROUNDS)
    empty = found.pop("python -c pass")
    for name in ("import vision_wrapper", "import torch"):
        found[name] = [v - e for v, e in zip(found[name], empty, strict=True)]
    save("start", {"milliseconds": {name: spread(values) for name, values in found.items()}})


if __name__ == "__main__":
    main()
