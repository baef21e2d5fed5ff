"""Fit a target pose to the source person's body, so that the pose of a tall person does not stretch a small one.

Directions come from the target and lengths from the source, as in the pose alignment of AnimateAnyone and MusePose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from .formats import FloatArray
from .keypoints import Keypoints
from .skeleton import JOINT_NAMES, LIMBS

_NECK = 1
_PARENTS = {end: start for start, end in LIMBS}
# Right and left bones of one kind have the same length; without the side, the names of their joints are the same.
_NAMES_OF_BONES = {bone: tuple(JOINT_NAMES[joint].split("_")[-1] for joint in bone) for bone in LIMBS}
_KINDS = sorted(set(_NAMES_OF_BONES.values()))
_KIND_OF_BONE = {bone: _KINDS.index(names) for bone, names in _NAMES_OF_BONES.items()}
# A bone that points at the camera looks short, so no bone's ratio may differ from the whole body's by more than this.
_MAX_STRETCH = 1.5


@overload
def align_pose(target: Keypoints, source: Keypoints) -> Keypoints: ...


@overload
def align_pose(target: Sequence[Keypoints], source: Keypoints) -> list[Keypoints]: ...


def align_pose(target: Keypoints | Sequence[Keypoints], source: Keypoints) -> Keypoints | list[Keypoints]:
    """Give a target pose the source person's proportions, size and place in the image.

    Each bone keeps its direction. It is scaled by the length of the longest bone of its kind (right or left) in the
    source, relative to the longest in the targets. If either of them shows no such bone, the ratio of the whole body
    is used, which is the median over the kinds of bones; no bone's ratio differs from it by more than a factor of 1.5.
    The neck of the first target moves to that of the source (if one has no neck, the mean of the joints that both have
    is used instead); later targets keep their distance from the first one, scaled by the body's ratio.

    Args:
        target: A pose, or the poses of one sequence, measured on images of one size. Lengths and directions are
            measured in pixels: if the images were squashed, for example from 256x176 to 256x256, first restore the
            true aspect ratio with `pose.rescale((256, 176))`.
        source: The pose of the person in the source image, likewise.

    Returns:
        The same number of poses, measured on the source image. Joints that a target lacks stay missing.

    Raises:
        ValueError: There are no targets, they were measured on images of several sizes, or the source has no kind of
            bone in common with them.
    """
    poses = [target] if isinstance(target, Keypoints) else list(target)
    sizes = sorted({pose.size for pose in poses})
    if len(sizes) != 1:
        raise ValueError(f"`target` must be poses measured on images of one size, got (height, width) {sizes}.")

    source_lengths, target_lengths = _longest_bones([source]), _longest_bones(poses)
    shared = (source_lengths > 0) & (target_lengths > 0)
    if not shared.any():
        raise ValueError(
            "`source` and `target` have no bone in common: both must show two neighbouring joints, e.g. neck and hip."
        )
    shared_ratios = source_lengths[shared] / target_lengths[shared]
    body_ratio = float(np.median(shared_ratios))
    ratios = np.full(len(_KINDS), body_ratio)
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
    """The longest bone of each kind in all poses, pixels; 0 where there is none."""
    lengths = np.zeros(len(_KINDS))
    for pose in poses:
        for (start, end), kind in _KIND_OF_BONE.items():
            if pose.visible[start] and pose.visible[end]:
                lengths[kind] = max(lengths[kind], float(np.linalg.norm(pose.xy[end] - pose.xy[start])))
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
            ratio = ratios[_KIND_OF_BONE[start, end]] if ancestor == start else body_ratio
            scaled[end] = scaled[ancestor] + ratio * (pose.xy[end] - pose.xy[ancestor])
    return scaled
