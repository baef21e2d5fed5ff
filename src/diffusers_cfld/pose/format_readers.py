"""Readers of pose data, one per format; `docs/poses.md` lists the formats.

To add a format, write a function from its data to the people in them, and give it a line in `_READERS`. Objects of
other libraries are read by their attributes as dicts are by their keys, without importing these libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from .formats import (
    COCO_COUNTS,
    COCO_NAMES,
    DEEPFASHION_SIZE,
    FLAT_LENGTHS,
    JOINT_COUNTS,
    MEDIAPIPE_COUNT,
    FloatArray,
    Person,
    as_float_array,
    shorten,
)
from .skeleton import NUM_JOINTS

FORMS = (
    "`Keypoints`, rows (x, y[, confidence]) of 18, 25 or 134 joints in OpenPose's order or of 17, 26, 133 or 136 in "
    "COCO's, MediaPipe's 33 landmarks (x, y, z, visibility), a pair (y, x) of columns, or what OpenPose, COCO, "
    "MMPose, DWPose, ComfyUI, Ultralytics or DeepFashion write (docs/poses.md; a file is read with `Keypoints.load`)"
)


def split_by_image(data: Any) -> dict[str, Any]:
    """Split data by the images that they describe.

    Args:
        data: In any form.

    Returns:
        The data of each image, by its name; everything, without a name, if the data do not tell images apart.

    Raises:
        ValueError: The data cannot be read.
    """
    data = _parse(data)
    for key in ("instance_info", "predictions"):
        if _has(data, key):
            names = _get(_get(data, "meta_info"), "keypoint_id2name")
            _check_names(list(names.values()) if isinstance(names, Mapping) else None)
            return split_by_image(_get(data, key))
    if isinstance(data, Mapping) and "images" in data and "annotations" in data:
        return _split_coco_file(data)
    if isinstance(data, (list, tuple)) and data:
        if any(map(_is_image, data)) and all(item is None or _is_image(item) for item in data):
            return {str(number): item for number, item in enumerate(data)}
        if all(_get(item, "image_id") is not None for item in data):
            images: dict[str, Any] = {}
            for item in data:
                images.setdefault(str(_get(item, "image_id")), []).append(item)
            return images
    by_name = dict(data) if isinstance(data, Mapping) and _find_reader(data) is None else {}
    if by_name and all(isinstance(item, Mapping) and _is_image(item) for item in by_name.values()):
        return by_name
    return {"": data}


def split_frames(images: dict[str, Any]) -> dict[str, Any]:
    """Split the data of a movement into its frames.

    Args:
        images: From [`split_by_image`]; a list of poses, which would be people in one image, is one pose a frame.

    Returns:
        The data of each frame, by its name.
    """
    poses = next(iter(images.values())) if len(images) == 1 else None
    if isinstance(poses, (list, tuple)) and poses and all(map(_is_frame, poses)):
        return {str(number): pose for number, pose in enumerate(poses)}
    return images


def is_one_pose(items: Sequence[Any]) -> bool:
    """Return whether a list is one pose in parts, rather than a list of poses.

    Args:
        items: The list.

    Returns:
        Whether it has MediaPipe's landmarks of one person, or two arrays with joints and their confidences.
    """
    return bool(items) and (all(map(_is_point, items)) or _join_scores(items) is not None)


def parse_csv_row(row: str) -> dict[str, str]:
    """Split a line of DeepFashion's annotation files.

    Args:
        row: `name:[y, ...]:[x, ...]`.

    Returns:
        Its columns, `keypoints_y` and `keypoints_x`.

    Raises:
        ValueError: The line does not have these three parts.
    """
    parts = row.strip().rsplit(":", 2)
    if len(parts) != 3:
        raise ValueError(f"A line of keypoints must have the form `name:[y, ...]:[x, ...]`, got {shorten(row)}.")
    return dict(zip(("keypoints_y", "keypoints_x"), parts[1:], strict=True))


# One reader per format: it gets the data, and the key by which the format was told ----------------------------------


def _read_deepfashion(data: Any, key: str) -> list[Person]:
    return [_read_columns(data["keypoints_y"], data["keypoints_x"])._replace(size=_get(data, "size"))]


def _read_openpose_person(data: Any, key: str) -> list[Person]:
    numbers = _get(data, key)
    # Without a body, such as with a face alone, the entry still counts as a person.
    people = [] if numbers is None else _read_numbers(numbers)
    people = people or [Person(np.full((NUM_JOINTS, 2), np.nan))]
    return _with_size([one._replace(normalized=None) for one in people], data)


def _read_inner(data: Any, key: str, normalized: bool | None = None) -> list[Person]:
    return _with_size(parse_people(_get(data, key), normalized), data)


def _read_bodies(data: Any, key: str) -> list[Person]:
    bodies = _get(data, key)
    people = parse_people(bodies)
    if not isinstance(bodies, (list, tuple)):  # DWPose's; AlphaPose's are in pixels
        people = [one._replace(normalized=True) for one in people]
    return _with_size(people, data)


def _read_body(data: Any, key: str) -> list[Person]:
    return parse_people(_get(_get(data, key), "keypoints"), normalized=True)  # controlnet_aux's `PoseResult`


def _read_candidates(data: Any, key: str) -> list[Person]:
    scores = _get(data, "score", _get(data, "scores"))
    return _with_size(_read_numbers(_pick_candidates(data["candidate"], data["subset"], scores)), data)


def _read_result(data: Any, key: str) -> list[Person]:
    """Joints with their scores under one of several names, of one person or of several."""
    joints = _get(data, key)
    if isinstance(joints, Mapping) and "x" in joints:  # Ultralytics' `summary()`
        joints = np.stack([as_float_array(joints[name], name) for name in ("x", "y", "visible") if name in joints], -1)
    elif joints is None or _is_structured(joints):
        return _with_size(parse_people(joints, normalized=False), data)
    joints = as_float_array(joints, f"`{key}`")
    if joints.ndim == 2 and joints.shape[1] == 2 and len(joints) > NUM_JOINTS and len(joints) % NUM_JOINTS == 0:
        joints = joints.reshape(-1, NUM_JOINTS, 2)  # openpose-editor has one list for all people
    for name in _SCORES if joints.shape[-1:] == (2,) else ():
        scores = as_float_array([] if _get(data, name) is None else _get(data, name), f"`{name}`")
        if scores.shape == joints.shape[:-1]:
            joints = np.concatenate([joints, scores[..., None]], axis=-1)
            break
    if joints.ndim == 2 and len(joints) < len(COCO_NAMES) and _has(data, "labels"):
        rows = np.full((len(COCO_NAMES), joints.shape[1]), np.nan)  # ViTPose leaves out joints below its threshold
        rows[as_float_array(_get(data, "labels"), "`labels`").astype(int)] = joints
        joints = rows
    return _with_size(_read_numbers(joints), data)


def _read_numbers(value: Any) -> list[Person]:
    """Numbers, which their shape tells apart."""
    array = given = as_float_array(value, "A pose")
    if array.size == 0 or array.ndim == 0:  # OpenPose's `Datum` has no dimension if there is nobody
        return []
    normalized, default_size, length = False, None, array.shape[-1] if array.ndim else 0
    if array.ndim <= 2 and length in (39, 56, 57):  # Ultralytics' labels: class, box, joints, perhaps a confidence
        array, normalized = array[..., 5:56], True
        length = array.shape[-1]
    if array.ndim <= 2 and length in FLAT_LENGTHS:
        array = array.reshape(-1, length // FLAT_LENGTHS[length], FLAT_LENGTHS[length])
    elif array.shape in ((2, NUM_JOINTS), (2, 25)):
        return [_read_columns(*array)]
    elif array.shape[-2:-1] in ((NUM_JOINTS,), (len(COCO_NAMES),)):
        default_size = DEEPFASHION_SIZE
    if array.ndim == 2:
        array = array[None]
    is_mediapipe = array.shape[1:2] == (MEDIAPIPE_COUNT,)
    columns = (2, 4, 5) if is_mediapipe else (2, 3)
    if array.ndim != 3 or array.shape[1] not in JOINT_COUNTS or array.shape[2] not in columns:
        raise ValueError(f"A pose must be {FORMS}; got numbers of shape {given.shape}.")
    if is_mediapipe:
        array = array[..., [0, 1, 3] if array.shape[2] > 2 else [0, 1]]  # without the depth
    return [Person(rows, None, normalized, default_size) for rows in array]


def _read_columns(y: Any, x: Any) -> Person:
    columns = [as_float_array(parse_json(side) if isinstance(side, str) else side, "`y` and `x`") for side in (y, x)]
    if columns[0].shape != columns[1].shape or columns[0].shape not in ((NUM_JOINTS,), (25,)):
        shapes = f"{columns[0].shape} and {columns[1].shape}"
        raise ValueError(f"`y` and `x` must have 18 or 25 numbers each, one per joint, got shapes {shapes}.")
    return Person(np.stack(columns[::-1], axis=1), default_size=DEEPFASHION_SIZE)


_read_landmarks = partial(_read_inner, normalized=True)

# The keys or attributes, one of which tells a format; its reader; and whether it has everyone in an image.
_READERS: tuple[tuple[tuple[str, ...], Callable[[Any, str], list[Person]], bool], ...] = (
    (("keypoints_y",), _read_deepfashion, False),
    (("people", "instances", "annotations"), _read_inner, True),
    (("animals",), lambda data, key: [], True),
    (("pose_keypoints_2d", "pose_keypoints"), _read_openpose_person, False),
    (("poseKeypoints",), _read_result, True),
    (("body",), _read_body, False),
    (("bodies",), _read_bodies, True),
    (("candidate",), _read_candidates, True),
    (("pred_instances",), _read_inner, False),
    (("pose_landmarks", "poseLandmarks", "landmarks"), _read_landmarks, True),
    (("pose_world_landmarks", "poseWorldLandmarks", "worldLandmarks"), _read_landmarks, True),
    (("landmark",), _read_landmarks, False),
    (("keypoints", "pred_keypoints", "xy", "joints"), _read_result, False),
)
_SCORES = ("keypoint_scores", "scores", "conf", "keypoint_confidence", "confidence")


# Pieces of the formats ----------------------------------------------------------------------------------------------


def parse_people(data: Any, normalized: bool | None = None) -> list[Person]:
    """Read everyone in an image.

    Args:
        data: In any form.
        normalized: Whether points and numbers are fractions of the image's width and height; None: as the form tells.

    Returns:
        The people, in the order of the data.

    Raises:
        ValueError: The data cannot be read.
        TypeError: The data have none of the known forms.
    """
    data = _parse(data)
    if data is None:
        return []
    if (found := _find_reader(data)) is not None:
        key, read, _ = found
        return read(data, key)
    if isinstance(data, Mapping):
        raise ValueError(f"A pose must be {FORMS}; got a dict with the keys {list(data)[:10]}.")
    if isinstance(data, Sequence) and not isinstance(data, bytes):
        data = list(data)
        if len(data) == 2 and all(isinstance(item, str) for item in data):
            return [_read_columns(*data)]
        if any(map(_is_point, data)) and all(item is None or _is_point(item) for item in data):
            is_fraction = len(data) == MEDIAPIPE_COUNT if normalized is None else normalized
            return [Person(_read_points(data), normalized=is_fraction)]
        if _is_structured(data):
            return [one for item in data for one in parse_people(item, normalized)]
        data = data if (joined := _join_scores(data)) is None else joined
    elif not hasattr(data, "__array__"):
        raise TypeError(f"A pose must be {FORMS}; got {type(data).__name__}.")
    people = _read_numbers(data)
    return [one._replace(normalized=True) for one in people] if normalized else people


def _find_reader(data: Any) -> tuple[str, Callable[[Any, str], list[Person]], bool] | None:
    found = ((key, read, is_image) for keys, read, is_image in _READERS for key in keys if _has(data, key))
    return next(found, None)


def _parse(data: Any) -> Any:
    """What is in a string: JSON, also in a JSON string, or a line of CSV."""
    if not isinstance(data, str):
        return data
    text = data.strip()
    if text.startswith(("{", "[", '"')) or text == "null":
        return _parse(parse_json(text))
    if text.count(":") >= 2 and text.endswith("]"):
        return parse_csv_row(text)
    raise ValueError(f"A pose must be {FORMS}; got the string {shorten(data)}.")


def parse_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: The text.

    Returns:
        What is in it.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A pose must be valid JSON, got {shorten(text)} ({error}).") from error


def _split_coco_file(data: Mapping[str, Any]) -> dict[str, Any]:
    try:
        joint_names = {category["id"]: category.get("keypoints") for category in data.get("categories") or ()}
        people: dict[Any, list[Any]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            if annotation.get("keypoints"):
                _check_names(joint_names.get(annotation.get("category_id")))
                people[annotation["image_id"]].append(annotation)
        images = {str(image.get("file_name", image["id"])): image for image in data["images"]}
        return {name: {**image, "annotations": people[image["id"]]} for name, image in images.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "A COCO file must have `images` with `id`, and `annotations` with `image_id` and `keypoints`; got "
            f"{shorten(str(data))} ({type(error).__name__}: {error})."
        ) from error


def _check_names(names: Sequence[str] | None) -> None:
    """Refuse as many joints as COCO has under other names, such as those of animals."""
    first = [str(name).lower().replace(" ", "_").replace("-", "_") for name in (names or ())[: len(COCO_NAMES)]]
    if names and len(names) in COCO_COUNTS and tuple(first) != COCO_NAMES:
        raise ValueError(
            f"The joints must be named and ordered as COCO's are, {COCO_NAMES[:3]}..., got {first[:3]}..."
        )


def _is_image(item: Any) -> bool:
    """Whether this is all that there is of one image: not a person, who may be one of several."""
    if isinstance(item, (list, tuple)):
        return all(_find_reader(one) is not None for one in item)
    found = _find_reader(item)
    return found is not None and (found[2] or _has(item, "orig_shape"))


def _is_frame(item: Any) -> bool:
    """Whether this is a whole pose, or everyone's: not a part of one, and not one of several people."""
    if isinstance(item, (list, tuple)) and item:
        return isinstance(item[0], (list, tuple)) or len(item) in FLAT_LENGTHS
    return item is None or item == [] or _has(item, "keypoints_y")


