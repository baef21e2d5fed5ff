"""From keypoint files and data in any form to the joints of one person; the formats are in `format_readers.py`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .format_readers import FORMS, parse_json, parse_people, split_by_image
from .formats import JOINT_COUNTS, Joints, Person, Size, choose_one, shorten, warn_if_swapped

FILE_SUFFIXES = (".json", ".csv", ".txt", ".npy", ".npz")
"""The suffixes of keypoint files."""

_CSV_HEADER = "name:keypoints_y:keypoints_x"


def read_pose(
    data: Any,
    size: Size | None = None,
    person: int | None = None,
    min_confidence: float = 0.0,
    normalized: bool = False,
    counts: tuple[int, ...] = JOINT_COUNTS,
) -> Joints:
    """Read one person's pose; see `Keypoints.from_any`.

    Args:
        data: In any form.
        size: (height, width) of the image, pixels; None: as the data say.
        person: Which of several people, from 0.
        min_confidence: Joints are missing if their confidence is at most this.
        normalized: Whether x and y are fractions of the image's width and height.
        counts: The numbers of joints to read.

    Returns:
        The joints.

    Raises:
        ValueError: There is no such person, or the data cannot be read.
        TypeError: The data have none of the known forms.
    """
    found = choose_person(read_people(data), person, min_confidence)
    if len(found.rows) not in counts:
        expected, hint = ", ".join(map(str, counts)), "`Keypoints.from_any` reads other orders"
        raise ValueError(f"The pose must have {expected} joints, got {len(found.rows)}: {hint}.")
    joints = found.convert(size, normalized, min_confidence)
    warn_if_swapped(joints.xy[joints.visible], joints.size)
    return joints


def read_people(data: Any) -> list[Person]:
    """Read everyone in an image.

    Args:
        data: In any form.

    Returns:
        The people, in the order of the data.

    Raises:
        ValueError: There are several images, or the data cannot be read.
        TypeError: The data have none of the known forms.
    """
    if data is None:
        raise TypeError(f"A pose must be {FORMS}; got None.")
    image = choose_image(split_by_image(data), None)
    try:
        return parse_people(image)
    except (KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"A pose must be {FORMS}; got {shorten(str(data))}.") from error


def choose_person(people: Sequence[Person], person: int | None, min_confidence: float = 0.0) -> Person:
    """Choose one of several people.

    Args:
        people: From [`read_people`].
        person: Which one, from 0. None if there is one, or only one of them has visible joints.
        min_confidence: Joints are missing if their confidence is at most this.

    Returns:
        The person.

    Raises:
        ValueError: There is no such person, or none is chosen from several.
    """
    if person is None and len(people) > 1:
        seen = [number for number, one in enumerate(people) if one.find_visible(min_confidence).any()]
        if len(seen) < 2:
            person = seen[0] if seen else 0
    return choose_one(people, person, "The pose data has")


def has_size(data: Any) -> bool:
    """Return whether a pose, in any form, contains the size of the image that it was measured on.

    Args:
        data: The pose, or its JSON.

    Returns:
        Whether it contains the size.
    """
    try:
        return any(one.size is not None for one in read_people(data))
    except (ValueError, TypeError):
        return False


def load_images(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a keypoint file, in the format of its suffix.

    Args:
        path: `.json`; `.npy` or `.npz` (one array, or several with the names that dicts have); `.csv` or `.txt` with
            the lines of DeepFashion's annotation files, or a table of numbers.

    Returns:
        As from [`split_by_image`].

    Raises:
        OSError: The file cannot be read.
        ValueError: The suffix is unknown, or the content cannot be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in FILE_SUFFIXES:
        raise ValueError(f"a keypoint file must end in {', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}.")
    if suffix == ".npy":
        return {"": np.load(file, allow_pickle=False)}
    if suffix == ".npz":
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = dict(archive)
        except (zipfile.BadZipFile, TypeError, AttributeError) as error:  # the latter two for a single array
            raise ValueError(f"it is not an archive of arrays ({error}).") from error
        return {"": next(iter(arrays.values())) if len(arrays) == 1 else arrays}
    # utf-8-sig also reads files that spreadsheet programs wrote with a byte order mark.
    text = file.read_text(encoding="utf-8-sig")
    if suffix == ".json" or text.lstrip().startswith(("{", "[")):
        return split_by_image(parse_json(text))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and ":" in lines[0]:
        return {line.rsplit(":", 2)[0]: line for line in reversed(lines) if line != _CSV_HEADER}
    rows = [line.replace(",", " ").replace(";", " ") for line in lines]
    if rows and rows[0].lower().split()[:2] == ["x", "y"]:
        del rows[0]
    try:
        return {"": np.loadtxt(rows, ndmin=2) if rows else []}
    except ValueError as error:
        form = "`name:[y, ...]:[x, ...]`, or `x y [confidence]` as from `np.savetxt`"
        raise ValueError(f"the lines must have the form {form}; got {shorten(lines[0])} ({error}).") from error


def choose_image(images: Mapping[str, Any], row: str | None) -> Any:
    """Choose one of several images.

    Args:
        images: From [`load_images`] or [`split_by_image`].
        row: The name of the image; None if there is one.

    Returns:
        Its data.

    Raises:
        ValueError: There is no such image, or none is chosen from several.
    """
    if row is None and len(images) == 1:
        return next(iter(images.values()))
    names = ", ".join(map(repr, list(images)[:3])) + ", ..." * (len(images) > 3)
    if row is None:
        raise ValueError(
            f"The pose data has {len(images)} images ({names}): choose one by its name, with `row=` of "
            "`Keypoints.load`, or read all with `diffusers_cfld.sequences.load_pose_sequence`."
        )
    if row not in images:
        raise ValueError(f"`row` must be the name of one of {len(images)} images ({names}), got {row!r}.")
    return images[row]
