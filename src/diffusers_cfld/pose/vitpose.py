"""ViTPose of transformers (arXiv:2204.12484), alone or behind a person detector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.utils import is_scipy_available

from ..image_utils import to_rgb
from .estimation import people_from_coco
from .keypoints import Keypoints

__all__ = ["ViTPoseEstimator"]


class ViTPoseEstimator:
    """Find poses with transformers' ViTPose.

    It looks at one person at a time: without a detector the whole picture is taken for one, which suits photos of a
    single person.

    Args:
        model: A `VitPoseForPoseEstimation`.
        processor: Its `VitPoseImageProcessor`.
        detector: A model for object detection with a class `person`, e.g. RT-DETR.
        detector_processor: Its image processor.
        min_confidence: Joints of at most this score are missing.
        min_detection_score: People of less are left out.

    Raises:
        ImportError: SciPy is not installed, which the processor needs.
        ValueError: The detector knows no persons, or its processor is missing.
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
        if not is_scipy_available():
            raise ImportError("ViTPose needs SciPy: pip install diffusers-cfld[vitpose].")
        self.model, self.processor = model.eval(), processor
        self.detector = None if detector is None else detector.eval()
        self.detector_processor = detector_processor
        self.min_confidence, self.min_detection_score = min_confidence, min_detection_score
        if detector is not None:
            if detector_processor is None:
                raise ValueError("`detector` needs its `detector_processor`.")
            labels = detector.config.id2label
            self._person_labels = [index for index, label in labels.items() if str(label).lower() == "person"]
            if not self._person_labels:
                raise ValueError(
                    f"`detector` must have a class 'person', got {sorted(map(str, labels.values()))[:10]}."
                )

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
            detector: Object detection, e.g. `PekingU/rtdetr_r50vd_coco_o365`; None: the picture is one person's.
            device: Where they run.
            min_confidence: As in the constructor.
            min_detection_score: As in the constructor.
            detector_kwargs: For transformers' `from_pretrained` of the detector, over those below, e.g. `revision`.
            **kwargs: For transformers' `from_pretrained`, e.g. `revision`, `token`, `local_files_only`. What tells a
                place in a repository, `revision` and `subfolder`, is not the detector's.

        Returns:
            The estimator.

        Raises:
            OSError: A model is not there or cannot be fetched.
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
        """Estimate the pose of everyone in a picture.

        Args:
            image: The picture, of any mode; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright picture, most prominent first; the neck is the middle of the
            shoulders.
        """
        image = to_rgb(image)
        boxes = self._find_people(image)
        if not len(boxes):
            return []
        inputs = self.processor(image, boxes=[boxes], return_tensors="pt").to(self.model.device, self.model.dtype)
        if self.model.config.backbone_config.num_experts > 1:
            # The mixture's expert 0 is COCO's.
            inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.int64, device=self.model.device)
        outputs = self.model(**inputs)
        outputs.heatmaps = outputs.heatmaps.float().cpu()
        (people,) = self.processor.post_process_pose_estimation(outputs, boxes=[boxes], threshold=None)
        joints = np.stack([person["keypoints"].numpy() for person in people])
        scores = np.stack([person["scores"].numpy() for person in people])
        return people_from_coco(joints, scores, (image.height, image.width), self.min_confidence)

    def _find_people(self, image: PIL.Image.Image) -> np.ndarray:
        """Boxes (left, top, width, height), one row per person."""
        if self.detector is None:
            return np.array([[0.0, 0.0, image.width, image.height]])
        inputs = self.detector_processor(image, return_tensors="pt").to(self.detector.device, self.detector.dtype)
        (found,) = self.detector_processor.post_process_object_detection(
            self.detector(**inputs), threshold=self.min_detection_score, target_sizes=[(image.height, image.width)]
        )
        is_person = torch.isin(found["labels"].cpu(), torch.tensor(self._person_labels))
        boxes = found["boxes"].float().cpu()[is_person].numpy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes
