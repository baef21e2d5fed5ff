"""Lists of pose pairs: DeepFashion, Market-1501, and folders with a `pairs.jsonl`.

The CSV files of DeepFashion and Market-1501, lists of pairs (`from,to`) and of keypoints, are PATN's; GFLA, DPTN, PIDM
and CFLD use the same ones.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from ..image_utils import read_size, to_rgb
from ..pose.formats import DEEPFASHION_SIZE, Size
from ..pose.keypoints import Keypoints
from ..pose.reading import has_size
from .skip_report import SkipReport, UnreadableImageError

_PAIRS_FILE = "pairs.jsonl"
# What the names of the files of a data set begin with (the first spelling is that of the published files), its folders
# of images, and the size of the images that its keypoints were measured on.
_CSV_DATA_SETS = {
    "deepfashion": (("fasion-resize", "fashion-resize"), ("{}_highres", "{}"), DEEPFASHION_SIZE),
    "market1501": (("market",), ("{}", "bounding_box_{}"), (128, 64)),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PosePair:
    """Two images of one person and the poses in them.

    Args:
        source: Path of the source image, or the encoded image itself.
        target: Path of the target image, or the encoded image itself.
        source_keypoints: Pose in the source image.
        target_keypoints: Pose in the target image.
        source_name: What the data set calls the source image.
        target_name: What the data set calls the target image.
    """

    source: str | bytes
    target: str | bytes
    source_keypoints: Keypoints
    target_keypoints: Keypoints
    source_name: str = ""
    target_name: str = ""


def read_image(image: str | bytes, name: str = "") -> PIL.Image.Image:
    """Read an image.

    Args:
        image: Path, or the encoded image.
        name: What the error calls an encoded image.

    Returns:
        The image, upright, 8-bit RGB.

    Raises:
        UnreadableImageError: It does not exist, cannot be decoded, or has unusable values or EXIF data.
    """
    with _opened(image, name) as opened:
        return to_rgb(opened)


def read_image_size(image: str | bytes, name: str = "") -> Size:
    """Read the size of an image from its header.

    Args:
        image: Path, or the encoded image.
        name: What the error calls an encoded image.

    Returns:
        (height, width) of the upright image, pixels.

    Raises:
        UnreadableImageError: It does not exist or is no image.
    """
    with _opened(image, name) as opened:
        return read_size(opened)


@contextmanager
def _opened(image: str | bytes, name: str) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            yield opened
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        reason = f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        if isinstance(error, FileNotFoundError):
            reason = "does not exist"
        elif isinstance(error, PIL.UnidentifiedImageError):
            reason = "is not an image in a known format"
        raise UnreadableImageError(name if isinstance(image, bytes) else image, reason) from error


def load_pairs(
    root: str | os.PathLike[str],
    format: str = "auto",
    split: str | None = None,
    *,
    default_split: str = "train",
    report: SkipReport | None = None,
) -> list[PosePair]:
    """Read the pairs of a folder in any known format.

    Args:
        root: The folder.
        format: "deepfashion", "market1501", "folder" (with a `pairs.jsonl`), or "auto" to choose by the files in it.
        split: "train" or "test" for DeepFashion and Market-1501, by default `default_split`; for a folder with a
            `pairs.jsonl`, the name of a subfolder, by default none.
        default_split: See `split`.
        report: Report to which pairs that are left out are added; by default they are logged.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: The format is unknown, or no pair can be used.
    """
    folder = Path(root)
    if format == "auto":
        format = _detect_format(folder, split)
    if format in _CSV_DATA_SETS:
        return _load_csv_pairs(folder, format, split or default_split, report)
    if format == "folder":
        return load_folder_pairs(folder / (split or ""), report=report)
    raise ValueError(f"`format` must be 'auto', 'deepfashion', 'market1501' or 'folder', got {format!r}.")


def load_deepfashion_pairs(
    root: str | os.PathLike[str], split: str = "train", *, report: SkipReport | None = None
) -> list[PosePair]:
    """Read the pairs of DeepFashion In-shop.

    Args:
        root: Folder with `fasion-resize-pairs-{split}.csv` and `fasion-resize-annotation-{split}.csv` (or `fashion-`),
            and the images in `{split}_highres` or `{split}`. `examples/pose_transfer/prepare_deepfashion.py` creates
            it from the archive.
        split: "train" (101,966 pairs) or "test" (8,570).
        report: Report to which images without usable keypoints are added; by default they are logged.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: The list of pairs does not have the right columns, or no pair can be used.
    """
    return _load_csv_pairs(Path(root), "deepfashion", split, report)


def load_market1501_pairs(
    root: str | os.PathLike[str], split: str = "train", *, report: SkipReport | None = None
) -> list[PosePair]:
    """Read the pairs of Market-1501.

    Args:
        root: Folder with `market-pairs-{split}.csv`, `market-annotation-{split}.csv` and the images in `{split}` or
            `bounding_box_{split}`.
        split: "train" or "test".
        report: Report to which images without usable keypoints are added; by default they are logged.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: The list of pairs does not have the right columns, or no pair can be used.
    """
    return _load_csv_pairs(Path(root), "market1501", split, report)


def load_folder_pairs(root: str | os.PathLike[str], *, report: SkipReport | None = None) -> list[PosePair]:
    """Read the pairs of a folder with a `pairs.jsonl`.

    Each line is a JSON object with `source` and `target`, paths of images relative to the folder, and
    `source_keypoints` and `target_keypoints`, anything that `Keypoints.from_any` reads. The optional `source_size` and
    `target_size`, [height, width] in pixels, or `size` for both, are the sizes of the images that the keypoints were
    measured on, unless these contain it themselves; by default 256x176. [`PosePairDataset`] compares each image with
    it.

    Args:
        root: The folder.
        report: Report to which unusable lines are added, as `pairs.jsonl:number`; by default they are logged.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: No line can be used.
    """
    file = Path(root, _PAIRS_FILE)
    report = SkipReport() if report is None else report
    pairs: list[PosePair] = []
    poses: dict[tuple[str, str], Keypoints] = {}
    num_listed = 0
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            num_listed += 1
            try:
                pairs.append(_parse_pair(line, file.parent, poses))
            except (ValueError, TypeError) as error:
                report.add(f"{file}:{number}", f"is not a usable pair ({str(error).rstrip('.')})")
    _report_left_out(pairs, num_listed, file, report)
    return pairs


def find_csv(folder: Path, format: str, kind: str, split: str) -> Path:
    """Find one of the files of DeepFashion or Market-1501.

    Args:
        folder: The folder that it is in.
        format: "deepfashion" or "market1501".
        kind: "pairs" or "annotation".
        split: "train" or "test".

    Returns:
        Its path.

    Raises:
        FileNotFoundError: It is not in the folder.
    """
    files = [folder / f"{prefix}-{kind}-{split}.csv" for prefix in _CSV_DATA_SETS[format][0]]
    found = next(filter(Path.is_file, files), None)
    if found is None:
        raise FileNotFoundError(f"'{files[0].name}' is missing in '{folder}': download the lists (see docs/data.md).")
    return found


def read_pair_list(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read a list of pairs.

    Args:
        path: CSV file with the columns `from` and `to`.

    Returns:
        (source, target) of each pair, by the names of their images. Lines without both are left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no such columns.
    """
    # utf-8-sig, since spreadsheet programs begin files with a byte order mark.
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        columns = rows.fieldnames or []
        if not {"from", "to"} <= set(columns):
            raise ValueError(f"'{path}' must have the columns `from` and `to`, got {list(columns)[:6]}.")
        return [(row["from"], row["to"]) for row in rows if row["from"] and row["to"]]


