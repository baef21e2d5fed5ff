"""What a pose estimator is, and how the people that it finds become poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image

from ..image_utils import to_rgb
from .keypoints import Keypoints

__all__ = ["PoseEstimator", "estimate_pose", "people_from_coco", "sort_people"]


@runtime_checkable
class PoseEstimator(Protocol):
    """Finds the people of a picture."""

    def __call__(self, image: PIL.Image.Image) -> list[Keypoints]:
        """Estimate the pose of everyone in a picture.

        Args:
            image: The picture; its EXIF rotation is applied.

        Returns:
            One pose per person, in pixels of the upright picture, the most prominent person first; empty if there is
            nobody.
        """
        ...


def estimate_pose(image: PIL.Image.Image, estimator: PoseEstimator, person: int = 0) -> Keypoints:
    """Estimate the pose of one person.

    Args:
        image: The picture; its EXIF rotation is applied.
        estimator: Finds the people.
        person: Which of several, from 0, the most prominent one.

    Returns:
        The pose, in pixels of the upright picture.

    Raises:
        ValueError: There is no such person in the picture.
        TypeError: `image` is not a PIL image.
    """
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(f"`image` must be a PIL image, got {type(image).__name__}.")
    people = estimator(to_rgb(image))
    if isinstance(people, Keypoints):
        raise TypeError("A pose estimator must return a list with a pose for each person, got one `Keypoints`.")
    if not people:
        raise ValueError("Nobody was found in the picture: is the person large and whole enough?")
    if not 0 <= person < len(people):
        raise ValueError(f"`person` must be from 0 to {len(people) - 1}, the people in the picture, got {person}.")
    return people[person]


def sort_people(people: Sequence[Keypoints]) -> list[Keypoints]:
    """Put the most prominent person first.

    Args:
        people: In any order.

    Returns:
        Sorted by the area that the joints span times their mean confidence.
    """

    def prominence(pose: Keypoints) -> float:
        joints = pose.to_array()[pose.visible]
        return float(np.prod(np.ptp(joints[:, :2], axis=0)) * joints[:, 2].mean())

    return sorted(people, key=prominence, reverse=True)


def people_from_coco(
    joints: np.ndarray, scores: np.ndarray, size: tuple[int, int], threshold: float
) -> list[Keypoints]:
    """Turn an estimator's arrays into poses.

    Args:
        joints: (people, 17 or more, 2), COCO's body joints first, pixels.
        scores: (people, 17 or more).
        size: (height, width) of the picture.
        threshold: Joints of at most this score are missing, as are those outside of the picture.

    Returns:
        The people with at least one joint, most prominent first.

    Raises:
        ValueError: The model does not give COCO's 17 joints.
    """
    if joints.ndim != 3 or joints.shape[1] < 17:
        raise ValueError(
            f"A pose model with COCO's 17 body joints first is needed, got one that gives {joints.shape[1:]} each."
        )
    height, width = size
    people = []
    for xy, score in zip(joints[:, :17].astype(float), scores[:, :17].astype(float), strict=True):
        with np.errstate(invalid="ignore"):
            seen = np.isfinite(xy).all(axis=1) & (score > threshold)
            seen &= (xy >= 0).all(axis=1) & (xy[:, 0] <= width) & (xy[:, 1] <= height)
        if seen.any():
            rows = np.where(seen[:, None], np.column_stack([xy, score.clip(0, 1)]), (-1.0, -1.0, 0.0))
            people.append(Keypoints.from_coco(rows, size))
    return sort_people(people)
