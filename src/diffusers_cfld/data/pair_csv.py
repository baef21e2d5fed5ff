"""The field's annotation files: `from,to` lists of pairs, and `name:keypoints_y:keypoints_x` lists of poses.

They go back to PATN and are shared by GFLA, DPTN, PIDM and CFLD, for DeepFashion and for Market-1501.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from ..pose.keypoints import JOINT_NAMES, Keypoints
from .pair_transform import PosePair
from .skip_report import SkipReport

__all__ = ["load_csv_pairs", "read_annotations", "read_names", "read_pair_list"]

logger = logging.getLogger(__name__)

_NUM_JOINTS = len(JOINT_NAMES)
# How many pairs are looked for before a folder counts as the wrong one.
_PROBES = 32

_Item = TypeVar("_Item")


def read_pair_list(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read a list of pairs.

    Args:
        path: CSV file with the columns `from` and `to`, and perhaps others.

    Returns:
        The names of source and target picture of each pair. Lines without both are left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no such columns or no pair.
    """
    with _open_text(path) as stream:
        try:
            rows = csv.reader(stream)
            header = [cell.strip() for cell in next(rows, [])]
            if "from" not in header or "to" not in header:
                raise ValueError(
                    f"'{path}' must have the columns `from` and `to`, got the first line {header[:6]}: it is no list "
                    "of pairs."
                )
            source, target = header.index("from"), header.index("to")
            # One string per picture and not per mention: a picture is in some five pairs.
            names: dict[str, str] = {}
            pairs = [
                (names.setdefault(row[source], row[source]), names.setdefault(row[target], row[target]))
                for row in rows
                if len(row) > max(source, target) and row[source] and row[target]
            ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"'{path}' must be a CSV file in UTF-8 ({error}): download it again.") from error
    if not pairs:
        raise ValueError(f"'{path}' lists no pairs below its header: download it again.")
    return pairs


def read_annotations(
    path: str | os.PathLike[str], names: Iterable[str], size: tuple[int, int], report: SkipReport
) -> dict[str, Keypoints]:
    """Read the poses of some pictures.

    Args:
        path: File with lines `name:[y, ...]:[x, ...]`, the first one `name:keypoints_y:keypoints_x` or not.
        names: Pictures whose poses are wanted.
        size: (height, width) of the frame that they were measured in, pixels.
        report: Takes in the names whose lines are unreadable or missing.

    Returns:
        The poses by name.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a text file.
    """
    wanted = dict.fromkeys(names)
    lines: dict[str, tuple[str, str]] = {}
    for name, y, x in _annotation_lines(path):
        if name in wanted:
            lines.setdefault(name, (y, x))
    poses: dict[str, Keypoints] = _read_plain_rows(lines, size)
    for name in wanted:
        if name in poses:
            continue
        if name not in lines:
            report.add(name, f"has no line in '{os.path.basename(path)}'")
            continue
        try:
            poses[name] = Keypoints.from_deepfashion(*lines[name], size)
        except (ValueError, TypeError) as error:
            report.add(name, f"has unreadable keypoints in '{os.path.basename(path)}' ({str(error).rstrip('.')})")
    return poses


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """List the pictures that have a line in a file of poses.

    Args:
        path: See [`read_annotations`].

    Returns:
        Their names, in the order of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a text file.
    """
    return list(dict.fromkeys(name for name, y, _ in _annotation_lines(path) if y.lstrip().startswith("[")))


