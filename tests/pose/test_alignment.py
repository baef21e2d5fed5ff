"""Target poses on the source person's body."""

import numpy as np
import pytest

from diffusers_cfld import Keypoints
from diffusers_cfld.pose.alignment import align_pose
from diffusers_cfld.pose.skeleton import LIMBS
from diffusers_cfld.small_model import example_poses

NECK, RIGHT_WRIST = 1, 4


@pytest.fixture(scope="module")
def poses():
    return example_poses()


def whole(poses):
    return [pose for pose in poses if pose.visible.all()]


def with_missing(pose, *joints):
    visible = pose.visible.copy()
    visible[list(joints)] = False
    return Keypoints(pose.xy, visible, None, pose.size)


def scaled(pose, x, y, shift=(0, 0), size=None):
    return Keypoints(pose.xy * (x, y) + shift, pose.visible, None, size or pose.size)


def lengths(pose):
    return np.array([np.linalg.norm(pose.xy[end] - pose.xy[start]) for start, end in LIMBS])


def test_a_pose_aligned_to_itself_is_itself(poses):
    for pose in poses:
        aligned = align_pose(pose, pose)
        np.testing.assert_allclose(aligned.xy, pose.xy, atol=1e-9)
        assert np.array_equal(aligned.visible, pose.visible)


def test_size_and_place_come_from_the_source_and_the_pose_from_the_target(poses):
    source = whole(poses)[0]
    small = scaled(source, 0.4, 0.4, (80, 30), (400, 600))
    aligned = align_pose(small, source)
    np.testing.assert_allclose(aligned.xy, source.xy, atol=1e-9)
    assert aligned.size == source.size


def test_directions_stay_and_lengths_are_the_sources(poses):
    source, target = whole(poses)[:2]
    aligned = align_pose(target, source)
    np.testing.assert_allclose(aligned.xy[NECK], source.xy[NECK])
    for start, end in LIMBS:
        before, after = target.xy[end] - target.xy[start], aligned.xy[end] - aligned.xy[start]
        assert before @ after == pytest.approx(np.linalg.norm(before) * np.linalg.norm(after))
    # A source with longer legs gives longer legs, and nothing else.
    tall = source.xy.copy()
    for knee, hip, ankle in ((9, 8, 10), (12, 11, 13)):
        extra = 0.3 * (tall[knee] - tall[hip])
        tall[[knee, ankle]] += extra
    longer = align_pose(target, Keypoints(tall, source.visible, None, source.size))
    ratio = lengths(longer) / lengths(aligned)
    thighs = [LIMBS.index((8, 9)), LIMBS.index((11, 12))]
    np.testing.assert_allclose(ratio[thighs], 1.3, rtol=1e-6)
    np.testing.assert_allclose(np.delete(ratio, thighs), 1.0, rtol=1e-6)


def test_a_bone_that_points_at_the_camera_does_not_shrink_the_target(poses):
    target = whole(poses)[0]
    xy = target.xy.copy()
    for elbow, wrist in ((3, 4), (6, 7)):
        xy[wrist] = xy[elbow] + 0.01 * (xy[wrist] - xy[elbow])
    aligned = align_pose(target, Keypoints(xy, target.visible, None, target.size))
    forearm = LIMBS.index((3, 4))
    assert lengths(aligned)[forearm] > 0.6 * lengths(target)[forearm]


def test_missing_joints_stay_missing_and_cut_no_limb_off(poses):
    source, target = whole(poses)[:2]
    aligned = align_pose(with_missing(target, 3, NECK), source)
    assert not aligned.visible[[3, NECK]].any()
    assert aligned.visible[RIGHT_WRIST]
    reference = align_pose(target, source)
    assert np.abs(aligned.xy - reference.xy)[aligned.visible].max() < 0.15 * source.size[0]
    alike = align_pose(with_missing(source, NECK), source)
    np.testing.assert_allclose(alike.xy[alike.visible], source.xy[alike.visible], atol=1e-9)


def test_a_sequence_keeps_its_movement(poses):
    source = whole(poses)[0]
    frames = [scaled(source, 0.5, 0.5, (20 + 10 * number, 40)) for number in range(3)]
    aligned = align_pose(frames, source)
    np.testing.assert_allclose(aligned[0].xy, source.xy, atol=1e-9)
    # 10 pixels of a person half as large are 20 of the source's.
    np.testing.assert_allclose(aligned[2].xy - aligned[0].xy, np.tile([40, 0], (18, 1)), atol=1e-9)


def test_alignment_names_what_is_wrong(poses):
    source = poses[0]
    for targets in ([source, source.rescale((100, 100))], []):
        with pytest.raises(ValueError, match="images of one size"):
            align_pose(targets, source)
    with pytest.raises(ValueError, match="have no bone in common"):
        align_pose(with_missing(whole(poses)[0], 0, *range(2, 18)), whole(poses)[0])
