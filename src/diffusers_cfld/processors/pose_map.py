"""Pose maps: what the pose adapter takes, drawn from keypoints.

Reference implementation: the pose images of YanzuoLu/CFLD's data set code @ f2ea2a7, reproduced from what it computes
(`tests/data/pose_maps.npz`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..image_utils import is_image, load_image, path_suffix
from ..pose.estimation import PoseEstimator, estimate_pose
from ..pose.formats import MAX_DRAWN_COORDINATE, Size
from ..pose.keypoints import BONE_COLORS, JOINT_COLORS, JOINT_NAMES, LIMBS, Keypoints
from .cropping import DEEPFASHION_SIZE, CropWindow, fit_keypoints, padding_crop

__all__ = [
    "POSE_MAP_CHANNELS",
    "PoseInput",
    "PoseProcessor",
    "read_pose_sequence",
    "read_poses",
    "render_pose_map",
    "split_poses",
]

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
"""One pose or several: what `Keypoints.from_any` reads, keypoint files, images of people if there is a pose estimator,
or pose maps."""

POSE_MAP_CHANNELS = 3 + len(JOINT_NAMES)
"""Of a pose map: the colours of the drawn skeleton, and one for each joint."""

# The Gaussian of a joint at a whole pixel is the same everywhere, and a product of its two profiles: one stamp serves
# all joints. Beyond 9 sigma it is below 3e-18 and left at zero.
_SIGMA = 6
_STAMP_RADIUS = 9 * _SIGMA
_PROFILE = np.exp(-(np.arange(-_STAMP_RADIUS, _STAMP_RADIUS + 1) ** 2) / (2 * _SIGMA**2))
_STAMP = np.outer(_PROFILE, _PROFILE).astype(np.float32)

# How far a given pose map may leave [0, 1], for instance by bicubic resizing in half precision.
_RANGE_TOLERANCE = 1e-3

_NO_ESTIMATOR = (
    "`pose` is a picture, and the pipeline has no pose estimator to find the joints with: set `pipe.pose_estimator = "
    "ViTPoseEstimator.from_pretrained(...)` (`pip install diffusers-cfld[vitpose]`) or `RTMPoseEstimator(...)` (`pip "
    "install diffusers-cfld[rtmlib]`) of `diffusers_cfld.pose_estimation`, or pass keypoints. A drawn skeleton is "
    "read by `Keypoints.from_skeleton`."
)
_KEYPOINT_SUFFIXES = (".json", ".csv", ".txt", ".npy")


def render_pose_map(keypoints: Keypoints, size: Size = (256, 256)) -> npt.NDArray[np.float32]:
    """Draw the 21-channel pose map of one person.

    The joints are scaled from their frame to `size`, without regard to the aspect ratio, and truncated to whole
    pixels. Channels 0-2 are the RGB skeleton: anti-aliased bones 2 pixels wide at 60 % of the joint colours, joints
    of radius 3 over them. Channels 3-20 are one Gaussian per joint, exp(-d**2 / (2 * 6**2)) at d pixels from it. Line
    widths and the Gaussian's width are in pixels of the map, whatever its size.

    Args:
        keypoints: The pose. Not modified.
        size: (height, width) of the map, pixels.

    Returns:
        (21, height, width), [0, 1]. A missing joint is an all-zero channel.

    Raises:
        ValueError: `size` is not positive.
        TypeError: `keypoints` is not a `Keypoints`, or `size` is not a pair of whole numbers.
    """
    if not isinstance(keypoints, Keypoints):
        raise TypeError(
            f"`keypoints` must be a `Keypoints`, got {type(keypoints).__name__}: read it with `Keypoints.from_any`."
        )
    scaled = keypoints.rescale(size)
    height, width = scaled.size
    centers = np.trunc(scaled.xy.clip(-MAX_DRAWN_COORDINATE, MAX_DRAWN_COORDINATE)).astype(int).tolist()
    pose_map = np.zeros((POSE_MAP_CHANNELS, height, width), dtype=np.float32)
    skeleton = _draw_skeleton(centers, keypoints.visible.tolist(), scaled.size)
    np.divide(skeleton, np.float32(255), out=pose_map[:3])
    for heat_map, (x, y), seen in zip(pose_map[3:], centers, keypoints.visible, strict=True):
        if seen:
            map_rows, stamp_rows = _overlap(y, height)
            map_columns, stamp_columns = _overlap(x, width)
            heat_map[map_rows, map_columns] = _STAMP[stamp_rows, stamp_columns]
    return pose_map


class PoseProcessor(ConfigMixin):
    """Turn poses in any form users have into the pose maps the pose adapter takes.

    Args:
        height: Height of the maps drawn from keypoints, pixels.
        width: Width of them, pixels.
        image_shape: (height, width) whose aspect ratio the training images had, as of `SourceImageProcessor`.
            Keypoints measured on an image of another shape, unless it has the maps' own size, are moved to where they
            are once that image is padded to it; `fit_keypoints` also crops. None: they are squashed.

    Raises:
        ValueError: `height` or `width` is not a positive whole number.
    """

    # diffusers types the one as None and the other not at all.
    config_name = "pose_processor_config.json"  # type: ignore[assignment, unused-ignore]

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(self, height: int = 256, width: int = 256, image_shape: Size | None = None) -> None:
        for name, length in (("height", height), ("width", width)):
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                raise ValueError(f"`{name}` must be a positive whole number of pixels, got {length!r}.")
        super().__init__()

    def choose_crop(self, size: Size) -> CropWindow:
        """Choose the part of a picture that the maps show.

        Args:
            size: (height, width) of the picture that keypoints were measured on, pixels.

        Returns:
            The whole picture, or a frame of the configured shape around it.
        """
        return padding_crop(size, self.config["image_shape"], (self.config["height"], self.config["width"]))

    def preprocess(self, pose: object, size: Size | None = None) -> torch.Tensor:
        """Make a batch of pose maps.

        Args:
            pose: One of these, none of which is modified:

                - a pose in any form that `Keypoints.from_any` reads, or an array or tensor (B, 18, 2 or 3) of poses
                  (or 17 rows in COCO order);
                - an already rendered map, a floating array or tensor (21, H, W) or (B, 21, H, W) in [0, 1]. It is
                  passed through with its own height, width and device;
                - a list or tuple of the former or of the latter. Maps must agree in height and width.

                A list of numbers, of rows of numbers, or of the field's two columns (y, x) is one pose; an array of
                shape (21, 18, 2) holds 21 poses.
            size: (height, width) of the picture that the keypoints were measured on, pixels; as in
                `Keypoints.from_any`. Without effect on maps.

        Returns:
            (B, 21, H, W), float32, [0, 1] (given maps may leave it by up to 1e-3). H and W are the configured ones
            for keypoints. May share memory with a given tensor.

        Raises:
            ValueError: The list is empty or mixes maps with keypoints, a map has other than 21 channels, is not
                floating, not finite or not in [0, 1], maps differ in size, or a pose cannot be read.
            TypeError: A pose has none of the known forms.
        """
        items = _split_batch(pose)
        are_maps = [is_pose_map(item) for item in items]
        if not items:
            raise ValueError("`pose` is empty: pass at least one pose.")
        if all(are_maps):
            # (21, H, W) or (b, 21, H, W) each -> (B, 21, H, W)
            maps = [_check_map(item) for item in items]
            shapes = sorted({tuple(item.shape[2:]) for item in maps})
            if len(shapes) > 1:
                raise ValueError(f"Pose maps of one call must agree in height and width, got {shapes}: resize them.")
            return maps[0] if len(maps) == 1 else torch.cat(maps)
        if any(are_maps):
            raise ValueError(
                "`pose` must hold either keypoints or rendered pose maps, got a list with both: render the keypoints "
                "with `render_pose_map` first."
            )
        map_size = (self.config["height"], self.config["width"])
        rendered = []
        for index, item in enumerate(items):
            keypoints = _read_pose(item, size, index, len(items))
            rendered.append(render_pose_map(self.choose_crop(keypoints.size).move(keypoints), map_size))
        return torch.from_numpy(rendered[0][None] if len(rendered) == 1 else np.stack(rendered))


def read_poses(
    pose: PoseInput, estimator: PoseEstimator | None, *, shape: tuple[int, int] | None = DEEPFASHION_SIZE
) -> Any:
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
    poses: Sequence[OnePose], estimator: PoseEstimator | None, *, shape: tuple[int, int] | None = DEEPFASHION_SIZE
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


def _draw_skeleton(centers: Sequence[Sequence[int]], visible: Sequence[bool], size: Size) -> npt.NDArray[np.uint8]:
    """Draw bones and joints at whole pixels (x, y); returns (3, H, W), RGB."""
    import cv2

    canvas = np.zeros((*size, 3), dtype=np.uint8)
    for (start, end), color in zip(LIMBS, BONE_COLORS, strict=True):
        if visible[start] and visible[end]:
            cv2.line(canvas, centers[start], centers[end], color, 2, cv2.LINE_AA)
    for center, color, seen in zip(centers, JOINT_COLORS, visible, strict=True):
        if seen:
            cv2.circle(canvas, center, 3, color, -1, cv2.LINE_AA)
    # (H, W, 3) -> (3, H, W)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def _overlap(center: int, length: int) -> tuple[slice, slice]:
    """Return where on an axis of `length` pixels the stamp at `center` falls, and which part of the stamp does."""
    first = center - _STAMP_RADIUS
    start = min(max(first, 0), length)
    stop = min(max(first + len(_STAMP), 0), length)
    return slice(start, stop), slice(start - first, stop - first)


def split_poses(pose: object) -> list[object]:
    """Take a batch apart.

    Args:
        pose: As in [`PoseProcessor.preprocess`].

    Returns:
        Its poses or maps, one by one.
    """
    items = []
    for item in _split_batch(pose):
        items += list(item) if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4 else [item]
    return items


def _split_batch(pose: object) -> list[object]:
    """Return the single poses, maps or stacks of maps that `pose` is made of."""
    if isinstance(pose, (np.ndarray, torch.Tensor)):
        is_batch = pose.ndim == 3 and not is_pose_map(pose)
        return list(pose) if is_batch else [pose]
    if isinstance(pose, (list, tuple)) and not _is_one_pose(pose):
        return list(pose)
    return [pose]


def _is_one_pose(items: Sequence[object]) -> bool:
    """Tell a pose that is written as a list from a list of poses, by what the entries are."""
    if len(items) == 2 and all(isinstance(item, str) and item.lstrip().startswith("[") for item in items):
        # The field's columns (y, x) as JSON. Two whole poses as JSON have nested lists or dicts in them.
        return not any(isinstance(item, str) and item.lstrip()[1:].lstrip().startswith(("[", "{")) for item in items)
    return bool(items) and all(_is_number(item) or _is_number_row(item) for item in items)


def _is_number(item: object) -> bool:
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim == 0
    return isinstance(item, (int, float, np.number))


def _is_number_row(item: object) -> bool:
    # An OpenPose person's 54 or 75 numbers are a whole pose, not a row of one.
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim == 1 and len(item) not in (54, 75)
    return isinstance(item, (list, tuple)) and len(item) not in (54, 75) and all(map(_is_number, item))


def is_pose_map(item: object) -> bool:
    """Tell an array or tensor meant as pose maps from keypoints: it has three axes or more, but no (18, 2) rows.

    Args:
        item: Anything.

    Returns:
        Whether it is one.
    """
    return (
        isinstance(item, (np.ndarray, torch.Tensor))
        and item.ndim >= 3
        and not (item.ndim == 3 and item.shape[1] in (17, 18) and item.shape[2] in (2, 3))
    )


def _check_map(item: object) -> torch.Tensor:
    """Return a given map as (b, 21, H, W) float32 after checking it."""
    if isinstance(item, np.ndarray):
        if item.dtype.kind != "f":
            raise ValueError(f"A pose map must be floating in [0, 1], got {item.dtype}: divide 8-bit values by 255.")
        # A copy, since torch cannot share arrays that are read-only, flipped or of foreign byte order. Values too
        # large for float32 become infinite, which the range check below finds.
        with np.errstate(over="ignore"):
            item = torch.from_numpy(np.array(item, dtype=np.float32, order="C"))
    if not isinstance(item, torch.Tensor):
        raise TypeError(f"A pose map must be an array or tensor, got {type(item).__name__}.")
    shape = tuple(item.shape)
    if item.ndim not in (3, 4) or shape[-3] != POSE_MAP_CHANNELS or not item.numel():
        raise ValueError(
            f"A pose map must have shape (21, H, W) or (B, 21, H, W), channels 3 + 18 joints, got {shape}. "
            "Build it with `render_pose_map`, or pass keypoints."
        )
    if not item.is_floating_point():
        raise ValueError(f"A pose map must be floating in [0, 1], got {item.dtype}: divide 8-bit values by 255.")
    item = item.to(torch.float32)
    low, high = (float(bound) for bound in torch.aminmax(item.detach()))
    # aminmax passes NaN on, and a comparison with NaN is false.
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        raise ValueError(f"A pose map must be finite and in [0, 1], got values from {low:g} to {high:g}.")
    return item if item.ndim == 4 else item[None]


def _read_pose(item: object, size: Size | None, index: int, count: int) -> Keypoints:
    try:
        return Keypoints.from_any(item, size)
    except (TypeError, ValueError) as error:
        if count == 1:
            raise
        raise type(error)(f"Pose {index} of {count}: {error}") from error


def _is_file(pose: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    return is_image(pose) or path_suffix(pose) in _KEYPOINT_SUFFIXES
