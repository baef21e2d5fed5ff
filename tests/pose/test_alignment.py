"""Target poses on the source's body, movements between poses, and skeletons read back from pictures."""

import json

import numpy as np
import pytest
from testing_utils import FIGURES

from diffusers_cfld import Keypoints
from diffusers_cfld.pose.alignment import align_pose
from diffusers_cfld.pose.keypoints import LIMBS
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


# align_pose --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="`target` is empty"):
        align_pose([], source)
    with pytest.raises(ValueError, match="one size"):
        align_pose([source, source.rescale((100, 100))], source)
    with pytest.raises(TypeError, match="`target` must be a `Keypoints`, got list"):
        align_pose([[1, 2]], source)
    with pytest.raises(ValueError, match="No bone is seen both"):
        align_pose(with_missing(whole(poses)[0], 0, *range(2, 18)), whole(poses)[0])


# Keypoints.lerp ----------------------------------------------------------------------------------------------------


def test_lerp_goes_from_one_pose_to_the_other(poses):
    one, other = whole(poses)[:2]
    assert one.lerp(other, 0) == one
    assert one.lerp(other, 1) == other
    np.testing.assert_allclose(one.lerp(other, 0.25).xy, 0.75 * one.xy + 0.25 * other.xy)
    assert one.lerp(other.rescale((512, 352)), 1).xy == pytest.approx(other.xy)
    assert one.lerp(other, 0.5).confidence is None


def test_lerp_keeps_joints_of_the_nearer_pose(poses):
    one, other = whole(poses)[:2]
    partial = with_missing(other, RIGHT_WRIST)
    assert one.lerp(partial, 0.4).visible[RIGHT_WRIST]
    np.testing.assert_allclose(one.lerp(partial, 0.4).xy[RIGHT_WRIST], one.xy[RIGHT_WRIST])
    assert not one.lerp(partial, 0.6).visible[RIGHT_WRIST]
    assert one.lerp(partial, 0.5).visible[RIGHT_WRIST]


def test_lerp_interpolates_confidences(poses):
    one, other = whole(poses)[:2]
    sure = Keypoints(one.xy, one.visible, np.full(18, 0.5), one.size)
    np.testing.assert_allclose(sure.lerp(other, 0.5).confidence, 0.75)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_lerp_takes_weights_from_0_to_1(poses, weight):
    with pytest.raises(ValueError, match="`weight` must be a number from 0 to 1"):
        poses[0].lerp(poses[1], weight)
    with pytest.raises(TypeError, match="`other` must be a `Keypoints`"):
        poses[0].lerp([1], 0.5)


# Keypoints.from_skeleton ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 176), (512, 352), (512, 512), (128, 88)])
def test_a_drawn_skeleton_is_read_back(poses, size):
    for pose in poses:
        drawn = pose.draw(size)
        read = Keypoints.from_skeleton(drawn)
        assert np.array_equal(read.visible, pose.visible)
        assert read.size == size
        center = pose.rescale(size).xy + 0.5 * np.array(size[::-1]) / pose.size[::-1] - 0.5
        # Where joints overlap, e.g. the eyes over the nose, a part of a disc is hidden.
        assert np.abs(read.xy - center)[pose.visible].max() < 0.008 * size[0]


def test_the_pose_maps_skeleton_is_read_back(poses):
    from PIL import Image

    from diffusers_cfld import render_pose_map

    pose = whole(poses)[0]
    skeleton = render_pose_map(pose, (256, 176))[:3].transpose(1, 2, 0)
    read = Keypoints.from_skeleton(Image.fromarray((255 * skeleton).round().astype(np.uint8)))
    assert np.array_equal(read.visible, pose.visible)
    assert np.abs(read.xy - pose.xy).max() < 2.5


def test_a_jpeg_of_a_skeleton_is_read_back(poses, tmp_path):
    from PIL import Image

    whole(poses)[0].draw((512, 352)).save(tmp_path / "skeleton.jpg", quality=90)
    read = Keypoints.from_skeleton(Image.open(tmp_path / "skeleton.jpg"))
    assert np.abs(read.xy - whole(poses)[0].rescale((512, 352)).xy).max() < 5
    assert read.visible.all()


def test_edges_between_discs_are_no_joints():
    # In these three or more pixels of an edge have the colour of a joint that is missing.
    for entry in json.loads((FIGURES / "edge_poses.json").read_text()):
        pose = Keypoints.from_any(entry)
        read = Keypoints.from_skeleton(pose.draw((256, 176)))
        assert np.array_equal(read.visible, pose.visible)


def test_drawings_of_several_people_and_of_hands_are_refused(poses):
    from PIL import Image, ImageDraw

    drawn = whole(poses)[0].draw((256, 176))
    two = Image.new("RGB", (352, 256))
    two.paste(drawn, (0, 0))
    two.paste(drawn, (176, 0))
    with pytest.raises(ValueError, match="must show one person without hands and face points"):
        Keypoints.from_skeleton(two)
    hand = ImageDraw.Draw(drawn)
    for x in range(10, 60, 10):
        hand.ellipse((x, 10, x + 5, 15), fill=(0, 0, 255))
    with pytest.raises(ValueError, match="in the colour of 'left_knee'"):
        Keypoints.from_skeleton(drawn)


def test_it_is_drawn_over_the_upright_photo(poses):
    from PIL import Image

    photo = Image.new("RGB", (60, 40), "white")
    photo.getexif()[0x0112] = 6
    assert poses[0].draw(background=photo).size == (40, 60)
    assert poses[0].draw(background=Image.new("RGBA", (40, 60))).getpixel((0, 0)) == (204, 204, 204)


def test_a_picture_without_skeleton_is_named():
    from PIL import Image

    with pytest.raises(ValueError, match="shows no joint in OpenPose's colours"):
        Keypoints.from_skeleton(Image.new("RGB", (50, 50), (90, 90, 90)))
    with pytest.raises(TypeError, match="`picture` must be a PIL image, got str"):
        Keypoints.from_skeleton("skeleton.png")
