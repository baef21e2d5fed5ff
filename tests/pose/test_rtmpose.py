"""RTMPose by rtmlib, on ONNX files made here; `.ci/run` installs rtmlib for them."""

import numpy as np
import PIL.Image
import pytest

from diffusers_cfld.pose_estimation import PoseEstimator, RTMPoseEstimator

SIZE = (120, 200)


@pytest.fixture(scope="module", autouse=True)
def libraries():
    for name in ("rtmlib", "onnx", "onnxruntime"):
        pytest.importorskip(name)


def save_model(path, inputs, outputs):
    """A model that gives constants, plus nothing times the mean of its input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = (1, 3, *inputs)
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.array(0, np.float32), "zero")]
    values = []
    for name, array in outputs.items():
        constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_constant"))
        nodes.append(helper.make_node("Add", [f"{name}_constant", "nothing"], [name]))
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    graph = helper.make_graph(
        nodes, "model", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)], values, constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def simcc(joints, inputs):
    """What RTMPose gives for joints at these places (x, y) of its input: one peak per axis, two bins per pixel."""
    height, width = inputs
    x, y = np.zeros((1, len(joints), 2 * width)), np.zeros((1, len(joints), 2 * height))
    for index, (column, row) in enumerate(joints):
        x[0, index, round(2 * column)] = 0.8
        y[0, index, round(2 * row)] = 0.8
    return {"simcc_x": x, "simcc_y": y}


@pytest.fixture(scope="module")
def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("inputs", [(64, 48), (128, 128)])
def test_joints_come_out_where_the_model_puts_them(tmp_path, image, inputs):
    height, width = inputs
    # COCO's joints on a line through the middle of the input; the box around the image is centred on it.
    places = [(width / 2 + 0.5 * (index - 8), height / 2 + 0.5 * (index - 8)) for index in range(17)]
    estimator = RTMPoseEstimator(save_model(tmp_path / "pose.onnx", inputs, simcc(places, inputs)))
    assert isinstance(estimator, PoseEstimator)
    (pose,) = estimator(image)
    assert pose.size == SIZE
    assert pose.visible.all()
    # Joint 8 of COCO, the right elbow, is OpenPose's 3.
    np.testing.assert_allclose(pose.xy[3], (SIZE[1] / 2, SIZE[0] / 2), atol=1)
    # The input shows the image and a quarter around it, at one scale.
    scale = 1.25 * max(SIZE[1] / width, SIZE[0] / height)
    np.testing.assert_allclose(pose.xy[0], pose.xy[3] - 4 * scale, atol=1)
    np.testing.assert_allclose(pose.xy[1], (pose.xy[2] + pose.xy[5]) / 2)
    np.testing.assert_allclose(pose.confidence, 0.8, rtol=1e-5)


def test_joints_of_little_confidence_are_missing(tmp_path, image):
    outputs = simcc([(24, 32)] * 17, (64, 48))
    outputs["simcc_x"][0, 0] *= 0.1
    outputs["simcc_y"][0, 0] *= 0.1
    (pose,) = RTMPoseEstimator(save_model(tmp_path / "pose.onnx", (64, 48), outputs))(image)
    assert not pose.visible[0]
    assert pose.visible[1:].all()


def test_a_whole_body_model_gives_its_body_and_half_a_body_is_named(tmp_path, image):
    places = [(20, 30)] * 17 + [(1, 1)] * 116
    (pose,) = RTMPoseEstimator(save_model(tmp_path / "pose.onnx", (64, 48), simcc(places, (64, 48))))(image)
    assert pose.visible.all()
    few = RTMPoseEstimator(save_model(tmp_path / "few.onnx", (64, 48), simcc(places[:5], (64, 48))))
    with pytest.raises(ValueError, match="COCO's 17 body joints"):
        few(image)


def test_one_pose_for_each_person_of_the_detector(tmp_path, image):
    # A YOLOX with its own suppression gives rows (left, top, right, bottom, score) on an input of 64x64.
    scale = 64 / max(SIZE)
    rows = np.array([[[10, 10, 60, 110, 0.9], [100, 10, 190, 110, 0.8], [0, 0, 5, 5, 0.1]]]) * ([scale] * 4 + [1])
    boxes = save_model(tmp_path / "detector.onnx", (64, 64), {"dets": rows})
    pose = save_model(tmp_path / "pose.onnx", (64, 48), simcc([(24 + i % 3, 32 + i % 2) for i in range(17)], (64, 48)))
    people = RTMPoseEstimator(pose, boxes)(image)
    centers = sorted(person.xy[:, 0].mean() for person in people)
    np.testing.assert_allclose(centers, [35, 145], atol=4)

    nobody = save_model(tmp_path / "nobody.onnx", (64, 64), {"dets": rows * [1, 1, 1, 1, 0.1]})
    assert RTMPoseEstimator(pose, nobody)(image) == []


def test_nothing_is_downloaded_or_printed(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"There is no ONNX file at .*nowhere.onnx"):
        RTMPoseEstimator(tmp_path / "nowhere.onnx")
    RTMPoseEstimator(save_model(tmp_path / "pose.onnx", (64, 48), simcc([(24, 32)] * 17, (64, 48))))
    assert capsys.readouterr().out == ""


def test_what_to_install_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(ImportError, match=r"pip install 'diffusers-cfld\[rtmlib\]'"):
        RTMPoseEstimator("pose.onnx")
