"""What `import diffusers_cfld` costs beside `import torch, diffusers`, in fresh processes side by side.

`python benchmarks/import_time.py [--repeats N]`
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

_STATEMENTS = {
    "torch, diffusers": "import torch, diffusers",
    "torch, diffusers, diffusers_cfld": "import torch, diffusers, diffusers_cfld",
    "diffusers.StableDiffusionPipeline": "from diffusers import StableDiffusionPipeline",
    "diffusers_cfld.CFLDPipeline": "from diffusers_cfld import CFLDPipeline",
}
_TIMER = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def measure(statement: str) -> float:
    """Seconds that a statement takes in a fresh interpreter."""
    command = [sys.executable, "-c", _TIMER.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in _STATEMENTS}
    for statement in _STATEMENTS.values():  # fill the disk cache
        measure(statement)
    for _ in range(args.repeats):
        for name, statement in _STATEMENTS.items():
            seconds[name].append(measure(statement))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:36} {median:6.2f} s")
    for name, ours, theirs in (
        ("package over torch and diffusers", "torch, diffusers, diffusers_cfld", "torch, diffusers"),
        (
            "CFLDPipeline over StableDiffusionPipeline",
            "diffusers_cfld.CFLDPipeline",
            "diffusers.StableDiffusionPipeline",
        ),
    ):
        print(f"{name}: {medians[ours] / medians[theirs]:.2f}x")


if __name__ == "__main__":
    main()
