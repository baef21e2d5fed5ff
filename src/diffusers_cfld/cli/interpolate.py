"""`diffusers-cfld interpolate`: go from one person's appearance to another's, as in the paper's figure 6b."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from .inputs import Inputs, add_common_options, add_pose_options
from .options import image_path, load_pipeline, positive_int, sampling_arguments

logger = logging.getLogger(__name__)


def add_interpolate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Subparsers of the main parser.
    """
    parser = subparsers.add_parser(
        "interpolate",
        help="go from one person's appearance to another's in one pose",
        description="Make a strip of images that goes from one person's appearance to another's in one pose, all with "
        "the same noise.",
    )
    add = parser.add_argument
    add("--image", required=True, nargs=2, metavar=("F", "G"), help="the two source images")
    add("--pose", required=True, metavar="F", help="target pose, as for generate")
    add_pose_options(parser)
    add("--pose-row", metavar="NAME", help="name of the image to read from a CSV or COCO file with several")
    add("--num-images", type=positive_int, default=7, metavar="N", help="images in the strip (default %(default)s)")
    add("--only", choices=("prompt", "biases"), help="interpolate only the coarse prompt or the fine query biases")
    output = "image to write (default %(default)s)"
    add("--output", type=image_path, default="interpolation.png", metavar="F", help=output)
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default %(default)s)")
    add("--batch-size", type=positive_int, default=4, metavar="N", help="images at once (default %(default)s)")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_interpolate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: An option needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: A file does not have the right content, or options contradict each other.
    """
    import torch

    from ..inspection import contact_sheet
    from ..io_utils import replacing
    from ..pipelines.pipeline_output import Appearance

    inputs = Inputs(args)
    target, *others = inputs.read_poses([args.pose])
    if others:
        raise ValueError(f"--pose must be a single pose, got {1 + len(others)}.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline(args)
    (first_window, body), (second_window, _) = inputs.fit_sources(pipe)
    (pose,) = inputs.fit_poses(pipe, [target.keypoints], body, target.is_estimated)
    first, second = inputs.crop(0, first_window), inputs.crop(1, second_window)
    start, end = pipe.encode_appearance(first), pipe.encode_appearance(second)
    weights = [number / max(args.num_images - 1, 1) for number in range(args.num_images)]
    prompt, bias = args.only != "biases", args.only != "prompt"
    appearances = [start.lerp(end, one, prompt_weight=prompt * one, bias_weight=bias * one) for one in weights]
    images: Any
    (images,) = pipe(
        appearance=Appearance.cat(appearances),
        pose=pipe.encode_pose(pose),
        generator=[torch.Generator().manual_seed(args.seed) for _ in weights],
        micro_batch_size=args.batch_size,
        return_dict=False,
        **sampling_arguments(args, pipe),
    )
    size = images[0].size
    labels = ["first", *(f"{weight:.2f}" for weight in weights), "second"]
    strip = contact_sheet([[first.resize(size), *images, second.resize(size)]], [labels])
    with replacing(args.output, keep_suffix=True) as unfinished:
        strip.save(unfinished)
    logger.info("%s: %d images from %s to %s.", args.output, args.num_images, *args.image)
    return 0
