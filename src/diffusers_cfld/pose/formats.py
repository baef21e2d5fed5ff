"""Readers of pose data: each turns one format into joints, from which `Keypoints` is made.

To add a format, write a function from its data to [`Joints`], and call it in [`read_any`] or [`read_file`].
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .skeleton import JOINT_NAMES, NUM_JOINTS

__all__ = [
    "COCO_NAMES",
    "DEEPFASHION_SIZE",
    "OPENPOSE_LENGTHS",
    "BoolArray",
    "FloatArray",
    "Joints",
    "NobodyError",
    "Size",
    "as_float_array",
    "check_size",
    "has_size",
    "read_any",
    "read_array",
    "read_coco",
    "read_csv_row",
    "read_deepfashion",
    "read_file",
    "read_openpose",
]

Size: TypeAlias = tuple[int, int]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

DEEPFASHION_SIZE: Size = (256, 176)
"""(height, width) in pixels of the images on which DeepFashion's keypoints were measured."""

COCO_NAMES: tuple[str, ...] = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
"""COCO's 17 joints, in COCO's order."""

# BODY_25 is the 18-joint order with the middle of the hips inserted at 8 and six points of the feet at the end.
_BODY_25_ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)

OPENPOSE_LENGTHS = (3 * NUM_JOINTS, 3 * 25)
"""How many numbers OpenPose writes for one person: (x, y, confidence) for 18 joints or for the 25 of BODY_25."""

_CSV_HEADER = "name:keypoints_y:keypoints_x"
# Larger than any image, and small enough for every computation.
_MAX_LENGTH = 2**20

_FORMS = (
    "`Keypoints`, an array of shape (18, 2) or (18, 3) with rows (x, y[, confidence]), the same with 17 rows in COCO "
    "order, a pair (y, x) of 18 numbers each, a line `name:[y, ...]:[x, ...]` of DeepFashion's CSV files, or OpenPose "
    "JSON as a string or dict (a file is read with `Keypoints.load`)"
)


class NobodyError(ValueError):
    """Nobody is there, or not the person asked for. In a sequence of poses, this is a gap."""


class Joints(NamedTuple):
    """What a reader returns: the arguments of `Keypoints`.

    Args:
        xy: (18, 2), pixels.
        visible: (18,), whether a joint is known.
        confidence: (18,), [0, 1], or None if unknown.
        size: (height, width) of the image that the joints were measured on, pixels.
    """

    xy: FloatArray
    visible: BoolArray
    confidence: FloatArray | None
    size: Size


# One reader per format; `Keypoints.from_*` documents the arguments -------------------------------------------------


def read_array(array: object, size: Size, min_confidence: float = 0.0) -> Joints:
    """Read rows (x, y[, confidence]) in OpenPose-18 order; see `Keypoints.from_array`."""
    rows = as_float_array(array, "`array`")
    if rows.shape not in ((NUM_JOINTS, 2), (NUM_JOINTS, 3)):
        raise ValueError(
            "`array` must have shape (18, 2) or (18, 3), rows (x, y[, confidence]) in OpenPose order, got shape "
            f"{rows.shape}. Use `Keypoints.from_coco` for COCO's 17 rows and `Keypoints.from_openpose` for BODY_25's "
            "75 numbers."
        )
    confidence = rows[:, 2].clip(0.0, 1.0) if rows.shape[1] > 2 else None
    return _measured(rows[:, :2], _find_visible(rows, min_confidence), confidence, check_size(size))


