"""Time importing the package and asking the command line for help, compared with importing diffusers.

`python benchmarks/import_time.py [--repeats N]` measures these in fresh processes, alternately.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

_PROGRAMS = {
    "python": ["-c", ""],
    "import diffusers": ["-c", "import diffusers"],
    "import diffusers_cfld": ["-c", "import diffusers_cfld"],
    "diffusers-cfld --help": ["-m", "diffusers_cfld", "--help"],
    "from diffusers import StableDiffusionPipeline": ["-c", "from diffusers import StableDiffusionPipeline"],
    "from diffusers_cfld import CFLDPipeline": ["-c", "from diffusers_cfld import CFLDPipeline"],
}


def measure(program: list[str]) -> float:
    """Seconds from start to end of a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *program], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for program in _PROGRAMS.values():  # fill the disk cache
        measure(program)
    seconds: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    for _ in range(args.repeats):
        for name, program in _PROGRAMS.items():
            seconds[name].append(measure(program))
    for name, values in seconds.items():
        print(f"{name:46} {statistics.median(values):6.2f} s")


if __name__ == "__main__":
    main()
