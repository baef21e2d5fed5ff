"""Skeletons as pictures: drawn for people to look at, and joints read back from such drawings.

Behind `Keypoints.draw` and `Keypoints.from_skeleton`.
"""

from __future__ import annotations

import cv2
import numpy as np
import PIL.Image

from ..image_utils import to_rgb
from .formats import MAX_DRAWN_COORDINATE, FloatArray, Size, check_size
from .keypoints import BONE_COLORS, JOINT_COLORS, JOINT_NAMES, LIMBS, Keypoints

__all__ = ["draw_skeleton", "read_skeleton"]

_SHIFT = 4

# Half the distance of neighbouring joint colours, 85; bones are at least 102 from any.
_COLOR_DISTANCE = 42.0
# Where discs meet, their edges blend into the colours of others.
_MIN_DISC_PIXELS, _MIN_DISC_SHARE = 3, 0.12
_MAX_SECOND_SHARE = 0.5


def draw_skeleton(
    keypoints: Keypoints, size: Size | None = None, background: PIL.Image.Image | None = None, thickness: float = 1.0
) -> PIL.Image.Image:
    """Draw a pose; see `Keypoints.draw`.

    Args:
        keypoints: The pose.
        size: (height, width) of the picture, pixels.
        background: A photo to draw over, or None for black.
        thickness: Factor on bones and joints, > 0.

    Returns:
        An RGB picture.

    Raises:
        ValueError: `size` or `thickness` is not positive, or `background` is of no use.
        TypeError: `background` is not a PIL image, or `size` is not a pair of whole numbers.
    """
    if background is not None and not isinstance(background, PIL.Image.Image):
        raise TypeError(f"`background` must be a PIL image or None, got {type(background).__name__}.")
    if not (np.isfinite(thickness) and thickness > 0):
        raise ValueError(f"`thickness` must be a positive number, got {thickness!r}.")
    if background is not None:
        background = to_rgb(background)
    if size is None:
        size = keypoints.size if background is None else (background.height, background.width)
    height, width = check_size(size)
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    if background is not None:
        photo = background.resize((width, height), PIL.Image.Resampling.LANCZOS)
        # Dimmed a little, or the darker bones drown in bright clothes.
        canvas = (np.asarray(photo) * 0.8).astype(np.uint8)
    unit = thickness * max(height, width)
    # Pixel centres are at whole numbers: +0.5 before and -0.5 after scaling keeps the drawing on the photo.
    joints = keypoints.rescale((height, width)).xy + 0.5 * np.array([width, height]) / keypoints.size[::-1] - 0.5
    joints = joints.clip(-MAX_DRAWN_COORDINATE, MAX_DRAWN_COORDINATE)
    for (start, end), color in zip(LIMBS, BONE_COLORS, strict=True):
        if keypoints.visible[start] and keypoints.visible[end]:
            outline = np.rint(_capsule(joints[start], joints[end], 0.0075 * unit) * 2**_SHIFT).astype(np.int32)
            cv2.fillConvexPoly(canvas, outline, color, cv2.LINE_AA, _SHIFT)
    colors = np.array(JOINT_COLORS)[keypoints.visible].tolist()
    for joint, joint_color in zip(joints[keypoints.visible], colors, strict=True):
        center = np.rint(joint * 2**_SHIFT).astype(int).tolist()
        cv2.circle(canvas, center, round(0.014 * unit * 2**_SHIFT), joint_color, -1, cv2.LINE_AA, _SHIFT)
    return PIL.Image.fromarray(canvas)


def read_skeleton(picture: PIL.Image.Image) -> Keypoints:
    """Find the joints of a drawn skeleton; see `Keypoints.from_skeleton`.

    Args:
        picture: The drawing.

    Returns:
        The pose in the picture's frame.

    Raises:
        ValueError: There is no disc in any of the joints' colours, or several in one of them.
        TypeError: `picture` is not a PIL image.
    """
    if not isinstance(picture, PIL.Image.Image):
        raise TypeError(f"`picture` must be a PIL image, got {type(picture).__name__}.")
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    xy = np.full((len(JOINT_COLORS), 2), -1.0)
    areas = np.zeros((len(JOINT_COLORS), 2), dtype=np.int64)  # the largest piece and the second, pixels
    for index, color in enumerate(JOINT_COLORS):
        mask = np.linalg.norm(pixels - color, axis=2) < _COLOR_DISTANCE
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        if count > 1:
            pieces = stats[1:, cv2.CC_STAT_AREA]
            order = pieces.argsort()[::-1][:2]
            areas[index, : len(order)] = pieces[order]
            # Not the centroid: where another joint covers a part of the disc, its outline still tells the middle.
            points = np.argwhere(labels == 1 + order[0])[:, ::-1].astype(np.float32)
            xy[index] = cv2.minEnclosingCircle(points)[0]
    visible = areas[:, 0] >= _MIN_DISC_PIXELS
    if visible.any():
        usual = np.median(areas[visible, 0])
        visible &= areas[:, 0] >= _MIN_DISC_SHARE * usual
        xy[~visible] = -1.0
        second = int(areas[:, 1].argmax())
        # Against whole discs: covered ones lower the median.
        whole = np.quantile(areas[visible, 0], 0.75)
        if areas[second, 1] >= max(_MIN_DISC_PIXELS, _MAX_SECOND_SHARE * whole):
            raise ValueError(
                f"`picture` must show one person without hands and face points, got more than one disc in the colour "
                f"of {JOINT_NAMES[second]!r}."
            )
    if not visible.any():
        raise ValueError(
            "`picture` shows no joint in OpenPose's colours: draw them as discs in `JOINT_COLORS`, or find the pose "
            "of a photo with a pose estimator."
        )
    return Keypoints(xy, visible, None, (picture.height, picture.width))


def _capsule(start: FloatArray, end: FloatArray, radius: float) -> FloatArray:
    """Return the outline of a bone, (n, 2) pixels: a line with round ends."""
    angle = np.arctan2(*(end - start)[::-1])
    turn = np.linspace(-np.pi / 2, np.pi / 2, 13)
    angles = np.concatenate([angle + turn, angle + turn + np.pi])
    centers = np.repeat([end, start], len(turn), axis=0)
    return centers + radius * np.column_stack([np.cos(angles), np.sin(angles)])
