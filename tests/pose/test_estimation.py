"""Poses from images: the real estimators on small random weights, and what the pipeline makes of them."""

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from diffusers_cfld.pose.estimation import people_from_coco
from diffusers_cfld.pose_estimation import PoseEstimator, ViTPoseEstimator, estimate_pose
from diffusers_cfld.processors.cropping import fit_keypoints
from diffusers_cfld.small_model import example_poses, load_small_model

SIZE = (90, 130)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def vitpose_folder(tmp_path_factory):
    """A ViTPose of random weights, saved as on the Hub."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    folder = tmp_path_factory.mktemp("vitpose")
    model = VitPoseForPoseEstimation(config)
    model.head.conv.bias.data.fill_(5.0)  # heatmaps are positive: their refinement takes the logarithm
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    """A YOLOS of random weights; transformers' smallest detector without a convolutional backbone."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        image_size=[64, 96],
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_detection_tokens=4,
        id2label={0: "person"},
        label2id={"person": 0},
    )
    folder = tmp_path_factory.mktemp("detector")
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


class FixedEstimator:
    """Finds the people that it was made with."""

    def __init__(self, *people):
        self.people = list(people)
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return self.people


# ViTPose ------------------------------------------------------------------------------------------------------------


def test_vitpose_takes_the_whole_image_for_one_person(vitpose_folder, image):
    estimator = ViTPoseEstimator.from_pretrained(vitpose_folder, min_confidence=-10.0)
    assert isinstance(estimator, PoseEstimator)
    (pose,) = estimator(image)
    assert pose.size == SIZE
    assert pose.visible.sum() > 2  # the peaks of random heatmaps lie anywhere
    (again,) = ViTPoseEstimator.from_pretrained(vitpose_folder, min_confidence=-10.0)(image.convert("RGBA"))
    assert pose == again


def test_vitpose_gives_what_transformers_gives_in_openpose_order(vitpose_folder, image):
    estimator = ViTPoseEstimator.from_pretrained(vitpose_folder, min_confidence=-10.0)
    (pose,) = estimator(image)
    boxes = [[[0.0, 0.0, float(SIZE[1]), float(SIZE[0])]]]
    inputs = estimator.processor(image, boxes=boxes, return_tensors="pt")
    with torch.no_grad():
        outputs = estimator.model(**inputs)
    ((person,),) = estimator.processor.post_process_pose_estimation(outputs, boxes=boxes)
    coco = person["keypoints"].numpy()
    # Right and left ankle, left hip, right ear in OpenPose's order and in COCO's.
    compared = [(ours, theirs) for ours, theirs in ((10, 16), (13, 15), (11, 11), (16, 4)) if pose.visible[ours]]
    assert len(compared) > 2
    for ours, theirs in compared:
        np.testing.assert_allclose(pose.xy[ours], coco[theirs], rtol=1e-5)


def test_vitpose_behind_a_detector(vitpose_folder, detector_folder, image):
    options = {"min_confidence": -10.0, "detector": detector_folder}
    people = ViTPoseEstimator.from_pretrained(vitpose_folder, min_detection_score=0.0, **options)(image)
    assert 1 < len(people) <= 4
    assert ViTPoseEstimator.from_pretrained(vitpose_folder, min_detection_score=0.999, **options)(image) == []


def test_a_revision_is_not_the_detectors(monkeypatch):
    """Commits of one repository are not there in the other."""
    asked = []

    class Part:
        def to(self, device):
            return self

    def note(name, **options):
        asked.append((name, options))
        return Part()

    for part in ("VitPoseForPoseEstimation", "AutoImageProcessor", "AutoModelForObjectDetection"):
        monkeypatch.setattr(getattr(transformers, part), "from_pretrained", note)
    monkeypatch.setattr(ViTPoseEstimator, "__init__", lambda self, *parts, **options: None)
    ViTPoseEstimator.from_pretrained("pose", "boxes", revision="abc", token="t")
    ViTPoseEstimator.from_pretrained("pose", "boxes", revision="abc", detector_kwargs={"revision": "def"})
    assert [options for name, options in asked if name == "pose"] == [{"revision": "abc", "token": "t"}] * 2 + [
        {"revision": "abc"}
    ] * 2
    assert [options for name, options in asked if name == "boxes"] == [{"token": "t"}] * 2 + [{"revision": "def"}] * 2


