"""`diffusers-cfld demo`: the model that comes with the package, on the pictures that come with it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..small_model import SAMPLING_OPTIONS
from .options import (
    best_device,
    check_at_least,
    check_picture_name,
    check_seed,
    place,
    save_image,
    seeded_generators,
)

if TYPE_CHECKING:
    import PIL.Image

logger = logging.getLogger(__name__)


def add_demo_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Of the parser of all commands.
    """
    parser = subparsers.add_parser(
        "demo",
        help="put drawn people into other poses, with the small model that comes with the package",
        description="Put drawn people into other poses with the small model that comes with the package. Needs no "
        "network and less than a minute on two cores of a CPU.",
    )
    parser.add_argument(
        "--output", default="demo.png", metavar="F", help="where the grid of pictures goes (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default %(default)s)")
    steps = SAMPLING_OPTIONS["num_inference_steps"]
    parser.add_argument("--steps", type=int, default=steps, metavar="N", help="denoising steps (default %(default)s)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_demo_parser`].

    Returns:
        0; failures raise.

    Raises:
        OSError: The picture cannot be written.
        ValueError: An argument is out of range.
    """
    from ..small_model import example_poses, example_sources, load_small_model

    check_at_least(args, steps=1)
    check_seed(args.seed)
    check_picture_name(args.output)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    pipe: Any = place(load_small_model(), args.device or best_device())
    sources, poses = example_sources(), example_poses()
    results = pipe(
        image=[source for source in sources for _ in poses],
        pose=poses * len(sources),
        **{**SAMPLING_OPTIONS, "num_inference_steps": args.steps},
        generator=seeded_generators(args.seed, 0, len(sources) * len(poses)),
        output_size=sources[0].size[::-1],
    ).images
    rows = [results[first : first + len(poses)] for first in range(0, len(results), len(poses))]
    save_image(_grid(sources, [pose.draw() for pose in poses], rows), output)
    logger.info("%s: each row has a photo (left) in the poses above.", output)
    return 0


def _grid(
    sources: Sequence[PIL.Image.Image],
    poses: Sequence[PIL.Image.Image],
    results: Sequence[Sequence[PIL.Image.Image]],
) -> PIL.Image.Image:
    """Lay out the poses in the first row, the sources in the first column and the results between."""
    import PIL.Image

    from ..inspection.heat_maps import contact_sheet

    corner = PIL.Image.new("RGB", sources[0].size, "white")
    rows = [[corner, *poses], *([source, *made] for source, made in zip(sources, results, strict=True))]
    columns = range(1, len(poses) + 1)
    labels = [["", *(f"target pose {column}" for column in columns)]]
    for row in range(1, len(sources) + 1):
        labels.append([f"source {row}", *(f"source {row} in pose {column}" for column in columns)])
    return contact_sheet(rows, labels)