def _is_point(item: Any) -> bool:
    return isinstance(_get(item, "x"), Real) and _has(item, "y") and not _has(item, "keypoints")


def _is_structured(item: Any) -> bool:
    """Whether there are people in this, or points, rather than numbers."""
    if isinstance(item, Mapping) or _is_point(item) or _find_reader(item) is not None:
        return True
    return isinstance(item, (list, tuple)) and _is_structured(next((one for one in item if one is not None), None))


def _read_points(points: Sequence[Any]) -> FloatArray:
    """Objects or dicts with x and y as rows, with their confidence if all have one."""
    if all(_get(one, "name") for one in points):
        _check_names([_get(one, "name") for one in points])
    seen = [one for one in points if one is not None]
    keys = [key for key in ("visibility", "score", "confidence") if all(_get(one, key) is not None for one in seen)]
    return as_float_array([[_get(one, key) for key in ("x", "y", *keys[:1])] for one in points], "x and y")


def _join_scores(items: Sequence[Any]) -> FloatArray | None:
    """Rows of a pair (joints, scores), as from rtmlib, or (candidate, subset), as from pytorch-openpose."""
    if len(items) != 2:
        return None
    try:
        joints, scores = (as_float_array(item, "A pose") for item in items)
        if joints.shape[-1:] == (4,) and scores.ndim == 2 and scores.shape[1] == 20:
            return _pick_candidates(joints, scores)
    except (ValueError, TypeError, IndexError):
        return None
    is_pair = joints.shape[-1:] == (2,) and joints.shape[:-1] == scores.shape and scores.shape[-1] in JOINT_COUNTS
    return np.concatenate([joints, scores[..., None]], axis=-1) if is_pair else None


