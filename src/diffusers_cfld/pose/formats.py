"""Reading the pieces of pose files: numbers, sizes, JSON, OpenPose's people, lines of the field's CSV files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Size: TypeAlias = tuple[int, int]
FloatArray: TypeAlias = npt.NDArray[np.float64]

MAX_DRAWN_COORDINATE = 32767
"""OpenCV draws in 16.16 fixed point, so a coordinate beyond this cannot be drawn."""

# Far larger than any picture, and small enough for every computation.
_MAX_LENGTH = 2**20
_CSV_HEADER = "name:keypoints_y:keypoints_x"


class NobodyError(ValueError):
    """There is nobody, or not the person asked for: in a sequence of poses, a gap."""


def as_float_array(value: object, name: str) -> FloatArray:
    """Convert a list, array or tensor of real numbers; `name` opens the error message. May share memory."""
    try:
        items = [_tensor_to_array(item) for item in value] if isinstance(value, (list, tuple)) else value
        array = np.asarray(_tensor_to_array(items))
        if array.dtype.kind in "iuf":
            return array.astype(np.float64, copy=False)
        found = f"{type(value).__name__} with {array.dtype.name} entries"
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers, got {type(value).__name__} ({error}).") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be real numbers in rows of equal length: {error}.") from error
    raise TypeError(f"{name} must be real numbers, got {found}.")


def _tensor_to_array(value: object) -> object:
    """Convert a torch tensor to an array and leave anything else, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def parse_json(text: str, name: str) -> object:
    """Parse JSON; `name` opens the error message."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be valid JSON, got {shorten(text)} ({error}).") from error


def shorten(text: str) -> str:
    """Quote a text for an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def check_size(size: object) -> Size:
    """Return `size` as a pair of ints after checking that it is one."""
    pair = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) else ()
    if len(pair) != 2 or not all(
        isinstance(length, (int, np.integer)) or (isinstance(length, (float, np.floating)) and length.is_integer())
        for length in pair
    ):
        raise TypeError(f"`size` must be a pair of whole numbers (height, width), got {shorten(str(size))}.")
    if not all(1 <= length <= _MAX_LENGTH for length in pair):
        raise ValueError(f"`size` must be (height, width), each from 1 to {_MAX_LENGTH} pixels, got {pair}.")
    return int(pair[0]), int(pair[1])


def tells_frame(data: object) -> bool:
    """Whether a pose in any form, or its text, says how large the picture was that it was measured on."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError):  # a line of CSV, or nothing that can be read
            return False
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return isinstance(data, Mapping) and (data.get("size") is not None or _canvas_of(data) is not None)


def find_people(data: object) -> tuple[list[object], Size | None]:
    """Return the numbers of each person in OpenPose data, and the canvas size if it is there."""
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, Mapping) for item in data):
        if any("people" in item for item in data):
            if len(data) > 1:
                raise ValueError(f"The OpenPose data is a list of {len(data)} pictures: pass one of its entries.")
            return find_people(data[0])
        return [_person_numbers(item) for item in data], None
    if isinstance(data, (list, tuple, np.ndarray)):
        # An empty list is nobody; anything else must be one person's numbers.
        return [data] if len(np.shape(data) if isinstance(data, np.ndarray) else data) else [], None
    if not isinstance(data, Mapping):
        raise TypeError(f"OpenPose data must be a dict, a list or a JSON string, got {type(data).__name__}.")
    canvas = _canvas_of(data)
    canvas = None if canvas is None else check_size(canvas)
    if "people" not in data:
        return [_person_numbers(data)], canvas
    people = data["people"]
    if not isinstance(people, (list, tuple)):
        raise ValueError(f"`people` in the OpenPose JSON must be a list, got {type(people).__name__}.")
    return [_person_numbers(entry) for entry in people], canvas


def _canvas_of(data: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """What OpenPose data say of the picture's height and width, if both."""
    sides = data.get("canvas_height"), data.get("canvas_width")
    return None if None in sides else sides


def _person_numbers(entry: object) -> object:
    if not isinstance(entry, Mapping) or entry.get("pose_keypoints_2d") is None:
        raise ValueError(
            "OpenPose JSON must have `people`, a list of entries with `pose_keypoints_2d`, got "
            f"{shorten(str(list(entry)) if isinstance(entry, Mapping) else type(entry).__name__)}."
        )
    return entry["pose_keypoints_2d"]


def choose_csv_row(text: str, row: str | None) -> str:
    """Return the line of this name, or the only one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != _CSV_HEADER]
    if row is not None:
        for line in lines:
            if line.rsplit(":", 2)[0] == row:
                return line
        raise ValueError(f"none of its {len(lines)} rows is named {row!r}.")
    if len(lines) != 1:
        choose = ": choose one with `row=` and its name" if lines else ""
        raise ValueError(f"it has {len(lines)} rows{choose}.")
    return lines[0]
