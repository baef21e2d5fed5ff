"""Every format that `Keypoints` reads, and what cannot be read."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pose_data import ROW, STANDING_YX, openpose_numbers

from diffusers_cfld.pose.format_readers import _READERS
from diffusers_cfld.pose.formats import NobodyError
from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.pose.reading import has_size

COCO_ORDER = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
CANVAS = {"canvas_height": 256, "canvas_width": 176}


@pytest.fixture
def standing():
    return Keypoints.from_array(STANDING_YX[:, ::-1])


def openpose(people=1, **canvas):
    return {"version": 1.3, "people": [{"pose_keypoints_2d": openpose_numbers()}] * people, **canvas}


# Arrays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist,
        np.float32,
        torch.from_numpy,
        lambda xy: torch.tensor(xy).to(torch.bfloat16),
        lambda xy: torch.tensor(xy, dtype=torch.float32, requires_grad=True),
        lambda xy: [torch.tensor(row, dtype=torch.float32, requires_grad=True) for row in xy],
    ],
)
def test_arrays_lists_and_tensors(standing, convert):
    assert Keypoints.from_array(convert(STANDING_YX[:, ::-1].copy())) == standing


def test_missing_joints_of_arrays():
    array = np.full((18, 3), 50.0)
    array[2, 0] = array[3, 1] = -1
    array[4, 2], array[5:, 2] = 0.3, [*np.linspace(0.31, 0.9, 12), 1.7]
    pose = Keypoints.from_array(array, min_confidence=0.3)
    assert np.flatnonzero(~pose.visible).tolist() == [2, 3, 4]
    assert (pose.xy[2:5] == -1).all()
    assert (pose.confidence[2:5] == 0).all()
    assert pose.confidence[0] == pose.confidence[17] == 1


def test_arrays_on_a_larger_image():
    assert Keypoints.from_array(np.full((18, 2), 400), size=(800, 600)).size == (800, 600)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((17, 2), 9), "must have 18, 25, 134 joints, got 17: `Keypoints.from_any` reads other orders"),
        (np.zeros((18, 4)), r"rows \(x, y\[, confidence\]\) of 18, .* got numbers of shape \(18, 4\)"),
        ([[1, 2], [3]], "rows of equal length"),
        (np.full((18, 2), -1), "All 18 joints are missing"),
        (
            np.full((18, 2), 0.25),
            r"seem to be fractions of its size: pass `normalized=True` and `size=\(height, width\)`",
        ),
        (np.full((18, 2), 400), r"'nose' at x=400, y=400 .* 256x176 .*pass `size=\(height, width\)`"),
        (np.full((18, 2), -90), "far outside the image"),
    ],
)
def test_arrays_that_are_no_pose(array, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_array(array)


@pytest.mark.parametrize("array", [[["1", "2"]] * 18, np.zeros((18, 2), dtype=complex), [["a", None]] * 18])
def test_arrays_must_be_numbers(array):
    with pytest.raises(TypeError, match="A pose must be real numbers"):
        Keypoints.from_array(array)


def test_what_missing_joints_look_like(standing):
    rows = np.array([[88.0, 30.0, 0.9]] * 18) + np.arange(18)[:, None] * [1, 3, 0]
    missing = {3: [None, None, None], 4: [-1, -1, 0.9], 5: [np.nan, 40, 0.9], 6: [70, 80, 0], 7: [70, 80, -1e-3]}
    for joint, row in {**missing, 8: [0, 0, 0.9], 9: [0, 0, 0.9]}.items():
        rows = rows.tolist() if isinstance(rows, np.ndarray) else rows
        rows[joint] = row
    pose = Keypoints.from_array(rows)
    assert np.flatnonzero(~pose.visible).tolist() == [3, 4, 5, 6, 7, 8, 9]
    rows[9] = [90, 90, 0.9]  # one joint at (0, 0) may be one in the corner
    assert np.flatnonzero(~Keypoints.from_array(rows).visible).tolist() == [3, 4, 5, 6, 7]
    # In COCO's order it never is.
    coco = STANDING_YX[COCO_ORDER, ::-1].astype(float)
    coco[COCO_ORDER.index(5)] = 0  # the left shoulder, and with it the neck
    assert np.flatnonzero(~Keypoints.from_coco(coco, (256, 176)).visible).tolist() == sorted(
        {*np.flatnonzero(~standing.visible), 1, 5}
    )


def test_coco():
    xy = STANDING_YX[COCO_ORDER, ::-1].astype(float)
    confidence = np.linspace(0.5, 0.9, 17)
    pose = Keypoints.from_coco(np.column_stack([xy, confidence]), size=(256, 176))
    others = [joint for joint in range(17) if joint != 1]
    assert (pose.xy[others] == STANDING_YX[others, ::-1]).all()
    assert not pose.visible[17]
    assert pose.xy[1].tolist() == [(110 + 66) / 2, 52]
    assert pose.confidence[1] == min(confidence[5], confidence[6])
    assert pose.confidence[9] == confidence[14]
    xy[6] = -1
    assert np.flatnonzero(~Keypoints.from_coco(xy, (256, 176)).visible).tolist() == [1, 2, 17]
    with pytest.raises(ValueError, match="must have 17, 26, 133, 136 joints, got 18"):
        Keypoints.from_coco(np.full((18, 2), 9), (256, 176))


# DeepFashion --------------------------------------------------------------------------------------------------------


def test_deepfashion_columns_and_rows(standing):
    y, x = STANDING_YX[:, 0], STANDING_YX[:, 1]
    assert Keypoints.from_deepfashion(y, x) == standing
    assert Keypoints.from_deepfashion(str(y.tolist()), x.tolist()) == standing
    assert Keypoints.from_csv_row(ROW + "\n") == standing
    assert Keypoints.from_csv_row("a:b" + ROW) == standing
    assert standing.to_deepfashion() == (y.tolist(), x.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Keypoints.from_deepfashion("[1, 2", [1] * 18), "must be valid JSON, got '\\[1, 2'"),
        (lambda: Keypoints.from_deepfashion([1] * 18, [1] * 17), r"must have 18 or 25 numbers each"),
        (lambda: Keypoints.from_csv_row("a,b,c"), "must have the form `name"),
    ],
)
def test_columns_and_rows_that_are_no_pose(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# OpenPose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        openpose(**CANVAS),
        json.dumps(openpose(**CANVAS)),
        [openpose(**CANVAS)],
        {"pose_keypoints_2d": openpose_numbers(), **CANVAS},
        [{"pose_keypoints_2d": openpose_numbers()}],
        openpose_numbers(),
        np.array(openpose_numbers()),
    ],
)
def test_openpose_forms(standing, data):
    pose = Keypoints.from_openpose(data, size=(256, 176))
    assert (pose.xy == standing.xy).all()
    assert (pose.visible == standing.visible).all()
    assert set(pose.confidence[pose.visible]) == {0.75}


def test_openpose_size():
    canvas = {"canvas_height": 512.0, "canvas_width": 352}
    assert Keypoints.from_openpose(openpose(**canvas)).size == (512, 352)
    assert Keypoints.from_openpose(openpose(**canvas), size=(256, 176)).size == (256, 176)


def test_body_25_drops_the_middle_of_the_hips_and_the_feet(standing):
    xy = np.insert(STANDING_YX[:, ::-1], 8, [88, 118], axis=0)
    xy = np.concatenate([xy, np.full((6, 2), 240)])
    pose = Keypoints.from_openpose(openpose_numbers(xy), size=(256, 176))
    assert (pose.xy == standing.xy).all()


def test_openpose_json_from_0_to_1_is_read_as_fractions(standing):
    rows = np.array(openpose_numbers()).reshape(18, 3) / [176, 256, 1]
    pose = Keypoints.from_openpose({"people": [{"pose_keypoints_2d": rows.ravel().tolist()}], **CANVAS})
    np.testing.assert_allclose(pose.xy, standing.xy, atol=1e-12)


def test_only_openpose_json_from_0_to_1_is_read_as_fractions():
    rows = np.column_stack([np.linspace(-0.2, 0.9, 18), np.linspace(0.1, 1, 18), np.ones(18)])
    for data in (rows.ravel(), {"pose_keypoints_2d": rows.ravel().tolist()}, abs(rows).ravel()):
        with pytest.raises(ValueError, match="seem to be fractions of its size"):
            Keypoints.from_openpose(data, size=(256, 176))


@pytest.mark.parametrize("data", [openpose(people=0, **CANVAS), []])
def test_openpose_without_anybody(data):
    with pytest.raises(NobodyError, match="has 0 people"):
        Keypoints.from_openpose(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (openpose(), r"how large its image was: pass `size=\(height, width\)`"),
        ("{nonsense", "must be valid JSON"),
        ({"people": {}}, r"got a dict with the keys \[\]"),
        ({"faces": []}, r"got a dict with the keys \['faces'\]"),
        ({"people": [{"pose_keypoints_2d": [9.0] * 51}], **CANVAS}, "must have 18, 25, 134 joints, got 17"),
        ({"people": [{"pose_keypoints_2d": [0] * 54}], **CANVAS}, "All 18 joints are missing"),
        ({**openpose(), "canvas_height": 0, "canvas_width": 3}, r"`size` must be \(height, width\)"),
    ],
)
def test_openpose_data_that_is_no_pose(data, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_openpose(data)


# Any form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        STANDING_YX[:, ::-1],
        STANDING_YX[:, ::-1].tolist(),
        STANDING_YX[None, :, ::-1],
        torch.tensor(STANDING_YX[:, ::-1].copy()),
        json.dumps(STANDING_YX[:, ::-1].tolist()),
        STANDING_YX.T,
        (STANDING_YX[:, 0], STANDING_YX[:, 1]),
        (str(STANDING_YX[:, 0].tolist()), str(STANDING_YX[:, 1].tolist())),
        ROW,
        {"keypoints_y": STANDING_YX[:, 0], "keypoints_x": STANDING_YX[:, 1], "size": (256, 176)},
    ],
)
def test_any_form(standing, value):
    assert Keypoints.from_any(value) == standing
    assert Keypoints.from_any(value, size=(260, 200)) == Keypoints(standing.xy, standing.visible, None, (260, 200))


def test_keypoints_stay_as_they_are(standing):
    assert Keypoints.from_any(standing, size=(1, 1)) is standing


@pytest.mark.parametrize("value", [None, 3, b"[]", {1, 2}, Image.new("RGB", (4, 4)), [object()]])
def test_other_types_are_named(value):
    with pytest.raises(TypeError, match=r"A pose must be `Keypoints`, rows .*; got|must be real numbers"):
        Keypoints.from_any(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pose.json", "a file is read with `Keypoints.load`"),
        ("[1, 2", "must be valid JSON"),
        (np.full((3, 18, 2), 9), "has 3 people: choose one with `person=0`"),
        (np.zeros((1, 1, 17, 3)), r"got numbers of shape \(1, 1, 17, 3\)"),
        (np.zeros((16, 3)), r"got numbers of shape \(16, 3\)"),
        (openpose(), "does not say how large its image was"),
        (np.full((18, 2), 500), r"pass `size=\(height, width\)`"),
    ],
)
def test_values_that_are_no_pose(value, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_any(value)


def test_some_data_says_how_large_its_image_was():
    assert has_size(openpose(**CANVAS))
    assert has_size(json.dumps([openpose(**CANVAS)]))
    assert has_size({"keypoints_y": STANDING_YX[:, 0], "keypoints_x": STANDING_YX[:, 1], "size": [256, 176]})
    for data in (openpose(), json.dumps(openpose()), ROW, [[1, 2]] * 18):
        assert not has_size(data)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
    | st.sampled_from(["[1]", "{}", "a:b:[1]", '{"people": [{}]}', "[[[", "1e999", "[1e999]", 10**400]),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.lists(inner, min_size=18, max_size=18)
    | st.dictionaries(
        st.sampled_from(
            [key for keys, *_ in _READERS for key in keys]
            + ["canvas_height", "canvas_width", "height", "width", "keypoints_x", "size", "images", "id", "image_id"]
            + ["instance_info", "predictions", "keypoint_scores", "labels", "x", "y", "score", "joints", "subset"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(JUNK)
def test_junk_raises_only_value_and_type_errors(value):
    with contextlib.suppress(ValueError, TypeError):
        Keypoints.from_any(value)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float16, np.int8, np.uint64, np.complex128, np.bool_, "U3", "O", "M8[s]"]),
        st.sampled_from([(18, 2), (18, 3), (17, 3), (2, 18), (54,), (75,), (), (0,), (1, 18, 2), (25, 3)]),
    )
)
def test_junk_arrays_raise_only_value_and_type_errors(value):
    before = value.copy()
    with contextlib.suppress(ValueError, TypeError):
        Keypoints.from_any(value)
    assert before.tobytes() == value.tobytes()


# Files --------------------------------------------------------------------------------------------------------------


def test_load(tmp_path, standing):
    np.save(tmp_path / "pose.npy", STANDING_YX[:, ::-1])
    (tmp_path / "pose.csv").write_text(f"\ufeffname:keypoints_y:keypoints_x\n{ROW}\n", encoding="utf-8")
    (tmp_path / "pose.txt").write_text(ROW)
    y, x = standing.to_deepfashion()
    (tmp_path / "ours.json").write_text(json.dumps({"keypoints_y": y, "keypoints_x": x}))
    (tmp_path / "rows.JSON").write_text(json.dumps(STANDING_YX[:, ::-1].tolist()))
    (tmp_path / "openpose.json").write_text(json.dumps(standing.to_openpose()))
    for file in tmp_path.iterdir():
        assert Keypoints.load(file) == Keypoints.load(str(file)) == standing
    (tmp_path / "two.json").write_text(json.dumps(openpose(people=2)))
    assert Keypoints.load(tmp_path / "two.json", size=(300, 300), person=1).size == (300, 300)


def test_load_chooses_a_row(tmp_path, standing):
    file = tmp_path / "annotation.csv"
    other = "other" + ROW.replace("88", "90")
    file.write_text(f"name:keypoints_y:keypoints_x\n{other}\n{ROW}\n")
    assert Keypoints.load(file, row="fashionWOMEN_1front.jpg") == standing
    with pytest.raises(ValueError, match=r"annotation.csv.*2 images \('.*'\): choose one by its name, with `row=`"):
        Keypoints.load(file)
    with pytest.raises(ValueError, match=r"csv.*`row` must be the name of one of 2 images .*, got 'nobody'"):
        Keypoints.load(file, row="nobody")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("pose.png", b"", {}, r"pose.png.*must end in .json, .csv, .txt, .npy or .npz"),
        ("pose.json", b"{", {}, "Cannot read keypoints from .*pose.json.*valid JSON"),
        ("pose.json", json.dumps([[9, 9]] * 17 + [[float("inf"), 9]]).encode(), {}, "pose.json.*far outside"),
        ("pose.json", b"3", {}, r"Cannot read keypoints from .*pose.json.*A pose must be"),
        ("pose.npy", b"", {}, "Cannot read keypoints from .*pose.npy"),
        ("pose.csv", b"one,two\n", {}, "pose.csv.*must have the form `name.*got 'one,two'"),
        ("pose.json", b"{}", {"row": "a"}, "`row` must be the name of one of 1 images"),
        ("pose.csv", b"", {}, "has 0 people"),
    ],
)
def test_load_refuses(tmp_path, name, content, arguments, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Keypoints.load(tmp_path / name, **arguments)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        Keypoints.load(tmp_path / "nowhere.json")


def test_load_never_unpickles(tmp_path):
    np.save(tmp_path / "pose.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Keypoints.load(tmp_path / "pose.npy")
