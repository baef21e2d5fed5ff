"""Crop and pad images to the model's aspect ratio, 256:176 (height to width), around the person.

The published model squashes every source image to a square and was trained on images of 256:176, so people in images
with another aspect ratio would come out too wide or too thin. Crops move whole pixels and resample nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageColor

from ..image_utils import to_rgb, upright
from ..pose.formats import DEEPFASHION_SIZE, Size, check_size
from ..pose.keypoints import Keypoints
from ..pose.skeleton import JOINT_NAMES

Color: TypeAlias = str | tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]

# DeepFashion's own files are 1101x750, 0.9 % away from 256:176.
_SHAPE_TOLERANCE = 0.02

# The body reaches beyond some joints. Around each of these (the first of several that is visible: from behind, a head
# has no nose), it is taken to cover a disc; the radius is relative to the distance to the joint that follows.
_BEYOND_JOINTS = (
    (("nose", "right_ear", "left_ear"), "neck", 0.9),
    (("right_wrist",), "right_elbow", 0.6),
    (("left_wrist",), "left_elbow", 0.6),
    (("right_ankle",), "right_knee", 0.25),
    (("left_ankle",), "left_knee", 0.25),
)


def has_shape(size: Size, shape: Size) -> bool:
    """Return whether an image has an aspect ratio, within 2 %.

    Args:
        size: (height, width) of the image.
        shape: (height, width) with the aspect ratio.

    Returns:
        Whether people keep their proportions when the image is resized to that shape.
    """
    return abs(size[0] * shape[1] / (size[1] * shape[0]) - 1) <= _SHAPE_TOLERANCE


@dataclass(frozen=True, slots=True)
class CropWindow:
    """A window on an image, which may reach beyond the image; in pixels of the upright image.

    Args:
        left: First column; negative if the window begins left of the image.
        top: First row; negative if the window begins above the image.
        height: Number of rows in the window.
        width: Number of columns in the window.
        image_size: (height, width) of the image.
    """

    left: int
    top: int
    height: int
    width: int
    image_size: Size

    @property
    def is_whole_image(self) -> bool:
        """Whether the window is exactly the image."""
        return (self.left, self.top, self.height, self.width) == (0, 0, *self.image_size)

    def crop(self, image: PIL.Image.Image, background: Color | None = None) -> PIL.Image.Image:
        """Cut the window out.

        Args:
            image: The image; its EXIF rotation is applied.
            background: Colour beyond the image and behind its transparent parts, in one of Pillow's formats. None uses
                the median colour of the edges that the window crosses, and white behind transparent parts.

        Returns:
            An RGB image of the window's size; the image itself if the window is exactly the image and there is no
            transparency.

        Raises:
            ValueError: The image does not have the size that the window was made for, or the colour is unknown.
        """
        image = upright(image)
        self._check_image(image)
        color = None if background is None else parse_color(background)
        if self.is_whole_image and not image.has_transparency_data:
            return image
        image = to_rgb(image, color or (255, 255, 255))
        if self.is_whole_image:
            return image
        if color is None:
            color = tuple(np.median(edge_strips(np.asarray(image), self), axis=0).round().astype(int).tolist())
        window = PIL.Image.new("RGB", (self.width, self.height), color)
        window.paste(image, (-self.left, -self.top))
        return window

    def paste(self, content: PIL.Image.Image, image: PIL.Image.Image, mask: PIL.Image.Image) -> PIL.Image.Image:
        """Paste new content of the window into the image.

        Args:
            content: The new content of the window, of any size.
            image: The image; its EXIF rotation is applied.
            mask: Greyscale, of the image's size: 255 where the new content should be visible.

        Returns:
            An RGB image of the same size. Where the mask is 0, and outside the window, it equals the image.

        Raises:
            ValueError: The image or the mask does not have the size that the window was made for.
        """
        image = to_rgb(image)
        self._check_image(image)
        self._check_image(mask)
        layer = image.copy()
        size = (self.width, self.height)
        layer.paste(content.resize(size, PIL.Image.Resampling.BICUBIC), (self.left, self.top))
        return PIL.Image.composite(layer, image, mask.convert("L"))

    def move(self, keypoints: Keypoints) -> Keypoints:
        """Move keypoints from the image to the window.

        Args:
            keypoints: Measured on the image; rescaled if they were measured on the image at another size.

        Returns:
            The pose in the window.
        """
        return self._shift(keypoints.rescale(self.image_size), -1, (self.height, self.width))

    def move_back(self, keypoints: Keypoints) -> Keypoints:
        """Undo [`CropWindow.move`].

        Args:
            keypoints: Measured in the window; rescaled if they were measured on the window at another size.

        Returns:
            The pose in the image.
        """
        return self._shift(keypoints.rescale((self.height, self.width)), 1, self.image_size)

    def _shift(self, keypoints: Keypoints, sign: int, size: Size) -> Keypoints:
        xy = keypoints.xy + sign * np.array([self.left, self.top])
        return Keypoints(xy, keypoints.visible, keypoints.confidence, size)

    def _check_image(self, image: PIL.Image.Image) -> None:
        if (image.height, image.width) != self.image_size:
            raise ValueError(
                f"The window was made for an image of {self.image_size[0]}x{self.image_size[1]} (height x width), got "
                f"one of {image.height}x{image.width}."
            )


@dataclass(frozen=True, slots=True)
class FittedPhoto:
    """An image of a person in the model's aspect ratio, and the crop that it was made with.

    Args:
        image: The cropped and padded image, at the original resolution.
        frame: The crop; moves poses and images between the original image and `image`.
        keypoints: The person's pose in `image`, if it was given.
    """

    image: PIL.Image.Image
    frame: CropWindow
    keypoints: Keypoints | None


def edge_strips(pixels: npt.NDArray[Any], window: CropWindow) -> npt.NDArray[Any]:
    """Collect the pixels along those edges of an image that a window crosses.

    Args:
        pixels: (H, W, C), the image.
        window: The window.

    Returns:
        (N, C), from strips as wide as 2 % of the image's shorter side; all pixels if the window crosses no edge.
    """
    height, width = window.image_size
    thickness = max(1, round(0.02 * min(height, width)))
    strips = (
        (window.top < 0, pixels[:thickness]),
        (window.top + window.height > height, pixels[-thickness:]),
        (window.left < 0, pixels[:, :thickness]),
        (window.left + window.width > width, pixels[:, -thickness:]),
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
    """Choose a window around a person.

    The window starts with the person (all joints, with head, hands and feet beyond them; or the box) and a margin as
    far as the image allows, and then grows to its aspect ratio: evenly to the left and right; up and down as far as
    the image reaches, then only up, so that a body cut off at the bottom of the image is also cut off at the bottom of
    the window. Without a person, it starts with the whole image and grows evenly.

    Args:
        image_size: (height, width) of the upright image, pixels.
        keypoints: The person's pose on the image, or several poses that share one window.
        box: (left, top, right, bottom) of the person instead, pixels.
        margin: Margin around the person, >= 0, relative to the longer side of the person's box.
        shape: (height, width) with the aspect ratio of the window.

    Returns:
        The window.

    Raises:
        ValueError: Both keypoints and box are given, keypoints were measured on another image, or the box is empty or
            outside the image.
    """
    height, width = check_size(image_size)
    shape_height, shape_width = check_size(shape)
    if keypoints is not None and box is not None:
        raise ValueError("Pass either `keypoints` or `box`, not both.")
    if keypoints is not None:
        box = _person_box([keypoints] if isinstance(keypoints, Keypoints) else keypoints, (height, width))
    if box is not None:
        left, top, right, bottom = _clip_box(box, (height, width))
        extra = margin * max(right - left, bottom - top)
        left, top = max(left - extra, 0), max(top - extra, 0)
        right, bottom = min(right + extra, width), min(bottom + extra, height)
    elif has_shape((height, width), (shape_height, shape_width)):
        return CropWindow(0, 0, height, width, (height, width))
    else:
        left, top, right, bottom = 0, 0, width, height
    scale = max((bottom - top) / shape_height, (right - left) / shape_width)
    window_height, window_width = max(1, round(scale * shape_height)), max(1, round(scale * shape_width))
    missing = window_height - (bottom - top)
    below = min(max(missing / 2, missing - top), height - bottom) if box is not None else missing / 2
    return CropWindow(
        left=round((left + right - window_width) / 2),
        top=round(bottom + below) - window_height,
        height=window_height,
        width=window_width,
        image_size=(height, width),
    )


def padding_crop(size: Size, shape: Size | None, own_size: Size | None = None) -> CropWindow:
    """Choose the window that the model sees if nothing is known about the person in the image.

    Args:
        size: (height, width) of the image.
        shape: (height, width) with the aspect ratio that the window should have; None for any.
        own_size: (height, width) of the model's input; an image of this size is assumed to be squashed already. None
            if no image is.

    Returns:
        The whole image, or a window with this aspect ratio that contains all of it.
    """
    if shape is None or size == own_size:
        return CropWindow(0, 0, *size, size)
    return choose_crop(size, shape=shape)


def fit_photo(
    image: PIL.Image.Image,
    keypoints: Keypoints | None = None,
    box: Box | None = None,
    *,
    background: Color | None = None,
    margin: float = 0.05,
    shape: Size = DEEPFASHION_SIZE,
) -> FittedPhoto:
    """Crop and pad any image of a person to the aspect ratio that the model was trained on.

    Args:
        image: The image, of any size and mode; its EXIF rotation is applied.
        keypoints: The person's pose on the upright image, e.g. from a pose estimator.
        box: (left, top, right, bottom) of the person instead, pixels.
        background: As in [`CropWindow.crop`].
        margin: As in [`choose_crop`].
        shape: (height, width) with the aspect ratio of the result.

    Returns:
        The fitted image, for `pipe(image=fitted.image)`. Without keypoints and box, an image that already has this
        aspect ratio is returned unchanged.

    Raises:
        ValueError: See [`choose_crop`] and [`CropWindow.crop`].

    Example:
        >>> fitted = fit_photo(photo, estimate_pose(photo, estimator))  # doctest: +SKIP
        >>> pipe(image=fitted.image, pose=align_pose(pose, fitted.keypoints)).images[0]  # doctest: +SKIP
    """
    image = upright(image)
    window = choose_crop((image.height, image.width), keypoints, box, margin=margin, shape=shape)
    return FittedPhoto(window.crop(image, background), window, None if keypoints is None else window.move(keypoints))


def fit_keypoints(
    keypoints: Keypoints | Sequence[Keypoints], *, margin: float = 0.05, shape: Size = DEEPFASHION_SIZE
) -> list[Keypoints]:
    """Move poses measured on images of any shape into a window with the model's aspect ratio, around the person.

    Args:
        keypoints: One pose, or the poses of one sequence, all measured on images of one size; they share a window, so
            that movement through the image is kept.
        margin: As in [`choose_crop`].
        shape: (height, width) with the aspect ratio of the window.

    Returns:
        The poses in the window.

    Raises:
        ValueError: Poses were measured on images of several sizes, or as [`choose_crop`].
    """
    poses = [keypoints] if isinstance(keypoints, Keypoints) else list(keypoints)
    window = choose_crop(poses[0].size, poses, margin=margin, shape=shape)
    return [window.move(pose) for pose in poses]


def parse_color(color: Color) -> tuple[int, int, int]:
    """Read a background colour.

    Args:
        color: A colour in one of Pillow's formats, or red, green and blue from 0 to 255.

    Returns:
        Red, green and blue.

    Raises:
        ValueError: There is no such colour.
    """
    if not isinstance(color, str):
        return color
    try:
        return PIL.ImageColor.getcolor(color, "RGB")  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"`background` must be a colour such as 'white' or '#c0c0c0', got {color!r}.") from error


def _person_box(poses: Sequence[Keypoints], image_size: Size) -> Box:
    """The box (left, top, right, bottom) around the bodies of all poses."""
    corners = []
    for pose in poses:
        if pose.size != image_size:
            raise ValueError(
                f"The keypoints were measured on an image of {pose.size[0]}x{pose.size[1]} (height x width), but this "
                f"one is {image_size[0]}x{image_size[1]}: measure them on the upright image, or `rescale` them."
            )
        corners.append(pose.xy[pose.visible])
        for joints, other, part in _BEYOND_JOINTS:
            indices = [JOINT_NAMES.index(joint) for joint in joints]
            first = next((index for index in indices if pose.visible[index]), indices[0])
            second = JOINT_NAMES.index(other)
            if pose.visible[first] and pose.visible[second]:
                radius = part * np.linalg.norm(pose.xy[first] - pose.xy[second])
                corners.append(pose.xy[first] + radius * np.array([[-1, -1], [1, 1]]))
    points = np.concatenate(corners)
    return (*points.min(axis=0), *points.max(axis=0))


def _clip_box(box: Box, image_size: Size) -> Box:
    """The part of a box that lies on the image, at least one pixel large."""
    height, width = image_size
    left, top, right, bottom = box
    # Written so that NaN fails too.
    if not (left <= right and top <= bottom and right >= 0 and bottom >= 0 and left <= width and top <= height):
        raise ValueError(
            f"The person's box must be (left, top, right, bottom), with left <= right and top <= bottom, and overlap "
            f"the image of {height}x{width} (height x width), got {tuple(float(side) for side in box)}."
        )
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)
