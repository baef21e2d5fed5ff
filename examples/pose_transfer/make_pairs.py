#!/usr/bin/env python
"""Make a data set for `train_cfld.py` of images of people: one folder for each person, with at least two images.

    python make_pairs.py --images people --output_dir pairs --pose_weights rtmpose.onnx --detector_weights yolox.onnx

The pose of the most prominent person in each image is estimated, or read from a keypoint file beside the image: for
`anna/1.jpg`, `anna/1.json`, `anna/1_keypoints.json` or `anna/1.npy`. Each image is cropped to its person, and
`pairs.jsonl` pairs it with all others of that person. Look at `found.jpg` and `left_out.jpg` before you train.

After an interruption, or when you have added images, run the same command again: images that are done are not done
again. For other options, choose another folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import PIL.Image
import PIL.ImageOps
from tqdm.auto import tqdm

from diffusers_cfld import Keypoints, fit_photo
from diffusers_cfld.data import SkipReport, UnreadableImageError, read_image
from diffusers_cfld.image_utils import is_image
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.io_utils import lock_folder, replacing, write_file
from diffusers_cfld.pose.formats import DEEPFASHION_SIZE, NobodyError
from diffusers_cfld.pose.reading import has_size
from diffusers_cfld.pose_estimation import PoseEstimator, RTMPoseEstimator, ViTPoseEstimator, estimate_pose
from diffusers_cfld.processors.cropping import has_shape

MAX_HEIGHT = 1024  # pixels; larger images only make training wait for its data
SHEET_ROWS, SHEET_COLUMNS = 40, 8


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="Folder with a folder of images for each person.")
    parser.add_argument("--output_dir", required=True, help="Folder for the data set.")
    parser.add_argument(
        "--pose_weights",
        help="Pose estimator: ONNX file of RTMPose, or folder or Hub id of ViTPose. Without one, every image needs a "
        "keypoint file.",
    )
    parser.add_argument(
        "--detector_weights", help="Person detector for it, needed where an image shows more than one."
    )
    parser.add_argument("--device", default="cpu", help="Where the estimator runs.")
    parser.add_argument(
        "--photo_shape",
        type=int,
        nargs=2,
        default=DEEPFASHION_SIZE,
        metavar=("HEIGHT", "WIDTH"),
        help="Aspect ratio of the crops.",
    )
    parser.add_argument("--min_joints", type=int, default=8, help="Joints of 18 that an image must show.")
    parser.add_argument("--max_pairs_per_person", type=int, help="Keep this many, chosen at random.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of that choice.")
    return parser.parse_args(arguments)


def make_pairs(
    images: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    estimator: PoseEstimator | None = None,
    *,
    shape: tuple[int, int] = DEEPFASHION_SIZE,
    min_joints: int = 8,
    max_pairs_per_person: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `pairs.jsonl`, the cropped images, and sheets of what was found and left out.

    Args:
        images: Folder with a folder of images for each person.
        output_dir: Folder for the data set; may hold part of it.
        estimator: Finds the people in images without a keypoint file.
        shape: (height, width) with the aspect ratio of the crops.
        min_joints: Joints of 18 that an image must show.
        max_pairs_per_person: Keep this many of a person's pairs, chosen at random; None for all.
        seed: Seed of that choice.

    Returns:
        The report, which is also written to `make_pairs.json`: the numbers of `people`, `images` and `pairs`, and for
        each image that was `left_out` the reason, worded to follow its name in a sentence.

    Raises:
        OSError: A folder does not exist, a file cannot be written, or another process is writing the data set.
        ValueError: No person has two usable images.
    """
    images, output = Path(images).resolve(), Path(output_dir).resolve()
    files = sorted(path for path in images.rglob("*") if is_image(path) and output not in path.parents)
    if not files:
        raise FileNotFoundError(f"'{images}' must have a folder of images for each person, but has no image.")
    found: dict[str, dict[str, Keypoints]] = {}
    skipped = SkipReport()
    with lock_folder(output):
        for file in tqdm(files, unit="image", disable=None):
            name = file.relative_to(images).as_posix()
            person, _, rest = name.partition("/")
            record = output / "poses" / f"{name}.json"
            try:
                if not rest:
                    raise UnreadableImageError(name, "is in no person's folder")
                if not record.exists():
                    pose = _crop(file, output / "images" / f"{name}.jpg", estimator, shape, min_joints)
                    record.parent.mkdir(parents=True, exist_ok=True)
                    write_file(record, json.dumps(pose.to_openpose()).encode())
                found.setdefault(person, {})[name] = Keypoints.load(record)
            except UnreadableImageError as error:
                skipped.add(name, error.reason)
        for person in [person for person, poses in found.items() if len(poses) == 1]:
            skipped.add(*found.pop(person), "is the only usable one of its person")
        lines = []
        for person, poses in found.items():
            pairs = list(permutations(poses, 2))
            if max_pairs_per_person is not None and len(pairs) > max_pairs_per_person:
                pairs = Random(f"{seed} {person}").sample(pairs, max_pairs_per_person)
            for pair in pairs:
                line: dict[str, Any] = {}
                for role, name in zip(("source", "target"), pair, strict=True):
                    line |= {role: f"images/{name}.jpg", f"{role}_keypoints": poses[name].to_openpose()}
                lines.append(json.dumps(line))
        report = {
            "people": len(found),
            "images": sum(map(len, found.values())),
            "pairs": len(lines),
            "left_out": {name: entry["reason"] for name, entry in skipped.files.items()},
        }
        write_file(output / "make_pairs.json", json.dumps(report, indent=1).encode() + b"\n")
        _draw_sheets(images, output, found, report["left_out"])
        if not lines:
            raise ValueError(f"'{images}' must have two usable images of a person, but has none. {skipped.summary()}")
        write_file(output / "pairs.jsonl", "\n".join(lines).encode() + b"\n")
    return report


