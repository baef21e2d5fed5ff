"""Poses in images, in folders of images and in videos: drawn skeletons, or people whom an estimator finds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import numpy as np
import PIL.Image

from ..image_utils import is_url, path_suffix, to_rgb
from .drawings import read_drawing
from .estimation import PoseEstimator, choose_person
from .keypoints import Keypoints
from .reading import FILE_SUFFIXES

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""The suffixes of videos."""


def find_people(image: PIL.Image.Image, estimator: PoseEstimator | None) -> tuple[list[Keypoints], bool]:
    """Find everyone in an image.

    Args:
        image: A drawn skeleton, which has a background of one colour if there is an estimator, or people.
        estimator: Finds the people in an image that is no drawn skeleton.

    Returns:
        The people (none in an image of one colour), and whether the estimator found them.

    Raises:
        ValueError: The image is no drawn skeleton, and there is no estimator.
    """
    rgb = to_rgb(image)
    if estimator is None or _has_background(rgb):  # as drawings have, so that photos are not looked at twice
        drawn = [Keypoints(*joints) for joints in read_drawing(image)]
        if drawn:
            return drawn, False
    if estimator is not None:
        return estimator(rgb), True
    if np.ptp(np.asarray(rgb), axis=(0, 1)).max() < 16:  # one colour, but for noise
        return [], False
    raise ValueError(
        "The image shows no skeleton as OpenPose, ControlNet and DWPose draw it; there is no pose estimator: set "
        "`pipe.pose_estimator` (`--pose-estimator` on the command line) to `ViTPoseEstimator.from_pretrained(...)` "
        "(`pip install 'diffusers-cfld[vitpose]'`) or `RTMPoseEstimator(...)` (`pip install "
        "'diffusers-cfld[rtmlib]'`) from `diffusers_cfld.pose_estimation`."
    )


def _has_background(rgb: PIL.Image.Image) -> bool:
    """Whether similar colours cover a third of an image."""
    pixels = np.asarray(rgb.resize((64, 64), PIL.Image.Resampling.NEAREST)).reshape(-1, 3)
    counts = np.unique(pixels // 32, axis=0, return_counts=True)[1]
    return bool(counts.max() > len(pixels) // 3)


def find_person(
    image: PIL.Image.Image, estimator: PoseEstimator | None, person: int | None = None
) -> tuple[Keypoints, bool]:
    """Find one person in an image.

    Args:
        image: As in [`find_people`].
        estimator: As in [`find_people`].
        person: Which of several people, from 0: of drawn skeletons from left to right, of people whom an estimator
            finds in its order, which begins with the most prominent. None for this one, or for the only skeleton.

    Returns:
        The pose, and whether the estimator found it.

    Raises:
        ValueError: As in [`find_people`]; there is nobody, or no such person; or none of several skeletons is chosen.
    """
    people, is_estimated = find_people(image, estimator)
    if person is None and is_estimated:
        person = 0
    return choose_person(people, person), is_estimated


def is_series(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether a value is the path of a folder or of a video.

    Args:
        value: Anything.

    Returns:
        Whether it is one.
    """
    if not isinstance(value, (str, os.PathLike)) or is_url(value):
        return False
    return path_suffix(value) in VIDEO_SUFFIXES or os.path.isdir(value)


def list_files(folder: str | os.PathLike[str]) -> list[Path]:
    """List the poses in a folder.

    Args:
        folder: The folder.

    Returns:
        Its `.json` files or, if it has none, its images or else other keypoint files, in the order of the numbers in
        their names; without hidden files, such as macOS writes beside others.
    """
    files = [Path(folder, name) for name in sorted(os.listdir(folder), key=_natural_order) if name[:1] != "."]
    kinds = ([".json"], PIL.Image.registered_extensions(), FILE_SUFFIXES)
    return next(filter(None, ([file for file in files if path_suffix(file) in kind] for kind in kinds)), [])


def read_video(path: str | os.PathLike[str]) -> Iterator[PIL.Image.Image]:
    """Read the frames of a video.

    Args:
        path: The video, in any format that OpenCV can read.

    Yields:
        RGB images.

    Raises:
        OSError: The file does not exist or is no video that can be read.
    """
    with open(path, "rb"):  # for the error of a file that does not exist
        capture = cv2.VideoCapture(os.fspath(path))
    try:
        is_read, pixels = capture.read()
        if not is_read:
            raise OSError(f"{os.fspath(path)!r} cannot be read as a video.")
        while is_read:
            yield PIL.Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
            is_read, pixels = capture.read()
    finally:
        capture.release()


def expand_series(path: str | os.PathLike[str]) -> Iterator[Path | PIL.Image.Image]:
    """Go through a folder or a video.

    Args:
        path: A folder of images or keypoint files, or a video.

    Yields:
        The folder's files, from [`list_files`], or the video's frames.

    Raises:
        OSError: The video cannot be read.
        ValueError: The folder has neither images nor keypoint files.
    """
    if not os.path.isdir(path):
        yield from read_video(path)
        return
    files = list_files(path)
    if not files:
        raise ValueError(f"{os.fspath(path)!r} has neither images nor keypoint files.")
    yield from files


def _natural_order(name: str) -> list[Any]:
    """Sort names as people do, `frame2` before `frame10`."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]
