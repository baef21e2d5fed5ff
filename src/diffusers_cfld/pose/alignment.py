"""Fit a target pose to the source's body, so that a tall person's pose does not stretch a small one.

The idea is that of the pose alignment of AnimateAnyone's and MusePose's users: directions from the target, lengths
from the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from .formats import FloatArray
from .keypoints import LIMBS, Keypoints

__all__ = ["align_pose"]

_NECK = 1
_PARENTS = {end: start for start, end in LIMBS}
# Bones of one length on the right and on the left.
_GROUPS = (
    ((1, 2), (1, 5)),
    ((2, 3), (5, 6)),
    ((3, 4), (6, 7)),
    ((1, 8), (1, 11)),
    ((8, 9), (11, 12)),
    ((9, 10), (12, 13)),
    ((1, 0),),
    ((0, 14), (0, 15)),
    ((14, 16), (15, 17)),
)
_GROUP_OF_BONE = {bone: index for index, group in enumerate(_GROUPS) for bone in group}
# A bone that points at the camera looks short: no bone changes by more than this against the whole body.
_MAX_STRETCH = 1.5


@overload
def align_pose(target: Keypoints, source: Keypoints) -> Keypoints: ...


@overload
def align_pose(target: Sequence[Keypoints], source: Keypoints) -> list[Keypoints]: ...


def align_pose(target: Keypoints | Sequence[Keypoints], source: Keypoints) -> Keypoints | list[Keypoints]:
    """Give a target pose the source person's proportions, size and place in the frame.

    Each bone keeps its direction and is scaled by the ratio of the longest such bone seen, right or left, in the
    source to the longest seen in the targets; where one of the two shows none, by the whole body's ratio (the median
    over the kinds of bones), from which no bone departs by more than a factor of 1.5. The neck of the first target
    comes to lie on the source's (the middle of the joints that both have, if one has no neck); later ones keep their
    way from there, scaled by the body's ratio.

    Args:
        target: A pose, or the poses of one sequence, measured on pictures of one size. Lengths and directions are
            those of pixels: bring poses measured on squashed pictures, such as 256x256 ones made of 256x176, into the
            true shape first, `pose.rescale((256, 176))`.
        source: The pose of the person in the source photo, likewise.

    Returns:
        As many poses, in the source's frame. Joints that a target misses stay missing.

    Raises:
        ValueError: There is no target, targets were measured on pictures of several sizes, or no kind of bone is seen
            both in the source and in a target.
        TypeError: A pose is not a `Keypoints`.
    """
    poses = [target] if isinstance(target, Keypoints) else list(target)
    for name, pose in (("source", source), *(("target", pose) for pose in poses)):
        if not isinstance(pose, Keypoints):
            raise TypeError(
                f"`{name}` must be a `Keypoints`, got {type(pose).__name__}: read it with `Keypoints.from_any`."
            )
    if not poses:
        raise ValueError("`target` is empty: pass at least one pose.")
    sizes = sorted({pose.size for pose in poses})
    if len(sizes) > 1:
        raise ValueError(f"All targets must be measured on pictures of one size (height, width), got {sizes}.")

    source_lengths, target_lengths = _longest_bones([source]), _longest_bones(poses)
    shared = (source_lengths > 0) & (target_lengths > 0)
    if not shared.any():
        raise ValueError(
            "No bone is seen both in `source` and in `target`: they need two neighbouring joints in common, e.g. neck "
            "and hip."
        )
    shared_ratios = source_lengths[shared] / target_lengths[shared]
    body_ratio = float(np.median(shared_ratios))
    ratios = np.full(len(_GROUPS), body_ratio)
    ratios[shared] = shared_ratios.clip(body_ratio / _MAX_STRETCH, body_ratio * _MAX_STRETCH)
    moved = [_scale_bones(pose, ratios, body_ratio) + body_ratio * (_root(pose) - _root(poses[0])) for pose in poses]
    anchors = source.visible & poses[0].visible
    if anchors[_NECK]:
        anchors = np.arange(len(anchors)) == _NECK
    if anchors.any():
        shift = source.xy[anchors].mean(axis=0) - moved[0][anchors].mean(axis=0)
    else:  # e.g. a right arm and a left one
        shift = source.xy[source.visible].mean(axis=0) - moved[0][poses[0].visible].mean(axis=0)
    aligned = [
        Keypoints(xy + shift, pose.visible, pose.confidence, source.size)
        for xy, pose in zip(moved, poses, strict=True)
    ]
    return aligned[0] if isinstance(target, Keypoints) else aligned


def _longest_bones(poses: Sequence[Keypoints]) -> FloatArray:
    """The longest bone of each kind over all poses, pixels; 0 where none is seen."""
    lengths = np.zeros(len(_GROUPS))
    for pose in poses:
        for (start, end), group in _GROUP_OF_BONE.items():
            if pose.visible[start] and pose.visible[end]:
                lengths[group] = max(lengths[group], float(np.linalg.norm(pose.xy[end] - pose.xy[start])))
    return lengths


def _root(pose: Keypoints) -> FloatArray:
    return pose.xy[_NECK] if pose.visible[_NECK] else pose.xy[pose.visible].mean(axis=0)


def _scale_bones(pose: Keypoints, ratios: FloatArray, body_ratio: float) -> FloatArray:
    """The joints with all bones scaled, (18, 2), relative to the root."""
    root = _root(pose)
    scaled = np.zeros_like(pose.xy)
    for start, end in LIMBS:  # from the neck outwards
        if not pose.visible[end]:
            continue
        ancestor: int | None = start
        while ancestor is not None and not pose.visible[ancestor]:
            ancestor = _PARENTS.get(ancestor)
        if ancestor is None:
            scaled[end] = body_ratio * (pose.xy[end] - root)
        else:
            ratio = ratios[_GROUP_OF_BONE[start, end]] if ancestor == start else body_ratio
            scaled[end] = scaled[ancestor] + ratio * (pose.xy[end] - pose.xy[ancestor])
    return scaled
