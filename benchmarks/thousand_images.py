"""Make 1,000 images with `diffusers-cfld generate` and the small model, and print the memory after every 100.

    python benchmarks/thousand_images.py [--images N] [--batch-size N] [--steps N]

Each pair has its own source and pose. The memory is what is resident of the process, which only Linux tells.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from diffusers_cfld.cli import main as run_command
from diffusers_cfld.small_model import example_poses, example_sources


class MemoryLog(logging.Handler):
    """Print a line for every tenth of the images that the command says it has written."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images, self.written, self.start = images, 0, time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count an image."""
        self.written += 1
        if self.written % max(1, self.images // 10) == 0:
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
            minutes = (time.perf_counter() - self.start) / 60
            print(f"| {self.written} | {int(resident[1]) / 1024:.0f} MiB | {minutes:.1f} min |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pairs, run the command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, metavar="N")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--steps", type=int, default=1, metavar="N")
    args = parser.parse_args(arguments)
    logging.getLogger("diffusers_cfld.cli.generate").addHandler(MemoryLog(args.images))
    sources, poses = example_sources(), example_poses()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = []
        for number in range(args.images):
            pairs.append((folder / f"source-{number}.jpg", folder / f"pose-{number}.json"))
            sources[number % len(sources)].rotate(number % 7 - 3, fillcolor="white").save(pairs[-1][0])
            pairs[-1][1].write_text(json.dumps(poses[number % len(poses)].to_openpose()))
        print("| images | memory | since the start |\n|---|---|---|")
        options = ["--seed=0", f"--steps={args.steps}", f"--batch-size={args.batch_size}", "--device=cpu"]
        files = ["--image", *(str(pair[0]) for pair in pairs), "--pose", *(str(pair[1]) for pair in pairs)]
        return run_command(["generate", *options, f"--output={folder / 'out.png'}", *files])


if __name__ == "__main__":
    raise SystemExit(main())
