"""Your own photo into the frame the model knows: 256:176, the person in its middle, nothing distorted.

The published model squashes every source to a square and was trained on photos of 256:176 (height to width), so that
any other shape comes out of proportion. What is done here crops and pads by whole pixels and resamples nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageColor

from ..image_utils import has_transparency, to_rgb, upright
from ..pose.formats import FloatArray, Size, check_size
from ..pose.keypoints import JOINT_NAMES, Keypoints

__all__ = [
    "DEEPFASHION_SIZE",
    "CropWindow",
    "FittedPhoto",
    "choose_crop",
    "fit_keypoints",
    "fit_photo",
    "has_shape",
    "padding_crop",
]

DEEPFASHION_SIZE: Size = (256, 176)
"""(height, width) of the frame whose shape the field's photos have."""

Color: TypeAlias = str | tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]

# DeepFashion's own files are 1101x750, 0.9 % off the field's shape.
_SHAPE_TOLERANCE = 0.02

# What the joints do not show of a body: a disc around the joint, its radius as a part of the bone to the other joint.
_BEYOND_JOINTS = (
    ("nose", "neck", 0.9),
    ("right_wrist", "right_elbow", 0.6),
    ("left_wrist", "left_elbow", 0.6),
    ("right_ankle", "right_knee", 0.25),
    ("left_ankle", "left_knee", 0.25),
)


def has_shape(size: Size, shape: Size) -> bool:
    """Tell whether a picture has a shape, to 2 %.

    Args:
        size: (height, width) of the picture.
        shape: (height, width) whose aspect ratio is meant.

    Returns:
        Whether squashing it to that shape leaves people as they are.
    """
    return abs(size[0] * shape[1] / (size[1] * shape[0]) - 1) <= _SHAPE_TOLERANCE


@dataclass(frozen=True, slots=True)
class CropWindow:
    """A window on a photo that may reach beyond it; pixels of the upright photo.

    Args:
        left: First column; negative where the window begins left of the photo.
        top: First row, likewise.
        height: Rows of the window.
        width: Columns of the window.
        image_size: (height, width) of the photo.
    """

    left: int
    top: int
    height: int
    width: int
    image_size: Size

    @property
    def is_whole_image(self) -> bool:
        """Whether the window is exactly the photo."""
        return (self.left, self.top, self.height, self.width) == (0, 0, *self.image_size)

    def crop(self, photo: PIL.Image.Image, background: Color | None = None) -> PIL.Image.Image:
        """Cut the window out.

        Args:
            photo: The photo; its EXIF rotation is applied.
            background: Colour beyond the photo and behind its transparent parts, as Pillow names colours. None: the
                median of the edges that the window reaches over, and white behind transparency.

        Returns:
            RGB, of the window's size; the photo itself if the window is the whole of it and it has no transparency.

        Raises:
            ValueError: The photo has another size than the window was made for, or the colour is unknown.
        """
        photo = upright(photo)
        self._check_photo(photo)
        color = None if background is None else parse_color(background)
        if self.is_whole_image and not has_transparency(photo):
            return photo
        photo = to_rgb(photo, color or (255, 255, 255))
        if self.is_whole_image:
            return photo
        window = PIL.Image.new("RGB", (self.width, self.height), color or self._edge_color(photo))
        window.paste(photo, (-self.left, -self.top))
        return window

    def paste(self, picture: PIL.Image.Image, photo: PIL.Image.Image, mask: PIL.Image.Image) -> PIL.Image.Image:
        """Lay a picture of the window back over the photo.

        Args:
            picture: What the window shows now, of any size.
            photo: The photo; its EXIF rotation is applied.
            mask: Greyscale, of the photo's size: 255 where the picture is to be seen.

        Returns:
            RGB, of the photo's size; where the mask is 0, and beyond the window, it is the photo.

        Raises:
            ValueError: The photo or the mask has another size than the window was made for.
        """
        photo = to_rgb(photo)
        self._check_photo(photo)
        self._check_photo(mask)
        layer = photo.copy()
        size = (self.width, self.height)
        layer.paste(picture.resize(size, PIL.Image.Resampling.BICUBIC), (self.left, self.top))
        return PIL.Image.composite(layer, photo, mask.convert("L"))

    def move(self, keypoints: Keypoints) -> Keypoints:
        """Follow the crop.

        Args:
            keypoints: Measured on the photo; rescaled if on another size of it.

        Returns:
            The pose in the window.
        """
        return self._shift(keypoints.rescale(self.image_size), -1, (self.height, self.width))

    def move_back(self, keypoints: Keypoints) -> Keypoints:
        """Undo [`CropWindow.move`].

        Args:
            keypoints: Measured in the window; rescaled if on another size of it.

        Returns:
            The pose in the photo.
        """
        return self._shift(keypoints.rescale((self.height, self.width)), 1, self.image_size)

    def _shift(self, keypoints: Keypoints, sign: int, size: Size) -> Keypoints:
        xy = keypoints.xy + sign * np.array([self.left, self.top])
        return Keypoints(xy, keypoints.visible, keypoints.confidence, size)

    def _check_photo(self, photo: PIL.Image.Image) -> None:
        if (photo.height, photo.width) != self.image_size:
            raise ValueError(
                f"The frame is of a photo of {self.image_size[0]}x{self.image_size[1]} (height x width) pixels, got "
                f"one of {photo.height}x{photo.width}."
            )

    def _edge_color(self, photo: PIL.Image.Image) -> tuple[int, int, int]:
        red, green, blue = np.median(edge_strips(np.asarray(photo), self), axis=0).round().astype(int).tolist()
        return red, green, blue


