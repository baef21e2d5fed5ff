"""Lists of pose pairs, read from the data sets of the field and from folders of one's own.

Pictures are opened here only to see whether a frame that is nowhere told can be theirs. Pairs without usable keypoints
are left out and named in a report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..pose.formats import tells_frame
from ..pose.keypoints import Keypoints
from ..processors.cropping import has_shape
from .pair_csv import finish_reading, load_csv_pairs, take_probes
from .pair_transform import PosePair, UnreadableImageError, read_photo
from .shards import SHARD_INDEX
from .skip_report import SkipReport

__all__ = [
    "DEEPFASHION_FRAME",
    "DEEPFASHION_PREFIXES",
    "MARKET1501_FRAME",
    "find_csv",
    "load_deepfashion_pairs",
    "load_folder_pairs",
    "load_market1501_pairs",
    "load_pairs",
]

DEEPFASHION_PREFIXES = ("fasion-resize", "fashion-resize")
"""Both spellings of the files' names; the first is what the files are really called."""
DEEPFASHION_FRAME = (256, 176)
"""(height, width) in which DeepFashion's keypoints are measured, pixels."""
MARKET1501_FRAME = (128, 64)
"""(height, width) in which Market-1501's keypoints are measured, pixels."""

_MARKET1501_PREFIXES = ("market",)
_SPLITS = ("train", "test")
_PAIRS_FILE = "pairs.jsonl"


def load_deepfashion_pairs(
    root: str | os.PathLike[str], split: str = "train", *, report: SkipReport | None = None
) -> list[PosePair]:
    """Read the pairs of DeepFashion In-shop as the field prepares it.

    Args:
        root: Folder with `fasion-resize-pairs-{split}.csv` and `fasion-resize-annotation-{split}.csv` (or `fashion-`)
            and the pictures in `{split}_highres` or `{split}`. `examples/pose_transfer/prepare_deepfashion.py`
            makes it from the archive.
        split: "train" (101,966 pairs) or "test" (8,570).
        report: Takes in the pictures without usable keypoints; None to log a summary.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: `split` is unknown, a file has not the expected form, or no pair can be used.
    """
    folders = (f"{split}_highres", split)
    return _load_csv_pairs(root, split, DEEPFASHION_PREFIXES, folders, DEEPFASHION_FRAME, report)


def load_market1501_pairs(
    root: str | os.PathLike[str], split: str = "train", *, report: SkipReport | None = None
) -> list[PosePair]:
    """Read the pairs of Market-1501 as the field prepares it.

    Args:
        root: Folder with `market-pairs-{split}.csv`, `market-annotation-{split}.csv` and the pictures in `{split}` or
            `bounding_box_{split}`.
        split: "train" or "test".
        report: Takes in the pictures without usable keypoints; None to log a summary.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: `split` is unknown, a file has not the expected form, or no pair can be used.
    """
    folders = (split, f"bounding_box_{split}")
    return _load_csv_pairs(root, split, _MARKET1501_PREFIXES, folders, MARKET1501_FRAME, report)


def load_folder_pairs(root: str | os.PathLike[str], *, report: SkipReport | None = None) -> list[PosePair]:
    """Read the pairs of any folder with a `pairs.jsonl`.

    Each of its lines is a JSON object of `source` and `target`, paths of pictures relative to the folder, and
    `source_keypoints` and `target_keypoints`, anything that `Keypoints.from_any` reads. An optional `size`, [height,
    width] of the pictures in pixels, is the frame of keypoints that do not tell theirs; without it that is 256x176,
    whose shape the pictures must then have, and OpenPose's data must tell it.

    Args:
        root: The folder.
        report: Takes in the lines that cannot be used, as `pairs.jsonl:number`; None to log a summary.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: There is no such file, it cannot be read, or the pictures are missing.
        ValueError: It is not a text file, no line can be used, or keypoints without a `size` are of pictures of
            another shape than 256x176, which is looked up for a few of them.
    """
    folder = _check_root(root)
    file = folder / _PAIRS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"'{folder}' must have a '{_PAIRS_FILE}', got {_listing(folder)}: write one pair a line."
        )
    entries = SkipReport(max_logged=0) if report is None else report
    cache: dict[str, tuple[object, Keypoints]] = {}
    guessed: dict[str, Keypoints] = {}
    pairs: list[PosePair] = []
    count = 0
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                count += 1
                try:
                    pairs.append(_read_line(line, folder, cache, guessed))
                except (ValueError, TypeError, RecursionError) as error:
                    entries.add(f"{file}:{number}", f"is no usable pair ({str(error).rstrip('.')})")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' must be a text file in UTF-8 ({error}): write it again.") from error
    finish_reading(pairs, count, file, entries, is_own_report=report is None)
    _check_guessed_frames(guessed, file)
    return pairs


