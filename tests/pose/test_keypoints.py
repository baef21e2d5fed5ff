"""Keypoints: every accepted form, every complaint, and the geometry."""

import contextlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffusers_cfld.pose.keypoints import JOINT_COLORS, JOINT_NAMES, LIMBS, Keypoints

STANDING_YX = np.array(
    [
        [26, 88], [50, 88], [52, 66], [88, 58], [118, 52], [52, 110], [90, 118], [120, 124], [118, 74],
        [170, 72], [222, 70], [118, 102], [170, 104], [224, 106], [21, 82], [21, 94], [25, 74], [-1, -1],
    ]
)  # fmt: skip
ROW = f"fashionWOMEN_1front.jpg:{STANDING_YX[:, 0].tolist()}:{STANDING_YX[:, 1].tolist()}"
COCO_ORDER = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]


@pytest.fixture
def standing():
    return Keypoints.from_array(STANDING_YX[:, ::-1])


def triples(xy=STANDING_YX[:, ::-1], confidence=0.75):
    """OpenPose's flat list; missing joints are zeros."""
    rows = np.column_stack([xy, np.full(len(xy), confidence)]).astype(float)
    rows[(xy == -1).any(axis=1)] = 0
    return rows.ravel().tolist()


def openpose(people=1, **canvas):
    return {"version": 1.3, "people": [{"pose_keypoints_2d": triples()}] * people, **canvas}


CANVAS = {"canvas_height": 256, "canvas_width": 176}


def poses(with_confidence=True):
    """Poses in frames of up to 600 pixels, on a grid of 1/64 pixel so that sums and differences are exact."""
    confidence = hnp.arrays(np.float64, 18, elements=st.floats(2**-10, 1))

    @st.composite
    def build(draw):
        size = draw(st.tuples(st.integers(2, 600), st.integers(2, 600)))
        cells = draw(hnp.arrays(np.int64, (18, 2), elements=st.integers(0, 64 * 600)))
        xy = np.minimum(cells / 64, np.array(size[::-1]) - 1)
        visible = draw(hnp.arrays(np.bool_, 18).filter(np.any))
        return Keypoints(xy, visible, draw(confidence) if with_confidence and draw(st.booleans()) else None, size)

    return build()


# Tables -------------------------------------------------------------------------------------------------------------


def test_tables_agree_with_each_other():
    assert len(JOINT_NAMES) == len(JOINT_COLORS) == len(set(JOINT_NAMES)) == len(set(JOINT_COLORS)) == 18
    assert len(LIMBS) == 17
    assert {joint for limb in LIMBS for joint in limb} == set(range(18))


def test_importing_loads_neither_torch_nor_image_libraries():
    code = (
        "import sys, types\n"
        "package = sys.modules['diffusers_cfld'] = types.ModuleType('diffusers_cfld')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "from diffusers_cfld.pose.keypoints import Keypoints\n"
        "Keypoints.from_array([[5, 5]] * 18)\n"
        "raise SystemExit(str([name for name in ('torch', 'cv2', 'PIL', 'diffusers') if name in sys.modules]))"
    )
    folder = Path(sys.modules["diffusers_cfld.pose.keypoints"].__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
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
        ({"xy": np.zeros((17, 2))}, r"`xy` must have shape \(18, 2\), got \(17, 2\)"),
        ({"visible": np.ones(17, dtype=bool)}, r"`visible` must have shape \(18,\)"),
        ({"visible": np.zeros(18, dtype=bool)}, "at least one visible joint"),
        ({"xy": np.full((18, 2), np.nan)}, "Joint 'nose' is NaN"),
        ({"confidence": np.ones(3)}, r"`confidence` must have shape \(18,\)"),
        ({"confidence": np.zeros(18)}, r"must lie in \(0, 1\]"),
        ({"confidence": np.full(18, np.nan)}, r"must lie in \(0, 1\]"),
        ({"confidence": np.full(18, 1.5)}, r"must lie in \(0, 1\]"),
        ({"size": (0, 176)}, "each from 1 to 1048576 pixels"),
        ({"size": (256, 10**400)}, "each from 1 to 1048576 pixels"),
    ],
)
def test_constructor_refuses(change, message):
    arguments = {"xy": np.ones((18, 2)), "visible": np.ones(18, dtype=bool), **change}
    with pytest.raises(ValueError, match=message):
        Keypoints(**arguments)