@dataclass(frozen=True, slots=True)
class FittedPhoto:
    """A photo in the model's frame, and how it came there.

    Args:
        image: Cropped and padded to the frame's shape, at the photo's own resolution.
        frame: Where that is on the photo; moves poses and pictures there and back.
        keypoints: The person's pose in `image`, if it was given.
    """

    image: PIL.Image.Image
    frame: CropWindow
    keypoints: Keypoints | None


def edge_strips(pixels: npt.NDArray[Any], frame: CropWindow) -> npt.NDArray[Any]:
    """The pixels along those edges of a photo that a window reaches over.

    Args:
        pixels: (H, W, C), the photo.
        frame: The window.

    Returns:
        (N, C), from strips of 2 % of the photo's shorter side; all pixels if it reaches over no edge.
    """
    height, width = frame.image_size
    thickness = max(1, round(0.02 * min(height, width)))
    strips = (
        (frame.top < 0, pixels[:thickness]),
        (frame.top + frame.height > height, pixels[-thickness:]),
        (frame.left < 0, pixels[:, :thickness]),
        (frame.left + frame.width > width, pixels[:, -thickness:]),
    )
    edges = [strip.reshape(-1, pixels.shape[-1]) for is_over, strip in strips if is_over]
    return np.concatenate(edges) if edges else pixels.reshape(-1, pixels.shape[-1])