def read_coco(array: object, size: Size, min_confidence: float = 0.0) -> Joints:
    """Read rows (x, y[, confidence]) in COCO-17 order; see `Keypoints.from_coco`."""
    rows = as_float_array(array, "`array`")
    if rows.shape not in ((len(COCO_NAMES), 2), (len(COCO_NAMES), 3)):
        raise ValueError(
            "`array` must have shape (17, 2) or (17, 3), rows (x, y[, confidence]) in COCO order, got shape "
            f"{rows.shape}."
        )
    rows = np.where(_find_visible(rows, min_confidence, max_zeros=0)[:, None], rows, -1.0)
    shoulders = rows[[COCO_NAMES.index("left_shoulder"), COCO_NAMES.index("right_shoulder")]]
    neck = shoulders.mean(axis=0)
    neck[2:] = shoulders[:, 2:].min(axis=0)
    if (shoulders[:, :2] == -1).any():
        neck[:2] = -1
    # The neck becomes row 17, so that one list of rows puts all joints in order.
    order = [len(COCO_NAMES) if name == "neck" else COCO_NAMES.index(name) for name in JOINT_NAMES]
    return read_array(np.concatenate([rows, neck[None]])[order], size, min_confidence)


def read_deepfashion(y: object, x: object, size: Size) -> Joints:
    """Read the two columns of DeepFashion's annotation files; see `Keypoints.from_deepfashion`."""
    columns = [
        as_float_array(_parse(column) if isinstance(column, str) else column, "`y` and `x`") for column in (y, x)
    ]
    if any(column.shape != (NUM_JOINTS,) for column in columns):
        raise ValueError(
            f"`y` and `x` must have 18 numbers each, one per joint, got shapes {columns[0].shape} and "
            f"{columns[1].shape}."
        )
    return read_array(np.stack(columns[::-1], axis=1), size)


def read_csv_row(row: str, size: Size) -> Joints:
    """Read a line of DeepFashion's annotation files; see `Keypoints.from_csv_row`."""
    parts = row.strip().rsplit(":", 2)
    if len(parts) != 3:
        raise ValueError(f"A line of keypoints must have the form `name:[y, ...]:[x, ...]`, got {_shorten(row)}.")
    return read_deepfashion(parts[1], parts[2], size)


def read_openpose(data: object, size: Size | None, person: int | None = None, min_confidence: float = 0.0) -> Joints:
    """Read OpenPose's JSON; see `Keypoints.from_openpose`."""
    data = _parse(data) if isinstance(data, str) else data
    people, canvas = _find_people(data)
    if person is None and len(people) <= 1:
        person = 0
    if person is None or person < 0:
        raise ValueError(
            f"The OpenPose JSON has {len(people)} people: choose one with `person=0` to `person={len(people) - 1}`."
        )
    if person >= len(people):
        raise NobodyError(
            f"The OpenPose JSON has {len(people)} people, counted from 0, so there is no `person={person}`."
        )
    entry = people[person]
    is_json = isinstance(entry, Mapping)
    numbers = as_float_array(entry["pose_keypoints_2d"] if is_json else entry, "`pose_keypoints_2d`")
    if numbers.ndim != 1 or numbers.size not in OPENPOSE_LENGTHS:
        raise ValueError(
            "`pose_keypoints_2d` must have 54 (18 joints) or 75 (BODY_25) numbers in one flat list, got shape "
            f"{numbers.shape}."
        )
    size = canvas if size is None else size
    if size is None:
        raise ValueError(
            "The OpenPose JSON does not say how large its image was (`canvas_height`, `canvas_width`): pass "
            "`size=(height, width)`."
        )
    size = check_size(size)
    rows = numbers.reshape(-1, 3)
    if len(rows) == 25:
        rows = rows[list(_BODY_25_ROWS)]
    xy, confidence = rows[:, :2], rows[:, 2]
    visible = _find_visible(rows, min_confidence)
    if is_json and ((xy[visible] >= 0) & (xy[visible] <= 1)).all():
        xy = xy * (size[1], size[0])
    return _measured(xy, visible, confidence.clip(0.0, 1.0), size)