def test_vitpose_with_experts_is_asked_for_cocos(image):
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_experts=2,
        part_features=8,
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
    processor = VitPoseImageProcessor(size={"height": 64, "width": 48})
    assert len(ViTPoseEstimator(model, processor, min_confidence=-10.0)(image)) == 1


def test_vitpose_names_what_is_wrong(vitpose_folder, detector_folder, image, monkeypatch):
    assert ViTPoseEstimator.from_pretrained(vitpose_folder, min_confidence=1e6)(image) == []
    with pytest.raises(OSError, match="nowhere"):
        ViTPoseEstimator.from_pretrained("./nowhere", local_files_only=True)
    model = ViTPoseEstimator.from_pretrained(vitpose_folder, detector_folder)
    model.detector.config.id2label = {0: "cat"}
    with pytest.raises(ValueError, match=r"must have a class 'person', got \['cat'\]"):
        ViTPoseEstimator(model.model, model.processor, model.detector, model.detector_processor)
    monkeypatch.setattr("transformers.utils.is_scipy_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'diffusers-cfld\[vitpose\]'"):
        ViTPoseEstimator.from_pretrained(vitpose_folder)


# What estimators have in common -------------------------------------------------------------------------------------


def test_joints_below_the_threshold_or_outside_of_the_image_are_missing():
    joints = np.tile(np.array([50.0, 40.0]), (1, 17, 1)) + np.arange(17)[None, :, None]
    scores = np.full((1, 17), 0.9)
    joints[0, 0] = (-5, 10)  # nose
    joints[0, 10] = (60, 91)  # right wrist, below the image
    joints[0, 9] = np.nan  # left wrist
    scores[0, 15] = 0.3  # left ankle
    scores[0, 16] = 1.7  # right ankle
    (pose,) = people_from_coco(joints, scores, SIZE, 0.3)
    missing = {0, 4, 7, 13}
    assert {index for index in range(18) if not pose.visible[index]} == missing
    assert pose.confidence[10] == 1
    assert people_from_coco(joints, scores - 2, SIZE, 0.3) == []
    with pytest.raises(ValueError, match="COCO's 17 body joints"):
        people_from_coco(joints[:, :5], scores[:, :5], SIZE, 0.3)


def test_the_most_prominent_person_comes_first():
    large = np.random.default_rng(0).uniform(0, 80, (17, 2))
    joints = np.stack([large, 0.3 * large, large])
    scores = np.stack([np.full(17, 0.05), np.full(17, 0.9), np.full(17, 0.9)])
    people = people_from_coco(joints, scores, SIZE, 0.0)
    np.testing.assert_allclose([pose.xy[0] for pose in people], [large[0], 0.3 * large[0], large[0]])
    np.testing.assert_allclose([pose.confidence[0] for pose in people], [0.9, 0.9, 0.05])


def test_one_person_of_an_image(image):
    first, second = example_poses()[:2]
    estimator = FixedEstimator(first, second)
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    assert estimate_pose(turned, estimator, person=1) == second
    assert estimator.seen[0].size == image.size[::-1]
    with pytest.raises(ValueError, match="shows 2 people, counted from 0, so there is no `person=2`"):
        estimate_pose(image, estimator, person=2)
    with pytest.raises(ValueError, match="Nobody was found"):
        estimate_pose(image, FixedEstimator())


def test_an_image_is_a_pose_for_the_pipeline(vitpose_folder, image, tmp_path):
    pipe = load_small_model()
    pipe.set_progress_bar_config(disable=True)
    options = {"image": image, "num_inference_steps": 1, "output_type": "np"}
    with pytest.raises(ValueError, match="there is no pose estimator"):
        pipe(pose=image, **options)
    pipe.pose_estimator = ViTPoseEstimator.from_pretrained(vitpose_folder, min_confidence=-10.0)
    image.save(tmp_path / "other_person.png")
    results = [
        pipe(pose=pose, generator=torch.manual_seed(0), **options).images
        for pose in (image, str(tmp_path / "other_person.png"), fit_keypoints(pipe.pose_estimator(image)[0]))
    ]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