@pytest.mark.parametrize("size", [256, "256", (256.5, 176), (256,), None, ("256", "176"), (float("nan"), 1)])
def test_size_must_be_a_pair_of_whole_numbers(size):
    with pytest.raises(TypeError, match=r"pair of whole numbers \(height, width\)"):
        Keypoints(np.ones((18, 2)), np.ones(18, dtype=bool), None, size)


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
def test_array_kinds(standing, convert):
    assert Keypoints.from_array(convert(STANDING_YX[:, ::-1].copy())) == standing


def test_array_missing_joints():
    array = np.full((18, 3), 50.0)
    array[2, 0] = array[3, 1] = -1
    array[4, 2], array[5:, 2] = 0.3, [*np.linspace(0.31, 0.9, 12), 1.7]
    pose = Keypoints.from_array(array, min_confidence=0.3)
    assert np.flatnonzero(~pose.visible).tolist() == [2, 3, 4]
    assert (pose.xy[2:5] == -1).all()
    assert (pose.confidence[2:5] == 0).all()
    assert pose.confidence[0] == pose.confidence[17] == 1


@pytest.mark.parametrize(
    ("array", "arguments", "message"),
    [
        (np.zeros((17, 2)), {}, "use `Keypoints.from_coco`"),
        (np.zeros((25, 3)), {}, "pass its 75 numbers to `Keypoints.from_openpose`"),
        (np.zeros((18, 4)), {}, r"must have shape \(18, 2\) or \(18, 3\).* got \(18, 4\)"),
        (np.zeros(18), {}, r"got \(18,\)"),
        ([[1, 2], [3]], {}, "rows of equal length"),
        ([[1, 2]] * 5 + [[1, np.inf]] + [[1, 2]] * 12, {}, "'left_shoulder' is NaN or infinite"),
        ([[1, 2]] * 3 + [[np.nan, 1]] + [[1, 2]] * 14, {}, "'right_elbow' is NaN or infinite"),
        ([[9, 9, 1]] * 3 + [[9, 9, -0.5]] + [[9, 9, 1]] * 14, {}, "confidences >= 0, joint 'right_elbow' has -0.5"),
        (np.full((18, 2), -1), {}, "All 18 joints are missing"),
        (np.full((18, 3), 0.2) + 5 * np.eye(3)[0], {"min_confidence": 0.5}, "not above `min_confidence=0.5`"),
        (np.full((18, 2), 9), {"min_confidence": -1}, "`min_confidence` must be a number >= 0"),
        (np.full((18, 2), 9), {"min_confidence": float("nan")}, "`min_confidence` must be a number >= 0"),
        (np.full((18, 2), 0.25), {}, "look like fractions of the frame"),
        (np.full((18, 2), 0.25) + 0.8 * np.eye(18)[:, 10:12], {}, "look like fractions of the frame"),
        (np.full((18, 2), 400), {}, r"'nose' at x=400, y=400 .* 256x176 .*pass `size=\(height, width\)`"),
        (np.full((18, 2), -90), {}, "far outside the frame"),
    ],
)
def test_array_refuses(array, arguments, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_array(array, **arguments)


@pytest.mark.parametrize(
    "array", [[["1", "2"]] * 18, np.zeros((18, 2), dtype=complex), None, [[None, 1]] * 18, {1, 2}]
)
def test_array_must_be_numbers(array):
    with pytest.raises(TypeError, match="`array` must be real numbers"):
        Keypoints.from_array(array)


def test_openpose_fractions_may_leave_the_frame():
    rows = np.column_stack([np.linspace(0.2, 1.1, 18), np.linspace(-0.05, 0.9, 18), np.ones(18)])
    data = {"people": [{"pose_keypoints_2d": rows.ravel().tolist()}], "canvas_height": 200, "canvas_width": 100}
    np.testing.assert_allclose(Keypoints.from_openpose(data).xy, rows[:, :2] * (100, 200))
    centred = np.column_stack([2 * rows[:, :2] - 1, np.ones(18)])
    data["people"] = [{"pose_keypoints_2d": centred.ravel().tolist()}]
    with pytest.raises(ValueError, match="went from -1 to 1"):
        Keypoints.from_openpose(data)


def test_a_frame_makes_room():
    assert Keypoints.from_array(np.full((18, 2), 400), size=(800, 600)).size == (800, 600)


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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((18, 2)), r"must have shape \(17, 2\) or \(17, 3\)"),
        ([[1, 2]] * 16 + [[1, np.nan]], "'right_ankle' is NaN"),
        (np.full((17, 2), -1), "All 17 joints are missing"),
        (np.full((17, 2), 0.5), "fractions of the frame"),
        (np.full((17, 2), 4000), r"pass `size=\(height, width\)`"),
    ],
)
def test_coco_refuses(array, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_coco(array, (256, 176))


# The field's files --------------------------------------------------------------------------------------------------


def test_field_columns(standing):
    y, x = STANDING_YX[:, 0], STANDING_YX[:, 1]
    assert Keypoints.from_deepfashion(y, x) == standing
    assert Keypoints.from_deepfashion(str(y.tolist()), x.tolist()) == standing
    assert Keypoints.from_csv_row(ROW + "\n") == standing
    assert Keypoints.from_csv_row("a:b" + ROW) == standing
    assert standing.to_deepfashion() == (y.tolist(), x.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Keypoints.from_deepfashion("[1, 2", [1] * 18), "`y` must be valid JSON, got '\\[1, 2'"),
        (lambda: Keypoints.from_deepfashion([1] * 18, [1] * 17), r"`x` must have 18 numbers, .* got shape \(17,\)"),
        (lambda: Keypoints.from_deepfashion("[" * 100_000, [1] * 18), "`y` must be valid JSON"),
        (lambda: Keypoints.from_csv_row("a,b,c"), "must read `name"),
        (lambda: Keypoints.from_csv_row("name:keypoints_y:keypoints_x"), "`y` must be valid JSON"),
    ],
)
def test_field_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_csv_row_must_be_a_string():
    with pytest.raises(TypeError, match="`row` must be a string"):
        Keypoints.from_csv_row(3)


