"""Pose estimators: their interface, ViTPose from transformers, and RTMPose from rtmlib."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from ..image_utils import to_rgb
from .formats import COCO_NAMES, NobodyError, choose_one
from .keypoints import Keypoints


@runtime_checkable
class PoseEstimator(Protocol):
    """Finds the people in an image."""

    def __call__(self, image: PIL.Image.Image) -> list[Keypoints]:
        """Estimate the pose of everyone in an image.

        Args:
            image: The image; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright image, the most prominent person first; empty if there is
            nobody.
        """
        ...


def estimate_pose(image: PIL.Image.Image, estimator: PoseEstimator, person: int = 0) -> Keypoints:
    """Estimate the pose of one person.

    Args:
        image: The image; its EXIF rotation is applied.
        estimator: Finds the people.
        person: Which of several people, from 0 for the most prominent one.

    Returns:
        The pose, in pixels of the upright image.

    Raises:
        ValueError: There is no such person in the image.
    """
    return choose_person(estimator(to_rgb(image)), person)


def choose_person(people: Sequence[Keypoints], person: int | None) -> Keypoints:
    """Choose one of the people in an image.

    Args:
        people: Everyone in the image.
        person: Which one, from 0. None if there is only one.

    Returns:
        The pose.

    Raises:
        ValueError: There is no such person in the image, or none is chosen from several.
    """
    if not people:
        raise NobodyError("Nobody was found in the image: use one in which the person is large and fully visible.")
    return choose_one(people, person, "The image shows")


class ViTPoseEstimator:
    """Find poses with transformers' ViTPose (arXiv:2204.12484), with or without a person detector.

    ViTPose looks at one person at a time. Without a detector, the whole image is treated as one person, which suits
    images of a single person.

    Args:
        model: A `VitPoseForPoseEstimation`.
        processor: Its `VitPoseImageProcessor`.
        detector: A model for object detection with a class `person`, e.g. RT-DETR.
        detector_processor: Its image processor.
        min_confidence: Joints are missing if their score is at most this.
        min_detection_score: People with a lower score are ignored.

    Raises:
        ImportError: SciPy, which the processor needs, is not installed.
        ValueError: The detector has no class `person`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        detector: Any = None,
        detector_processor: Any = None,
        *,
        min_confidence: float = 0.3,
        min_detection_score: float = 0.5,
    ) -> None:
        from transformers.utils import is_scipy_available

        if not is_scipy_available():
            raise ImportError("ViTPose needs SciPy: `pip install 'diffusers-cfld[vitpose]'`.")
        self.model, self.processor = model.eval(), processor
        self.detector = None if detector is None else detector.eval()
        self.detector_processor = detector_processor
        self.min_confidence, self.min_detection_score = min_confidence, min_detection_score
        if detector is not None:
            labels = detector.config.id2label
            self._person_labels = [index for index, label in labels.items() if str(label).lower() == "person"]
            if not self._person_labels:
                raise ValueError(f"`detector` must have a class 'person', got {list(labels.values())[:10]}.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        detector: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "cpu",
        min_confidence: float = 0.3,
        min_detection_score: float = 0.5,
        detector_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> ViTPoseEstimator:
        """Load the models from the Hub or from folders.

        Args:
            pretrained_model_name_or_path: ViTPose, e.g. `usyd-community/vitpose-base-simple`.
            detector: Object detector, e.g. `PekingU/rtdetr_r50vd_coco_o365`; None if each image shows one person.
            device: Where the models run.
            min_confidence: As in the constructor.
            min_detection_score: As in the constructor.
            detector_kwargs: Arguments for transformers' `from_pretrained` of the detector, e.g. `revision`; they
                override `kwargs`.
            **kwargs: Arguments for transformers' `from_pretrained` of both models, e.g. `token`, `local_files_only`.
                `revision` and `subfolder` apply to one repository and are not passed to the detector.

        Returns:
            The estimator.

        Raises:
            OSError: A model does not exist or cannot be downloaded.
            ImportError: SciPy is not installed.
        """
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

        parts: list[Any] = [
            VitPoseForPoseEstimation.from_pretrained(pretrained_model_name_or_path, **kwargs).to(device),
            AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]
        if detector is not None:
            shared = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
            options = {**shared, **(detector_kwargs or {})}
            parts += [
                AutoModelForObjectDetection.from_pretrained(detector, **options).to(device),
                AutoImageProcessor.from_pretrained(detector, **options),
            ]
        return cls(*parts, min_confidence=min_confidence, min_detection_score=min_detection_score)

    @torch.no_grad()
    def __call__(self, image: PIL.Image.Image) -> list[Keypoints]:
        """Estimate the pose of everyone in an image.

        Args:
            image: The image, of any mode; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright image, most prominent first; the neck is the middle of the
            shoulders.
        """
        image = to_rgb(image)
        boxes = self._find_people(image)
        if not len(boxes):
            return []
        inputs = self.processor(image, boxes=[boxes], return_tensors="pt").to(self.model.device, self.model.dtype)
        if self.model.config.backbone_config.num_experts > 1:
            # Expert 0 of the mixture is the one for COCO.
            inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.int64, device=self.model.device)
        outputs = self.model(**inputs)
        outputs.heatmaps = outputs.heatmaps.float().cpu()
        (people,) = self.processor.post_process_pose_estimation(outputs, boxes=[boxes], threshold=None)
        joints = np.stack([person["keypoints"].numpy() for person in people])
        scores = np.stack([person["scores"].numpy() for person in people])
        return people_from_coco(joints, scores, (image.height, image.width), self.min_confidence)

    def _find_people(self, image: PIL.Image.Image) -> npt.NDArray[Any]:
        """Boxes (left, top, width, height), one row per person."""
        if self.detector is None:
            return np.array([[0.0, 0.0, image.width, image.height]])
        inputs = self.detector_processor(image, return_tensors="pt").to(self.detector.device, self.detector.dtype)
        (found,) = self.detector_processor.post_process_object_detection(
            self.detector(**inputs), threshold=self.min_detection_score, target_sizes=[(image.height, image.width)]
        )
        is_person = torch.isin(found["labels"].cpu(), torch.tensor(self._person_labels))
        boxes: npt.NDArray[Any] = found["boxes"].float().cpu()[is_person].numpy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes


class RTMPoseEstimator:
    """Find poses with rtmlib's RTMPose (arXiv:2303.07399), with or without its person detector YOLOX.

    Args:
        pose: ONNX file of RTMPose with SimCC outputs and COCO's 17 body joints first (body, Halpe or whole body).
            Nothing is downloaded.
        detector: ONNX file of YOLOX for people; None if each image shows one person.
        device: `cpu`, `cuda`, `cuda:N` or `mps`, as rtmlib names them.
        min_confidence: Joints are missing if their score is at most this.

    Raises:
        ImportError: rtmlib or onnxruntime is not installed.
        FileNotFoundError: A file does not exist.
    """

    def __init__(
        self,
        pose: str | os.PathLike[str],
        detector: str | os.PathLike[str] | None = None,
        *,
        device: str = "cpu",
        min_confidence: float = 0.3,
    ) -> None:
        try:
            import onnxruntime  # noqa: F401
            from rtmlib import YOLOX, RTMPose
        except ImportError as error:
            raise ImportError(
                f"RTMPose needs rtmlib and onnxruntime ({error}): `pip install 'diffusers-cfld[rtmlib]'`."
            ) from error
        self.min_confidence = min_confidence
        # rtmlib has input sizes as (width, height) for RTMPose and as (height, width) for YOLOX.
        self.pose_model = _load_onnx(RTMPose, pose, device, -1)
        self.detector = None if detector is None else _load_onnx(YOLOX, detector, device, 1)

    def __call__(self, image: PIL.Image.Image) -> list[Keypoints]:
        """Estimate the pose of everyone in an image.

        Args:
            image: The image, of any mode; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright image, most prominent first; the neck is the middle of the
            shoulders.

        Raises:
            ValueError: The model does not return COCO's 17 joints.
        """
        image = to_rgb(image)
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])  # rtmlib reads BGR
        boxes = np.array([[0, 0, image.width, image.height]]) if self.detector is None else self.detector(pixels)
        if not len(boxes):
            return []
        joints, scores = self.pose_model(pixels, bboxes=boxes)
        return people_from_coco(joints, scores, (image.height, image.width), self.min_confidence)


def _load_onnx(model_class: Any, path: str | os.PathLike[str], device: str, size_order: int) -> Any:
    file = os.fspath(path)
    if not os.path.isfile(file):  # rtmlib would try to download it
        raise FileNotFoundError(
            f"There is no ONNX file at {file!r}: unpack one of the model zoo that rtmlib's README links to."
        )
    with contextlib.redirect_stdout(io.StringIO()):  # rtmlib prints what it loads
        model = model_class(file, backend="onnxruntime", device=device)
    sides = model.session.get_inputs()[0].shape[2:]
    if all(isinstance(side, int) for side in sides):  # rtmlib assumes the sizes of its own files
        model.model_input_size = tuple(sides[::size_order])
    return model


def people_from_coco(
    joints: npt.NDArray[Any], scores: npt.NDArray[Any], size: tuple[int, int], threshold: float
) -> list[Keypoints]:
    """Turn the arrays of an estimator into poses.

    Args:
        joints: (people, 17 or more, 2), COCO's body joints first, pixels.
        scores: (people, 17 or more).
        size: (height, width) of the image, pixels.
        threshold: Joints are missing if their score is at most this or if they lie outside the image.

    Returns:
        The people with at least one joint, most prominent first, as measured by the area that the joints span times
        their mean confidence.

    Raises:
        ValueError: There are fewer than COCO's 17 joints.
    """
    count = len(COCO_NAMES)
    if joints.ndim != 3 or joints.shape[1] < count:
        raise ValueError(
            f"The pose model must return COCO's 17 body joints first, got shape {joints.shape[1:]} per person."
        )
    joints, scores = joints[:, :count].astype(float), scores[:, :count].astype(float)
    # Written so that NaN counts as outside.
    seen = (scores > threshold) & ((joints >= 0) & (joints <= size[::-1])).all(axis=2)
    rows = np.dstack([joints, np.where(seen, scores.clip(0, 1), 0.0)])  # confidence 0 means missing
    people = [Keypoints.from_coco(person, size) for person in rows[seen.any(axis=1)]]
    return sorted(people, key=_prominence, reverse=True)


def _prominence(pose: Keypoints) -> float:
    joints = pose.to_array()[pose.visible]
    return float(np.prod(np.ptp(joints[:, :2], axis=0)) * joints[:, 2].mean())