def read_poses(path: str | os.PathLike[str], size: tuple[int, int]) -> tuple[dict[str, Keypoints], dict[str, str]]:
    """Read a list of keypoints.

    Args:
        path: File with lines `name:[y, ...]:[x, ...]`, with or without the header `name:keypoints_y:keypoints_x`.
        size: (height, width) of the images that the keypoints were measured on, pixels.

    Returns:
        The pose of each image by name, and what is wrong with the others, also by name, worded to follow the name in a
        sentence.

    Raises:
        OSError: The file cannot be read.
    """
    poses: dict[str, Keypoints] = {}
    problems: dict[str, str] = {}
    with open(path, encoding="utf-8-sig") as stream:
        for line in stream:
            name = line.rsplit(":", 2)[0].strip()
            if name in poses or name in ("", "name"):  # an empty line, the header
                continue
            try:
                poses[name] = Keypoints.from_csv_row(line, size)
            except (ValueError, TypeError) as error:
                problems[name] = f"has unusable keypoints in '{os.path.basename(path)}' ({str(error).rstrip('.')})"
    return poses, problems


def _detect_format(folder: Path, split: str | None) -> str:
    if (folder / (split or "") / _PAIRS_FILE).is_file():
        return "folder"
    for name, (prefixes, _, _) in _CSV_DATA_SETS.items():
        if any(next(folder.glob(f"{prefix}-pairs-*.csv"), None) for prefix in prefixes):
            return name
    raise FileNotFoundError(
        f"'{folder}' must have '{_PAIRS_FILE}', 'fasion-resize-pairs-train.csv' or 'market-pairs-train.csv', but has "
        "none of them: see docs/data.md for the formats."
    )


