"""Time drawing a pose map against evaluating its Gaussians pixel by pixel.

The baseline is what data sets for pose transfer usually do: for every joint, compute the squared distance and the
exponential over the whole map, in float64. It draws no skeleton and is still slower; `render_pose_map` is timed with
everything. Both run alternately in one process, and their medians are compared, after checking that the maps agree.

    python benchmarks/pose_map.py --height 256 --width 256 --repeats 50
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.processors.pose_map import render_pose_map

# Somebody standing, seen from the front: (x, y) in an image of 256x176 (height x width) pixels.
STANDING = Keypoints.from_array(
    [
        [88, 26], [88, 50], [66, 52], [58, 88], [52, 118], [110, 52], [118, 90], [124, 120], [74, 118],
        [72, 170], [70, 222], [102, 118], [104, 170], [106, 224], [82, 21], [94, 21], [74, 25], [102, 25],
    ]
)  # fmt: skip


def evaluate_gaussians(keypoints: Keypoints, size: tuple[int, int]) -> np.ndarray:
    """Evaluate all heat maps on the full grid; returns (18, H, W), float64."""
    height, width = size
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    heat_maps = np.zeros((len(keypoints.xy), height, width))
    for joint, (x, y) in enumerate(np.trunc(keypoints.rescale(size).xy)):
        if keypoints.visible[joint]:
            heat_maps[joint] = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 6**2))
    return heat_maps


def main() -> None:
    """Check that both agree, time them and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    size = (arguments.height, arguments.width)

    difference = float(np.abs(render_pose_map(STANDING, size)[3:] - evaluate_gaussians(STANDING, size)).max())
    if difference > 1e-6:
        raise SystemExit(f"The heat maps differ by {difference:.2g}.")

    seconds: dict[str, list[float]] = {"render_pose_map": [], "18 full-frame Gaussians": []}
    for _ in range(arguments.repeats):
        for name, function in zip(seconds, (render_pose_map, evaluate_gaussians), strict=True):
            start = time.perf_counter()
            function(STANDING, size)
            seconds[name].append(time.perf_counter() - start)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"pose map of {size[0]} x {size[1]}, {arguments.repeats} repeats, heat maps agree to {difference:.1e}")
    for name, median in medians.items():
        print(f"{name:>24}: {1e3 * median:8.3f} ms")
    print(f"{'ratio':>24}: {medians['18 full-frame Gaussians'] / medians['render_pose_map']:8.1f} x")


if __name__ == "__main__":
    main()