def _crop(
    file: Path, target: Path, estimator: PoseEstimator | None, shape: tuple[int, int], min_joints: int
) -> Keypoints:
    """Crop an image to its person, and return the pose in the crop; an image without one is as good as unreadable."""
    image = read_image(str(file))
    try:
        pose = _find_pose(file, image, estimator)
        fitted = fit_photo(image, pose, shape=shape)
    except NobodyError as error:
        raise UnreadableImageError(str(file), "shows nobody") from error
    except (OSError, TypeError, ValueError) as error:
        raise UnreadableImageError(str(file), f"has no usable keypoints ({error})") from error
    if pose.visible.sum() < min_joints:
        raise UnreadableImageError(str(file), f"shows only {pose.visible.sum()} joints")
    crop, pose = fitted.image, fitted.keypoints
    if crop.height > MAX_HEIGHT:
        width = round(MAX_HEIGHT * crop.width / crop.height)
        crop, pose = crop.resize((width, MAX_HEIGHT), PIL.Image.Resampling.LANCZOS), pose.rescale((MAX_HEIGHT, width))
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, keep_suffix=True) as partial:
        crop.save(partial, quality=95, subsampling=0)
    return pose


def _find_pose(file: Path, image: PIL.Image.Image, estimator: PoseEstimator | None) -> Keypoints:
    """Read the pose from a keypoint file beside the image, or estimate it."""
    size = (image.height, image.width)
    for path in (file.with_suffix(".json"), file.with_name(f"{file.stem}_keypoints.json"), file.with_suffix(".npy")):
        if path.exists():
            knows_size = path.suffix == ".json" and has_size(path.read_text(encoding="utf-8-sig"))
            pose = Keypoints.load(path, None if knows_size else size)
            if not has_shape(pose.size, size):
                raise ValueError(f"measured on {pose.size[0]}x{pose.size[1]}, but the image is {size[0]}x{size[1]}")
            return pose.rescale(size)
    if estimator is None:
        raise ValueError("there is no keypoint file beside it, and no pose estimator")
    return estimate_pose(image, estimator)


def _draw_sheets(images: Path, output: Path, found: dict[str, dict[str, Keypoints]], left_out: dict[str, str]) -> None:
    """Draw a row for each person, and the images that were left out with the reasons; the first ones of many."""
    rows, labels = [], []
    for poses in list(found.values())[:SHEET_ROWS]:
        shown = list(poses.items())[:SHEET_COLUMNS]
        rows.append([pose.draw(background=_read_or_grey(output / f"images/{name}.jpg")) for name, pose in shown])
        labels.append([name[-22:] for name, _ in shown])
    _save_sheet(output / "found.jpg", rows, labels)
    shown = list(left_out.items())[: SHEET_ROWS * SHEET_COLUMNS]
    chunks = [shown[first : first + SHEET_COLUMNS] for first in range(0, len(shown), SHEET_COLUMNS)]
    rows = [[_read_or_grey(images / name) for name, _ in chunk] for chunk in chunks]
    _save_sheet(output / "left_out.jpg", rows, [[reason[:22] for _, reason in chunk] for chunk in chunks])


def _save_sheet(path: Path, rows: list[list[PIL.Image.Image]], labels: list[list[str]]) -> None:
    path.unlink(missing_ok=True)
    if rows:
        rows = [[PIL.ImageOps.pad(image, DEEPFASHION_SIZE[::-1], color="white") for image in row] for row in rows]
        with replacing(path, keep_suffix=True) as partial:
            contact_sheet(rows, labels).save(partial)


def _read_or_grey(file: Path) -> PIL.Image.Image:
    try:
        return read_image(str(file))
    except UnreadableImageError:
        return PIL.Image.new("RGB", DEEPFASHION_SIZE[::-1], "grey")


def main(args: argparse.Namespace) -> None:
    """Make the pairs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        estimator: PoseEstimator | None = None
        if args.pose_weights and args.pose_weights.endswith(".onnx"):
            estimator = RTMPoseEstimator(args.pose_weights, args.detector_weights, device=args.device)
        elif args.pose_weights:
            estimator = ViTPoseEstimator.from_pretrained(args.pose_weights, args.detector_weights, device=args.device)
        report = make_pairs(
            args.images,
            args.output_dir,
            estimator,
            shape=tuple(args.photo_shape),
            min_joints=args.min_joints,
            max_pairs_per_person=args.max_pairs_per_person,
            seed=args.seed,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"make_pairs.py: error: {error}")
    print(
        f"{report['pairs']} pairs of {report['images']} images of {report['people']} people are in {args.output_dir}; "
        f"{len(report['left_out'])} images are left out. Look at found.jpg and left_out.jpg there."
    )


if __name__ == "__main__":
    main(parse_args())
