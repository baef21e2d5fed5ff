"""What pose estimators and editors write is read as it is, in every form that `docs/poses.md` lists."""

import json
import logging
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_cfld.pose.formats import NobodyError
from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.processors.pose_map import split_poses
from diffusers_cfld.small_model import example_poses

SIZE = HEIGHT, WIDTH = 720, 480
XY = np.array(
    [
        [240, 90], [240, 170], [190, 170], [160, 260], [150, 350], [290, 170], [320, 260], [330, 350], [210, 360],
        [205, 480], [200, 600], [270, 360], [275, 480], [280, 600], [228, 80], [252, 80], [212, 88], [268, 88],
    ],
    float,
)  # fmt: skip
ROWS = np.column_stack([XY, np.full(18, 0.75)])
OTHER = ROWS + [60, 40, 0]
BODY_25 = np.concatenate([ROWS[:8], [[240, 360, 0.75]], ROWS[8:], np.zeros((6, 3))])
COCO = ROWS[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
FLAT_COCO = COCO.ravel().tolist()
OPENPOSE_PERSON = {"pose_keypoints_2d": ROWS.ravel().tolist(), "face_keypoints_2d": None}
CANVAS = {"canvas_height": HEIGHT, "canvas_width": WIDTH}
FRACTIONS = ROWS / [WIDTH, HEIGHT, 1]
Joint = namedtuple("Joint", "x y score")
PoseResult = namedtuple("PoseResult", "body face")
CONTROLNET_AUX = PoseResult(SimpleNamespace(keypoints=[Joint(*row) for row in FRACTIONS.tolist()]), None)


def padded(rows, count):
    return np.concatenate([rows, np.full((count - len(rows), rows.shape[1]), 9.0)])


def landmarks(rows=COCO):
    """MediaPipe's 33 landmarks as rows (x, y, z, visibility)."""
    points = np.tile([0.5, 0.5, -0.1, 0.75], (33, 1))
    points[[0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, *range(23, 29)], :2] = rows[:, :2] / [WIDTH, HEIGHT]
    return points


def points(rows):
    return [SimpleNamespace(**dict(zip(("x", "y", "z", "visibility"), row, strict=True))) for row in rows.tolist()]


def dicts(rows):
    return [vars(point) for point in points(rows)]


def dwpose(*people, **extra):
    candidate = np.concatenate(people)[:, :2] / [WIDTH, HEIGHT]
    subset = np.arange(len(candidate), dtype=float).reshape(-1, 18)
    return {"bodies": {"candidate": candidate, "subset": subset, **extra}, "hands": [], "faces": []}


def ultralytics(*people):
    data = torch.tensor(np.stack(people))
    joints = SimpleNamespace(xy=data[..., :2], xyn=data[..., :2] / 9, conf=data[..., 2], data=data, orig_shape=SIZE)
    return SimpleNamespace(keypoints=joints, boxes=None, orig_shape=SIZE, names={0: "person"})


def summary(rows):
    x, y, visible = rows.T.tolist()
    return {"name": "person", "class": 0, "box": {"x1": 1.0}, "keypoints": {"x": x, "y": y, "visible": visible}}


def coco_file(*images):
    return {
        "images": [
            {"id": 7 + n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(len(images))
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7 + number,
                "category_id": 1,
                "keypoints": rows.ravel().tolist(),
                "num_keypoints": 17,
            }
            for number, people in enumerate(images)
            for rows in people
        ]
        + [{"id": 2, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }


def person(rows):
    return {"keypoints": rows[:, :2].tolist(), "keypoint_scores": rows[:, 2].tolist(), "bbox": [[1, 2, 3, 4]]}


ONE_PERSON = {
    "arrays, BODY_25": BODY_25,
    "arrays, BODY_25 of one person": BODY_25[None].astype(np.float32),
    "pyopenpose's datum": SimpleNamespace(poseKeypoints=BODY_25[None], cvInputData=np.zeros((*SIZE, 3))),
    "flat OpenPose": ROWS.ravel().tolist(),
    "flat COCO": FLAT_COCO,
    "flat COCO of one person": np.array([FLAT_COCO]),
    "tensors": torch.tensor(COCO, dtype=torch.float64, requires_grad=True)[None],
    "whole bodies, 133": padded(COCO, 133),
    "whole bodies, 134": padded(ROWS, 134),
    "Halpe, 26": padded(COCO, 26),
    "whole bodies, flat": padded(COCO, 133).ravel(),
    "columns of BODY_25": (BODY_25[:, 1], BODY_25[:, 0]),
    "OpenPose": {"version": 1.3, "people": [OPENPOSE_PERSON]},
    "OpenPose 1.0": {"version": 1.0, "people": [{"pose_keypoints": ROWS.ravel().tolist()}]},
    "OpenPose's rows": {"people": [{"pose_keypoints_2d": BODY_25.tolist()}]},
    "Sports2D": {"people": [{"pose_keypoints_2d": padded(COCO, 26).ravel().tolist()}]},
    "AlphaPose, cmu": {"a.jpg": {"version": "AlphaPose v0.3", "bodies": [{"joints": ROWS.ravel().tolist()}]}},
    "AlphaPose, open": {"a.jpg": {"version": "AlphaPose v0.3", "people": [OPENPOSE_PERSON]}},
    "AlphaPose, one image of cmu": {"version": "AlphaPose v0.3", "bodies": [{"joints": ROWS.ravel().tolist()}]},
    "JSON in a JSON string": json.dumps(json.dumps({"people": [OPENPOSE_PERSON]})),
    "ComfyUI": [{"people": [OPENPOSE_PERSON], **CANVAS}],
    "ComfyUI, fractions": [{"people": [{"pose_keypoints_2d": FRACTIONS.ravel().tolist()}], **CANVAS}],
    "ComfyUI, a face without a body": [{"people": [{"pose_keypoints_2d": None}, OPENPOSE_PERSON], **CANVAS}],
    "openpose-editor": {"width": WIDTH, "height": HEIGHT, "keypoints": XY.tolist()},
    "openpose-editor, nested": {"width": WIDTH, "height": HEIGHT, "keypoints": [XY.tolist()]},
    "COCO annotation": {"image_id": 1, "category_id": 1, "keypoints": FLAT_COCO, "bbox": [0, 0, 9, 9]},
    "COCO result": [{"image_id": 1, "category_id": 1, "keypoints": FLAT_COCO, "score": 2.1}],
    "AlphaPose": [{"image_id": "a.jpg", "keypoints": FLAT_COCO, "score": 2.1, "box": [1, 2, 3, 4], "idx": [0.0]}],
    "COCO file": coco_file([COCO]),
    "MMPose 0.x": [{"bbox": np.ones(5), "keypoints": COCO}],
    "MMPose's result": person(COCO),
    "MMPose's inferencer": {"predictions": [[person(COCO)]], "visualization": []},
    "MMPose's sample": SimpleNamespace(
        pred_instances=SimpleNamespace(keypoints=COCO[None, :, :2], keypoint_scores=COCO[None, :, 2]), ori_shape=SIZE
    ),
    "MMPose's file": {"meta_info": {"dataset_name": "coco"}, "instance_info": [person(COCO)]},
    "rtmlib": (COCO[None, :, :2], COCO[None, :, 2]),
    "rtmlib, whole body like OpenPose": (padded(ROWS, 134)[None, :, :2], padded(ROWS, 134)[None, :, 2]),
    "ViTPose of transformers": [
        {"keypoints": torch.tensor(COCO[:, :2]), "scores": torch.tensor(COCO[:, 2]), "labels": torch.arange(17)}
    ],
    "torchvision": {
        "keypoints": torch.tensor(COCO)[None],
        "scores": torch.ones(1),
        "keypoints_scores": torch.ones(1, 17),
    },
    "detectron2": {"instances": SimpleNamespace(pred_keypoints=torch.tensor(COCO)[None], image_size=SIZE)},
    "DWPose": dwpose(ROWS),
    "DWPose with scores": dwpose(ROWS, score=ROWS[None, :, 2]),
    "pytorch-openpose": (np.column_stack([ROWS, np.arange(18)]), np.append(np.arange(18.0), [30, 18])[None]),
    "pytorch-openpose, a dict": {
        "candidate": np.column_stack([ROWS, np.arange(18)]).tolist(),
        "subset": [[*range(18), 30, 18]],
    },
    "MediaPipe": SimpleNamespace(
        pose_landmarks=SimpleNamespace(landmark=points(landmarks())), pose_world_landmarks=[]
    ),
    "MediaPipe's landmark list": SimpleNamespace(landmark=points(landmarks())),
    "MediaPipe's landmarks": points(landmarks()),
    "MediaPipe Tasks": SimpleNamespace(
        pose_landmarks=[points(landmarks())], pose_world_landmarks=[points(landmarks())]
    ),
    "MediaPipe in JSON": {"pose_landmarks": {"landmark": dicts(landmarks())}},
    "MediaPipe in JavaScript": {"landmarks": [dicts(landmarks())], "worldLandmarks": [[]]},
    "MediaPipe's numbers": {"pose_landmarks": landmarks().tolist()},
    "BlazePose of TensorFlow.js": [
        {"keypoints": dicts(landmarks() * [WIDTH, HEIGHT, 1, 1]), "score": 0.9, "keypoints3D": []}
    ],
    "Ultralytics": ultralytics(COCO),
    "Ultralytics, a list": [ultralytics(COCO)],
    "Ultralytics' keypoints": ultralytics(COCO).keypoints,
    "Ultralytics' data": ultralytics(COCO).keypoints.data,
    "Ultralytics in JSON": json.dumps([summary(COCO)]),
    "Ultralytics' labels": np.concatenate([[0, 0.5, 0.5, 0.9, 0.9], (COCO / [WIDTH, HEIGHT, 1]).ravel()])[None],
    "labels without visibility": np.concatenate([[0, 0.5, 0.5, 0.9, 0.9], (COCO[:, :2] / [WIDTH, HEIGHT]).ravel()]),
    "flat, without confidences": COCO[:, :2].ravel().tolist(),
    "controlnet_aux": [CONTROLNET_AUX],
    "Roboflow": {
        "predictions": [{"x": 9, "y": 9, "width": 5, "height": 5, "keypoints": dicts(np.insert(COCO, 2, 0, 1))}]
    },
    "supervision": SimpleNamespace(xy=COCO[None, :, :2], confidence=COCO[None, :, 2], class_id=np.zeros(1)),
}


@pytest.mark.parametrize("form", ONE_PERSON)
def test_one_person(form):
    pose = Keypoints.from_any(ONE_PERSON[form], SIZE)
    assert pose.visible.all()
    np.testing.assert_allclose(pose.xy, XY, atol=1e-4)
    assert pose.confidence is None or np.allclose(pose.confidence, 0.75)


SEVERAL_PEOPLE = {
    "arrays": np.stack([ROWS, OTHER]),
    "arrays, BODY_25": np.stack([BODY_25, BODY_25 + [60, 40, 0]]),
    "OpenPose": {"people": [{"pose_keypoints_2d": rows.ravel().tolist()} for rows in (ROWS, OTHER)]},
    "openpose-editor": {"width": WIDTH, "height": HEIGHT, "keypoints": np.concatenate([XY, OTHER[:, :2]]).tolist()},
    "COCO file": coco_file([COCO, COCO + [60, 40, 0]]),
    "COCO results": [{"image_id": 3, "keypoints": rows.ravel().tolist()} for rows in (COCO, COCO + [60, 40, 0])],
    "MMPose's inferencer": {"predictions": [[person(COCO), person(COCO + [60, 40, 0])]]},
    "rtmlib": (np.stack([COCO, COCO + [60, 40, 0]])[..., :2], np.ones((2, 17))),
    "DWPose": dwpose(ROWS, OTHER),
    "MediaPipe Tasks": SimpleNamespace(pose_landmarks=[points(landmarks()), points(landmarks(COCO + [60, 40, 0]))]),
    "Ultralytics": ultralytics(COCO, COCO + [60, 40, 0]),
    "Ultralytics in JSON": [summary(COCO), summary(COCO + [60, 40, 0])],
}


@pytest.mark.parametrize("form", SEVERAL_PEOPLE)
def test_person_means_the_same_in_every_form(form):
    data = SEVERAL_PEOPLE[form]
    for number, rows in enumerate((ROWS, OTHER)):
        np.testing.assert_allclose(Keypoints.from_any(data, SIZE, person=number).xy, rows[:, :2], atol=1e-4)
    with pytest.raises(ValueError, match="has 2 people: choose one with `person=0` to `person=1`"):
        Keypoints.from_any(data, SIZE)
    with pytest.raises(NobodyError, match="no `person=2`"):
        Keypoints.from_any(data, SIZE, person=2)


NOBODY = {
    "OpenPose": {"people": []},
    "ComfyUI": [{"people": [], **CANVAS}],
    "animals": [{"version": "ap10k", "animals": [FLAT_COCO], **CANVAS}],
    "pyopenpose's datum": SimpleNamespace(poseKeypoints=None, cvInputData=None),
    "pyopenpose's datum, an array without shape": SimpleNamespace(poseKeypoints=np.array(0.0), cvInputData=None),
    "MediaPipe": SimpleNamespace(pose_landmarks=None),
    "MediaPipe Tasks": SimpleNamespace(pose_landmarks=[]),
    "Ultralytics": SimpleNamespace(keypoints=SimpleNamespace(xy=torch.zeros(0, 17, 2), conf=None), orig_shape=SIZE),
    "rtmlib": (np.zeros((0, 17, 2)), np.zeros((0, 17))),
    "MMPose's inferencer": {"predictions": [[]]},
    "DWPose": {"bodies": {"candidate": np.zeros((0, 2)), "subset": np.zeros((0, 18))}},
}


@pytest.mark.parametrize("form", NOBODY)
def test_nobody(form):
    with pytest.raises(NobodyError, match="has 0 people"):
        Keypoints.from_any(NOBODY[form], SIZE)


def test_data_that_know_their_size():
    for form in ("pyopenpose's datum", "ComfyUI", "openpose-editor", "COCO file", "MMPose's sample", "detectron2",
                 "Ultralytics", "Ultralytics' keypoints"):  # fmt: skip
        assert Keypoints.from_any(ONE_PERSON[form]).size == SIZE
    for form in ("MMPose's result", "DWPose", "MediaPipe", "Ultralytics in JSON", "Roboflow", "arrays, BODY_25"):
        with pytest.raises(ValueError, match=r"does not say how large its image was: pass `size=\(height, width\)`"):
            Keypoints.from_any(ONE_PERSON[form])


def test_missing_joints_of_every_form():
    wrist = 4  # the right one; in COCO's order 10
    rows = COCO.copy()
    rows[10] = 0, 0, 0.9  # Ultralytics keeps the confidence
    data = dwpose(ROWS)
    data["bodies"]["candidate"][wrist] = -1
    data["bodies"]["subset"][0, wrist] = -1
    found = np.delete(np.arange(17), 10)
    unseen = landmarks()
    unseen[16, :2] = 0.4, 1.3  # MediaPipe guesses where joints outside the image are
    for form in (
        ultralytics(rows),
        [summary(rows)],
        {"keypoints": rows.ravel().tolist()},
        data,
        SimpleNamespace(pose_landmarks=[points(unseen)]),
        {"keypoints": COCO[found, :2], "scores": COCO[found, 2], "labels": found},
        [None if number == wrist else row for number, row in enumerate(XY.tolist())],
    ):
        pose = Keypoints.from_any(form, SIZE)
        assert np.flatnonzero(~pose.visible).tolist() == [wrist]
        np.testing.assert_allclose(pose.xy[pose.visible], XY[pose.visible], atol=1e-4)
    rows[:, 2] = 0.2
    rows[:3, 2] = 0.9
    assert Keypoints.from_any(ultralytics(rows), min_confidence=0.2).visible.sum() == 3


def test_fractions_are_told_by_normalized():
    for rows in (FRACTIONS, COCO / [WIDTH, HEIGHT, 1], landmarks(), COCO[None, :, :2] / [WIDTH, HEIGHT]):
        np.testing.assert_allclose(Keypoints.from_any(rows, SIZE, normalized=True).xy, XY, atol=1e-4)
        with pytest.raises(ValueError, match=r"seem to be fractions of its size: pass `normalized=True` and `size="):
            Keypoints.from_any(rows, SIZE)
        with pytest.raises(ValueError, match="does not say how large its image was"):
            Keypoints.from_any(rows, normalized=True)
    np.testing.assert_allclose(Keypoints.from_any(landmarks() * [WIDTH, HEIGHT, 1, 1], SIZE).xy, XY, atol=1e-4)


def test_world_landmarks_are_refused():
    world = landmarks() - [0.5, 0.5, 0, 0]
    world[[23, 24], :2] = [[0.1, 0.001], [-0.1, -0.001]]
    for data in (
        SimpleNamespace(pose_world_landmarks=[points(world)]),
        {"worldLandmarks": [dicts(world)]},
        points(world),
        SimpleNamespace(landmark=points(world)),
    ):
        with pytest.raises(ValueError, match=r"world landmarks are metres .*: pass `pose_landmarks`"):
            Keypoints.from_any(data, SIZE)
    with pytest.raises(ValueError, match="world landmarks"):
        Keypoints.from_any(world, SIZE, normalized=True)


def test_several_images_are_not_mixed(tmp_path):
    frame = {"people": [OPENPOSE_PERSON], **CANVAS}
    moved = {"people": [{"pose_keypoints_2d": OTHER.ravel().tolist()}], **CANVAS}
    for data, row in (
        ([frame, moved], "1"),
        (coco_file([COCO], [COCO + [60, 40, 0]]), "1.jpg"),
        (
            [{"image_id": f"{n}.jpg", "keypoints": (COCO + [60 * n, 40 * n, 0]).ravel().tolist()} for n in (0, 1)],
            "1.jpg",
        ),
        ({"predictions": [[person(COCO)], [person(COCO + [60, 40, 0])]]}, "1"),
        ({"0.jpg": {"people": [OPENPOSE_PERSON]}, "1.jpg": moved}, "1.jpg"),
        ({"instance_info": [{"frame_id": n, "instances": [person(COCO + [60 * n, 40 * n, 0])]} for n in (0, 1)]}, "1"),
    ):
        with pytest.raises(
            ValueError, match=r"has 2 images \('0.*choose one by its name, with `row=`.*load_pose_sequence"
        ):
            Keypoints.from_any(data, SIZE)
        (tmp_path / "poses.json").write_text(json.dumps(data))
        pose = Keypoints.load(tmp_path / "poses.json", SIZE, row=row)
        np.testing.assert_allclose(pose.xy, OTHER[:, :2], atol=1e-4)
    with pytest.raises(ValueError, match="has 2 images"):
        Keypoints.from_any([ultralytics(COCO), ultralytics(COCO)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"keypoints": np.ones((16, 3))}, r"got numbers of shape \(16, 3\)"),
        ({"header": "Openpose Editor", "object": {}}, r"got a dict with the keys \['header', 'object'\]"),
        (np.ones((33, 3)), r"got numbers of shape \(33, 3\)"),
        ({"images": [{"id": 1}], "annotations": [{"keypoints": [1]}]}, r"A COCO file must have .*KeyError: 'image_id"),
        ({**coco_file([COCO]), "categories": [{"id": 1, "keypoints": ["left_eye"] * 17}]}, "as COCO's are.*left_eye"),
        ({"meta_info": {"keypoint_id2name": dict.fromkeys(range(17), "root")}, "instance_info": []}, "are.*root"),
        ({"candidate": np.ones((3, 2)), "subset": np.full((1, 18), 5)}, "A pose must be"),
        ({"bodies": [{}]}, "A pose must be"),
        ({"keypoints_y": [1]}, "A pose must be"),
    ],
)  # fmt: skip
def test_what_came_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        Keypoints.from_any(data, SIZE)


# Files --------------------------------------------------------------------------------------------------------------


def test_tables_and_arrays_in_files(tmp_path):
    np.savetxt(tmp_path / "a.txt", XY)
    np.savetxt(tmp_path / "b.csv", BODY_25, delimiter=",", header="x: y: confidence")
    (tmp_path / "c.csv").write_text("x,y,score\n" + "\n".join(f"{x}, {y}, {score}" for x, y, score in COCO))
    (tmp_path / "d.txt").write_text(json.dumps({"people": [OPENPOSE_PERSON]}))
    (tmp_path / "e.txt").write_text(" ".join(map(str, ONE_PERSON["Ultralytics' labels"][0].tolist())))
    np.savez(tmp_path / "f.npz", BODY_25[None])
    (tmp_path / "semicolons.csv").write_text("X; Y\n" + "\n".join(f"{x};{y}" for x, y in XY))
    np.savetxt(tmp_path / "tabs.txt", XY, delimiter="\t")
    np.savez(tmp_path / "g.npz", keypoints=COCO[None, :, :2], keypoint_scores=COCO[None, :, 2])
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(Keypoints.load(file, SIZE).xy, XY, atol=1e-4)
    (tmp_path / "table.csv").write_text("frame,x,y\n0,1,2\n")
    with pytest.raises(ValueError, match=r"table.csv.*`x y \[confidence\]` as from `np.savetxt`; got 'frame,x,y'"):
        Keypoints.load(tmp_path / "table.csv", SIZE)
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Keypoints.load(tmp_path / "pickled.npz")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"damaged.npz.*it is not an archive of arrays"):
        Keypoints.load(tmp_path / "damaged.npz")