def _pick_candidates(candidate: Any, subset: Any, scores: Any = None) -> FloatArray:
    """The rows that people's subsets choose, -1 for none: (people, 18, 2 or 3)."""
    points = as_float_array(candidate, "`candidate`")
    chosen = as_float_array(subset, "`subset`")[:, :NUM_JOINTS].astype(int)
    rows = np.where((chosen >= 0)[..., None], points[chosen, :3], np.nan)
    if scores is not None and rows.shape[2] == 2:
        rows = np.concatenate([rows, as_float_array(scores, "`score`")[:, :NUM_JOINTS, None]], axis=-1)
    return rows


def _with_size(people: Iterable[Person], data: Any) -> list[Person]:
    """The same people, with the size of their image if the data say it and they do not."""
    sides = [("canvas_height", "canvas_width"), ("height", "width")][: 1 if _has(data, "x") else 2]  # x is of a box
    sizes = [[_get(data, side) for side in pair] for pair in sides]
    sizes += [_get(data, name, ()) for name in ("orig_shape", "ori_shape", "image_size")]
    sizes.append(np.shape(_get(data, "cvInputData")))
    size = next(
        (tuple(size)[:2] for size in sizes if size is not None and len(size) > 1 and size[0] is not None), None
    )
    return [one._replace(size=size if one.size is None else one.size, default_size=None) for one in people]


def _has(data: Any, key: str) -> bool:
    return key in data if isinstance(data, Mapping) else hasattr(data, key)


def _get(data: Any, key: str, default: Any = None) -> Any:
    return data.get(key, default) if isinstance(data, Mapping) else getattr(data, key, default)