def read_any(value: object, size: Size | None) -> Joints:
    """Read any of the formats, which are told apart by types and shapes; see `Keypoints.from_any`."""
    known_size = DEEPFASHION_SIZE if size is None else size
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            return read_any(_parse(text), size)
        if text.count(":") >= 2 and text.endswith("]"):
            return read_csv_row(text, known_size)
        raise ValueError(f"A pose must be {_FORMS}; got the string {_shorten(value)}.")
    if isinstance(value, Mapping):
        if "keypoints_y" in value and "keypoints_x" in value:
            own_size = value.get("size", known_size) if size is None else size
            return read_deepfashion(value["keypoints_y"], value["keypoints_x"], own_size)
        return read_openpose(value, size)
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(isinstance(item, str) for item in value):
            return read_deepfashion(value[0], value[1], known_size)
        if value and all(isinstance(item, Mapping) for item in value):
            return read_openpose(value, size)
    elif not hasattr(value, "__array__"):
        raise TypeError(f"A pose must be {_FORMS}; got {type(value).__name__}.")
    values = as_float_array(value, "A pose")
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim == 1 and values.size in OPENPOSE_LENGTHS:
        return read_openpose(values, size)
    if values.shape == (2, NUM_JOINTS):
        return read_deepfashion(values[0], values[1], known_size)
    if values.ndim == 2 and len(values) == len(COCO_NAMES):
        return read_coco(values, known_size)
    if values.ndim == 2:
        return read_array(values, known_size)
    raise ValueError(f"A pose must be {_FORMS}; got numbers of shape {values.shape}.")


def read_file(path: str | os.PathLike[str], size: Size | None, person: int | None, row: str | None) -> Joints:
    """Read a file, in the format of its suffix; see `Keypoints.load`."""
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in (".json", ".csv", ".txt", ".npy"):
        raise ValueError("a keypoint file must end in .json, .csv, .txt or .npy.")
    if (row is not None and suffix not in (".csv", ".txt")) or (person is not None and suffix != ".json"):
        raise ValueError(
            "`row` is only for .csv and .txt files and `person` only for .json files: leave out what does not apply."
        )
    if suffix == ".npy":
        return read_any(np.load(file, allow_pickle=False), size)
    # utf-8-sig also reads files that spreadsheet programs wrote with a byte order mark.
    text = file.read_text(encoding="utf-8-sig")
    if suffix == ".json":
        return read_any(_parse(text), size) if person is None else read_openpose(text, size, person)
    return read_csv_row(_choose_row(text, row), DEEPFASHION_SIZE if size is None else size)


def has_size(data: object) -> bool:
    """Return whether a pose, in any form, contains the size of the image that it was measured on.

    Args:
        data: The pose, or its JSON.

    Returns:
        Whether it contains the size.
    """
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError):  # a line of CSV, or something that cannot be read
            return False
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return isinstance(data, Mapping) and (data.get("size") is not None or _canvas_of(data) is not None)


# Pieces of the formats ----------------------------------------------------------------------------------------------


def check_size(size: Any) -> Size:
    """Check that a value is an image size.

    Args:
        size: (height, width), pixels.

    Returns:
        The same size as two ints.

    Raises:
        ValueError: It is not a pair of positive whole numbers.
    """
    try:
        lengths = tuple(size)
        height, width = map(int, lengths)
        is_size = (height, width) == lengths and min(height, width) >= 1 and max(height, width) <= _MAX_LENGTH
    except (TypeError, ValueError, OverflowError):
        is_size = False
    if not is_size:
        raise ValueError(
            f"`size` must be (height, width), two whole numbers of pixels from 1 to {_MAX_LENGTH}, got "
            f"{_shorten(str(size))}."
        )
    return height, width


