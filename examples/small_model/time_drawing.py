"""Measure how long it takes to draw a figure, and a pair of figures.

It uses one process and one thread. CPU time is shown beside elapsed time because it depends less on what else runs.

    python examples/small_model/time_drawing.py --height 128 --width 88 --count 200
"""

from __future__ import annotations

import argparse
import time

import cv2
from drawn_figures import DrawnFigures


def main() -> None:
    """Draw `count` people once each and print milliseconds and figures per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=88)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    size = (arguments.height, arguments.width)
    figures = DrawnFigures(arguments.count + 1, poses_per_identity=2, size=size)
    figures.draw(arguments.count, 0)

    def make_up(index: int) -> None:
        figures.identity(index)
        figures.pose(index, 0)

    print(f"{arguments.count} figures of {size[0]} x {size[1]} (height x width), one thread")
    tasks = {
        "identity and pose alone": make_up,
        "one image": lambda index: figures.draw(index, 0),
        "one pair (an item)": lambda index: figures[2 * index],
    }
    for name, task in tasks.items():
        wall, cpu = time.perf_counter(), time.process_time()
        for index in range(arguments.count):
            task(index)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        milliseconds = [1e3 * seconds / arguments.count for seconds in (wall, cpu)]
        print(
            f"{name:>24}: {milliseconds[0]:7.2f} ms, CPU {milliseconds[1]:7.2f} ms, "
            f"{arguments.count / cpu:8.0f} per CPU second"
        )


if __name__ == "__main__":
    main()
