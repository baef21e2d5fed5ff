"""`diffusers-cfld generate`: put the people of source images into other poses."""

from __future__ import annotations

import argparse
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from ..small_model import SMALL_MODEL
from .inputs import Inputs, add_common_options, add_pose_options
from .options import image_path, load_pipeline, naming, positive_int, sampling_arguments

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

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
    from accelerate import PartialState

    from ..io_utils import replacing
    from ..sequences import claim_images

    # `accelerate launch` and `torchrun` set this variable.
    process = PartialState(cpu=args.device == "cpu") if "LOCAL_RANK" in os.environ else None
    rank, num_processes = (process.process_index, process.num_processes) if process else (0, 1)
    if process and args.device != "cpu":
        args.device = str(process.device)
    inputs = Inputs(args)
    targets = inputs.read_poses(args.pose)
    num_pairs = max(len(args.image), len(targets))
    if not {len(args.image), len(targets)} <= {1, num_pairs}:
        raise ValueError(
            f"--image and --pose must give as many images as poses, or one of either, got {len(args.image)} and "
            f"{len(targets)}."
        )
    outputs = _output_paths(args.output, num_pairs * args.num_images)

    def claim() -> None:
        """Remove what another run has made, unless this one resumes it, and note what the images are made from."""
        if rank == 0:
            note = args.output.with_name(f".{args.output.name}.json")
            if not args.resume:
                for path in (*outputs, note):
                    path.unlink(missing_ok=True)
            if args.resume or len(outputs) > 1:
                options = {name: value for name, value in vars(args).items() if name not in _NOT_NOTED}
                digest = inputs.digest([one.keypoints for one in targets])
                claim_images(note, outputs, args.model or SMALL_MODEL, options, digest)
        if process:
            process.wait_for_everyone()

    if args.resume:
        with naming("--resume"):
            claim()
        if all(path.exists() for path in outputs):
            logger.info("Nothing to do: all images exist already.")
            return 0

    pipe = load_pipeline(args)
    pipe.set_progress_bar_config(disable=rank > 0)
    sources, poses = inputs.fit_sources(pipe), []
    for pair in range(num_pairs if args.align else len(targets)):
        target, (_, body) = targets[pair % len(targets)], sources[pair % len(sources)]
        poses += inputs.fit_poses(pipe, [target.keypoints], body, target.is_estimated)
    # What all pairs share is encoded once.
    appearance = pipe.encode_appearance(inputs.crop(0, sources[0][0])) if len(sources) == 1 else None
    pose_features = pipe.encode_pose(poses[0]) if len(poses) == 1 else None

    def numbers(pairs: range) -> range:
        return range(pairs.start * args.num_images, pairs.stop * args.num_images)

    def read(pairs: range) -> tuple[range, dict[str, Any]]:
        return pairs, {
            "image": appearance or [inputs.crop(pair, sources[pair][0]) for pair in pairs],
            "pose": pose_features or pipe.pose_processor.preprocess([poses[pair] for pair in pairs]),
        }

    def make(batches: Iterable[tuple[range, dict[str, Any]]]) -> Iterator[tuple[range, Any]]:
        for pairs, conditions in batches:
            seeds = () if args.seed is None else [args.seed + number for number in numbers(pairs)]
            (images,) = pipe(
                **conditions,
                num_images_per_prompt=args.num_images,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds] or None,
                return_dict=False,
                **sampling_arguments(args, pipe),
            )
            del conditions  # or three batches of sources would be in memory while the next but one is read
            yield pairs, images

    def write(made: tuple[range, Any]) -> None:
        for number, image in zip(numbers(made[0]), made[1], strict=True):
            if not (args.resume and outputs[number].exists()):
                with replacing(outputs[number], keep_suffix=True) as unfinished:
                    image.save(unfinished)
                logger.info("%s", outputs[number])

    starts = range(0, num_pairs, args.batch_size)
    batches = [range(start, min(start + args.batch_size, num_pairs)) for start in starts][rank::num_processes]
    if args.resume:
        batches = [pairs for pairs in batches if not all(outputs[number].exists() for number in numbers(pairs))]
    made = make(_ahead(read, batches))
    if not args.resume:
        first = list(islice(made, 1))  # a call that fails before this leaves what is there
        claim()
        made = chain(first, made)
    for _ in _ahead(write, made):
        pass
    return 0


def _ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Call a function for each item in a thread of its own, one item ahead of the results that are asked for."""
    futures: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            futures.append(thread.submit(function, item))
            if len(futures) > 1:
                yield futures.popleft().result()
        for future in futures:
            yield future.result()


def _output_paths(output: Path, count: int) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [output]
    digits = len(str(count - 1))
    return [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]
