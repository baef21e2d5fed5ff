"""Compute where the joints of a figure are: the body in three dimensions, its projection, its place in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from diffusers_cfld import Keypoints

from .people import ArmPose, Body, DrawnIdentity, DrawnPose, LegPose

__all__ = [
    "FRAME",
    "HANDS",
    "HEAD",
    "HEAD_DEPTH",
    "HEAD_WIDTH",
    "HEELS",
    "HIPS",
    "TOES",
    "Skeleton",
    "figure_keypoints",
    "place_skeleton",
    "skeleton_keypoints",
]

FRAME = (256, 176)
"""(height, width) of the frame that figures are composed in, as DeepFashion's."""

Array: TypeAlias = npt.NDArray[np.float64]

# Rows of `Skeleton.points` after the 18 joints: middles of head and hips; heels, toes and hands (right, left).
HEAD, HIPS, HEELS, TOES, HANDS = 18, 19, (20, 21), (22, 23), (24, 25)
_NUM_POINTS = 26
_ANKLE_HEIGHT = 0.042

# On the head as an ellipsoid: degrees to the left of the nose, height in half heads (down), and half axes.
_FACE = {0: (0.0, 0.22), 14: (-26.0, -0.06), 15: (26.0, -0.06), 16: (-92.0, 0.08), 17: (92.0, 0.08)}
HEAD_WIDTH, HEAD_DEPTH = 0.78, 0.92


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """A person's points as the camera sees them.

    Args:
        points: (26, 2), x and y in 256x176 pixels, edges at 0: the 18 joints and the further points named above.
        depth: (26,), towards the camera, in statures; 0 is the middle of the hips.
        known: (18,), whether a detector would report the joint, unlike noses and eyes of people who look away.
        unit: The stature in these pixels.
        turns: How hips, shoulders and head are turned, radians, in the direction of `DrawnPose.azimuth`.
    """

    points: Array
    depth: Array
    known: npt.NDArray[np.bool_]
    unit: float
    turns: tuple[float, float, float]