def load_pairs(
    root: str | os.PathLike[str],
    format: str = "auto",
    split: str | None = None,
    *,
    default_split: str = "train",
    report: SkipReport | None = None,
) -> list[PosePair]:
    """Read the pairs of a folder of any known kind.

    Args:
        root: The folder.
        format: "deepfashion", "market1501", "folder" (with a `pairs.jsonl`), or "auto" to tell by the files in it.
        split: "train" or "test" of the first two kinds, by default `default_split`. Of a folder with a `pairs.jsonl`,
            the subfolder of that name; by default there is none.
        default_split: See `split`.
        report: Takes in what is left out; None to log a summary.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or folder does not exist or cannot be read.
        ValueError: The folder is of no known kind, an argument is unknown, or no pair can be used.
    """
    folder = _check_root(root)
    readers: dict[str, Callable[[], list[PosePair]]] = {
        "deepfashion": lambda: load_deepfashion_pairs(folder, split or default_split, report=report),
        "market1501": lambda: load_market1501_pairs(folder, split or default_split, report=report),
        "folder": lambda: load_folder_pairs(folder / split if split else folder, report=report),
    }
    if format == "auto":
        format = _recognise(folder, split)
    if format not in readers:
        raise ValueError(f"`format` must be 'auto', {', '.join(map(repr, readers))}, got {format!r}.")
    return readers[format]()


def find_csv(folder: Path, prefixes: tuple[str, ...], kind: str, split: str) -> Path:
    """Find one of the field's files.

    Args:
        folder: Where it is.
        prefixes: How its name may begin.
        kind: "pairs" or "annotation".
        split: "train" or "test".

    Returns:
        Its path.

    Raises:
        FileNotFoundError: There is none.
    """
    names = [f"{prefix}-{kind}-{split}.csv" for prefix in prefixes]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    expected = " or ".join(f"'{name}'" for name in names)
    raise FileNotFoundError(
        f"'{folder}' must have {expected}, got {_listing(folder)}: download the lists of pairs and keypoints and put "
        "them there."
    )


def _load_csv_pairs(
    root: str | os.PathLike[str],
    split: str,
    prefixes: tuple[str, ...],
    image_folders: tuple[str, ...],
    frame: tuple[int, int],
    report: SkipReport | None,
) -> list[PosePair]:
    folder = _check_root(root, split)
    pairs, annotation = (find_csv(folder, prefixes, kind, split) for kind in ("pairs", "annotation"))
    return load_csv_pairs(pairs, annotation, [folder / name for name in image_folders], frame, report)


def _recognise(folder: Path, split: str | None) -> str:
    if (folder / (split or "") / _PAIRS_FILE).is_file():
        return "folder"
    for name, prefixes in (("deepfashion", DEEPFASHION_PREFIXES), ("market1501", _MARKET1501_PREFIXES)):
        for prefix in prefixes:
            if any((folder / f"{prefix}-pairs-{part}.csv").is_file() for part in _SPLITS):
                return name
    if (folder / SHARD_INDEX).is_file():
        raise ValueError(f"'{folder}' holds shards, which are not read as a list: open it with `StreamedPosePairs`.")
    raise ValueError(
        f"'{folder}' is no known data set: expected '{_PAIRS_FILE}', 'fasion-resize-pairs-train.csv' or "
        f"'market-pairs-train.csv' in it, got {_listing(folder)}; see the documentation's page on data."
    )


def _read_line(
    line: str, folder: Path, cache: dict[str, tuple[object, Keypoints]], guessed: dict[str, Keypoints]
) -> PosePair:
    """Read a pair; keypoints of which nothing tells the frame are entered in `guessed`."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"it must be a JSON object, got {type(entry).__name__}")
    values: list[Any] = []
    for role in ("source", "target"):
        name, raw = entry.get(role), entry.get(f"{role}_keypoints")
        if not isinstance(name, str) or not name:
            raise ValueError(f"`{role}` must be the path of a picture, got {name!r}")
        if raw is None:
            raise ValueError(f"`{role}_keypoints` is missing")
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            raise ValueError(
                f"`{role}` must be a path within the folder, got {name!r}; put the picture or a link there"
            )
        path = os.path.join(folder, name)
        frame = (raw, entry.get("size"))
        known = cache.get(path)
        if known is None or known[0] != frame:
            known = cache[path] = (frame, _read_keypoints(raw, entry.get("size")))
            if entry.get("size") is None and not tells_frame(raw):
                guessed[path] = known[1]
        values.append((path, known[1], name))
    (source, source_keypoints, source_name), (target, target_keypoints, target_name) = values
    return PosePair(source, target, source_keypoints, target_keypoints, source_name, target_name)


def _read_keypoints(raw: object, size: Any) -> Keypoints:
    return Keypoints.from_any(raw, None if size is None or tells_frame(raw) else tuple(size))


def _check_guessed_frames(guessed: dict[str, Keypoints], file: Path) -> None:
    for path in take_probes(list(guessed)):
        try:
            width, height = read_photo(path).size
        except UnreadableImageError:
            continue
        frame = guessed[path].size
        if not has_shape((height, width), frame):
            raise ValueError(
                f"{path!r} is {height}x{width} pixels, but '{file}' does not tell in what frame its keypoints were "
                f"measured, and {frame[0]}x{frame[1]} cannot be it: give `size`, [height, width], in every line "
                "(also if the picture was squeezed)."
            )


def _check_root(root: str | os.PathLike[str], split: str = "train") -> Path:
    if split not in _SPLITS:
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    folder = Path(root)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise FileNotFoundError(f"'{folder}' must be the folder of a data set, got {what}: check the path.")
    return folder


def _listing(folder: Path) -> str:
    """Say what is in a folder, for errors."""
    names = sorted(os.listdir(folder))
    if not names:
        return "an empty folder"
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
