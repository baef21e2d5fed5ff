"""Turn poses in any form into pose maps, the input of the pose adapter.

Reference implementation: the pose images of YanzuoLu/CFLD's data set code @ f2ea2a7, reproduced from its results
(`tests/data/pose_maps.npz`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..image_utils import is_image, load_image, path_suffix
from ..pose.estimation import PoseEstimator
from ..pose.format_readers import is_one_pose
from ..pose.formats import DEEPFASHION_SIZE, FLAT_LENGTHS, JOINT_COUNTS, Size
from ..pose.images import expand_series, find_person, is_series
from ..pose.keypoints import Keypoints
from ..pose.reading import FILE_SUFFIXES
from ..pose.skeleton import NUM_JOINTS, draw_skeleton
from .cropping import CropWindow, choose_crop, fit_keypoints, has_shape, padding_crop

OnePose: TypeAlias = (
    Keypoints
    | PIL.Image.Image
    | str
    | os.PathLike[str]
    | Mapping[str, Any]
    | npt.NDArray[Any]
    | torch.Tensor
    | Sequence[float]
    | Sequence[Sequence[float]]
)
PoseInput: TypeAlias = OnePose | Sequence[OnePose]
"""One pose or several: what `Keypoints.from_any` reads, keypoint files, images of people with a pose estimator,
or pose maps."""

POSE_MAP_CHANNELS = 3 + NUM_JOINTS
"""Number of channels of a pose map: the colours of the drawn skeleton, and one for each joint."""

# The Gaussian of a joint at a whole pixel is the same everywhere, so one stamp serves all joints. Beyond 9 sigma it is
# below 3e-18 and is left at zero.
_SIGMA = 6
_STAMP_RADIUS = 9 * _SIGMA
_PROFILE = np.exp(-(np.arange(-_STAMP_RADIUS, _STAMP_RADIUS + 1) ** 2) / (2 * _SIGMA**2))
_STAMP = np.outer(_PROFILE, _PROFILE).astype(np.float32)

# How far the values of a given pose map may lie outside [0, 1], for instance after bicubic resizing in half precision.
_RANGE_TOLERANCE = 1e-3


def render_pose_map(keypoints: Keypoints, size: Size = (256, 256)) -> npt.NDArray[np.float32]:
    """Draw the 21-channel pose map of one person.

    The joints are scaled from the size of their image to `size`, whatever the aspect ratios, and truncated to whole
    pixels. Channels 0-2 are the RGB skeleton: anti-aliased bones 2 pixels wide at 60 % of the joint colours, and over
    them joints of radius 3. Channels 3-20 have one Gaussian per joint, exp(-d**2 / (2 * 6**2)) at d pixels from the
    joint. The widths of lines and Gaussians are in pixels of the map, whatever its size.

    Args:
        keypoints: The pose. Not modified.
        size: (height, width) of the map, pixels.

    Returns:
        (21, height, width), [0, 1]. A missing joint is an all-zero channel.

    Raises:
        ValueError: `size` is not a pair of positive whole numbers.
    """
    scaled = keypoints.rescale(size)
    height, width = scaled.size
    centers = np.trunc(scaled.xy)
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    draw_skeleton(canvas, centers, keypoints.visible, joint_radius=3)
    pose_map = np.zeros((POSE_MAP_CHANNELS, height, width), dtype=np.float32)
    np.divide(canvas.transpose(2, 0, 1), np.float32(255), out=pose_map[:3])
    for heat_map, (x, y), seen in zip(pose_map[3:], centers, keypoints.visible, strict=True):
        if seen:
            map_rows, stamp_rows = _overlap(int(y), height)
            map_columns, stamp_columns = _overlap(int(x), width)
            heat_map[map_rows, map_columns] = _STAMP[stamp_rows, stamp_columns]
    return pose_map


class PoseProcessor(ConfigMixin):
    """Turn poses in any form into the pose maps that the pose adapter takes.

    Args:
        height: Height of the maps drawn from keypoints, pixels.
        width: Width of these maps, pixels.
        image_shape: (height, width) with the aspect ratio of the training images, as in `SourceImageProcessor`. If
            keypoints were measured on an image with another aspect ratio, they are moved as if that image were padded
            to this one (unless it has the size of the maps); `fit_keypoints` also crops. None: they are squashed.
    """

    # diffusers types this attribute as None and the decorator below not at all.
    config_name = "pose_processor_config.json"  # type: ignore[assignment, unused-ignore]

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, height: int = 256, width: int = 256, image_shape: Size | None = None) -> None:
        super().__init__()

    def choose_crop(self, size: Size) -> CropWindow:
        """Choose the part of an image that the maps show.

        Args:
            size: (height, width) of the image that keypoints were measured on, pixels.

        Returns:
            The whole image, or a window of the configured aspect ratio around it.
        """
        return padding_crop(size, self.config["image_shape"], (self.config["height"], self.config["width"]))

    def preprocess(self, pose: PoseInput, size: Size | None = None) -> torch.Tensor:
        """Make a batch of pose maps.

        Args:
            pose: One of the following; it is not modified:

                - a pose in any form that `Keypoints.from_any` reads, or an array or tensor (B, 18, 2 or 3) of poses
                  (or with 17 rows in COCO order);
                - a pose map, that is, a floating-point array or tensor (21, H, W) or (B, 21, H, W) in [0, 1], which
                  keeps its own height, width and device;
                - a list or tuple of poses or of maps. Maps must agree in height and width.

                A list of numbers, of rows of numbers, or of DeepFashion's two columns (y, x) is one pose; an array of
                shape (21, 18, 2) holds 21 poses.
            size: (height, width) of the image that the keypoints were measured on, pixels; as in
                `Keypoints.from_any`. It has no effect on maps.

        Returns:
            (B, 21, H, W), float32, [0, 1] (values of given maps may exceed this range by 1e-3). For keypoints, H and W
            are the configured ones.

        Raises:
            ValueError: The list is empty, a pose cannot be read, or a map does not have 21 channels or does not have
                finite floating-point values in [0, 1].
            TypeError: A pose has none of the known forms.
            RuntimeError: Maps differ in size.
        """
        items = split_poses(pose)
        if not items:
            raise ValueError("`pose` is empty: pass at least one pose.")
        if all(is_pose_map(item) for item in items):
            return torch.stack([_read_map(item) for item in items])
        map_size = (self.config["height"], self.config["width"])
        maps = []
        for index, item in enumerate(items):
            try:
                keypoints = Keypoints.from_any(item, size)
            except (TypeError, ValueError) as error:
                place = f"Pose {index} of {len(items)}: " if len(items) > 1 else ""
                raise type(error)(f"{place}{error}") from error
            maps.append(render_pose_map(self.choose_crop(keypoints.size).move(keypoints), map_size))
        return torch.from_numpy(np.stack(maps))


def read_poses(pose: PoseInput, estimator: PoseEstimator | None, *, shape: Size | None = DEEPFASHION_SIZE) -> Any:
    """Replace images, videos and paths among poses by keypoints.

    Args:
        pose: A pose in any form, or a list of poses. A folder or a video is a list of poses.
        estimator: Finds the people in images that are no drawn skeletons.
        shape: (height, width) with the aspect ratio that the person in an image is cropped to, unless it is a drawn
            skeleton with this aspect ratio; None: not cropped.

    Returns:
        The same poses, with `Keypoints` instead of images and paths.

    Raises:
        ValueError: There is nobody in an image, or it is no drawn skeleton and there is no estimator; or a file does
            not hold a single pose.
        OSError: A file cannot be read.
    """
    items = pose if isinstance(pose, (list, tuple)) else [pose]
    if not any(is_series(item) or _is_file(item) for item in items):
        return pose
    poses = [_fit(*_read(item, estimator, shape)) for item in _expand(items)]
    return poses if items is pose or is_series(pose) else poses[0]


def read_pose_sequence(
    poses: Sequence[OnePose], estimator: PoseEstimator | None, *, shape: Size | None = DEEPFASHION_SIZE
) -> list[Any]:
    """Replace images, videos and paths among the poses of a sequence by keypoints.

    Args:
        poses: Poses in any form.
        estimator: As in [`read_poses`].
        shape: As in [`read_poses`]; all people in images are cropped with the same window if the images have one size.

    Returns:
        See [`read_poses`].

    Raises:
        ValueError: See [`read_poses`].
        OSError: A file cannot be read.
    """
    read = [_read(pose, estimator, shape) for pose in _expand(poses)]
    people = [found for found, crop_shape in read if crop_shape]
    if len({pose.size for pose in people}) != 1:
        return [_fit(found, crop_shape) for found, crop_shape in read]
    window = choose_crop(people[0].size, people, shape=shape or DEEPFASHION_SIZE)
    return [window.move(found) if crop_shape else found for found, crop_shape in read]


def _expand(poses: Sequence[Any]) -> Iterator[Any]:
    for pose in poses:
        yield from expand_series(pose) if is_series(pose) else [pose]


def _read(pose: Any, estimator: PoseEstimator | None, shape: Size | None) -> tuple[Any, Size | None]:
    """A pose, read if it is an image or a file; and the shape that the person in it should be cropped to."""
    if not _is_file(pose):
        return pose, None
    if not isinstance(pose, PIL.Image.Image) and not is_image(pose):
        return Keypoints.load(pose), None
    image = load_image(pose)
    try:
        found, is_estimated = find_person(image, estimator)
    except ValueError as error:
        name = "`pose`" if isinstance(pose, PIL.Image.Image) else repr(os.fspath(pose))
        raise type(error)(f"No pose can be read from {name}: {error}") from error
    is_cropped = shape is not None and (is_estimated or not has_shape(found.size, shape))
    return found, shape if is_cropped else None


def _fit(pose: Any, crop_shape: Size | None) -> Any:
    return pose if crop_shape is None else fit_keypoints(pose, shape=crop_shape)[0]


def split_poses(pose: PoseInput) -> list[Any]:
    """Split a batch.

    Args:
        pose: As in [`PoseProcessor.preprocess`].

    Returns:
        The poses or maps, one by one.
    """
    entries: Any = [pose] if not isinstance(pose, (list, tuple)) or _is_one_pose(pose) else pose
    items: list[Any] = []
    for item in entries:
        axes = 3 if is_pose_map(item) else 2
        is_batch = isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == axes + 1
        items.extend(item if is_batch else [item])
    return items


def is_pose_map(item: object) -> bool:
    """Return whether a value is an array or tensor of pose maps: it has three axes or more, but no rows of joints.

    Args:
        item: Anything.

    Returns:
        Whether it is one, and not keypoints.
    """
    if not isinstance(item, (np.ndarray, torch.Tensor)) or item.ndim < 3:
        return False
    is_poses = item.ndim == 3 and item.shape[1] in JOINT_COUNTS and item.shape[2] in (2, 3, 4, 5)
    return not is_poses


def _overlap(center: int, length: int) -> tuple[slice, slice]:
    """Which part of an axis of `length` pixels the stamp at `center` covers, and which part of the stamp does so."""
    first = center - _STAMP_RADIUS
    start = min(max(first, 0), length)
    stop = min(max(first + len(_STAMP), 0), length)
    return slice(start, stop), slice(start - first, stop - first)


def _read_map(item: Any) -> torch.Tensor:
    """Return a given map as (21, H, W) float32 after checking it."""
    if isinstance(item, np.ndarray) and item.dtype.kind == "f":
        # A copy, because torch cannot share arrays that are read-only, flipped or in another byte order.
        item = torch.from_numpy(np.array(item, dtype=np.float32, order="C"))
    is_float = isinstance(item, torch.Tensor) and item.is_floating_point()
    if not is_float or item.ndim != 3 or len(item) != POSE_MAP_CHANNELS or 0 in item.shape:
        raise ValueError(
            "A pose map must hold floats in [0, 1] and have shape (21, H, W) or (B, 21, H, W), got "
            f"{item.dtype} of shape {tuple(item.shape)}: use `render_pose_map` or pass keypoints."
        )
    low, high = (float(bound) for bound in torch.aminmax(item.detach()))
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # also false for NaN
        raise ValueError(f"A pose map must hold values in [0, 1], got {low:g} to {high:g}.")
    return item.to(torch.float32)


def _is_one_pose(items: Sequence[Any]) -> bool:
    """Whether a list is one pose rather than a list of poses, which its entries show."""
    if len(items) == 2 and all(isinstance(item, str) and item.lstrip().startswith("[") for item in items):
        # DeepFashion's columns (y, x) as JSON. In two whole poses as JSON there are nested lists or dicts.
        return not any(item.lstrip()[1:].lstrip().startswith(("[", "{")) for item in items)
    return is_one_pose(items) or (bool(items) and all(_is_number(item) or _is_number_row(item) for item in items))


def _is_number(item: Any) -> bool:
    return isinstance(item, (int, float)) or getattr(item, "ndim", None) == 0


def _is_number_row(item: Any) -> bool:
    # A list with all numbers of a person is a whole pose, not one row of a pose.
    is_row = all(map(_is_number, item)) if isinstance(item, (list, tuple)) else getattr(item, "ndim", None) == 1
    return is_row and len(item) not in FLAT_LENGTHS


def _is_file(pose: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    return is_image(pose) or path_suffix(pose) in FILE_SUFFIXES
