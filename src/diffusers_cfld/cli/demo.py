"""`diffusers-cfld demo`: the model that comes with the package, on the images that come with it."""

from __future__ import annotations

import argparse
import logging

from ..small_model import SAMPLING_OPTIONS
from .options import add_device_option, choose_device, image_path, positive_int

logger = logging.getLogger(__name__)


def add_demo_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Subparsers of the main parser.
    """
    parser = subparsers.add_parser(
        "demo",
        help="put drawn people into other poses, with the small model that comes with the package",
        description="Put drawn people into other poses with the small model that comes with the package. This needs "
        "no network and takes less than a minute on two cores of a CPU.",
    )
    add = parser.add_argument
    output = "image to write (default %(default)s)"
    add("--output", type=image_path, default="demo.png", metavar="F", help=output)
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default %(default)s)")
    steps = SAMPLING_OPTIONS["num_inference_steps"]
    add("--steps", type=positive_int, default=steps, metavar="N", help="denoising steps (default %(default)s)")
    add_device_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_demo_parser`].

    Returns:
        0; failures raise.

    Raises:
        OSError: The image cannot be written.
        ValueError: There is no such device.
    """
    import PIL.Image
    import torch

    from ..inspection import contact_sheet
    from ..io_utils import replacing
    from ..small_model import example_poses, example_sources, load_small_model

    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipe = load_small_model().to(choose_device(args.device))
    sources, poses = example_sources(), example_poses()
    count, columns = len(sources) * len(poses), len(poses)
    (images,) = pipe(
        image=[source for source in sources for _ in poses],
        pose=poses * len(sources),
        **{**SAMPLING_OPTIONS, "num_inference_steps": args.steps},
        generator=[torch.Generator().manual_seed(args.seed + number) for number in range(count)],
        output_size=(sources[0].height, sources[0].width),
        return_dict=False,
    )
    # The first row shows the poses, the first column the sources, and the rest the results.
    rows = [[PIL.Image.new("RGB", sources[0].size, "white"), *(pose.draw() for pose in poses)]]
    labels = [["", *(f"target pose {column + 1}" for column in range(columns))]]
    for row, source in enumerate(sources):
        rows.append([source, *images[row * columns : (row + 1) * columns]])
        name = f"source {row + 1}"
        labels.append([name, *(f"{name} in pose {column + 1}" for column in range(columns))])
    with replacing(args.output, keep_suffix=True) as unfinished:
        contact_sheet(rows, labels).save(unfinished)
    logger.info("%s: each row shows the person on the left in the poses at the top.", args.output)
    return 0
