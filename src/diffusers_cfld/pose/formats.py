"""Joints of one person: the orders that pose estimators write them in, brought into OpenPose's 18.

The readers of the formats are in `format_readers.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .skeleton import JOINT_NAMES, NUM_JOINTS

logger = logging.getLogger(__name__)

Size: TypeAlias = tuple[int, int]
T = TypeVar("T")
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

DEEPFASHION_SIZE: Size = (256, 176)
"""(height, width) in pixels of the images on which DeepFashion's keypoints were measured."""

COCO_NAMES = (
    "nose",
    *(
        f"{side}_{part}"
        for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in ("left", "right")
    ),
)
"""COCO's 17 joints, in COCO's order."""

COCO_COUNTS = (17, 26, 133, 136)
"""How many joints there are where COCO's 17 come first: COCO, Halpe's body, COCO-WholeBody, Halpe's whole body."""

OPENPOSE_COUNTS = (18, 25, 134)
"""How many joints there are in OpenPose's order: its 18, BODY_25, DWPose's whole body with OpenPose's 18 first."""

MEDIAPIPE_COUNT = 33
"""How many landmarks a body has in MediaPipe."""

JOINT_COUNTS = (*COCO_COUNTS, *OPENPOSE_COUNTS, MEDIAPIPE_COUNT)
"""The numbers of joints that can be read; each tells their order."""

FLAT_LENGTHS = {4 * MEDIAPIPE_COUNT: 4} | {
    columns * count: columns for count in (*COCO_COUNTS, *OPENPOSE_COUNTS) for columns in (2, 3)
}
"""Of lists with all numbers of one person in a row: their length, and how many numbers each joint has in it."""

# BODY_25 is the 18-joint order with the middle of the hips inserted at 8 and six points of the feet at the end.
_BODY_25_ROWS = [*range(8), *range(9, 19)]
# COCO's joints among MediaPipe's landmarks, in COCO's order.
_MEDIAPIPE_ROWS = [0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]
_MEDIAPIPE_HIPS = [23, 24]
_SHOULDERS = [COCO_NAMES.index("left_shoulder"), COCO_NAMES.index("right_shoulder")]
# The neck is row 17 after COCO's joints.
_COCO_ROWS = [COCO_NAMES.index(name) if name in COCO_NAMES else len(COCO_NAMES) for name in JOINT_NAMES]

# Larger than any image, and small enough for every computation.
_MAX_LENGTH = 2**20


class NobodyError(ValueError):
    """Nobody is there, or not the person asked for. In a sequence of poses, this is a gap."""