def test_a_visible_joint_is_never_written_as_missing():
    pose = Keypoints(np.full((18, 2), -1.2), np.ones(18, dtype=bool))
    assert pose.to_deepfashion() == ([0] * 18, [0] * 18)


# OpenPose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        openpose(**CANVAS),
        json.dumps(openpose(**CANVAS)),
        [openpose(**CANVAS)],
        {"pose_keypoints_2d": triples(), **CANVAS},
        [{"pose_keypoints_2d": triples()}],
        triples(),
        np.array(triples()),
    ],
)
def test_openpose_forms(standing, data):
    pose = Keypoints.from_openpose(data, size=(256, 176))
    assert (pose.xy == standing.xy).all()
    assert (pose.visible == standing.visible).all()
    assert set(pose.confidence[pose.visible]) == {0.75}


def test_openpose_frame():
    canvas = {"canvas_height": 512.0, "canvas_width": 352}
    assert Keypoints.from_openpose(openpose(**canvas)).size == (512, 352)
    assert Keypoints.from_openpose(openpose(**canvas), size=(256, 176)).size == (256, 176)


def test_openpose_body_25_drops_hip_centre_and_feet(standing):
    xy = np.insert(STANDING_YX[:, ::-1], 8, [88, 118], axis=0)
    xy = np.concatenate([xy, np.full((6, 2), 240)])
    pose = Keypoints.from_openpose(triples(xy), size=(256, 176))
    assert (pose.xy == standing.xy).all()


def test_openpose_fractions_of_the_frame(standing):
    rows = np.array(triples()).reshape(18, 3) / [176, 256, 1]
    pose = Keypoints.from_openpose({"people": [{"pose_keypoints_2d": rows.ravel().tolist()}], **CANVAS})
    np.testing.assert_allclose(pose.xy, standing.xy, atol=1e-12)


