"""Body pose of one person: 18 joints in OpenPose order, read from the forms users have.

Joint order, limbs and colours are those of OpenPose's 18-joint COCO model; BODY_25 and COCO-17 are reordered on
reading. The field's annotation files (PATN, GFLA, CFLD) write `name:keypoints_y:keypoints_x` with -1 for a missing
joint, measured in a frame 256 pixels high and 176 wide.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .formats import (
    FloatArray,
    NobodyError,
    Size,
    as_float_array,
    check_size,
    choose_csv_row,
    find_people,
    parse_json,
    shorten,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BONE_COLORS", "JOINT_COLORS", "JOINT_NAMES", "LIMBS", "Keypoints"]

JOINT_NAMES: tuple[str, ...] = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
"""The 18 joints; right and left are the person's own."""

LIMBS: tuple[tuple[int, int], ...] = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)
"""The 17 bones as pairs of joint indices, in drawing order; bone i takes `BONE_COLORS[i]`."""

JOINT_COLORS: tuple[tuple[int, int, int], ...] = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)
"""RGB of each joint, 0 to 255: an 18-step hue wheel."""

BONE_COLORS: tuple[tuple[int, ...], ...] = tuple(
    tuple(channel * 3 // 5 for channel in color) for color in JOINT_COLORS[: len(LIMBS)]
)
"""RGB of each bone, 0 to 255: 60 % of the joint's of the same number, as OpenPose draws them."""

_NUM_JOINTS = len(JOINT_NAMES)
_FIELD_SIZE = (256, 176)

_COCO_NAMES = (
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
# BODY_25 is the 18-joint order with the middle of the hips at 8, and six foot points after the left ear at 18.
_BODY_25_ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
_MIRROR_ROWS = tuple(
    JOINT_NAMES.index(
        name.replace("right_", "left_") if name.startswith("right_") else name.replace("left_", "right_")
    )
    for name in JOINT_NAMES
)

_ACCEPTED_FORMS = (
    "a `Keypoints`, an array of shape (18, 2) or (18, 3) with rows (x, y[, confidence]), the same with 17 rows in "
    "COCO order, a pair (y, x) of 18 numbers each, a line `name:[y, ...]:[x, ...]` of the field's CSV files, or "
    "OpenPose JSON as a string or dict (a file is read with `Keypoints.load`)"
)

BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Keypoints:
    """Where the 18 joints of one person are. Immutable; compares by value.

    Two poses are equal when frame, visibility, positions and confidences are; `confidence=None` counts as
    confidence 1 of every visible joint.

    Args:
        xy: (18, 2), pixels, x to the right and y down. Copied; rows of missing joints become (-1, -1). A visible
            joint may lie outside the frame.
        visible: (18,), whether the joint is known at all (a joint hidden by clothes can be).
        confidence: (18,), (0, 1] at visible joints; entries of missing joints become 0. None if unknown.
        size: (height, width) of the frame `xy` is measured in, pixels.

    Raises:
        ValueError: A shape is wrong, no joint is visible, a visible joint is not finite, or a confidence lies
            outside (0, 1].
        TypeError: `size` is not a pair of whole numbers, or an array is not numeric.
    """

    xy: FloatArray
    visible: BoolArray
    confidence: FloatArray | None = None
    size: Size = _FIELD_SIZE

    def __post_init__(self) -> None:
        xy = np.array(as_float_array(self.xy, "`xy`"))
        visible = np.array(self.visible, dtype=bool)
        if xy.shape != (_NUM_JOINTS, 2):
            raise ValueError(f"`xy` must have shape (18, 2), got {xy.shape}.")
        if visible.shape != (_NUM_JOINTS,):
            raise ValueError(f"`visible` must have shape (18,), got {visible.shape}.")
        if not visible.any():
            raise NobodyError("All 18 joints are missing: a pose needs at least one visible joint.")
        xy[~visible] = -1.0
        _check_finite(xy, JOINT_NAMES)
        confidence = None
        if self.confidence is not None:
            confidence = np.array(as_float_array(self.confidence, "`confidence`"))
            if confidence.shape != (_NUM_JOINTS,):
                raise ValueError(f"`confidence` must have shape (18,), got {confidence.shape}.")
            confidence[~visible] = 0.0
            # Written so that NaN fails too.
            if not ((confidence[visible] > 0) & (confidence[visible] <= 1)).all():
                raise ValueError("`confidence` of a visible joint must lie in (0, 1]; mark the others not visible.")
            confidence.setflags(write=False)
        xy.setflags(write=False)
        visible.setflags(write=False)
        object.__setattr__(self, "xy", xy)
        object.__setattr__(self, "visible", visible)
        object.__setattr__(self, "confidence", confidence)
        object.__setattr__(self, "size", check_size(self.size))

    # Readers ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_array(cls, array: object, size: Size = _FIELD_SIZE, min_confidence: float = 0.0) -> Keypoints:
        """Read joints in OpenPose-18 order.

        Args:
            array: (18, 2) or (18, 3), rows (x, y[, confidence]) in pixels: nested list, array or tensor. A joint is
                missing when x or y is -1 or its confidence is at most `min_confidence`. Confidences above 1
                (unnormalised scores, COCO's visibility flag 2) are stored as 1.
            size: (height, width) of the picture the joints were measured on, pixels.
            min_confidence: Threshold on the confidence column, >= 0; without that column it has no effect.

        Returns:
            The pose in the frame `size`.

        Raises:
            ValueError: The shape is wrong, a number is NaN or infinite, a confidence is negative, no joint is left,
                the coordinates look like fractions of the frame instead of pixels, or a visible joint lies outside
                the frame by more than half the frame's size.
            TypeError: `array` is not numeric.
        """
        values = as_float_array(array, "`array`")
        if values.ndim == 2 and len(values) == len(_COCO_NAMES):
            raise ValueError(
                f"`array` must have 18 rows in OpenPose order, got shape {values.shape}. "
                "For 17 joints in COCO order use `Keypoints.from_coco`."
            )
        if values.ndim == 2 and len(values) == 25:
            raise ValueError(
                f"`array` must have 18 rows in OpenPose order, got shape {values.shape}. "
                "For BODY_25 pass its 75 numbers to `Keypoints.from_openpose`."
            )
        xy, visible, confidence = _split_columns(values, JOINT_NAMES, min_confidence)
        size = check_size(size)
        _check_pixels(xy, visible)
        return _checked_pose(xy, visible, confidence, size)

    @classmethod
    def from_coco(cls, array: object, size: Size, min_confidence: float = 0.0) -> Keypoints:
        """Read joints in COCO-17 order, as most pose estimators give them (ViTPose, RTMPose, YOLO-pose).

        COCO has no neck: it becomes the mean of the shoulders with the smaller of their confidences, and is missing
        when either shoulder is.

        Args:
            array: (17, 2) or (17, 3), rows (x, y[, confidence]) in pixels; otherwise as for `from_array`.
            size: (height, width) of the picture the joints were measured on, pixels.
            min_confidence: Threshold on the confidence column, >= 0.

        Returns:
            The pose in OpenPose order, in the frame `size`.

        Raises:
            ValueError: As for `from_array`.
            TypeError: `array` is not numeric.
        """
        coco_xy, coco_visible, coco_confidence = _split_columns(
            as_float_array(array, "`array`"), _COCO_NAMES, min_confidence
        )
        size = check_size(size)
        _check_pixels(coco_xy, coco_visible)
        shoulders = [_COCO_NAMES.index("left_shoulder"), _COCO_NAMES.index("right_shoulder")]
        # The neck becomes row 17 of the COCO arrays, so that one index array puts all joints in order.
        xy = np.concatenate([coco_xy, coco_xy[shoulders].mean(axis=0, keepdims=True)])
        visible = np.append(coco_visible, coco_visible[shoulders].all())
        rows = [len(_COCO_NAMES) if name == "neck" else _COCO_NAMES.index(name) for name in JOINT_NAMES]
        confidence = None
        if coco_confidence is not None:
            confidence = np.append(coco_confidence, coco_confidence[shoulders].min())[rows]
        return _checked_pose(xy[rows], visible[rows], confidence, size)

    @classmethod
    def from_deepfashion(cls, y: object, x: object, size: Size = _FIELD_SIZE) -> Keypoints:
        """Read the two columns of the field's annotation files; mind the order, y comes first.

        Args:
            y: 18 numbers, or a JSON list of them as a string; pixels, -1 where the joint is missing.
            x: Likewise.
            size: (height, width) of the frame, pixels.

        Returns:
            The pose, without confidences.

        Raises:
            ValueError: A string is no JSON list, or there are not 18 numbers; otherwise as for `from_array`.
            TypeError: `y` or `x` is not numeric.
        """
        columns = []
        for name, column in (("y", y), ("x", x)):
            parsed = parse_json(column, f"`{name}`") if isinstance(column, str) else column
            values = as_float_array(parsed, f"`{name}`")
            if values.shape != (_NUM_JOINTS,):
                raise ValueError(f"`{name}` must have 18 numbers, one per joint, got shape {values.shape}.")
            columns.append(values)
        return cls.from_array(np.stack(columns[::-1], axis=1), size)

    @classmethod
    def from_csv_row(cls, row: str, size: Size = _FIELD_SIZE) -> Keypoints:
        """Read a whole line `name:[y, ...]:[x, ...]` of an annotation file; the name is not kept.

        Args:
            row: The line, with or without its line break.
            size: (height, width) of the frame, pixels.

        Returns:
            The pose, without confidences.

        Raises:
            ValueError: The line does not have the three parts; otherwise as for `from_deepfashion`.
            TypeError: `row` is not a string.
        """
        if not isinstance(row, str):
            raise TypeError(f"`row` must be a string `name:[y, ...]:[x, ...]`, got {type(row).__name__}.")
        parts = row.strip().rsplit(":", 2)
        if len(parts) != 3:
            raise ValueError(f"A keypoint line must read `name:[y, ...]:[x, ...]`, got {shorten(row)}.")
        return cls.from_deepfashion(parts[1], parts[2], size)

    @classmethod
    def from_openpose(
        cls, data: object, size: Size | None = None, person: int | None = None, min_confidence: float = 0.0
    ) -> Keypoints:
        """Read OpenPose JSON: `people[i].pose_keypoints_2d` with 18 or 25 (BODY_25) triples (x, y, confidence).

        Coordinates are fractions of the frame instead of pixels when all visible ones lie in [-2, 2], at least two
        joints are visible, and not all of the coordinates are whole numbers (OpenPose's `keypoint_scale 3` and some
        ControlNet editors write them so); they are then multiplied by the frame's width and height. In pixels such
        a person would be no larger than the corner of the frame. Those of `keypoint_scale 4`, from -1 to 1, are
        refused.

        Args:
            data: The dict, its JSON string, one entry of `people`, a list of such entries, a list with the dict of
                one picture (ComfyUI), or the 54 or 75 numbers themselves. A joint is missing when its confidence is
                at most `min_confidence`; confidences above 1 are stored as 1.
            size: (height, width) of the picture, pixels. Default: `canvas_height` and `canvas_width` in the JSON.
            person: Which of several people, from 0.
            min_confidence: Threshold on the confidence, >= 0.

        Returns:
            The pose in the frame `size`.

        Raises:
            ValueError: The text is not JSON, the expected keys are missing, there is no person, there are several
                and `person` is None or not one of them, or the frame is not known; otherwise as for `from_array`.
            TypeError: `data` is something else.
        """
        parsed = parse_json(data, "`data`") if isinstance(data, str) else data
        people, canvas = find_people(parsed)
        if not people:
            raise NobodyError("The OpenPose JSON has no people in it: nobody was detected.")
        if person is None:
            if len(people) > 1:
                raise ValueError(
                    f"The OpenPose JSON has {len(people)} people: choose one with `person=0` to `{len(people) - 1}`."
                )
            person = 0
        if isinstance(person, bool) or not isinstance(person, int) or person < 0:
            raise ValueError(f"`person` must be a whole number from 0 to {len(people) - 1}, got {person!r}.")
        if person >= len(people):
            raise NobodyError(f"`person` must be a whole number from 0 to {len(people) - 1}, got {person}.")
        numbers = as_float_array(people[person], "`pose_keypoints_2d`")
        if numbers.shape not in ((3 * _NUM_JOINTS,), (75,)):
            raise ValueError(
                "`pose_keypoints_2d` must have 54 (18 joints) or 75 (BODY_25) numbers in one flat list, "
                f"got shape {numbers.shape}."
            )
        if size is None:
            size = canvas
        if size is None:
            raise ValueError(
                "The OpenPose JSON does not say how large its picture was (`canvas_height`, `canvas_width`): "
                "pass `size=(height, width)`."
            )
        size = check_size(size)
        rows = numbers.reshape(-1, 3)
        if len(rows) == 25:
            rows = rows[list(_BODY_25_ROWS)]
        xy, visible, confidence = _split_columns(rows, JOINT_NAMES, min_confidence, minus_one_is_missing=False)
        if _is_normalised(xy[visible]):
            if (xy[visible] < 0).mean() > 0.2:
                raise ValueError(
                    "The OpenPose JSON looks as if its coordinates went from -1 to 1 (`keypoint_scale` 4): write it "
                    "in pixels or from 0 to 1 (`keypoint_scale` 0 or 3)."
                )
            xy = xy * (size[1], size[0])
        return _checked_pose(xy, visible, confidence, size)

    @classmethod
    def from_any(cls, value: object, size: Size | None = None) -> Keypoints:
        """Read any accepted form.

        What decides, in this order:

        - `Keypoints` come back as they are, whatever `size` says.
        - A dict with `keypoints_y` and `keypoints_x` (and perhaps `size`), the field's columns by name, goes to
          `from_deepfashion`; any other dict to `from_openpose`.
        - A string that starts with `{` or `[` is parsed as JSON and read again; any other is one CSV line.
        - A pair of JSON-list strings, or numbers of shape (2, 18), are the field's (y, x) in that order. Numbers of
          shape (18, 2) or (18, 3) have rows (x, y[, confidence]) and go to `from_array`; 17 rows go to `from_coco`.
          No shape fits both rules. A leading axis of length 1 is dropped.
        - 54 or 75 numbers in a row, or a list of dicts, go to `from_openpose`.

        Args:
            value: One of the forms above.
            size: (height, width) of the picture the joints were measured on, pixels. None means (256, 176), the
                field's frame, except for OpenPose data, which must then say its canvas size.

        Returns:
            The pose.

        Raises:
            ValueError: The form is known but its content is wrong; see the reader it goes to.
            TypeError: `value` is none of these forms.
        """
        if isinstance(value, Keypoints):
            return value
        frame = _FIELD_SIZE if size is None else size
        if isinstance(value, str):
            text = value.strip()
            if text.startswith(("{", "[")):
                return cls.from_any(parse_json(text, "The pose string"), size)
            if text.count(":") >= 2 and text.endswith("]"):
                return cls.from_csv_row(text, frame)
            raise ValueError(
                f"A pose string must be JSON or a CSV line, got {shorten(value)}; a pose is {_ACCEPTED_FORMS}."
            )
        if isinstance(value, Mapping):
            if "keypoints_y" in value and "keypoints_x" in value:
                return cls.from_deepfashion(
                    value["keypoints_y"], value["keypoints_x"], value.get("size", frame) if size is None else size
                )
            return cls.from_openpose(value, size)
        if isinstance(value, (list, tuple)):
            if len(value) == 2 and all(isinstance(item, str) for item in value):
                return cls.from_deepfashion(value[0], value[1], frame)
            if value and all(isinstance(item, Mapping) for item in value):
                return cls.from_openpose(value, size)
        elif not hasattr(value, "__array__"):
            raise TypeError(f"A pose must be {_ACCEPTED_FORMS}; got {type(value).__name__}.")
        values = as_float_array(value, "The pose")
        if values.ndim == 3 and len(values) == 1:
            values = values[0]
        if values.shape in ((54,), (75,)):
            return cls.from_openpose(values, size)
        if values.shape == (2, _NUM_JOINTS):
            return cls.from_deepfashion(values[0], values[1], frame)
        if values.ndim == 2 and len(values) == len(_COCO_NAMES):
            return cls.from_coco(values, frame)
        if values.ndim == 3 and values.shape[1:] in ((18, 2), (18, 3), (17, 2), (17, 3)):
            raise ValueError(f"One pose is needed here, got {len(values)} in an array of shape {values.shape}.")
        if values.ndim == 2 and len(values) in (_NUM_JOINTS, 25):
            return cls.from_array(values, frame)
        raise ValueError(f"A pose must be {_ACCEPTED_FORMS}; got numbers of shape {values.shape}.")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        size: Size | None = None,
        person: int | None = None,
        row: str | None = None,
    ) -> Keypoints:
        """Read a pose from a file; its ending says what it is.

        Args:
            path: `.json`: OpenPose JSON, `{"keypoints_y": [...], "keypoints_x": [...], "size": [height, width]}`,
                or rows of numbers. `.csv` or `.txt`: lines `name:[y, ...]:[x, ...]`, the header line
                `name:keypoints_y:keypoints_x` may be absent. `.npy`: an array.
            size: (height, width) of the frame, pixels; None as in `from_any`.
            person: Which person of an OpenPose file, from 0.
            row: Which line of a CSV file, by the name it starts with.

        Returns:
            The pose.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The ending is unknown, the content cannot be read, or a choice among several poses is needed
                or does not apply. The message names the file.
            TypeError: The content is not a pose.
        """
        file = Path(path)
        suffix = file.suffix.lower()
        if suffix not in (".json", ".csv", ".txt", ".npy"):
            raise ValueError(f"A keypoint file must end in .json, .csv, .txt or .npy, got {str(file)!r}.")
        if not file.is_file():
            raise FileNotFoundError(f"There is no keypoint file at {str(file)!r}.")
        if row is not None and suffix not in (".csv", ".txt"):
            raise ValueError(f"`row` chooses a line of a .csv or .txt file, {str(file)!r} is none: leave it out.")
        if person is not None and suffix != ".json":
            raise ValueError(
                f"`person` chooses a person of an OpenPose .json file, {str(file)!r} is none: leave it out."
            )
        try:
            if suffix == ".npy":
                # Not np.load, which also opens archives and pickles by their first bytes.
                with file.open("rb") as stream:
                    return cls.from_any(np.lib.format.read_array(stream, allow_pickle=False), size)
            # utf-8-sig also reads files that spreadsheet programs wrote with a byte order mark.
            text = file.read_text(encoding="utf-8-sig")
            if suffix == ".json":
                data = parse_json(text, "The file")
                return cls.from_any(data, size) if person is None else cls.from_openpose(data, size, person)
            return cls.from_csv_row(choose_csv_row(text, row), _FIELD_SIZE if size is None else size)
        except (ValueError, EOFError) as error:
            raise ValueError(f"Cannot read keypoints from {str(file)!r}: {error}") from error
        except TypeError as error:
            raise TypeError(f"Cannot read keypoints from {str(file)!r}: {error}") from error

    # Writers ----------------------------------------------------------------------------------------------------

    def to_deepfashion(self) -> tuple[list[int], list[int]]:
        """Write the field's two columns.

        Returns:
            (y, x), 18 whole numbers each, rounded to the nearest pixel, -1 where the joint is missing. A visible
            joint that would come out as -1 (just outside the frame) is moved to 0, since -1 means missing.
        """
        rounded = np.rint(self.xy)
        rounded[self.visible[:, None] & (rounded == -1)] = 0
        return [int(y) for y in rounded[:, 1]], [int(x) for x in rounded[:, 0]]

    def to_openpose(self) -> dict[str, Any]:
        """Write OpenPose JSON data that `from_openpose` reads back.

        Returns:
            A dict of plain lists and numbers: one person with 18 triples (x, y, confidence), pixels, (0, 0, 0) where
            the joint is missing, and the frame as `canvas_height` and `canvas_width`. Unknown confidences are 1.
        """
        rows = np.where(self.visible[:, None], self.to_array(), 0.0)
        return {
            "people": [{"pose_keypoints_2d": rows.ravel().tolist()}],
            "canvas_height": self.size[0],
            "canvas_width": self.size[1],
        }

    def to_array(self) -> FloatArray:
        """Write rows (x, y, confidence).

        Returns:
            (18, 3), pixels and [0, 1]; (-1, -1, 0) where the joint is missing. Unknown confidences are 1. A new array.
            A visible joint's coordinate of -1 becomes the next number above, since -1 means missing.
        """
        confidence = self.visible.astype(np.float64) if self.confidence is None else self.confidence
        xy = np.where(self.visible[:, None] & (self.xy == -1), np.nextafter(-1.0, 0.0), self.xy)
        return np.column_stack([xy, confidence])

    # Geometry ---------------------------------------------------------------------------------------------------

    def mirror(self) -> Keypoints:
        """Mirror about the frame's vertical centre line and swap right and left joints.

        Returns:
            The pose of the mirrored picture: x becomes `width - 1 - x`. Mirroring twice gives the same pose back.
        """
        rows = list(_MIRROR_ROWS)
        xy = self.xy[rows]
        xy[:, 0] = self.size[1] - 1 - xy[:, 0]
        confidence = None if self.confidence is None else self.confidence[rows]
        return Keypoints(xy, self.visible[rows], confidence, self.size)

    def rescale(self, size: Size) -> Keypoints:
        """Follow a resize of the picture, without regard to its aspect ratio.

        Args:
            size: (height, width) of the new frame, pixels.

        Returns:
            The pose with x multiplied by new width / old width and y likewise.

        Raises:
            ValueError: `size` is not positive, or absurdly large.
            TypeError: `size` is not a pair of whole numbers.
        """
        height, width = check_size(size)
        # Multiplied first: whole pixels stay whole when the frame does not change.
        xy = self.xy * (width, height) / (self.size[1], self.size[0])
        return Keypoints(xy, self.visible, self.confidence, (height, width))

    def lerp(self, other: Keypoints, weight: float) -> Keypoints:
        """Interpolate joint by joint to another pose, as a step of a movement.

        Args:
            other: The pose at weight 1. Brought to this pose's frame by `rescale` if its own is another.
            weight: 0 (this pose) to 1 (the other).

        Returns:
            The pose between, in this pose's frame. A joint that only one of the two has is where that one has it, as
            long as that one is the nearer (at 0.5 both are); confidences are interpolated likewise.

        Raises:
            ValueError: `weight` is not in [0, 1], or no joint is left.
            TypeError: `other` is not a `Keypoints`.
        """
        if not isinstance(other, Keypoints):
            raise TypeError(f"`other` must be a `Keypoints`, got {type(other).__name__}: read it with `from_any`.")
        if not 0 <= weight <= 1:
            raise ValueError(f"`weight` must be a number from 0 to 1, got {weight!r}.")
        other = other.rescale(self.size)
        ends = np.stack([self.to_array(), other.to_array()])
        seen = np.stack([self.visible, other.visible])
        shares = np.where(seen.all(axis=0), [[1 - weight], [weight]], seen)  # (2, 18)
        joints = (shares[..., None] * np.where(seen[..., None], ends, 0.0)).sum(axis=0)
        visible = seen.all(axis=0) | (self.visible & (weight <= 0.5)) | (other.visible & (weight >= 0.5))
        is_certain = self.confidence is None and other.confidence is None
        return Keypoints(joints[:, :2], visible, None if is_certain else joints[:, 2], self.size)

    # Pictures ---------------------------------------------------------------------------------------------------

    def draw(
        self, size: Size | None = None, background: Image.Image | None = None, *, thickness: float = 1.0
    ) -> Image.Image:
        """Draw the skeleton for people to look at; `render_pose_map` draws the one for the model.

        Args:
            size: (height, width) of the picture, pixels. Default: the background's, else the frame's.
            background: A photo to draw over, resized to `size`; its whole area stands for the frame. Default: black.
            thickness: Factor on bones and joints, > 0. At 1 they grow with the picture: bones are 1.5 % and joints
                2.8 % of its longer side across.

        Returns:
            An RGB picture.

        Raises:
            ValueError: `size` or `thickness` is not positive.
            TypeError: `background` is not a PIL image, or `size` is not a pair of whole numbers.
        """
        from .skeleton import draw_skeleton

        return draw_skeleton(self, size, background, thickness)

    @classmethod
    def from_skeleton(cls, picture: Image.Image) -> Keypoints:
        """Read the joints back from a drawn skeleton in OpenPose's colours, as pose editors and ControlNet draw it.

        Args:
            picture: RGB, joints as discs in `JOINT_COLORS` on bones of 60 % of their brightness, one person. Best on
                black and losslessly stored; discs of fewer than 3 pixels are not seen.

        Returns:
            The pose in the picture's frame, without confidences: each joint in the middle of its disc.

        Raises:
            ValueError: There is no disc in any of the colours.
            TypeError: `picture` is not a PIL image.
        """
        from .skeleton import read_skeleton

        return read_skeleton(picture)

    # Python's own protocols -------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keypoints):
            return NotImplemented
        return self.size == other.size and np.array_equal(self.to_array(), other.to_array())

    def __hash__(self) -> int:
        return hash((self.size, tuple(self.to_array().ravel().tolist())))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} ({x:g}, {y:g})"
            for name, (x, y), seen in zip(JOINT_NAMES, self.xy.round(1).tolist(), self.visible, strict=True)
            if seen
        )
        frame = f"{self.size[0]}x{self.size[1]} (height x width)"
        return f"Keypoints({int(self.visible.sum())} of 18 joints in {frame}; (x, y): {shown})"

    def __reduce__(self) -> tuple[type[Keypoints], tuple[FloatArray, BoolArray, FloatArray | None, Size]]:
        # Through the constructor, since arrays come out of a pickle writable.
        return Keypoints, (self.xy, self.visible, self.confidence, self.size)


