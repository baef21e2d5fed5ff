"""The pose of one person: 18 joints in OpenPose order, and what can be done with them."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .format_readers import parse_csv_row
from .formats import (
    COCO_COUNTS,
    DEEPFASHION_SIZE,
    OPENPOSE_COUNTS,
    BoolArray,
    FloatArray,
    NobodyError,
    Size,
    as_float_array,
    check_size,
    choose_one,
)
from .reading import choose_image, load_images, read_pose
from .skeleton import JOINT_NAMES, draw_skeleton

if TYPE_CHECKING:
    from PIL import Image

# For each joint, the index of the same joint on the other side.
_MIRROR_ROWS = [
    JOINT_NAMES.index(name.replace("right", "*").replace("left", "right").replace("*", "left")) for name in JOINT_NAMES
]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Keypoints:
    """The positions of one person's 18 joints. Immutable; compares by value.

    Two poses are equal if their sizes, visibilities, positions and confidences are; `confidence=None` counts as
    confidence 1 for every visible joint.

    Args:
        xy: (18, 2), pixels, x to the right and y down. Copied; rows of missing joints become (-1, -1). A visible
            joint may lie outside the image.
        visible: (18,), whether a joint is known; a joint hidden by clothes can be.
        confidence: (18,), (0, 1] at visible joints; entries of missing joints become 0. None if unknown.
        size: (height, width) of the image that `xy` was measured on, pixels.

    Raises:
        ValueError: A shape or `size` is wrong, no joint is visible, a visible joint is not finite, or its confidence
            lies outside (0, 1].
        TypeError: An array is not numeric.
    """

    xy: FloatArray
    visible: BoolArray
    confidence: FloatArray | None = None
    size: Size = DEEPFASHION_SIZE

    def __post_init__(self) -> None:
        xy = np.array(as_float_array(self.xy, "`xy`"))
        visible = np.array(self.visible, dtype=bool)
        has_confidence = self.confidence is not None
        confidence = np.array(as_float_array(self.confidence, "`confidence`")) if has_confidence else visible * 1.0
        if (xy.shape, visible.shape, confidence.shape) != ((18, 2), (18,), (18,)):
            raise ValueError(
                "`xy` must have shape (18, 2), `visible` and `confidence` (18,), got shapes "
                f"{xy.shape}, {visible.shape} and {confidence.shape}."
            )
        if not visible.any():
            raise NobodyError("All 18 joints are missing: a pose needs at least one visible joint.")
        xy[~visible], confidence[~visible] = -1.0, 0.0
        if not np.isfinite(xy).all():
            name = JOINT_NAMES[int((~np.isfinite(xy)).any(axis=1).argmax())]
            raise ValueError(f"Joint {name!r} must have finite coordinates, got NaN or infinity.")
        # Written so that NaN fails too.
        if not ((confidence[visible] > 0) & (confidence[visible] <= 1)).all():
            low, high = confidence[visible].min(), confidence[visible].max()
            raise ValueError(f"`confidence` of every visible joint must be in (0, 1], got {low:g} to {high:g}.")
        for array in (xy, visible, confidence):
            array.setflags(write=False)
        values = (xy, visible, confidence if has_confidence else None, check_size(self.size))
        for name, value in zip(("xy", "visible", "confidence", "size"), values, strict=True):
            object.__setattr__(self, name, value)

    # Readers ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_array(
        cls,
        array: object,
        size: Size = DEEPFASHION_SIZE,
        min_confidence: float = 0.0,
        person: int | None = None,
        normalized: bool = False,
    ) -> Keypoints:
        """Read joints in OpenPose's order.

        Args:
            array: (18, 2) or (18, 3), rows (x, y[, confidence]) in pixels: nested list, array or tensor. BODY_25's 25
                rows, the 134 of DWPose's whole body, and arrays of several people are read as well. A joint is missing
                if x or y is -1, NaN or `None`, or if its confidence is at most `min_confidence`. If two or more joints
                lie at (0, 0), these are missing too. Confidences above 1 (unnormalised scores, COCO's visibility flag
                2) are stored as 1.
            size: (height, width) of the image that the joints were measured on, pixels.
            min_confidence: Threshold for the confidence column, >= 0; without that column it has no effect.
            person: Which of several people, from 0.
            normalized: Whether x and y are fractions of the image's width and height.

        Returns:
            The pose.

        Raises:
            ValueError: The shape is wrong, no joint is left, a joint lies outside the image by more than half its
                size, or all joints lie in its corner, as fractions of its size would.
            TypeError: `array` is not numeric.
        """
        return cls(*read_pose(array, size, person, min_confidence, normalized, OPENPOSE_COUNTS))

    @classmethod
    def from_coco(
        cls,
        array: object,
        size: Size | None = None,
        min_confidence: float = 0.0,
        person: int | None = None,
        normalized: bool = False,
    ) -> Keypoints:
        """Read joints in COCO's order, as most pose estimators return them (ViTPose, RTMPose, YOLO-pose).

        COCO has no neck. It is set to the mean of the shoulders, with the smaller of their confidences, and is missing
        if either shoulder is.

        Args:
            array: (17, 2) or (17, 3), rows (x, y[, confidence]) in pixels; or whole bodies with COCO's 17 joints first
                (26, 133 or 136 rows); or 51 numbers in a row; or any form of `from_any` with joints in this order.
                Otherwise as for `from_array`, except that every joint at (0, 0) is missing, since many tools write
                missing COCO joints that way.
            size: (height, width) of the image that the joints were measured on, pixels; None as in `from_any`.
            min_confidence: Threshold for the confidence column, >= 0.
            person: Which of several people, from 0.
            normalized: Whether x and y are fractions of the image's width and height.

        Returns:
            The pose, in OpenPose order.

        Raises:
            ValueError: As for `from_array`.
            TypeError: `array` is not numeric.
        """
        return cls(*read_pose(array, size, person, min_confidence, normalized, COCO_COUNTS))

    @classmethod
    def from_deepfashion(cls, y: object, x: object, size: Size = DEEPFASHION_SIZE) -> Keypoints:
        """Read the two columns of DeepFashion's annotation files (PATN, GFLA, CFLD). Note that y comes first.

        Args:
            y: 18 numbers (or BODY_25's 25), or a JSON list of them as a string; pixels, -1 for missing joints.
            x: Likewise.
            size: (height, width) of the image that the joints were measured on, pixels.

        Returns:
            The pose, without confidences.

        Raises:
            ValueError: A string is not JSON, or there are not 18 or 25 numbers; otherwise as for `from_array`.
            TypeError: `y` or `x` is not numeric.
        """
        return cls(*read_pose({"keypoints_y": y, "keypoints_x": x}, size))

    from_field = from_deepfashion  # its first name

    @classmethod
    def from_csv_row(cls, row: str, size: Size = DEEPFASHION_SIZE) -> Keypoints:
        """Read a whole line `name:[y, ...]:[x, ...]` of DeepFashion's annotation files; the name is not kept.

        Args:
            row: The line, with or without its line break.
            size: (height, width) of the image that the joints were measured on, pixels.

        Returns:
            The pose, without confidences.

        Raises:
            ValueError: The line does not have these three parts; otherwise as for `from_deepfashion`.
            TypeError: A part is not numeric.
        """
        return cls(*read_pose(parse_csv_row(row), size))

    @classmethod
    def from_openpose(
        cls,
        data: object,
        size: Size | None = None,
        person: int | None = None,
        min_confidence: float = 0.0,
        normalized: bool = False,
    ) -> Keypoints:
        """Read OpenPose JSON: `people[i].pose_keypoints_2d` with 18 or 25 (BODY_25) triples (x, y, confidence).

        If the coordinates of all visible joints lie in [0, 1], they are read as fractions of the image's width and
        height (OpenPose's `keypoint_scale 3`, some ControlNet editors).

        Args:
            data: The dict, its JSON string, one entry of `people`, a list of such entries, a list with the dict of
                one image (ComfyUI), or any other form of `from_any` with joints in OpenPose's order. A joint is
                missing if its confidence is at most `min_confidence`; confidences above 1 are stored as 1.
            size: (height, width) of the image, pixels. Default: `canvas_height` and `canvas_width` in the JSON.
            person: Which of several people, from 0.
            min_confidence: Threshold for the confidence, >= 0.
            normalized: Whether x and y are fractions, also if not all of them lie in [0, 1].

        Returns:
            The pose.

        Raises:
            ValueError: The text is not JSON, the expected keys are missing, there is no person, there are several
                and `person` does not choose one of them, or the size is not known; otherwise as for `from_array`.
            TypeError: There is something other than numbers.
        """
        return cls(*read_pose(data, size, person, min_confidence, normalized, OPENPOSE_COUNTS))

    @classmethod
    def from_any(
        cls,
        value: object,
        size: Size | None = None,
        person: int | None = None,
        min_confidence: float = 0.0,
        normalized: bool = False,
    ) -> Keypoints:
        """Read any of the forms that `docs/poses.md` lists.

        They are told apart by keys (of dicts and JSON) or attributes (of other libraries' results) and by shapes,
        never by the size of numbers, except that in JSON with OpenPose's keys, coordinates that all lie in [0, 1] are
        fractions. The number of joints tells their order: 18, 25 and 134 are OpenPose's, 17, 26, 133 and 136 COCO's,
        and 33 MediaPipe's. `Keypoints` are returned unchanged, whatever the other arguments are.

        Args:
            value: The pose, or everyone in one image.
            size: (height, width) of the image that the joints were measured on, pixels. None: as the data say; where
                they do not, (256, 176) for arrays of 17 or 18 rows and DeepFashion's columns, and an error otherwise.
            person: Which of several people, from 0, in the order of the data. It may be left out if only one of them
                has visible joints.
            min_confidence: Joints are missing if their confidence is at most this, >= 0.
            normalized: Whether x and y are fractions of the image's width and height. Needed for arrays of fractions
                only, such as Ultralytics' `xyn`; `size` must then be given.

        Returns:
            The pose.

        Raises:
            ValueError: The form is known but its content is wrong, the size is not known, there is no such person, or
                none is chosen from several.
            TypeError: `value` is none of these forms.
        """
        if isinstance(value, Keypoints):
            return value
        return cls(*read_pose(value, size, person, min_confidence, normalized))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        size: Size | None = None,
        person: int | None = None,
        row: str | None = None,
        min_confidence: float = 0.0,
        normalized: bool = False,
    ) -> Keypoints:
        """Read a pose from a file, in the format of its suffix.

        Args:
            path: `.json`: any form that `from_any` reads. `.csv` or `.txt`: lines `name:[y, ...]:[x, ...]`, with or
                without the header `name:keypoints_y:keypoints_x`; or a table of numbers, one joint a line. `.npy`: an
                array. `.npz`: an array, or several that are named like the keys of a dict.
            size: (height, width) of the image that the joints were measured on, pixels; None as in `from_any`.
            person: Which of several people, from 0; in a list of DeepFashion's columns, which entry.
            row: Which image of a file of several, by its name: the beginning of a line of CSV, `file_name` in a COCO
                file, `image_id` of results, or the number of the frame.
            min_confidence: As in `from_any`.
            normalized: As in `from_any`.

        Returns:
            The pose.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The suffix is unknown, the content cannot be read, or `person` or `row` is needed or does not
                apply. The message names the file.
        """
        try:
            image = choose_image(load_images(path), row)
            return cls(*read_pose(image, size, person, min_confidence, normalized))
        except (ValueError, TypeError, EOFError) as error:
            raise ValueError(f"Cannot read keypoints from {os.fspath(path)!r}: {error}") from error

    @classmethod
    def from_skeleton(cls, image: Image.Image, person: int | None = None) -> Keypoints:
        """Read the joints back from a drawn skeleton.

        It knows the colours of OpenPose (COCO and BODY_25), ControlNet's tools, DWPose and `draw`, with or without
        hands and face, blended or dimmed, also with red and blue swapped. The colours in use are those by which most
        lines are limbs between the discs of their joints. Joints may be missed or misplaced where limbs cross, lines
        are thick, or the image is below 256 pixels, compressed or a photo: look at what was read with `draw`.

        Args:
            image: The drawing, best on a plain background.
            person: Which of several people, from 0, from left to right.

        Returns:
            The pose, without confidences; each joint is in the middle of its disc.

        Raises:
            ValueError: The image is no such drawing, or it shows several people and `person` does not choose one.
        """
        from .drawings import read_drawing

        people = read_drawing(image)
        if not people:
            raise ValueError(
                "The image shows no skeleton as OpenPose, ControlNet and DWPose draw it, with lines between discs in "
                "their colours."
            )
        return cls(*choose_one(people, person, "From left to right, the image shows"))

    # Writers ----------------------------------------------------------------------------------------------------

    def to_deepfashion(self) -> tuple[list[int], list[int]]:
        """Write the two columns of DeepFashion's annotation files.

        Returns:
            (y, x), 18 whole numbers each, rounded to the nearest pixel, -1 for missing joints. A visible joint that
            would get -1 (just outside the image) is moved to 0, since -1 means missing.
        """
        rounded = np.rint(self.xy)
        rounded[self.visible[:, None] & (rounded == -1)] = 0
        return [int(y) for y in rounded[:, 1]], [int(x) for x in rounded[:, 0]]

    def to_openpose(self) -> dict[str, Any]:
        """Write OpenPose JSON data that `from_openpose` reads back.

        Returns:
            A dict of plain lists and numbers: one person with 18 triples (x, y, confidence), pixels, (0, 0, 0) for
            missing joints, and the size as `canvas_height` and `canvas_width`. Unknown confidences are 1.
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
            (18, 3), pixels and [0, 1]; (-1, -1, 0) for missing joints. Unknown confidences are 1. A new array. If a
            coordinate of a visible joint is -1, it becomes the next larger float, since -1 means missing.
        """
        confidence = self.visible.astype(np.float64) if self.confidence is None else self.confidence
        xy = np.where(self.visible[:, None] & (self.xy == -1), np.nextafter(-1.0, 0.0), self.xy)
        return np.column_stack([xy, confidence])

    def draw(
        self, size: Size | None = None, background: Image.Image | None = None, *, thickness: float = 1.0
    ) -> Image.Image:
        """Draw the skeleton for people to look at; `render_pose_map` draws it for the model.

        Args:
            size: (height, width) of the drawing, pixels. Default: the background's, else the pose's.
            background: An image to draw over, resized to `size`; the pose must have been measured on all of it.
                Default: black.
            thickness: Factor for the width of bones and joints, > 0. At 1, bones are as wide as 1.5 % and joints as
                2.8 % of the image's longer side.

        Returns:
            An RGB image.

        Raises:
            ValueError: `size` or `thickness` is not positive.
        """
        if not thickness > 0:
            raise ValueError(f"`thickness` must be above 0, got {thickness!r}.")
        from PIL import Image

        from ..image_utils import to_rgb

        if background is not None:
            background = to_rgb(background)
        if size is None:
            size = self.size if background is None else (background.height, background.width)
        height, width = check_size(size)
        canvas = np.zeros((height, width, 3), dtype=np.uint8)
        if background is not None:
            # Dimmed a little, so that the dark bones stand out from bright clothes.
            resized = background.resize((width, height), Image.Resampling.LANCZOS)
            canvas = (np.asarray(resized) * 0.8).astype(np.uint8)
        # Pixel centres are at whole numbers, so +0.5 before and -0.5 after scaling keeps the drawing in place.
        xy = self.rescale((height, width)).xy + 0.5 * np.array([width, height]) / self.size[::-1] - 0.5
        unit = thickness * max(height, width)
        draw_skeleton(canvas, xy, self.visible, 0.014 * unit, 0.0075 * unit)
        return Image.fromarray(canvas)

    # Geometry ---------------------------------------------------------------------------------------------------

    def mirror(self) -> Keypoints:
        """Mirror about the image's vertical centre line and swap right and left joints.

        Returns:
            The pose in the mirrored image: x becomes `width - 1 - x`. Mirroring twice gives the same pose again.
        """
        xy = self.xy[_MIRROR_ROWS]
        xy[:, 0] = self.size[1] - 1 - xy[:, 0]
        confidence = None if self.confidence is None else self.confidence[_MIRROR_ROWS]
        return Keypoints(xy, self.visible[_MIRROR_ROWS], confidence, self.size)

    def rescale(self, size: Size) -> Keypoints:
        """Move the joints with a resize of the image, whatever the aspect ratios.

        Args:
            size: (height, width) of the resized image, pixels.

        Returns:
            The pose with x multiplied by new width / old width and y likewise.

        Raises:
            ValueError: `size` is not a pair of positive whole numbers.
        """
        height, width = check_size(size)
        # Multiplied first, so that whole pixels stay whole when the size does not change.
        xy = self.xy * (width, height) / (self.size[1], self.size[0])
        return Keypoints(xy, self.visible, self.confidence, (height, width))

    def lerp(self, other: Keypoints, weight: float) -> Keypoints:
        """Interpolate joint by joint to another pose, as a step of a movement.

        Args:
            other: The pose at weight 1. Brought to this pose's size by `rescale` if its own differs.
            weight: 0 (this pose) to 1 (the other).

        Returns:
            The pose in between, in this pose's size. A joint that only one of the two has is taken from that one while
            it is the nearer (at 0.5 both are), else it is missing; confidences are interpolated likewise.

        Raises:
            ValueError: `weight` is not in [0, 1], or no joint is left.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"`weight` must be in [0, 1], got {weight!r}.")
        other = other.rescale(self.size)
        ends = np.stack([self.to_array(), other.to_array()])
        seen = np.stack([self.visible, other.visible])
        shares = np.where(seen.all(axis=0), [[1 - weight], [weight]], seen)  # (2, 18)
        joints = (shares[..., None] * np.where(seen[..., None], ends, 0.0)).sum(axis=0)
        visible = seen.all(axis=0) | (self.visible & (weight <= 0.5)) | (other.visible & (weight >= 0.5))
        is_certain = self.confidence is None and other.confidence is None
        return Keypoints(joints[:, :2], visible, None if is_certain else joints[:, 2], self.size)

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
        size = f"{self.size[0]}x{self.size[1]} (height x width)"
        return f"Keypoints({int(self.visible.sum())} of 18 joints in {size}; (x, y): {shown})"

    def _repr_png_(self) -> bytes:
        """The drawing that a notebook shows, at most 320 pixels a side."""
        drawing, buffer = self.draw(), io.BytesIO()
        drawing.thumbnail((320, 320))
        drawing.save(buffer, "PNG")
        return buffer.getvalue()

    def __reduce__(self) -> tuple[type[Keypoints], tuple[FloatArray, BoolArray, FloatArray | None, Size]]:
        # Through the constructor, because unpickled arrays are writable.
        return Keypoints, (self.xy, self.visible, self.confidence, self.size)