def choose_crop(
    image_size: Size,
    keypoints: Keypoints | Sequence[Keypoints] | None = None,
    box: Box | None = None,
    *,
    margin: float = 0.05,
    shape: Size = DEEPFASHION_SIZE,
) -> CropWindow:
    """Choose the window around a person.

    The person (all joints, and head, hands and feet beyond them; or the box) gets a margin, as far as the photo goes,
    and the window grows to its shape: sideways evenly; in height first by what the photo has below and above, then
    above, so that a body that the photo's lower edge cuts is cut by the window's too. Without a person, the window is
    the whole photo, grown evenly.

    Args:
        image_size: (height, width) of the upright photo, pixels.
        keypoints: The person's pose on the photo, or several that are to share one window.
        box: (left, top, right, bottom) of the person instead, pixels.
        margin: Around the person, as a part of the longer side.
        shape: (height, width) whose aspect ratio the window gets.

    Returns:
        The window.

    Raises:
        ValueError: Both keypoints and box are given, keypoints were measured on another photo, the box is empty or
            outside of the photo, or `margin` is negative.
        TypeError: An argument is of another type.
    """
    height, width = check_size(image_size)
    shape_height, shape_width = check_size(shape)
    if keypoints is not None and box is not None:
        raise ValueError("Pass either `keypoints` or `box`, and not both.")
    if not isinstance(margin, (int, float, np.number)) or not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"`margin` must be a number >= 0, got {margin!r}.")
    person = np.array([0, 0, width, height], dtype=np.float64)
    is_known = keypoints is not None or box is not None
    if keypoints is not None:
        poses = [keypoints] if isinstance(keypoints, Keypoints) else list(keypoints)
        person = _person_box(poses, (height, width))
    elif box is not None:
        person = _check_box(box, (height, width))
    elif has_shape((height, width), (shape_height, shape_width)):
        return CropWindow(0, 0, height, width, (height, width))
    limits = np.array([0, 0, width, height])
    if is_known:
        extra = margin * max(person[2] - person[0], person[3] - person[1])
        person = person + extra * np.array([-1, -1, 1, 1])
        person[:2], person[2:] = np.maximum(person[:2], limits[:2]), np.minimum(person[2:], limits[2:])
    left, top, right, bottom = person
    scale = max((bottom - top) / shape_height, (right - left) / shape_width)
    window_height, window_width = max(1, round(scale * shape_height)), max(1, round(scale * shape_width))
    missing = window_height - (bottom - top)
    below = min(max(missing / 2, missing - top), height - bottom) if is_known else missing / 2
    return CropWindow(
        left=round((left + right - window_width) / 2),
        top=round(bottom + below) - window_height,
        height=window_height,
        width=window_width,
        image_size=(height, width),
    )


def padding_crop(size: Size, shape: Size | None, own_size: Size) -> CropWindow:
    """Choose what the model is shown of a picture about which nothing else is known.

    Args:
        size: (height, width) of the picture.
        shape: (height, width) whose aspect ratio is wanted; None: any will do.
        own_size: (height, width) of the model's own input; a picture of this size is taken to be squashed already.

    Returns:
        The whole picture, or a window of the shape that holds all of it.
    """
    height, width = size
    if shape is None or (height, width) == tuple(own_size):
        return CropWindow(0, 0, height, width, (height, width))
    return choose_crop((height, width), shape=shape)


def fit_photo(
    image: PIL.Image.Image,
    keypoints: Keypoints | None = None,
    box: Box | None = None,
    *,
    background: Color | None = None,
    margin: float = 0.05,
    shape: Size = DEEPFASHION_SIZE,
) -> FittedPhoto:
    """Crop and pad any photo of a person to the shape that the model was trained on.

    Args:
        image: The photo, of any size and mode; its EXIF rotation is applied.
        keypoints: The person's pose on the upright photo, e.g. from a pose estimator.
        box: (left, top, right, bottom) of the person instead, pixels.
        background: As for [`CropWindow.crop`].
        margin: As for [`choose_crop`].
        shape: (height, width) whose aspect ratio the result gets.

    Returns:
        The fitted photo, for `pipe(image=fitted.image)`. Without keypoints and box, a photo that has the shape
        already comes back as it is.

    Raises:
        ValueError: As [`choose_crop`] and [`CropWindow.crop`].
        TypeError: `image` is not a PIL image.

    Example:
        >>> fitted = fit_photo(photo, estimate_pose(photo, estimator))  # doctest: +SKIP
        >>> pipe(image=fitted.image, pose=align_pose(pose, fitted.keypoints)).images[0]  # doctest: +SKIP
    """
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(
            f"`image` must be a PIL image, got {type(image).__name__}. Open a file with `diffusers.utils.load_image`."
        )
    image = upright(image)
    if keypoints is not None and not isinstance(keypoints, Keypoints):
        raise TypeError(
            f"`keypoints` must be a `Keypoints`, got {type(keypoints).__name__}: read it with `Keypoints.from_any`."
        )
    frame = choose_crop((image.height, image.width), keypoints, box, margin=margin, shape=shape)
    return FittedPhoto(frame.crop(image, background), frame, None if keypoints is None else frame.move(keypoints))