class Joints(NamedTuple):
    """The arguments of `Keypoints`.

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


class Person(NamedTuple):
    """What a reader finds of one person.

    Args:
        rows: (joints, 2 or 3), (x, y[, confidence]); the number of joints, one of `JOINT_COUNTS`, tells their order.
        size: (height, width) of the image, pixels, if the data say it.
        normalized: Whether x and y are fractions of the image's width and height; None: they are if all visible joints
            lie in [0, 1].
        default_size: What to take for a size that nobody says.
    """

    rows: FloatArray
    size: Any = None
    normalized: bool | None = False
    default_size: Size | None = None

    def find_visible(self, min_confidence: float = 0.0) -> BoolArray:
        """Find the joints that are known.

        Args:
            min_confidence: Joints are missing if their confidence is at most this.

        Returns:
            (joints,), False if x or y is -1, a number is NaN, the confidence is too low, or the joint lies at (0, 0);
            in OpenPose's order a single one may lie there.
        """
        xy = self.rows[:, :2]
        visible: BoolArray = ~(np.isnan(self.rows).any(axis=1) | (xy == -1).any(axis=1))
        if self.rows.shape[1] > 2:
            visible &= self.rows[:, 2] > min_confidence
        zeros = visible & (xy == 0).all(axis=1)
        return visible & ~zeros if zeros.sum() > (len(xy) in OPENPOSE_COUNTS) else visible

    def convert(self, size: Size | None = None, normalized: bool = False, min_confidence: float = 0.0) -> Joints:
        """Bring the joints into OpenPose's order, in pixels.

        Args:
            size: (height, width) of the image, pixels; None: as the data say.
            normalized: Whether x and y are fractions in any case.
            min_confidence: Joints are missing if their confidence is at most this.

        Returns:
            The joints. The neck, which COCO and MediaPipe lack, is the mean of the shoulders, with the smaller of
            their confidences. Landmarks outside the image, where MediaPipe guesses them, are missing.

        Raises:
            ValueError: The size is not known or is not a size, or the joints cannot have been measured on an image of
                this size.
        """
        size = self.size if size is None else size
        size = self.default_size if size is None and not normalized else size
        if size is None:
            raise ValueError("The pose does not say how large its image was: pass `size=(height, width)`.")
        height, width = size = check_size(size)
        rows, xy = self.rows, self.rows[:, :2]
        visible = self.find_visible(min_confidence)
        is_fraction = normalized or self.normalized
        if is_fraction is None:
            is_fraction = bool(((xy[visible] >= 0) & (xy[visible] <= 1)).all())
        if len(rows) == MEDIAPIPE_COUNT:
            if is_fraction and (np.abs(xy[_MEDIAPIPE_HIPS].mean(axis=0)) < 0.02).all():
                raise ValueError(
                    "MediaPipe's world landmarks are metres in space, not places in an image: pass `pose_landmarks`."
                )
            visible &= ((xy >= 0) & (xy <= ((1, 1) if is_fraction else (width, height)))).all(axis=1)
        if is_fraction:
            rows = np.column_stack([xy * (width, height), rows[:, 2:]])
        rows = np.where(visible[:, None], rows, np.nan)
        if len(rows) in OPENPOSE_COUNTS:
            rows = rows[_BODY_25_ROWS if len(rows) == 25 else slice(NUM_JOINTS)]
        else:
            rows = rows[_MEDIAPIPE_ROWS if len(rows) == MEDIAPIPE_COUNT else slice(len(COCO_NAMES))]
            neck = np.append(rows[_SHOULDERS, :2].mean(axis=0), rows[_SHOULDERS, 2:].min(axis=0))
            rows = np.vstack([rows, neck])[_COCO_ROWS]
        confidence = rows[:, 2].clip(0.0, 1.0) if rows.shape[1] > 2 else None
        joints = Joints(rows[:, :2], ~np.isnan(rows[:, 0]), confidence, size)
        _check_measured(joints)
        return joints


def choose_one(people: Sequence[T], person: int | None, source: str) -> T:
    """Choose one of several people.

    Args:
        people: Everyone.
        person: Which one, from 0. None if there is only one.
        source: What has or shows them, with its verb, for the error.

    Returns:
        The person.

    Raises:
        ValueError: There is no such person, or none is chosen from several.
    """
    if person is None and len(people) > 1:
        raise ValueError(f"{source} {len(people)} people: choose one with `person=0` to `person={len(people) - 1}`.")
    if not 0 <= (person or 0) < len(people):
        count = "1 person" if len(people) == 1 else f"{len(people)} people"
        wanted = "" if person is None else f", counted from 0, so there is no `person={person}`"
        raise NobodyError(f"{source} {count}{wanted}.")
    return people[person or 0]


def warn_if_swapped(xy: FloatArray, size: Size) -> None:
    """Warn of a size that was probably given as (width, height).

    Args:
        xy: (joints, 2), visible joints, pixels.
        size: (height, width) of the image that they are said to be measured on, pixels.
    """
    num_outside, num_swapped = (int(((xy < 0) | (xy > sides)).any(axis=1).sum()) for sides in (size[::-1], size))
    if num_outside > num_swapped:
        logger.warning(
            "%d of %d joints lie outside the image of %dx%d (height x width), but %d would if height and width were "
            "exchanged: `size` is (height, width).",
            *(num_outside, len(xy), *size, num_swapped),
        )


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
            f"`size` must be (height, width), whole numbers of pixels up to {_MAX_LENGTH}, got {shorten(str(size))}."
        )
    return height, width


def as_float_array(value: object, name: str) -> FloatArray:
    """Convert real numbers to an array.

    Args:
        value: A list, an array or a tensor of numbers; `None`, also for a whole row, becomes NaN.
        name: What the numbers are, for the error.

    Returns:
        float64; may share memory with `value`.

    Raises:
        ValueError: Rows differ in length.
        TypeError: There is something other than numbers.
    """
    try:
        items = [_from_tensor(item) for item in value] if isinstance(value, (list, tuple)) else value
        if isinstance(items, list) and any(item is None for item in items):
            lengths = [len(item) for item in items if hasattr(item, "__len__")]
            items = [[None] * lengths[0] if item is None and lengths else item for item in items]
        array = np.asarray(_from_tensor(items))
        if array.dtype == object and array.ndim and all(isinstance(item, (Real, type(None))) for item in array.flat):
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be real numbers in rows of equal length ({error}).") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {type(value).__name__} with {array.dtype.name} entries.")
    return array.astype(np.float64, copy=False)


def shorten(text: str) -> str:
    """Quote a text in an error.

    Args:
        text: Any text.

    Returns:
        Its `repr`; after 57 characters, dots.
    """
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _from_tensor(value: Any) -> Any:
    """Convert a tensor to an array without importing torch; NumPy has no bfloat16."""
    return value.detach().cpu().double().numpy() if hasattr(value, "detach") else value


def _check_measured(joints: Joints) -> None:
    """Refuse joints that cannot have been measured on an image of this size."""
    xy, visible, _, size = joints
    shape = np.array(size[::-1])
    outside = visible & ((xy < -shape / 2) | (xy > 1.5 * shape)).any(axis=1)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(
            f"Joint {JOINT_NAMES[index]!r} at x={xy[index, 0]:g}, y={xy[index, 1]:g} is far outside the image of "
            f"{size[0]}x{size[1]} (height x width): pass `size=(height, width)` of the image it was measured on."
        )
    if visible.sum() > 1 and (np.abs(xy[visible]) <= 2).all():
        raise ValueError(
            "The image's joints seem to be fractions of its size: pass `normalized=True` and `size=(height, width)`."
        )