def _check_finite(values: FloatArray, names: Sequence[str]) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        name = names[int(bad.argmax())]
        raise ValueError(f"Joint {name!r} is NaN or infinite; write a missing joint as (-1, -1).")


def _split_columns(
    values: FloatArray, names: Sequence[str], min_confidence: float, minus_one_is_missing: bool = True
) -> tuple[FloatArray, BoolArray, FloatArray | None]:
    """Check rows (x, y[, confidence]), one per name, and split them into xy, visible and confidence."""
    if values.ndim != 2 or len(values) != len(names) or values.shape[1] not in (2, 3):
        raise ValueError(
            f"`array` must have shape ({len(names)}, 2) or ({len(names)}, 3), rows (x, y[, confidence]), "
            f"got {values.shape}."
        )
    if not (np.isfinite(min_confidence) and min_confidence >= 0):
        raise ValueError(f"`min_confidence` must be a number >= 0, got {min_confidence!r}.")
    _check_finite(values, names)
    xy = values[:, :2]
    visible = ~(xy == -1).any(axis=1) if minus_one_is_missing else np.ones(len(names), dtype=bool)
    confidence = None
    if values.shape[1] == 3:
        if (values[:, 2] < 0).any():
            name = names[int((values[:, 2] < 0).argmax())]
            raise ValueError(f"The third column must be confidences >= 0, joint {name!r} has {values[:, 2].min():g}.")
        visible &= values[:, 2] > min_confidence
        confidence = values[:, 2].clip(0.0, 1.0)
    if not visible.any():
        reason = f" or not above `min_confidence={min_confidence:g}`" if confidence is not None else ""
        raise NobodyError(
            f"All {len(names)} joints are missing (-1){reason}: a pose needs at least one visible joint."
        )
    return xy, visible, confidence


