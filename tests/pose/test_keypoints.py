"""The value `Keypoints`, its geometry and its writers."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pose_data import ROW, STANDING_YX

from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.pose.skeleton import JOINT_NAMES
from diffusers_cfld.small_model import example_poses

RIGHT_WRIST = 4


@pytest.fixture
def standing():
    return Keypoints.from_array(STANDING_YX[:, ::-1])


@pytest.fixture(scope="module")
def whole_poses():
    return [pose for pose in example_poses() if pose.visible.all()]


def without(pose, *joints):
    visible = pose.visible.copy()
    visible[list(joints)] = False
    return Keypoints(pose.xy, visible, None, pose.size)


def poses(with_confidence=True):
    """Poses on images of up to 600 pixels, on a grid of 1/64 pixel so that sums and differences are exact."""
    confidence = hnp.arrays(np.float64, 18, elements=st.floats(2**-10, 1))

    @st.composite
    def build(draw):
        size = draw(st.tuples(st.integers(2, 600), st.integers(2, 600)))
        cells = draw(hnp.arrays(np.int64, (18, 2), elements=st.integers(0, 64 * 600)))
        xy = np.minimum(cells / 64, np.array(size[::-1]) - 1)
        visible = draw(hnp.arrays(np.bool_, 18).filter(np.any))
        xy[visible & (xy < 1).all(axis=1)] = 1  # several joints that round to (0, 0) would be missing ones
        return Keypoints(xy, visible, draw(confidence) if with_confidence and draw(st.booleans()) else None, size)

    return build()


def test_importing_loads_neither_torch_nor_image_libraries():
    code = (
        "import sys\n"
        "from diffusers_cfld.pose.keypoints import Keypoints\n"
        "Keypoints.from_array([[5, 5]] * 18)\n"
        "raise SystemExit(str([name for name in ('torch', 'cv2', 'PIL', 'diffusers') if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "[]"


# The value ----------------------------------------------------------------------------------------------------------


def test_is_immutable_and_copies_its_input():
    xy, visible, confidence = np.full((18, 2), 7.0), np.ones(18, dtype=bool), np.full(18, 0.5)
    pose = Keypoints(xy, visible, confidence)
    xy[:], visible[:], confidence[:] = 0, False, 0
    assert (pose.xy == 7).all()
    assert pose.visible.all()
    assert (pose.confidence == 0.5).all()
    with pytest.raises(AttributeError):
        pose.size = (1, 1)
    for array in (pose.xy, pose.visible, pose.confidence):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_equality_hash_repr_and_copies(standing):
    same = Keypoints.from_csv_row(ROW)
    assert same == standing
    assert hash(same) == hash(standing)
    assert standing != standing.mirror()
    assert standing != standing.rescale((128, 88))
    assert standing != "standing"
    assert pickle.loads(pickle.dumps(standing)) == standing
    assert not pickle.loads(pickle.dumps(standing)).xy.flags.writeable
    assert repr(standing).startswith("Keypoints(17 of 18 joints in 256x176 (height x width); (x, y): nose (88, 26), ")
    assert "left_ear" not in repr(standing)


def test_unknown_confidence_equals_full_confidence(standing):
    certain = Keypoints.from_array(standing.to_array())
    assert certain.confidence is not None
    assert certain == standing
    assert hash(certain) == hash(standing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xy": np.zeros((17, 2))}, r"`xy` must have shape \(18, 2\).* got shapes \(17, 2\)"),
        ({"visible": np.zeros(18, dtype=bool)}, "at least one visible joint"),
        ({"xy": np.full((18, 2), np.nan)}, "Joint 'nose' must have finite coordinates, got NaN"),
        ({"confidence": np.full(18, np.nan)}, r"must be in \(0, 1\]"),
        ({"confidence": np.full(18, 1.5)}, r"must be in \(0, 1\]"),
        ({"size": (0, 176)}, r"`size` must be \(height, width\)"),
        ({"size": (256.5, 176)}, r"`size` must be \(height, width\)"),
        ({"size": 256}, r"`size` must be \(height, width\)"),
    ],
)
def test_constructor_refuses(change, message):
    arguments = {"xy": np.ones((18, 2)), "visible": np.ones(18, dtype=bool), **change}
    with pytest.raises(ValueError, match=message):
        Keypoints(**arguments)


# Geometry -----------------------------------------------------------------------------------------------------------


def test_mirror_swaps_sides(standing):
    mirrored = standing.mirror()
    assert mirrored.xy[JOINT_NAMES.index("left_wrist")].tolist() == [175 - 52, 118]
    assert not mirrored.visible[JOINT_NAMES.index("right_ear")]
    assert mirrored.visible[JOINT_NAMES.index("left_ear")]


def test_rescale(standing):
    larger = standing.rescale((512, 176))
    assert larger.size == (512, 176)
    assert larger.xy[0].tolist() == [88, 52]


def test_lerp_goes_from_one_pose_to_the_other(whole_poses):
    one, other = whole_poses[:2]
    assert one.lerp(other, 0) == one
    assert one.lerp(other, 1) == other
    np.testing.assert_allclose(one.lerp(other, 0.25).xy, 0.75 * one.xy + 0.25 * other.xy)
    assert one.lerp(other.rescale((512, 352)), 1).xy == pytest.approx(other.xy)
    assert one.lerp(other, 0.5).confidence is None
    with pytest.raises(ValueError, match=r"`weight` must be in \[0, 1\]"):
        one.lerp(other, 1.1)


def test_lerp_keeps_joints_of_the_nearer_pose(whole_poses):
    one, other = whole_poses[:2]
    partial = without(other, RIGHT_WRIST)
    assert one.lerp(partial, 0.4).visible[RIGHT_WRIST]
    np.testing.assert_allclose(one.lerp(partial, 0.4).xy[RIGHT_WRIST], one.xy[RIGHT_WRIST])
    assert not one.lerp(partial, 0.6).visible[RIGHT_WRIST]
    assert one.lerp(partial, 0.5).visible[RIGHT_WRIST]


def test_lerp_interpolates_confidences(whole_poses):
    one, other = whole_poses[:2]
    sure = Keypoints(one.xy, one.visible, np.full(18, 0.5), one.size)
    np.testing.assert_allclose(sure.lerp(other, 0.5).confidence, 0.75)


def test_a_visible_joint_is_never_written_as_missing():
    pose = Keypoints(np.full((18, 2), -1.2), np.ones(18, dtype=bool))
    assert pose.to_deepfashion() == ([0] * 18, [0] * 18)


# Properties ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(poses())
def test_mirroring_twice_changes_nothing(pose):
    assert pose.mirror().mirror() == pose


@settings(max_examples=60, deadline=None)
@given(poses(), st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_rescaling_there_and_back(pose, size):
    back = pose.rescale(size).rescale(pose.size)
    np.testing.assert_allclose(back.xy, pose.xy, rtol=1e-12)
    assert back.size == pose.size
    assert (back.visible == pose.visible).all()


def is_in_the_corner(pose):
    """Such poses are taken for fractions."""
    return np.abs(pose.xy[pose.visible]).max() <= 2


@settings(max_examples=60, deadline=None)
@given(poses(with_confidence=False))
def test_deepfashion_round_trip(pose):
    whole = Keypoints(np.rint(pose.xy), pose.visible, None, pose.size)
    assume(not is_in_the_corner(whole))
    assert Keypoints.from_deepfashion(*whole.to_deepfashion(), pose.size) == whole
    y, x = whole.to_deepfashion()
    assert Keypoints.from_csv_row(f"name:{json.dumps(y)}:{json.dumps(x)}", pose.size) == whole


@settings(max_examples=60, deadline=None)
@given(poses())
def test_openpose_round_trip(pose):
    assume(not is_in_the_corner(pose))
    data = pose.to_openpose()
    assert Keypoints.from_openpose(data) == pose
    assert Keypoints.from_any(json.dumps(data)) == pose


def test_a_notebook_shows_the_drawing():
    pose = Keypoints.from_array(np.arange(36.0).reshape(18, 2) * 20, size=(1024, 704))
    with Image.open(io.BytesIO(pose._repr_png_())) as shown:
        assert shown.size == (220, 320)
        assert np.asarray(shown).any()
