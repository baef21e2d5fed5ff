"""`diffusers-cfld generate`: put the people of source images into other poses."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path

from ..small_model import SMALL_MODEL
from .inputs import Inputs, add_common_options, add_pose_options
from .options import image_path, load_pipeline, naming, positive_int, sampling_arguments

logger = logging.getLogger(__name__)

# Options that do not change the images, and the model, which the note has separately.
_NOT_NOTED = {"model", "resume", "batch_size", "device", "offload", "token", "local_files_only"}


def add_generate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Subparsers of the main parser.
    """
    parser = subparsers.add_parser(
        "generate",
        help="put the person of an image into another pose",
        description="Put the person of an image into another pose. You can give one image with several poses, several "
        "images with one pose, or as many images as poses, which are then paired in order.",
    )
    add = parser.add_argument
    add(
        "--image",
        required=True,
        nargs="+",
        metavar="F",
        help="source image(s): files or URLs; sample is a drawn person",
    )
    add(
        "--pose",
        required=True,
        nargs="+",
        metavar="F",
        help="target pose(s): keypoint files, drawn skeletons, images of people (with --pose-estimator), folders and "
        "videos of these, or sample",
    )
    add_pose_options(parser)
    add("--pose-row", metavar="NAME", help="name of the image to read from a CSV or COCO file with several")
    add(
        "--output",
        type=image_path,
        default="output.png",
        metavar="F",
        help="image to write (default %(default)s); if there are several, they get numbers before the suffix",
    )
    add("--seed", type=int, metavar="N", help="seed of the first image; image i has seed + i (default: random)")
    add("--num-images", type=positive_int, default=1, metavar="N", help="images per pair (default %(default)s)")
    add("--batch-size", type=positive_int, default=1, metavar="N", help="pairs to make at once (default %(default)s)")
    add(
        "--resume",
        action="store_true",
        help="keep the results of an interrupted run with the same images, poses, model and options, as recorded in "
        ".OUTPUT.json beside the results",
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_generate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: An option needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: A file does not have the right content, or options contradict each other.
    """
    import torch

    from ..io_utils import replacing
    from ..sequences import claim_images

    inputs = Inputs(args)
    targets = inputs.read_poses(args.pose)
    num_pairs = max(len(args.image), len(targets))
    if not {len(args.image), len(targets)} <= {1, num_pairs}:
        raise ValueError(
            f"--image and --pose must give as many images as poses, or one of either, got {len(args.image)} and "
            f"{len(targets)}."
        )
    outputs = _output_paths(args.output, num_pairs * args.num_images)
    note = args.output.with_name(f".{args.output.name}.json")
    options = {name: value for name, value in vars(args).items() if name not in _NOT_NOTED}
    digest = inputs.digest([one.keypoints for one in targets])
    claim = partial(claim_images, note, outputs, args.model or SMALL_MODEL, options, digest)
    if args.resume:
        with naming("--resume"):
            claim()
        if all(path.exists() for path in outputs):
            logger.info("Nothing to do: all images exist already.")
            return 0

    pipe = load_pipeline(args)
    sources, poses = inputs.fit_sources(pipe), []
    for pair in range(num_pairs if args.align else len(targets)):
        target, (_, body) = targets[pair % len(targets)], sources[pair % len(sources)]
        poses += inputs.fit_poses(pipe, [target.keypoints], body, target.is_estimated)
    # What all pairs share is encoded once.
    appearance = pipe.encode_appearance(inputs.crop(0, sources[0][0])) if len(sources) == 1 else None
    pose_features = pipe.encode_pose(poses[0]) if len(poses) == 1 else None
    is_anew = not args.resume
    for start in range(0, num_pairs, args.batch_size):
        pairs = range(start, min(start + args.batch_size, num_pairs))
        numbers = range(start * args.num_images, pairs.stop * args.num_images)
        paths = [outputs[number] for number in numbers]
        if args.resume and all(path.exists() for path in paths):
            continue
        (images,) = pipe(
            image=appearance or [inputs.crop(pair, sources[pair][0]) for pair in pairs],
            pose=pose_features or [poses[pair] for pair in pairs],
            num_images_per_prompt=args.num_images,
            generator=None if args.seed is None else [torch.Generator().manual_seed(args.seed + i) for i in numbers],
            return_dict=False,
            **sampling_arguments(args, pipe),
        )
        if is_anew:
            is_anew = False
            for path in (*outputs, note):
                path.unlink(missing_ok=True)
            if len(outputs) > 1:
                claim()
        for image, path in zip(images, paths, strict=True):
            if args.resume and path.exists():
                continue
            with replacing(path, keep_suffix=True) as unfinished:
                image.save(unfinished)
            logger.info("%s", path)
    return 0


def _output_paths(output: Path, count: int) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [output]
    digits = len(str(count - 1))
    return [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]
