"""`diffusers-cfld interpolate`: from one person's appearance to another's, as in the paper's figure 6b."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from .inputs import (
    SourcePhotos,
    add_pose_options,
    add_target_options,
    bring_into_frame,
    check_source_options,
    check_target_options,
    crop_source,
    fit_sources,
    load_estimator,
    read_target,
)
from .options import (
    add_model_options,
    add_sampling_options,
    check_at_least,
    check_picture_name,
    check_seed,
    load_pipeline,
    output_size,
    sampling_arguments,
    save_image,
)

logger = logging.getLogger(__name__)


def add_interpolate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Of the parser of all commands.
    """
    parser = subparsers.add_parser(
        "interpolate",
        help="go from one person's appearance to another's in one pose",
        description="Make the strip of pictures that goes from one person's appearance to another's in one pose, with "
        "one noise for all of them.",
    )
    parser.add_argument("--image", required=True, nargs=2, metavar=("F", "G"), help="the two source photos")
    parser.add_argument("--pose", required=True, metavar="F", help="target pose, as of generate")
    add_target_options(parser)
    parser.add_argument("--frames", type=int, default=7, metavar="N", help="pictures between (default %(default)s)")
    parser.add_argument(
        "--only",
        choices=("prompt", "biases"),
        help="interpolate the coarse prompt or the fine query biases alone, the other stays the first person's",
    )
    parser.add_argument(
        "--output", default="interpolation.png", metavar="F", help="where the strip goes (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="pictures at once (default %(default)s)"
    )
    add_pose_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_interpolate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: `--scheduler` or `--pose-estimator` needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: An argument is out of range or a file does not hold what it should.
    """
    import torch

    from ..inspection.heat_maps import contact_sheet
    from ..pipelines.pipeline_output import Appearance
    from ..pose.alignment import align_pose

    sampling = sampling_arguments(args)
    check_seed(args.seed)
    check_picture_name(args.output)
    check_at_least(args, frames=2, batch_size=1)
    photos = SourcePhotos(args.image)
    first, second = photos
    estimator = load_estimator(args)
    check_source_options(args, len(args.image), estimator)
    check_target_options(args, [args.pose])
    pose = read_target(args, args.pose, estimator)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)

    pipe = load_pipeline(args)
    (first_frame, first_pose), (second_frame, _) = fit_sources(args, photos, estimator, pipe)
    if args.align and first_pose is not None:
        pose = align_pose(pose, first_pose)
    else:
        (pose,) = bring_into_frame([pose], pipe, args.pose)
    first, second = crop_source(args, first, first_frame), crop_source(args, second, second_frame)
    ends = pipe.encode_appearance(first), pipe.encode_appearance(second)
    weights = [number / (args.frames - 1) for number in range(args.frames)]
    between = Appearance.cat(
        [
            ends[0].lerp(
                ends[1],
                weight,
                prompt_weight=0.0 if args.only == "biases" else weight,
                bias_weight=0.0 if args.only == "prompt" else weight,
            )
            for weight in weights
        ]
    )
    sampling["output_size"] = output_size(pipe, args)
    pictures: Any = pipe(
        appearance=between,
        pose=pipe.encode_pose(pose),
        generator=[torch.Generator().manual_seed(args.seed) for _ in weights],
        micro_batch_size=args.batch_size,
        **sampling,
        return_dict=False,
    )[0]
    labels = ["first", *(f"{weight:.2f}" for weight in weights), "second"]
    size = pictures[0].size
    strip = contact_sheet([[first.resize(size), *pictures, second.resize(size)]], [labels])
    save_image(strip, output)
    logger.info("%s: %d pictures between %s and %s.", output, args.frames, *args.image)
    return 0