def test_openpose_several_people():
    data = openpose(**CANVAS)
    data["people"] = [*data["people"], {"pose_keypoints_2d": triples(np.full((18, 2), 40))}]
    with pytest.raises(ValueError, match="has 2 people: choose one with `person=0` to `1`"):
        Keypoints.from_openpose(data)
    assert (Keypoints.from_openpose(data, person=1).xy == 40).all()
    for person in (2, -1, True, "0"):
        with pytest.raises(ValueError, match="whole number from 0 to 1"):
            Keypoints.from_openpose(data, person=person)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (openpose(people=0, **CANVAS), "no people"),
        ([], "no people"),
        (openpose(), r"how large its picture was .*pass `size=\(height, width\)`"),
        ("{nonsense", "`data` must be valid JSON"),
        ({"people": {}}, "`people` .* must be a list, got dict"),
        ({"faces": []}, r"must have `people`.*got \"\['faces'\]\""),
        ({"people": [3]}, "must have `people`.*got 'int'"),
        ({"people": [{"pose_keypoints_2d": [1, 2, 3]}], **CANVAS}, r"54 \(18 joints\) or 75 .* got shape \(3,\)"),
        ({"people": [{"pose_keypoints_2d": [0] * 54}], **CANVAS}, "All 18 joints are missing"),
        ([openpose(), openpose()], "list of 2 pictures"),
        ({**openpose(), "canvas_height": 0, "canvas_width": 3}, "each from 1"),
    ],
)
def test_openpose_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_openpose(data)


def test_openpose_refuses_other_types():
    with pytest.raises(TypeError, match="dict, a list or a JSON string, got int"):
        Keypoints.from_openpose(3)


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


@pytest.mark.parametrize("value", [openpose(**CANVAS), json.dumps(openpose(**CANVAS)), [openpose(**CANVAS)]])
def test_any_form_of_openpose(value):
    assert Keypoints.from_any(value) == Keypoints.from_openpose(openpose(**CANVAS))
    assert Keypoints.from_any(triples(), (256, 176)) == Keypoints.from_openpose(openpose(**CANVAS))


def test_any_form_of_coco():
    coco = STANDING_YX[COCO_ORDER, ::-1]
    assert Keypoints.from_any(coco) == Keypoints.from_coco(coco, (256, 176))


def test_any_leaves_keypoints_alone(standing):
    assert Keypoints.from_any(standing, size=(1, 1)) is standing


