"""`diffusers-cfld animate`: one person through a sequence of poses."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

from .inputs import Inputs, add_common_options, add_pose_options
from .options import load_pipeline, naming, positive_float, positive_int, sampling_arguments

logger = logging.getLogger(__name__)


def add_animate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Subparsers of the main parser.
    """
    parser = subparsers.add_parser(
        "animate",
        help="move the person of an image through a sequence of poses",
        description="Move the person of an image through a sequence of poses. Every frame is written as soon as it is "
        "made, and an interrupted run continues where it stopped.",
    )
    add = parser.add_argument
    add("--image", required=True, metavar="F", help="source image, or sample for a drawn person")
    add(
        "--poses",
        required=True,
        metavar="F",
        help="the sequence: .json, .jsonl or .npy, a folder of OpenPose's .json files or of images, or a video, of "
        "drawn skeletons or, with --pose-estimator, of people",
    )
    add_pose_options(parser)
    add(
        "--output",
        type=animation_path,
        default="animation.gif",
        metavar="F",
        help=".gif, .mp4, or a folder for frames only (default %(default)s)",
    )
    frames = "folder for the frames (default: --output if it is a folder, else OUTPUT-frames)"
    add("--frames", metavar="DIR", help=frames)
    overwrite = "replace the frames of another sequence (default: refuse)"
    add("--overwrite", action="store_true", help=overwrite)
    add("--fps", type=positive_float, default=12.0, metavar="X", help="frames per second (default %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default %(default)s)")
    add(
        "--shared-noise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give all frames the same noise, which reduces flicker (default: yes)",
    )
    add("--batch-size", type=positive_int, default=4, metavar="N", help="frames to make at once (default %(default)s)")
    add_common_options(parser)
    parser.set_defaults(run=run)


def animation_path(text: str) -> Path:
    """Check the path of an animation or of the folder for its frames.

    Args:
        text: Value of `--output`.

    Returns:
        The path.

    Raises:
        argparse.ArgumentTypeError: The path has another suffix.
    """
    path = Path(text)
    if path.suffix.lower() not in ("", ".gif", ".mp4"):
        raise argparse.ArgumentTypeError(f"must end in .gif or .mp4, or be a folder for frames, got {text!r}")
    return path


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_animate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: An option needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: A file does not have the right content, or options contradict each other.
    """
    from tqdm import tqdm

    from ..sequences import load_pose_sequence, render_sequence, write_animation

    output = args.output
    frames = Path(args.frames or (output.with_name(f"{output.stem}-frames") if output.suffix else output))
    inputs = Inputs(args)
    with naming("--poses", "--pose-frame and --pose-person"):
        poses = load_pose_sequence(args.poses, args.pose_frame, args.pose_person, estimator=inputs.estimator)
    pipe = load_pipeline(args)
    ((window, body),) = inputs.fit_sources(pipe)
    pipe.set_progress_bar_config(disable=True)
    if args.overwrite and (frames / "sequence.json").is_file():
        for path in (*frames.glob("*.png"), frames / "sequence.json"):
            if path.suffix == ".json" or re.fullmatch(r"\d{6,}", path.stem):
                path.unlink()
    made = render_sequence(
        pipe,
        inputs.fit_poses(pipe, poses, body),
        frames,
        image=inputs.crop(0, window),
        seed=args.seed,
        shared_noise=args.shared_noise,
        micro_batch_size=args.batch_size,
        **sampling_arguments(args, pipe),
    )
    paths = list(tqdm(made, total=len(poses), unit="frame"))
    if output.suffix:
        write_animation(paths, output, args.fps)
    logger.info("%s: %d frames, saved in %s.", output, len(paths), frames)
    return 0
