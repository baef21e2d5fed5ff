"""`diffusers-cfld animate`: one person through a sequence of poses."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .inputs import (
    SourcePhotos,
    add_pose_options,
    bring_into_frame,
    check_source_options,
    crop_source,
    fit_sources,
    load_estimator,
    naming_options,
)
from .options import (
    add_model_options,
    add_sampling_options,
    check_at_least,
    check_seed,
    load_pipeline,
    output_size,
    sampling_arguments,
)

logger = logging.getLogger(__name__)


def add_animate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Of the parser of all commands.
    """
    parser = subparsers.add_parser(
        "animate",
        help="move the person of a photo through a sequence of poses",
        description="Move the person of a photo through a sequence of poses. Every frame is written as soon as it is "
        "made; an interrupted run goes on where it stopped.",
    )
    parser.add_argument("--image", required=True, metavar="F", help="source photo")
    parser.add_argument(
        "--poses",
        required=True,
        metavar="F",
        help="the sequence: .jsonl with a pose per line, a folder of OpenPose JSON files, or .npy of (T, 18, 2 or 3)",
    )
    parser.add_argument(
        "--pose-frame",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the pictures that the keypoints were measured on, if the files do not say; poses on "
        "another shape than the model's photos are brought into it together, around the person",
    )
    parser.add_argument("--pose-person", type=int, metavar="N", help="which person of OpenPose files, from 0")
    parser.add_argument(
        "--output",
        default="animation.gif",
        metavar="F",
        help=".gif, .mp4, or a folder for frames alone (default %(default)s)",
    )
    parser.add_argument("--frames", metavar="DIR", help="folder of the frames (default: OUTPUT's name with -frames)")
    parser.add_argument("--fps", type=float, default=12.0, metavar="X", help="frames per second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default %(default)s)")
    parser.add_argument(
        "--shared-noise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the same noise in all frames, which flickers less (default: yes)",
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="frames at once (default %(default)s)")
    add_pose_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_animate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: `--scheduler` or `--pose-estimator` needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: An argument is out of range or a file does not hold what it should.
    """
    from tqdm import tqdm

    from ..pose.alignment import align_pose
    from ..sequences import load_pose_sequence, render_sequence, write_animation

    sampling = sampling_arguments(args)
    check_seed(args.seed)
    output = Path(args.output)
    is_animation = output.suffix.lower() in (".gif", ".mp4")
    if output.suffix and not is_animation:
        raise ValueError(f"--output must end in .gif or .mp4, or be a folder for frames, got {args.output!r}.")
    check_at_least(args, batch_size=1)
    frames_dir = Path(args.frames) if args.frames else output.with_name(f"{output.stem}-frames")
    if not is_animation:
        if args.frames:
            raise ValueError(f"--frames is for an --output in .gif or .mp4; {args.output!r} is a folder of frames.")
        frames_dir = output

    photos = SourcePhotos([args.image])
    photo = photos[0]
    frame = tuple(args.pose_frame) if args.pose_frame else None
    with naming_options():
        poses = load_pose_sequence(args.poses, frame, args.pose_person)
    estimator = load_estimator(args)
    check_source_options(args, 1, estimator)
    pipe = load_pipeline(args)
    ((photo_frame, source_pose),) = fit_sources(args, photos, estimator, pipe)
    body = source_pose if args.align else None
    poses = bring_into_frame(poses, pipe) if body is None else align_pose(poses, body)
    sampling["output_size"] = output_size(pipe, args)
    pipe.set_progress_bar_config(disable=True)
    frames = render_sequence(
        pipe,
        poses,
        frames_dir,
        image=crop_source(args, photo, photo_frame),
        seed=args.seed,
        shared_noise=args.shared_noise,
        micro_batch_size=args.batch_size,
        **sampling,
    )
    paths = list(tqdm(frames, total=len(poses), unit="frame"))
    if is_animation:
        write_animation(paths, output, args.fps)
    logger.info("%s: %d frames, each in %s.", output, len(paths), frames_dir)
    return 0