def _load_csv_pairs(folder: Path, format: str, split: str, report: SkipReport | None) -> list[PosePair]:
    _, folders, size = _CSV_DATA_SETS[format]
    pairs_file, poses_file = (find_csv(folder, format, kind, split) for kind in ("pairs", "annotation"))
    candidates = [folder / name.format(split) for name in folders]
    images = next(filter(Path.is_dir, candidates), None)
    if images is None:
        raise FileNotFoundError(f"'{folder}' must have a folder '{candidates[0].name}' with the images, but has none.")
    report = SkipReport() if report is None else report
    listed = read_pair_list(pairs_file)
    poses, problems = read_poses(poses_file, size)
    pairs = []
    for source, target in listed:
        missing = [name for name in (source, target) if name not in poses]
        for name in missing:
            report.add(str(images / name), problems.get(name, f"has no line in '{poses_file.name}'"))
        if not missing:
            paths = os.path.join(images, source), os.path.join(images, target)
            pairs.append(PosePair(*paths, poses[source], poses[target], source, target))
    _report_left_out(pairs, len(listed), pairs_file, report)
    return pairs


def _parse_pair(line: str, folder: Path, poses: dict[tuple[str, str], Keypoints]) -> PosePair:
    """Read a line; `poses` caches one object per pose."""
    entry = json.loads(line)
    needed = ("source", "target", "source_keypoints", "target_keypoints")
    if not isinstance(entry, dict) or any(entry.get(key) is None for key in needed):
        raise ValueError(f"it must be a JSON object with {', '.join(needed)}")
    values: dict[str, Any] = {}
    for role in ("source", "target"):
        name, pose = entry[role], entry[f"{role}_keypoints"]
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            raise ValueError(f"`{role}` must be a path within the folder, got {name!r}")
        path = os.path.join(folder, name)
        size = None if has_size(pose) else entry.get(f"{role}_size") or entry.get("size")
        key = (path, f"{pose} {size}")
        if key not in poses:
            poses[key] = Keypoints.from_any(pose, size)
        values |= {role: path, f"{role}_name": name, f"{role}_keypoints": poses[key]}
    return PosePair(**values)


def _report_left_out(pairs: list[PosePair], num_listed: int, file: Path, report: SkipReport) -> None:
    if not pairs:
        raise ValueError(f"'{file}' must have usable pairs, got none among {num_listed}. {report.summary()}")
    if len(pairs) < num_listed:
        logger.warning("%d of the %d pairs in '%s' are left out.", num_listed - len(pairs), num_listed, file)
