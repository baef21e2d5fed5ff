"""RTMPose (arXiv:2303.07399) by rtmlib, from local ONNX files."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import numpy as np
import PIL.Image

from ..image_utils import to_rgb
from .estimation import people_from_coco
from .keypoints import Keypoints

__all__ = ["RTMPoseEstimator"]


class RTMPoseEstimator:
    """Find poses with rtmlib's RTMPose, alone or behind its person detector YOLOX.

    rtmlib would fetch what is not on the disk; here it gets local files alone.

    Args:
        pose: ONNX file of RTMPose with SimCC outputs and COCO's 17 body joints first (body, Halpe or whole body).
        detector: ONNX file of YOLOX for persons; None: the picture is one person's.
        device: `cpu`, `cuda`, `cuda:N` or `mps`, as rtmlib names them.
        min_confidence: Joints of at most this score are missing.

    Raises:
        ImportError: rtmlib or onnxruntime is not installed.
        FileNotFoundError: A file is not there.
        ValueError: A file is no such model, or the device is not there.
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
                f"RTMPose needs rtmlib and onnxruntime ({error}): pip install diffusers-cfld[rtmlib]."
            ) from error
        self.min_confidence = min_confidence
        self.pose_model = _load(RTMPose, pose, device)
        self.detector = None if detector is None else _load(YOLOX, detector, device)
        height, width = self.pose_model.session.get_inputs()[0].shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            self.pose_model.model_input_size = (width, height)
        if self.detector is not None:
            height, width = self.detector.session.get_inputs()[0].shape[2:]
            if isinstance(height, int) and isinstance(width, int):
                self.detector.model_input_size = (height, width)

    def __call__(self, image: PIL.Image.Image) -> list[Keypoints]:
        """Estimate the pose of everyone in a picture.

        Args:
            image: The picture, of any mode; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright picture, most prominent first; the neck is the middle of the
            shoulders.

        Raises:
            ValueError: The model does not give COCO's 17 joints.
        """
        image = to_rgb(image)
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])  # rtmlib reads BGR
        boxes = np.array([[0, 0, image.width, image.height]]) if self.detector is None else self.detector(pixels)
        if not len(boxes):
            return []
        joints, scores = self.pose_model(pixels, bboxes=boxes)
        return people_from_coco(joints, scores, (image.height, image.width), self.min_confidence)


def _load(model_class: Any, path: str | os.PathLike[str], device: str) -> Any:
    file = os.fspath(path)
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"There is no ONNX file at {file!r}: download one from the model zoo that rtmlib's README names, and "
            "unpack it."
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # rtmlib prints what it loads
            return model_class(file, backend="onnxruntime", device=device)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ValueError(f"{file!r} cannot be loaded on {device!r}: {' '.join(str(error).split())}") from error