def _is_normalised(xy: FloatArray) -> bool:
    """Tell whether visible joints (n, 2) are fractions of a frame: in pixels they would all be in its first corner.

    Some may lie outside of the frame.
    """
    return len(xy) > 1 and bool((np.abs(xy) <= 2).all() and (xy != np.rint(xy)).any())


def _check_pixels(xy: FloatArray, visible: BoolArray) -> None:
    if _is_normalised(xy[visible]):
        raise ValueError(
            "All visible joints lie within 2 pixels of the corner, so they look like fractions of the frame: "
            "multiply x by its width and y by its height to get pixels."
        )


def _checked_pose(xy: FloatArray, visible: BoolArray, confidence: FloatArray | None, size: Size) -> Keypoints:
    """Build the pose after checking that the joints belong to a frame of this size."""
    frame = np.array(size[::-1], dtype=np.float64)
    outside = visible & ((xy < -frame / 2) | (xy > 1.5 * frame)).any(axis=1)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(
            f"Joint {JOINT_NAMES[index]!r} at x={xy[index, 0]:g}, y={xy[index, 1]:g} is far outside the frame "
            f"{size[0]}x{size[1]} (height x width): pass `size=(height, width)` of the picture that the keypoints "
            "were measured on."
        )
    return Keypoints(xy, visible, confidence, size)
