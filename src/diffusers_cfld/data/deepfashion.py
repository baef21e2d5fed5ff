"""The CSV files of DeepFashion and Market-1501: lists of pairs (`from,to`) and of keypoints.

PATN introduced them; GFLA, DPTN, PIDM and CFLD use the same files.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from ..pose.formats import DEEPFASHION_SIZE as DEEPFASHION_SIZE
from ..pose.keypoints import Keypoints

DEEPFASHION_PREFIXES = ("fasion-resize", "fashion-resize")
"""What the names of DeepFashion's files begin with; the first spelling is that of the published files."""
MARKET1501_PREFIXES = ("market",)
"""What the names of Market-1501's files begin with."""
MARKET1501_SIZE = (128, 64)
"""(height, width) of the images that Market-1501's keypoints were measured on, pixels."""


def find_csv(folder: Path, prefixes: tuple[str, ...], kind: str, split: str) -> Path:
    """Find one of the files.

    Args:
        folder: The folder that it is in.
        prefixes: What its name may begin with.
        kind: "pairs" or "annotation".
        split: "train" or "test".

    Returns:
        Its path.

    Raises:
        FileNotFoundError: It is not in the folder.
    """
    names = [f"{prefix}-{kind}-{split}.csv" for prefix in prefixes]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"'{names[0]}' is missing in '{folder}': download the lists of pairs and keypoints (see docs/data.md)."
    )


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
