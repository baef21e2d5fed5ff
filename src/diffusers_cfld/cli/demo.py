"""`diffusers-cfld demo`: the model that comes with the package, on the pictures that come with it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .running import best_device, check_picture_name, save_image, seeded_generators

if TYPE_CHECKING:
    import PIL.Image

logger = logging.getLogger(__name__)

_MARGIN, _HEADING = 8, 20  # pixels
_BACKGROUND, _INK = (255, 255, 255), (40, 40, 40)


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
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (default %(default)s)")
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

    if args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}.")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must be at least 0 and below 2**63, got {args.seed}.")
    check_picture_name(args.output)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    pipe = load_small_model().to(args.device or best_device())
    sources, poses = example_sources(), example_poses()
    results = pipe(
        image=[source for source in sources for _ in poses],
        pose=poses * len(sources),
        num_inference_steps=args.steps,
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
    import PIL.ImageDraw
    import PIL.ImageFont

    width, height = sources[0].size
    step = (width + _MARGIN, height + _HEADING + _MARGIN)
    sheet = PIL.Image.new(
        "RGB", (_MARGIN + (len(poses) + 1) * step[0], _MARGIN + (len(sources) + 1) * step[1]), _BACKGROUND
    )
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=14)

    def place(row: int, column: int, picture: PIL.Image.Image, label: str) -> None:
        left, top = _MARGIN + column * step[0], _MARGIN + row * step[1]
        draw.text((left + width // 2, top + _HEADING - 4), label, _INK, font, anchor="ms")
        sheet.paste(picture.resize((width, height)), (left, top + _HEADING))

    for column, pose in enumerate(poses, start=1):
        place(0, column, pose, f"target pose {column}")
    for row, (source, made) in enumerate(zip(sources, results, strict=True), start=1):
        place(row, 0, source, f"source {row}")
        for column, picture in enumerate(made, start=1):
            place(row, column, picture, f"source {row} in pose {column}")
    return sheet
