"""Skeletons drawn for people to look at, and read back from drawings."""

import json

import numpy as np
import pytest
from PIL import Image
from pose_data import STANDING_YX
from testing_utils import FIGURES

from diffusers_cfld import Keypoints, render_pose_map
from diffusers_cfld.pose.skeleton import JOINT_COLORS, JOINT_NAMES, LIMBS
from diffusers_cfld.small_model import example_poses


@pytest.fixture(scope="module")
def poses():
    return example_poses()


@pytest.fixture(scope="module")
def whole_pose(poses):
    return next(pose for pose in poses if pose.visible.all())


def test_tables_agree_with_each_other():
    assert len(JOINT_NAMES) == len(JOINT_COLORS) == len(set(JOINT_NAMES)) == len(set(JOINT_COLORS)) == 18
    assert len(LIMBS) == 17
    assert {joint for limb in LIMBS for joint in limb} == set(range(18))


# Drawing ------------------------------------------------------------------------------------------------------------


def test_draw():
    pose = Keypoints.from_array(STANDING_YX[:, ::-1])
    image = Image.new("RGB", (60, 90), (200, 100, 50))
    assert pose.draw().size == (176, 256)
    assert pose.draw((512, 352)).size == (352, 512)
    assert pose.draw(background=image).size == (60, 90)
    assert pose.draw((100, 50), image.convert("L")).size == (50, 100)
    assert image.getpixel((30, 10)) == (200, 100, 50)
    large = pose.draw((512, 352))
    assert large.mode == "RGB"
    # The eye's own colour at its centre, the limb's 60 % halfway down the thigh, and black elsewhere.
    assert large.getpixel((94 * 2 + 1, 21 * 2)) == JOINT_COLORS[15]
    assert large.getpixel((73 * 2, 144 * 2)) == (0, 153, 51)
    assert large.getpixel((5, 5)) == (0, 0, 0)
    assert np.count_nonzero(pose.draw(thickness=2)) > 1.5 * np.count_nonzero(pose.draw())
    with pytest.raises(ValueError, match="`thickness` must be above 0"):
        pose.draw(thickness=0)


def test_it_is_drawn_over_the_upright_image(poses):
    image = Image.new("RGB", (60, 40), "white")
    image.getexif()[0x0112] = 6
    assert poses[0].draw(background=image).size == (40, 60)
    assert poses[0].draw(background=Image.new("RGBA", (40, 60))).getpixel((0, 0)) == (204, 204, 204)


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 176), (512, 352), (512, 512)])
def test_a_drawn_skeleton_is_read_back(poses, size):
    for pose in poses:
        drawn = pose.draw(size)
        read = Keypoints.from_skeleton(drawn)
        assert np.array_equal(read.visible, pose.visible)
        assert read.size == size
        center = pose.rescale(size).xy + 0.5 * np.array(size[::-1]) / pose.size[::-1] - 0.5
        # Where joints overlap, e.g. the eyes over the nose, a part of a disc is hidden.
        assert np.abs(read.xy - center)[pose.visible].max() < 0.008 * size[0]


def test_the_pose_maps_skeleton_is_read_back(whole_pose):
    pose = whole_pose
    skeleton = render_pose_map(pose, (256, 176))[:3].transpose(1, 2, 0)
    read = Keypoints.from_skeleton(Image.fromarray((255 * skeleton).round().astype(np.uint8)))
    assert np.array_equal(read.visible, pose.visible)
    assert np.abs(read.xy - pose.xy).max() < 2.5


def test_a_jpeg_of_a_skeleton_is_read_back(whole_pose, tmp_path):
    whole_pose.draw((512, 352)).save(tmp_path / "skeleton.jpg", quality=90)
    read = Keypoints.from_skeleton(Image.open(tmp_path / "skeleton.jpg"))
    assert np.abs(read.xy - whole_pose.rescale((512, 352)).xy).max() < 5
    assert read.visible.all()


def test_edges_between_discs_are_no_joints():
    # In these three or more pixels of an edge have the colour of a joint that is missing.
    for entry in json.loads((FIGURES / "edge_poses.json").read_text()):
        pose = Keypoints.from_any(entry)
        read = Keypoints.from_skeleton(pose.draw((256, 176)))
        assert np.array_equal(read.visible, pose.visible)
