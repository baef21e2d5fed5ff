"""What a pose estimator is, and how pictures become poses with one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import PIL.Image

from ..image_utils import to_rgb, upright
from ..processors.cropping import DEEPFASHION_SIZE, fit_keypoints
from .keypoints import Keypoints

__all__ = ["PoseEstimator", "estimate_pose", "is_image", "load_image", "read_poses", "sort_people"]

_NO_ESTIMATOR = (
    "`pose` is a picture, and the pipeline has no pose estimator to find the joints with: set `pipe.pose_estimator = "
    "ViTPoseEstimator.from_pretrained(...)` (`pip install diffusers-cfld[vitpose]`) or `RTMPoseEstimator(...)` (`pip "
    "install diffusers-cfld[rtmlib]`) of `diffusers_cfld.pose_estimation`, or pass keypoints. A drawn skeleton is "
    "read by `Keypoints.from_skeleton`."
)
_KEYPOINT_SUFFIXES = (".json", ".csv", ".txt", ".npy")


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


def is_image(pose: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    """Tell a picture, opened or by its path, from the other forms of a pose.

    Args:
        pose: Anything.

    Returns:
        Whether it is a PIL image, or a path with the ending of one.
    """
    return isinstance(pose, PIL.Image.Image) or _suffix(pose) in PIL.Image.registered_extensions()


def load_image(picture: PIL.Image.Image | str | os.PathLike[str]) -> PIL.Image.Image:
    """Open a picture unless it is open.

    Args:
        picture: A PIL image or a path.

    Returns:
        The picture, upright.

    Raises:
        OSError: The file does not exist or is no picture.
        ValueError: Its EXIF data are damaged.
    """
    if not isinstance(picture, PIL.Image.Image):
        path = os.fspath(picture)
        try:
            picture = PIL.Image.open(path)
            picture.load()
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no picture at {path!r}.") from None
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise OSError(f"{path!r} cannot be read as a picture: {error}") from error
    return upright(picture)


def read_poses(pose: Any, estimator: PoseEstimator | None, *, shape: tuple[int, int] | None = DEEPFASHION_SIZE) -> Any:
    """Replace pictures and paths among poses by keypoints.

    Args:
        pose: A pose in any form, or a list of poses.
        estimator: For pictures.
        shape: (height, width) of the frame that the person found in a picture is brought into; None: they stay where
            they are in the picture.

    Returns:
        The same with [`Keypoints`] in place of pictures and paths; everything else as it is.

    Raises:
        ValueError: There is a picture and no estimator, or nobody in it; or a file tells no single pose.
        OSError: A file cannot be read.
    """
    if isinstance(pose, (list, tuple)) and any(_is_file(item) for item in pose):
        return [read_poses(item, estimator, shape=shape) if _is_file(item) else item for item in pose]
    if not _is_file(pose):
        return pose
    if not isinstance(pose, PIL.Image.Image) and not is_image(pose):
        try:
            return Keypoints.load(pose)
        except ValueError as error:
            raise ValueError(
                f"{error} (`pose=Keypoints.load(path, size=..., person=..., row=...)` takes what the file lacks.)"
            ) from error
    if estimator is None:
        raise ValueError(_NO_ESTIMATOR)
    picture = load_image(pose)
    try:
        found = estimate_pose(picture, estimator)
        return found if shape is None else fit_keypoints(found, shape=shape)[0]
    except ValueError as error:
        name = "`pose`" if isinstance(pose, PIL.Image.Image) else repr(os.fspath(pose))
        raise ValueError(f"No pose can be taken from {name}: {error}") from error


def read_pose_sequence(
    poses: Sequence[Any], estimator: PoseEstimator | None, *, shape: tuple[int, int] | None = DEEPFASHION_SIZE
) -> list[Any]:
    """Replace pictures and paths among the poses of a sequence by keypoints.

    Args:
        poses: Poses in any form.
        estimator: For pictures.
        shape: (height, width) of the frame that the people found in pictures are brought into, by one window for all
            if the pictures have one size; None: they stay where they are.

    Returns:
        As [`read_poses`].

    Raises:
        ValueError: As [`read_poses`].
        OSError: A file cannot be read.
    """
    read = list(read_poses(list(poses), estimator, shape=None))
    seen = [
        number
        for number, pose in enumerate(poses)
        if isinstance(pose, PIL.Image.Image) or (_is_file(pose) and is_image(pose))
    ]
    if shape is None or not seen:
        return read
    found = [read[number] for number in seen]
    if len({pose.size for pose in found}) == 1:
        fitted = fit_keypoints(found, shape=shape)
    else:
        fitted = [fit_keypoints(pose, shape=shape)[0] for pose in found]
    for number, pose in zip(seen, fitted, strict=True):
        read[number] = pose
    return read


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


def _suffix(pose: object) -> str:
    if isinstance(pose, Path):
        return pose.suffix.lower()
    # JSON and the lines of CSV files are strings too; they end with a bracket.
    return os.path.splitext(pose)[1].lower() if isinstance(pose, str) else ""


def _is_file(pose: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    return is_image(pose) or _suffix(pose) in _KEYPOINT_SUFFIXES