def figure_keypoints(identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> Keypoints:
    """Compute a figure's keypoints without drawing it.

    Args:
        identity: The person, for the proportions.
        pose: How they stand.
        size: (height, width) of the image, pixels.

    Returns:
        The joints, to a hundredth of a pixel; those outside the image or on the far side of the head are missing.
    """
    return skeleton_keypoints(place_skeleton(identity, pose), size)


def skeleton_keypoints(skeleton: Skeleton, size: tuple[int, int]) -> Keypoints:
    """Return the joints of a placed skeleton in an image of `size` (height, width), pixels."""
    height, width = size
    # Pixel centres are at whole numbers.
    xy = skeleton.points[:18] * (width / FRAME[1], height / FRAME[0]) - 0.5
    inside = (xy >= 0).all(axis=1) & (xy <= (width - 1, height - 1)).all(axis=1)
    return Keypoints(xy.round(2), skeleton.known & inside, size=(height, width))


def place_skeleton(identity: DrawnIdentity, pose: DrawnPose) -> Skeleton:
    """Pose a body, project it to the camera and place it in the image."""
    body = identity.body
    joints = _pose_body(body, pose)
    azimuth, camera = np.radians(pose.azimuth), np.radians(pose.camera)
    x = joints[:, 0] * np.cos(azimuth) + joints[:, 2] * np.sin(azimuth)
    level = joints[:, 2] * np.cos(azimuth) - joints[:, 0] * np.sin(azimuth)
    y = joints[:, 1] * np.cos(camera) + level * np.sin(camera)
    depth = level * np.cos(camera) - joints[:, 1] * np.sin(camera)

    shoulders = azimuth + np.radians(pose.twist)
    face = shoulders + np.radians(pose.head[0])
    known = np.ones(18, dtype=bool)
    # Eyes and noses are visible until a little beyond the head's edge, ears longer because they stand off.
    for row, (angle, _) in _FACE.items():
        limit = -0.55 if row >= 16 else -0.1
        known[row] = np.cos(face + np.radians(angle)) > limit
    points, unit = _frame(np.column_stack([x, y]), body, pose)
    return Skeleton(points, depth, known, unit, (float(azimuth), float(shoulders), float(face)))


def _frame(points: Array, body: Body, pose: DrawnPose) -> tuple[Array, float]:
    """Scale points (n, 2) in statures to 256x176 pixels and move them to their place."""
    height, width = FRAME
    top = points[HEAD, 1] - 1.15 * body.head
    low = points.min(axis=0) - 0.03
    high = points.max(axis=0) + 0.03
    across, along = pose.place
    if pose.crop is None:
        low[1] = min(low[1], top)
        unit = min(pose.stature, (width - 4) / (high[0] - low[0]), (height - 6) / (high[1] - low[1]))
        room = np.array([width, height]) - unit * (high - low)
        corner = np.array([(0.5 + 0.3 * across) * room[0], along * room[1]])
        return (points - low) * unit + corner, float(unit)
    margin = 6.0 + 16.0 * along
    unit = (height - margin) / pose.crop
    middle = 0.5 * (points[1, 0] + points[HIPS, 0])
    return (points - (middle, top)) * unit + (width * (0.5 + 0.06 * across), margin), float(unit)


def _pose_body(body: Body, pose: DrawnPose) -> Array:
    """Return the points (26, 3) on the body's axes."""
    points = np.zeros((_NUM_POINTS, 3))
    trunk = _rotation(pose.twist, pose.bend, pose.lean)
    level = _rotation(pose.twist, pose.bend, pose.lean + pose.shrug)
    neck = trunk @ (0.0, -body.spine, 0.0)
    points[1] = neck
    turn, nod, tilt = pose.head
    head = _rotation(pose.twist + turn, 0.5 * pose.bend + nod, 0.5 * pose.lean + tilt)
    points[HEAD] = neck + head @ (0.0, -0.05 - body.head, 0.012)
    for row, (angle, height) in _FACE.items():
        radius = np.sqrt(1 - height**2) * (1.04 if row == 0 or row >= 16 else 0.96)
        x, z = HEAD_WIDTH * np.sin(np.radians(angle)), HEAD_DEPTH * np.cos(np.radians(angle))
        points[row] = points[HEAD] + body.head * (head @ (radius * x, height, radius * z))
    sides = ((0, -1.0, pose.right_arm, pose.right_leg), (1, 1.0, pose.left_arm, pose.left_leg))
    for index, side, arm, leg in sides:
        shoulder = neck + level @ (side * body.shoulder, 0.02, 0.0)
        hip = np.array([side * body.hip, 0.0, 0.0])
        anchor = {"shoulder": shoulder, "hip": hip, "head": points[HEAD]}[arm.anchor]
        # Hands at the hips follow the hips, all others the trunk.
        axes = np.eye(3) if arm.anchor == "hip" else trunk
        points[2 + 3 * index] = shoulder
        rows = [3 + 3 * index, 4 + 3 * index, HANDS[index]]
        points[rows] = _bend_arm(body, shoulder, anchor, axes, arm, side)
        rows = [8 + 3 * index, 9 + 3 * index, 10 + 3 * index, HEELS[index], TOES[index]]
        points[rows] = _bend_leg(body, hip, leg, side)
    return points


def _bend_arm(body: Body, shoulder: Array, anchor: Array, axes: Array, arm: ArmPose, side: float) -> Array:
    """Return elbow, wrist and fingertips (3, 3), with the hand at its place as far as the arm reaches."""
    upper, lower = 0.53 * body.arm, 0.47 * body.arm
    mirror = np.array([side, 1.0, 1.0])
    reach = anchor + axes @ (np.array(arm.offset) * mirror) - shoulder
    length = float(np.linalg.norm(reach))
    direction = reach / max(length, 1e-6)
    # Elbows neither fold nor stretch fully.
    length = float(np.clip(length, 0.3 * body.arm, 0.988 * body.arm))
    along = (length**2 + upper**2 - lower**2) / (2 * length)
    pole = axes @ (np.array(arm.elbow) * mirror)
    pole = pole - direction * (pole @ direction)
    pole = pole / max(float(np.linalg.norm(pole)), 1e-6)
    elbow = shoulder + direction * along + pole * np.sqrt(max(upper**2 - along**2, 0.0))
    wrist = shoulder + direction * length
    forearm = (wrist - elbow) / max(float(np.linalg.norm(wrist - elbow)), 1e-6)
    return np.stack([elbow, wrist, wrist + 0.075 * forearm])


def _bend_leg(body: Body, hip: Array, leg: LegPose, side: float) -> Array:
    """Return hip, knee, ankle, heel and toes (5, 3)."""
    thigh, shin = 0.51 * body.leg, 0.49 * body.leg
    spread, lift = np.radians(leg.spread), np.radians(leg.lift)
    below = np.radians(leg.lift - leg.knee)
    knee = hip + thigh * np.array(
        [side * np.sin(spread), np.cos(spread) * np.cos(lift), np.cos(spread) * np.sin(lift)]
    )
    spread *= 0.6
    ankle = knee + shin * np.array(
        [side * np.sin(spread), np.cos(spread) * np.cos(below), np.cos(spread) * np.sin(below)]
    )
    toe, fall = np.radians(leg.toe), np.clip(-0.7 * below, -0.3, 0.9)
    ahead = np.array([side * np.sin(toe) * np.cos(fall), np.sin(fall), np.cos(toe) * np.cos(fall)])
    under = np.array([0.0, np.cos(fall), -np.sin(fall)])
    sole = ankle + (_ANKLE_HEIGHT - 0.018) * under
    return np.stack([hip, knee, ankle, sole - 0.022 * ahead, sole + 0.1 * ahead])


def _rotation(turn: float, nod: float, tilt: float) -> Array:
    """Return the rotation (3, 3) that tilts to the left, then nods forward, then turns; degrees."""
    a, b, c = np.radians([turn, nod, tilt])
    tilting = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    nodding = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    turning = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return np.asarray(turning @ nodding @ tilting)