def load_csv_pairs(
    pairs_file: Path,
    annotation_file: Path,
    image_folders: Sequence[Path],
    size: tuple[int, int],
    report: SkipReport | None,
) -> list[PosePair]:
    """Read the pairs of a data set of this kind.

    Args:
        pairs_file: See [`read_pair_list`].
        annotation_file: See [`read_annotations`].
        image_folders: Where the pictures may be; the first one that exists is taken.
        size: (height, width) of the frame of the keypoints, pixels.
        report: Takes in the pictures without usable keypoints, once for each pair left out; None to log a summary.

    Returns:
        The pairs, in the order of the file.

    Raises:
        OSError: A file or the folder of pictures does not exist or cannot be read.
        ValueError: A file has not the expected form, no pair has keypoints, or the folder has none of the pictures
            looked for.
    """
    named_pairs = read_pair_list(pairs_file)
    folder = next((folder for folder in image_folders if folder.is_dir()), None)
    if folder is None:
        expected = " or ".join(f"'{folder}'" for folder in image_folders)
        raise FileNotFoundError(
            f"The pictures of '{pairs_file.name}' are missing: expected the folder {expected}; prepare the data set "
            "first."
        )
    names = list(dict.fromkeys(name for pair in named_pairs for name in pair))
    problems = SkipReport(max_logged=0)
    poses = read_annotations(annotation_file, names, size, problems)
    paths = {name: os.path.join(folder, name) for name in names}
    entries = SkipReport(max_logged=0) if report is None else report
    pairs = []
    for source, target in named_pairs:
        missing = [name for name in dict.fromkeys((source, target)) if name not in poses]
        for name in missing:
            entries.add(paths[name], problems.reason(name))
        if not missing:
            pairs.append(PosePair(paths[source], paths[target], poses[source], poses[target], source, target))
    finish_reading(pairs, len(named_pairs), pairs_file, entries, is_own_report=report is None)
    return pairs


def finish_reading(
    pairs: Sequence[PosePair], num_listed: int, pairs_file: Path, entries: SkipReport, *, is_own_report: bool
) -> None:
    """Check that something is left of a list of pairs, and say what was left out.

    Whether pictures are there is looked up for a few of them only.

    Args:
        pairs: Those that can be used.
        num_listed: How many the file has.
        pairs_file: The file.
        entries: Why the others were left out.
        is_own_report: Whether nobody else will tell what is in `entries`.

    Raises:
        ValueError: No pair can be used.
        FileNotFoundError: None of the pictures looked for is there.
    """
    if not pairs:
        path = next(iter(entries), str(pairs_file))
        reason = entries.reason(path) if path in entries else "lists no pairs"
        raise ValueError(
            f"None of the {num_listed} pairs of '{pairs_file}' can be used ('{path}' {reason}): check that the files "
            "belong together and are complete."
        )
    probes = take_probes(pairs)
    if not any(os.path.exists(pair.source) or os.path.exists(pair.target) for pair in probes):
        raise FileNotFoundError(
            f"The pictures of '{pairs_file}' are missing: expected {probes[0].source!r} and others, and found none of "
            f"the {len(probes)} pairs looked for; prepare the data set, so that its pictures have the listed names."
        )
    if len(pairs) < num_listed:
        details = f" {entries.summary()}" if is_own_report else ""
        logger.warning(
            "%d of the %d pairs of '%s' are left out.%s", num_listed - len(pairs), num_listed, pairs_file, details
        )


def take_probes(items: Sequence[_Item]) -> Sequence[_Item]:
    """Take a few items of a long list, spread over it.

    Args:
        items: All of them.

    Returns:
        Up to 32.
    """
    return items[:: max(1, len(items) // _PROBES)][:_PROBES]


def _annotation_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, str]]:
    try:
        with _open_text(path) as stream:
            for line in stream:
                parts = line.rstrip("\r\n").rsplit(":", 2)
                if len(parts) == 3:
                    yield parts[0], parts[1], parts[2]
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' must be a text file in UTF-8 ({error}): download it again.") from error


def _read_plain_rows(lines: dict[str, tuple[str, str]], size: tuple[int, int]) -> dict[str, Keypoints]:
    """Read the lines that have nothing unusual, all at once: `Keypoints.from_deepfashion` takes ten times as long."""
    names, rows = [], []
    for name, columns in lines.items():
        try:
            y, x = (json.loads(column) for column in columns)
        except (ValueError, RecursionError):
            continue
        is_plain = all(
            isinstance(column, list) and len(column) == _NUM_JOINTS and set(map(type, column)) == {int}
            for column in (y, x)
        )
        if is_plain and min(*y, *x) >= -1 and max(y) <= size[0] and max(x) <= size[1]:
            names.append(name)
            rows.append((x, y))
    # (N, 2, 18) -> (N, 18, 2)
    xy = np.array(rows, dtype=np.float64).reshape(-1, 2, _NUM_JOINTS).transpose(0, 2, 1)
    visible = (xy != -1).all(axis=2)
    return {name: Keypoints(xy[row], visible[row], None, size) for row, name in enumerate(names) if visible[row].any()}


def _open_text(path: str | os.PathLike[str]) -> TextIO:
    # utf-8-sig also reads files that spreadsheet programs wrote with a byte order mark.
    return open(path, encoding="utf-8-sig", newline="")