def fit_keypoints(
    keypoints: Keypoints | Sequence[Keypoints], *, margin: float = 0.05, shape: Size = DEEPFASHION_SIZE
) -> list[Keypoints]:
    """Bring poses measured on photos of any shape into the model's frame, around the person.

    Args:
        keypoints: One pose, or the poses of one sequence, all measured on pictures of one size; they share a window,
            so that a movement through the picture stays one.
        margin: As for [`choose_crop`].
        shape: (height, width) whose aspect ratio the frame gets.

    Returns:
        The poses in their window.

    Raises:
        ValueError: There is no pose, poses were measured on pictures of several sizes, or as [`choose_crop`].
        TypeError: A pose is not a `Keypoints`.
    """
    poses = [keypoints] if isinstance(keypoints, Keypoints) else list(keypoints)
    if not poses:
        raise ValueError("`keypoints` is empty: pass at least one pose.")
    frame = choose_crop(poses[0].size, poses, margin=margin, shape=shape)
    return [frame.move(pose) for pose in poses]


def _person_box(poses: Sequence[Keypoints], image_size: Size) -> FloatArray:
    """Box (left, top, right, bottom) of all poses' bodies, within the photo."""
    if not poses:
        raise ValueError("`keypoints` is empty: pass at least one pose.")
    corners = []
    for pose in poses:
        if not isinstance(pose, Keypoints):
            raise TypeError(
                f"`keypoints` must be `Keypoints`, got {type(pose).__name__}: read it with `Keypoints.from_any`."
            )
        if pose.size != image_size:
            raise ValueError(
                f"The keypoints were measured on a picture of {pose.size[0]}x{pose.size[1]} (height x width) pixels, "
                f"but this one has {image_size[0]}x{image_size[1]}: measure them on the upright photo, or `rescale` "
                "them."
            )
        corners.append(pose.xy[pose.visible])
        for joint, other, part in _BEYOND_JOINTS:
            first, second = JOINT_NAMES.index(joint), JOINT_NAMES.index(other)
            if pose.visible[first] and pose.visible[second]:
                radius = part * np.linalg.norm(pose.xy[first] - pose.xy[second])
                corners.append(pose.xy[first] + radius * np.array([[-1, -1], [1, 1]]))
    points = np.concatenate(corners)
    return _check_box((*points.min(axis=0), *points.max(axis=0)), image_size)


def _check_box(box: Box, image_size: Size) -> FloatArray:
    """The part of a box that is on the photo, at least one pixel large."""
    try:
        values = np.array(box, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise TypeError(f"`box` must be four numbers (left, top, right, bottom), got {box!r}.")
    height, width = image_size
    left, top, right, bottom = values
    if not (left <= right and top <= bottom) or right < 0 or bottom < 0 or left > width or top > height:
        raise ValueError(
            f"The person's box (left, top, right, bottom) must lie on the photo of {height}x{width} (height x width) "
            f"pixels, got {tuple(values.round(1).tolist())}."
        )
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return np.array([left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)])


def parse_color(color: Color) -> tuple[int, int, int]:
    """Read the colour of a background.

    Args:
        color: As Pillow names colours, or red, green and blue from 0 to 255.

    Returns:
        Red, green and blue.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(color, str):
        try:
            return PIL.ImageColor.getcolor(color, "RGB")  # type: ignore[return-value]
        except ValueError as error:
            raise ValueError(f"`background` must be a colour such as 'white' or '#c0c0c0', got {color!r}.") from error
    channels = list(color) if isinstance(color, Iterable) else []
    if len(channels) != 3 or not all(isinstance(value, (int, np.integer)) and 0 <= value <= 255 for value in channels):
        raise ValueError(f"`background` must be three whole numbers from 0 to 255, got {color!r}.")
    red, green, blue = map(int, channels)
    return red, green, blue
