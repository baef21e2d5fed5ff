"""The skeleton of OpenPose's 18-joint COCO model: joints, limbs and colours, and drawing it."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

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

NUM_JOINTS = len(JOINT_NAMES)

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

JOINT_COLORS: tuple[tuple[int, ...], ...] = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(number / NUM_JOINTS, 1, 1))
    for number in range(NUM_JOINTS)
)
"""RGB of each joint, 0 to 255: an 18-step hue wheel."""

BONE_COLORS: tuple[tuple[int, ...], ...] = tuple(
    tuple(channel * 3 // 5 for channel in color) for color in JOINT_COLORS[: len(LIMBS)]
)
"""RGB of each bone, 0 to 255: 60 % of the colour of the joint with the same number, as OpenPose draws bones."""

# OpenCV's fractional bits of a coordinate, and the largest one that its 16.16 fixed-point numbers can hold.
_SHIFT = 4
_MAX_COORDINATE = 32767


def draw_skeleton(
    canvas: npt.NDArray[np.uint8],
    xy: npt.NDArray[np.float64],
    visible: npt.NDArray[np.bool_],
    joint_radius: float,
    bone_radius: float | None = None,
) -> None:
    """Draw anti-aliased bones, and joints over them, into an image.

    Args:
        canvas: (H, W, 3), RGB; modified.
        xy: (18, 2), pixels; pixel centres are at whole numbers.
        visible: (18,), whether a joint is there. A bone is drawn if both of its joints are.
        joint_radius: Radius of the joints' discs, pixels.
        bone_radius: Half the width of a bone, pixels. None draws OpenCV's lines between whole pixels, 2 pixels wide,
            as in the published pose maps.
    """
    import cv2  # here, since keypoints alone need only NumPy

    xy = xy.clip(-_MAX_COORDINATE, _MAX_COORDINATE)
    points = np.rint(xy * 2**_SHIFT).astype(int).tolist()
    for (start, end), color in zip(LIMBS, BONE_COLORS, strict=True):
        if not (visible[start] and visible[end]):
            continue
        if bone_radius is None:
            first, second = np.rint(xy[[start, end]]).astype(int).tolist()
            cv2.line(canvas, first, second, color, 2, cv2.LINE_AA)
        else:
            outline = np.rint(_capsule(xy[start], xy[end], bone_radius) * 2**_SHIFT).astype(np.int32)
            cv2.fillConvexPoly(canvas, outline, color, cv2.LINE_AA, _SHIFT)
    for point, joint_color, seen in zip(points, JOINT_COLORS, visible, strict=True):
        if seen:
            cv2.circle(canvas, point, round(joint_radius * 2**_SHIFT), joint_color, -1, cv2.LINE_AA, _SHIFT)


def _capsule(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.float64]:
    """The outline of a line with round ends, (n, 2) pixels."""
    angle = np.arctan2(*(end - start)[::-1])
    turn = np.linspace(-np.pi / 2, np.pi / 2, 13)
    angles = np.concatenate([angle + turn, angle + turn + np.pi])
    centers = np.repeat([end, start], len(turn), axis=0)
    return centers + radius * np.column_stack([np.cos(angles), np.sin(angles)])
