"""`diffusers-cfld generate`: photos and poses in, pictures out."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from ..io_utils import write_file
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
    seeded_generators,
)

if TYPE_CHECKING:
    from ..pose.keypoints import Keypoints

logger = logging.getLogger(__name__)


def add_generate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Of the parser of all commands.
    """
    parser = subparsers.add_parser(
        "generate",
        help="put the person of a photo into another pose",
        description="Put the person of a photo into another pose. With several images and poses, one image goes with "
        "all poses, one pose with all images, and as many images as poses go in pairs.",
    )
    parser.add_argument("--image", required=True, nargs="+", metavar="F", help="source photo(s)")
    parser.add_argument(
        "--pose",
        required=True,
        nargs="+",
        metavar="F",
        help="target pose(s): OpenPose JSON (18 or 25 joints), a CSV row of the field, an array in .npy, or with "
        "--pose-estimator pictures of people in that pose",
    )
    add_target_options(parser)
    parser.add_argument(
        "--output",
        default="output.png",
        metavar="F",
        help="where the picture goes (default %(default)s); several get a number before the suffix",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="first seed; picture i takes seed + i")
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures for each pair")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="pairs at once (default %(default)s)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="skip pictures that an interrupted call with the same photos, poses and options has made, as noted in "
        ".OUTPUT.json beside them; missing ones are refused if --model has other weights by then",
    )
    add_pose_options(parser)
    add_sampling_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_generate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: `--scheduler` needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: An argument is out of range or a file does not hold what it should.
    """
    from ..pose.alignment import align_pose

    _check_arguments(args)
    sampling = sampling_arguments(args)
    # Cheap to read and likely to be wrong: before the model is loaded.
    photos = SourcePhotos(args.image)
    photos_digest = _digest_photos(photos)
    estimator = load_estimator(args)
    check_source_options(args, len(args.image), estimator)
    targets = [read_target(args, path, estimator) for path in args.pose]
    num_pairs = max(len(args.image), len(targets))
    outputs = _output_paths(Path(args.output), num_pairs * args.num_images)
    record = _Record(args, photos_digest, targets, outputs)
    batches = []
    for start in range(0, num_pairs, args.batch_size):
        pairs = range(start, min(start + args.batch_size, num_pairs))
        paths = outputs[start * args.num_images : pairs.stop * args.num_images]
        if not all(record.has(path) for path in paths):
            batches.append((pairs, paths))
    if not batches:
        logger.info("Nothing to do: every picture is there.")
        return 0

    pipe = load_pipeline(args)
    fitted = fit_sources(args, photos, estimator, pipe)
    if args.align:
        bodies = [body for _, body in fitted if body is not None] * (num_pairs if len(fitted) == 1 else 1)
        targets = targets * (num_pairs if len(targets) == 1 else 1)
        poses = [align_pose(target, body) for target, body in zip(targets, bodies, strict=True)]
    else:
        poses = [bring_into_frame([target], pipe, path)[0] for target, path in zip(targets, args.pose, strict=True)]
    sampling["output_size"] = output_size(pipe, args)
    # One source for all poses, or one pose for all sources, is encoded once.
    frames = [frame for frame, _ in fitted]
    appearance = pipe.encode_appearance(crop_source(args, photos[0], frames[0])) if len(photos) == 1 else None
    pose_features = pipe.encode_pose(poses[0]) if len(poses) == 1 else None
    for pairs, paths in batches:
        (pictures,) = pipe(
            image=None if appearance is not None else [crop_source(args, photos[i], frames[i]) for i in pairs],
            pose=pose_features if pose_features is not None else [poses[i] for i in pairs],
            appearance=appearance,
            num_images_per_prompt=args.num_images,
            generator=seeded_generators(args.seed, pairs.start * args.num_images, len(paths)),
            return_dict=False,
            **sampling,
        )
        record.begin()
        for image, path in zip(pictures, paths, strict=True):
            save_image(image, path)
            logger.info("%s", path)
        record.add(paths)
    return 0


class _Record:
    """What the pictures of a call are made from and which of them are done, in a file beside them."""

    def __init__(
        self,
        args: argparse.Namespace,
        photos_digest: bytes,
        targets: Sequence[Keypoints],
        outputs: Sequence[Path],
    ) -> None:
        output = Path(args.output)
        self._file = output.with_name(f".{output.name}.json")
        self._done: list[str] = []
        self._is_kept = args.resume or len(outputs) > 1
        self._made_from = _digest(args, photos_digest, targets) if self._is_kept else ""
        if not args.resume:
            return
        found = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        if found.get("made_from") == self._made_from:
            self._done = found["done"]
        elif any(path.is_file() for path in outputs):
            raise ValueError(
                f"--resume: the pictures that are there were made from other photos, poses or options than now, or it "
                f"is not known from what ({str(self._file)!r}): choose another --output, or leave out --resume."
            )

    def begin(self) -> None:
        """Forget what another call has done, right before its pictures are replaced."""
        if not self._done:
            self._file.unlink(missing_ok=True)

    def has(self, path: Path) -> bool:
        return path.name in self._done and path.is_file()

    def add(self, paths: Sequence[Path]) -> None:
        self._done += [path.name for path in paths]
        if self._is_kept:
            content = {"made_from": self._made_from, "done": self._done}
            write_file(self._file, json.dumps(content).encode())


def _digest_photos(photos: SourcePhotos) -> bytes:
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.mode} {photo.size}".encode() + photo.tobytes())
    return digest.digest()


def _digest(args: argparse.Namespace, photos_digest: bytes, targets: Sequence[Keypoints]) -> str:
    digest = hashlib.sha256(photos_digest)
    for target in targets:
        digest.update(f"{target.size} {target.to_array().tolist()}".encode())
    for path in args.source_pose or ():
        digest.update(Path(path).read_bytes())
    # The files are in it already, the dtype is noted apart, and where and how fast it runs changes no picture.
    files = {"image", "pose", "source_pose", "output"}
    running = {"run", "command", "resume", "batch_size", "dtype", "device", "offload", "token", "local_files_only"}
    options = {name: value for name, value in sorted(vars(args).items()) if name not in files | running}
    digest.update(f"{__version__} {options}".encode())
    return digest.hexdigest()


def _check_arguments(args: argparse.Namespace) -> None:

    if len(args.image) != len(args.pose) and 1 not in (len(args.image), len(args.pose)):
        raise ValueError(
            "--image and --pose must name as many files as each other, or one of them a single file, got "
            f"{len(args.image)} and {len(args.pose)}."
        )
    check_target_options(args, args.pose)
    check_at_least(args, num_images=1, batch_size=1)
    check_seed(args.seed)
    check_picture_name(args.output)


def _output_paths(output: Path, count: int) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [output]
    digits = len(str(count - 1))
    return [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]