@pytest.mark.parametrize("value", [None, 3, b"[]", {1, 2}, Image.new("RGB", (4, 4)), object(), [object()], [[None]]])
def test_any_names_the_type(value):
    with pytest.raises(TypeError, match=r"A pose must be a `Keypoints`, an array .*; got|must be real numbers"):
        Keypoints.from_any(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pose.json", "a file is read with `Keypoints.load`"),
        ("[1, 2", "The pose string must be valid JSON"),
        (np.zeros((3, 18, 2)), r"One pose is needed here, got 3 in an array of shape \(3, 18, 2\)"),
        (np.zeros((21, 64, 64)), r"got numbers of shape \(21, 64, 64\)"),
        ([], r"got numbers of shape \(0,\)"),
        (np.zeros((25, 3)), "75 numbers"),
        (openpose(), "canvas_height"),
        (np.full((18, 2), 500), r"pass `size=\(height, width\)`"),
    ],
)
def test_any_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_any(value)


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
    with pytest.raises(ValueError, match=r"annotation.csv.*2 rows: choose one with `row=`"):
        Keypoints.load(file)
    with pytest.raises(ValueError, match=r"annotation.csv.*none of its 2 rows is named 'nobody'"):
        Keypoints.load(file, row="nobody")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("pose.png", b"", {}, r"must end in .json, .csv, .txt or .npy, got .*pose.png"),
        ("pose.json", b"{", {}, "Cannot read keypoints from .*pose.json.*valid JSON"),
        ("pose.json", b"\xff\xfe\x00", {}, "Cannot read keypoints from .*pose.json"),
        ("pose.npy", b"", {}, "Cannot read keypoints from .*pose.npy"),
        ("pose.npy", b"PK\x03\x04 an archive", {}, "Cannot read keypoints from .*pose.npy"),
        ("pose.csv", b"", {}, "pose.csv.*it has 0 rows"),
        ("pose.csv", b"one,two\n", {}, "pose.csv.*must read `name"),
        ("pose.json", b"{}", {"row": "a"}, "`row` chooses a line of a .csv or .txt file"),
        ("pose.csv", b"", {"person": 0}, "`person` chooses a person of an OpenPose .json file"),
    ],
)
def test_load_refuses(tmp_path, name, content, arguments, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Keypoints.load(tmp_path / name, **arguments)


def test_load_never_unpickles(tmp_path):
    np.save(tmp_path / "pose.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Keypoints.load(tmp_path / "pose.npy")


def test_load_names_the_missing_file_and_the_wrong_content(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no keypoint file at .*nowhere.json"):
        Keypoints.load(tmp_path / "nowhere.json")
    (tmp_path / "pose.json").write_text("3")
    with pytest.raises(TypeError, match=r"pose.json.*A pose must be"):
        Keypoints.load(tmp_path / "pose.json")


# Geometry and drawing -----------------------------------------------------------------------------------------------


def test_mirror_swaps_sides(standing):
    mirrored = standing.mirror()
    assert mirrored.xy[JOINT_NAMES.index("left_wrist")].tolist() == [175 - 52, 118]
    assert not mirrored.visible[JOINT_NAMES.index("right_ear")]
    assert mirrored.visible[JOINT_NAMES.index("left_ear")]


def test_rescale(standing):
    larger = standing.rescale((512, 176))
    assert larger.size == (512, 176)
    assert larger.xy[0].tolist() == [88, 52]
    with pytest.raises(ValueError, match="each from 1"):
        standing.rescale((0, 1))


def test_draw(standing):
    photo = Image.new("RGB", (60, 90), (200, 100, 50))
    assert standing.draw().size == (176, 256)
    assert standing.draw((512, 352)).size == (352, 512)
    assert standing.draw(background=photo).size == (60, 90)
    assert standing.draw((100, 50), photo.convert("L")).size == (50, 100)
    assert photo.getpixel((30, 10)) == (200, 100, 50)
    large = standing.draw((512, 352))
    assert large.mode == "RGB"
    # The eye's own colour at its centre, the limb's 60 % halfway down the thigh, and black elsewhere.
    assert large.getpixel((94 * 2 + 1, 21 * 2)) == JOINT_COLORS[15]
    assert large.getpixel((73 * 2, 144 * 2)) == (0, 153, 51)
    assert large.getpixel((5, 5)) == (0, 0, 0)
    assert np.count_nonzero(standing.draw(thickness=2)) > 1.5 * np.count_nonzero(standing.draw())


def test_draw_refuses(standing):
    with pytest.raises(ValueError, match="`thickness` must be a positive number"):
        standing.draw(thickness=0)
    with pytest.raises(TypeError, match="`background` must be a PIL image or None, got ndarray"):
        standing.draw(background=np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="each from 1"):
        standing.draw((0, 5))


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


@settings(max_examples=60, deadline=None)
@given(poses(with_confidence=False))
def test_field_round_trip(pose):
    whole = Keypoints(np.rint(pose.xy), pose.visible, None, pose.size)
    assert Keypoints.from_deepfashion(*whole.to_deepfashion(), pose.size) == whole
    y, x = whole.to_deepfashion()
    assert Keypoints.from_csv_row(f"name:{json.dumps(y)}:{json.dumps(x)}", pose.size) == whole


@settings(max_examples=60, deadline=None)
@given(poses())
def test_openpose_round_trip(pose):
    # All within two pixels of the corner means fractions of the frame, as documented.
    assume(np.abs(pose.xy[pose.visible]).max() > 2)
    data = pose.to_openpose()
    assert Keypoints.from_openpose(data) == pose
    assert Keypoints.from_any(json.dumps(data)) == pose


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
    | st.sampled_from(["[1]", "{}", "a:b:[1]", '{"people": [{}]}', "[[[", "1e999", "[1e999]", 10**400]),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.lists(inner, min_size=18, max_size=18)
    | st.dictionaries(
        st.sampled_from(
            ["people", "pose_keypoints_2d", "canvas_height", "canvas_width", "keypoints_y", "keypoints_x", "size"]
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


def test_a_wrong_number_of_joints_is_told_before_the_missing_frame():
    with pytest.raises(ValueError, match=r"must have 54 \(18 joints\) or 75 .* got shape \(51,\)"):
        Keypoints.from_openpose({"people": [{"pose_keypoints_2d": [1.0] * 51}]})