def test_the_packaged_poses(tmp_path):
    from diffusers_cfld import small_model

    file = f"{small_model.__path__[0]}/examples/poses.json"
    assert Keypoints.load(file, person=2) == example_poses()[2]
    with pytest.raises(ValueError, match="choose one with `person=0`"):
        Keypoints.load(file)


# In the pipeline ----------------------------------------------------------------------------------------------------


def test_lists_that_are_one_pose_are_not_split():
    for form in ("rtmlib", "MediaPipe's landmarks", "flat COCO", "Ultralytics", "MMPose's result"):
        assert len(split_poses(ONE_PERSON[form])) == 1
    assert len(split_poses([ONE_PERSON["Ultralytics"]] * 3)) == 3
    assert len(split_poses(np.stack([BODY_25] * 3))) == 3
    assert len(split_poses(np.stack([landmarks()] * 3))) == 3
    assert len(split_poses([FLAT_COCO] * 3)) == 3


# Sides ---------------------------------------------------------------------------------------------------------------


def test_a_size_with_exchanged_sides_is_warned_of(caplog):
    tall = np.clip(XY * [1, 1], 0, 700)
    calls = (
        lambda size: Keypoints.from_array(tall, size),
        lambda size: Keypoints.from_any(ultralytics(COCO), size),
        lambda size: Keypoints.from_deepfashion(tall[:, 1], tall[:, 0], size),
        lambda size: Keypoints.from_openpose({"people": [OPENPOSE_PERSON]}, size),
    )
    with caplog.at_level(logging.WARNING):
        for read in calls:
            read(SIZE)
        assert not caplog.records
        for read in calls:
            read(SIZE[::-1])
    assert len(caplog.records) == len(calls)
    assert "2 of 18 joints lie outside the image of 480x720 (height x width), but 0 would if" in caplog.text


def test_joints_outside_either_way_are_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        Keypoints.from_array(np.where(XY > 500, XY + 150, XY), SIZE)
        Keypoints.from_array(XY, (720, 720))
    assert not caplog.records