def as_float_array(value: object, name: str) -> FloatArray:
    """Convert real numbers to an array.

    Args:
        value: A list, an array or a tensor of numbers.
        name: What the numbers are, for the error.

    Returns:
        float64; may share memory with `value`.

    Raises:
        ValueError: Rows differ in length.
        TypeError: There is something other than numbers.
    """
    try:
        items = [_from_tensor(item) for item in value] if isinstance(value, (list, tuple)) else value
        array = np.asarray(_from_tensor(items))
        if array.dtype == object and array.ndim and all(isinstance(item, (Real, type(None))) for item in array.flat):
            array = array.astype(np.float64)  # `None`, for what is missing, becomes NaN
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be real numbers in rows of equal length ({error}).") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {type(value).__name__} with {array.dtype.name} entries.")
    return array.astype(np.float64, copy=False)


def _find_visible(rows: FloatArray, min_confidence: float, max_zeros: int = 1) -> BoolArray:
    """Which rows (x, y[, confidence]) are known: no -1, NaN or low confidence, and at most `max_zeros` at (0, 0)."""
    xy = rows[:, :2]
    visible = ~(np.isnan(rows).any(axis=1) | (xy == -1).any(axis=1))
    if rows.shape[1] > 2:
        visible &= rows[:, 2] > min_confidence
    zeros = visible & (xy == 0).all(axis=1)
    return visible & ~zeros if zeros.sum() > max_zeros else visible


def _from_tensor(value: Any) -> Any:
    """Convert a tensor to an array without importing torch; NumPy has no bfloat16."""
    return value.detach().cpu().double().numpy() if hasattr(value, "detach") else value


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A pose must be valid JSON, got {_shorten(text)} ({error}).") from error


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _find_people(data: object) -> tuple[list[Any], Size | None]:
    """The people in OpenPose data, as dicts or lists of numbers, and the size of the image if the data have it."""
    if isinstance(data, (list, tuple)) and len(data) == 1:
        data = data[0]
    canvas, people = None, data
    if isinstance(data, Mapping):
        canvas = _canvas_of(data)
        people = data.get("people", [data])
    elif not isinstance(data, (list, tuple)) or (data and not isinstance(data[0], Mapping)):
        return [data], None
    if not isinstance(people, (list, tuple)) or not all(
        isinstance(entry, Mapping) and entry.get("pose_keypoints_2d") is not None for entry in people
    ):
        raise ValueError(
            'OpenPose JSON must be `{"people": [{"pose_keypoints_2d": [...]}, ...]}` or one of its people, got '
            f"{_shorten(str(data))}."
        )
    return list(people), canvas


def _canvas_of(data: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    sides = data.get("canvas_height"), data.get("canvas_width")
    return None if None in sides else sides


def _choose_row(text: str, name: str | None) -> str:
    """The line with this name in a CSV file, or its only line."""
    rows: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        if line and line != _CSV_HEADER:
            rows.setdefault(line.rsplit(":", 2)[0], line)
    if name is None and len(rows) == 1:
        return next(iter(rows.values()))
    if name is None or name not in rows:
        missing = "" if name is None else f", none of them named {name!r}"
        raise ValueError(f"it has {len(rows)} rows{missing}: choose one by its name, with `row=`.")
    return rows[name]


def _measured(xy: FloatArray, visible: BoolArray, confidence: FloatArray | None, size: Size) -> Joints:
    """Check that the joints can have been measured on an image of this size."""
    shape = np.array(size[::-1])
    outside = visible & ((xy < -shape / 2) | (xy > 1.5 * shape)).any(axis=1)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(
            f"Joint {JOINT_NAMES[index]!r} at x={xy[index, 0]:g}, y={xy[index, 1]:g} is far outside the image of "
            f"{size[0]}x{size[1]} (height x width): pass `size=(height, width)` of the image that the keypoints were "
            "measured on."
        )
    if visible.sum() > 1 and (np.abs(xy[visible]) <= 2).all():
        raise ValueError(
            "All joints lie within 2 pixels of the image's corner, so they seem to be fractions of its size: multiply "
            "x by the image's width and y by its height."
        )
    return Joints(xy, visible, confidence, size)
