#!/usr/bin/env python
"""Copy the images of DeepFashion In-shop to the names that the lists of pairs use, check them and count them.

    python prepare_deepfashion.py --archive img_highres --output deepfashion --annotations lists

The unpacked archive has `img_highres/WOMEN/Dresses/id_00000002/02_1_front.jpg`, which the lists call
`fashionWOMENDressesid0000000202_1front.jpg`. Names are compared without underscores, since the lists keep those of
categories (`Blouses_Shirts`) and drop most others. You can interrupt the script and run it again.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm.auto import tqdm

from diffusers_cfld.data import SkipReport, load_deepfashion_pairs
from diffusers_cfld.data.pairs import find_csv, read_pair_list, read_poses
from diffusers_cfld.io_utils import write_file
from diffusers_cfld.pose.formats import DEEPFASHION_SIZE

logger = logging.getLogger("prepare_deepfashion")

EXPECTED_COUNTS = {
    "train": {"images": 48_674, "pairs": 101_966},
    "test": {"images": 4_038, "pairs": 8_570},
}
REPORT_FILE = "prepare_deepfashion.json"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="Folder `img_highres` of the unpacked archive, or above.")
    parser.add_argument("--output", required=True, help="Folder for `train_highres`, `test_highres` and the lists.")
    parser.add_argument(
        "--annotations",
        help="Folder with fasion-resize-{pairs,annotation}-{train,test}.csv, and optionally {train,test}.lst to get "
        "all images that these list; by default the output folder.",
    )
    parser.add_argument("--link", action="store_true", help="Make hard links instead of copies; needs a single disk.")
    return parser.parse_args(arguments)


def prepare_deepfashion(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    *,
    link: bool = False,
) -> dict[str, Any]:
    """Fill `train_highres` and `test_highres`, and check the images.

    Each image is decoded once; missing and damaged ones are reported and left out. Images that are already in place
    with the file size of those in the archive are not copied again.

    Args:
        archive: The folder `img_highres`, or a folder that contains it.
        output: Folder for the images and the lists; may exist.
        annotations: Folder with the lists of one or both splits; by default `output`.
        link: Whether to make hard links instead of copies.

    Returns:
        The report, which is also written to `prepare_deepfashion.json`: for each split, the numbers of `images`,
        `pairs` and `usable_pairs`, which have all keypoints and images; and `skipped`, the `state_dict` of a
        `SkipReport`.

    Raises:
        OSError: A folder or the lists are missing, or a file cannot be read or written.
        ValueError: None of the listed images is in the archive.
    """
    output = Path(output)
    lists = output if annotations is None else Path(annotations)
    images = find_images(Path(archive))
    skipped = SkipReport()
    report: dict[str, Any] = {}
    for split in find_splits(lists):
        names, num_pairs = read_lists(lists, output, split)
        folder = output / f"{split}_highres"
        folder.mkdir(exist_ok=True)
        present = set()
        for name in tqdm(names, desc=split, unit="image", disable=None):
            source = images.get(simplify(name))
            reason = "is not in the archive" if source is None else place(source, folder / name, link)
            if reason is None:
                present.add(name)
            else:
                skipped.add(f"{split}_highres/{name}", reason)
        if not present:
            raise ValueError(
                f"'{archive}' must have the images listed for '{split}', such as '{names[0]}', but has none of the "
                f"{len(names)}: pass the folder `img_highres` of DeepFashion In-shop."
            )
        pairs = load_deepfashion_pairs(output, split, report=skipped)
        usable = sum(pair.source_name in present and pair.target_name in present for pair in pairs)
        report[split] = {"images": len(present), "pairs": num_pairs, "usable_pairs": usable}
    report["skipped"] = skipped.state_dict()
    write_file(output / REPORT_FILE, json.dumps(report, indent=1).encode() + b"\n")
    return report


def find_images(archive: Path) -> dict[str, Path]:
    """Return the high-resolution images by their simplified names."""
    images = {}
    for path in sorted(archive.resolve().rglob("*")):
        if "img_highres" in path.parts[:-4] and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            images.setdefault(simplify("".join(path.parts[-4:])), path)  # WOMEN, Dresses, id_00000002, 02_1_front.jpg
    if not images:
        raise FileNotFoundError(
            f"'{archive}' must have images at 'img_highres/WOMEN/...', but has none: pass the folder of the unpacked "
            "archive."
        )
    return images


def simplify(name: str) -> str:
    """Convert names in the archive and in the lists to a common form."""
    return name.removeprefix("fashion").replace("_", "").lower()


def find_splits(lists: Path) -> list[str]:
    """Return the splits that have their lists."""
    splits = []
    for split in EXPECTED_COUNTS:
        try:
            for kind in ("pairs", "annotation"):
                find_csv(lists, "deepfashion", kind, split)
            splits.append(split)
        except FileNotFoundError as error:
            missing = error
    if not splits:
        raise missing
    if len(splits) == 1:
        logger.warning("Only the %s split is prepared: %s", splits[0], missing)
    return splits


def read_lists(lists: Path, output: Path, split: str) -> tuple[list[str], int]:
    """Copy the lists of a split to the output folder; return the names of its images and the number of its pairs."""
    output.mkdir(parents=True, exist_ok=True)
    pairs_file, poses_file = (find_csv(lists, "deepfashion", kind, split) for kind in ("pairs", "annotation"))
    images_file = lists / f"{split}.lst"
    for file in (pairs_file, poses_file, images_file):
        if file.is_file() and lists.resolve() != output.resolve():
            write_file(output / file.name, file.read_bytes())
    pairs = read_pair_list(pairs_file)
    names = [name for pair in pairs for name in pair]
    if images_file.is_file():
        names += images_file.read_text(encoding="utf-8-sig").split()
    else:
        poses, problems = read_poses(poses_file, DEEPFASHION_SIZE)
        names += [*poses, *problems]
    return list(dict.fromkeys(names)), len(pairs)


def place(source: Path, target: Path, link: bool) -> str | None:
    """Copy or link an image unless it is there already; return what is wrong with it, if anything."""
    try:
        data = source.read_bytes()
        if target.is_file() and target.stat().st_size == len(data):
            return None
        image = PIL.Image.open(io.BytesIO(data))
        image.draft(None, (1, 1))  # an eighth of a JPEG's size, which is faster and finds the same damage
        image.load()
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        return f"cannot be read ({error})"
    if link:
        target.unlink(missing_ok=True)
        os.link(source, target)
    else:
        write_file(target, data)
    return None


def describe(report: dict[str, Any]) -> str:
    """Return the counts beside the expected ones, and what was skipped."""
    lines = []
    for split, expected in EXPECTED_COUNTS.items():
        if split in report:
            counts = report[split]
            lines.append(
                f"{split}: {counts['images']} images (expected {expected['images']}), {counts['usable_pairs']} of "
                f"{counts['pairs']} pairs usable (expected {expected['pairs']})."
            )
    skipped = SkipReport()
    skipped.load_state_dict(report["skipped"])
    return "\n".join([*lines, skipped.summary()])


def main(args: argparse.Namespace) -> None:
    """Prepare the data set and print the counts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = prepare_deepfashion(args.archive, args.output, args.annotations, link=args.link)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_deepfashion.py: error: {error}")
    print(describe(report))
    print(f"The whole report is in {Path(args.output) / REPORT_FILE}.")


if __name__ == "__main__":
    main(parse_args())
