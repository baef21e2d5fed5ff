"""One person in many poses: pose sequences read, frames made a few at a time and kept, animations written."""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback

from .io_utils import replacing, write_file
from .models.compilation import uncompiled
from .pipelines.calling import plain_call
from .pipelines.pipeline_output import PoseFeatures
from .pose.formats import Size
from .pose.keypoints import Keypoints
from .processors.pose_map import read_pose_sequence

if TYPE_CHECKING:
    from diffusers.image_processor import PipelineImageInput

    from .pipelines.pipeline_cfld import CFLDPipeline
    from .pipelines.pipeline_output import Appearance

__all__ = ["load_pose_sequence", "render_sequence", "write_animation"]

logger = logging.getLogger(__name__)

_RECORD = "sequence.json"
_ANIMATIONS = (".gif", ".mp4")
# Attributes of peft's layers and of diffusers' IP-Adapter processors.
_ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters", "scale")
_FREEU_STATE = ("s1", "s2", "b1", "b2")  # attributes of diffusers' up blocks


def load_pose_sequence(
    path: str | os.PathLike[str], size: Size | None = None, person: int | None = None
) -> list[Keypoints]:
    """Read the poses of a movement.

    Frames without anybody are filled in between their neighbours (`Keypoints.lerp`), those before the first pose and
    after the last one with these; how many is logged.

    Args:
        path: `.jsonl`: a pose per line in any form of `Keypoints.from_any`, `null` where there is nobody. A folder:
            its `.json` files of OpenPose, in the order of the numbers in their names. `.npy`: an array of shape
            (T, 18, 2 or 3), or with COCO's 17 joints.
        size: (height, width) of the pictures the joints were measured on, pixels; None as in `Keypoints.from_any`.
        person: Which of several people, from 0.

    Returns:
        A pose per frame.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: The content cannot be read, or nobody is in any frame; the message names file and frame.
        TypeError: A pose is of no known form.
    """
    file = Path(path)
    if file.is_dir():
        # Not those that macOS and others hide beside them.
        files = [item for item in file.iterdir() if item.suffix.lower() == ".json" and not item.name.startswith(".")]
        files.sort(key=_natural_order)
        if not files:
            raise ValueError(f"{str(file)!r} has no .json files: it must hold OpenPose's output, a file per frame.")
        frames = [(item.name, _json_or_text(_read_text(item))) for item in files]
    elif not file.is_file():
        raise FileNotFoundError(f"There is no pose sequence at {str(file)!r}.")
    elif file.suffix.lower() == ".jsonl":
        lines = _read_text(file).splitlines()
        numbered = ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
        frames = [(name, _json_or_text(line)) for name, line in numbered]
    elif file.suffix.lower() == ".npy":
        try:
            with file.open("rb") as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{str(file)!r} cannot be read as an array: {error}") from error
        if array.ndim != 3:
            raise ValueError(f"{str(file)!r} must hold an array (T, 18, 2 or 3), got shape {array.shape}.")
        frames = [(f"frame {number}", pose) for number, pose in enumerate(array)]
    else:
        raise ValueError(f"A pose sequence must be a folder, or end in .jsonl or .npy, got {str(file)!r}.")
    poses: list[Keypoints | None] = []
    for name, value in frames:
        try:
            poses.append(_read_frame(value, size, person))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{str(file)!r}, {name}: {error}") from error
    return _fill_gaps(poses, str(file))


def render_sequence(
    pipe: CFLDPipeline,
    poses: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    image: PipelineImageInput | None = None,
    appearance: Appearance | None = None,
    seed: int = 0,
    shared_noise: bool = True,
    micro_batch_size: int = 4,
    **kwargs: Any,
) -> Iterator[Path]:
    """Make the frames of a sequence a few at a time, each written as soon as it is there.

    The source is encoded once. Frames that an earlier run left in the folder are taken as they are, if it was the same
    sequence.

    Args:
        pipe: The pipeline.
        poses: A pose per frame, as of the pipeline. People in pictures of one size are brought into the frame all by
            the same window, so that movement through the picture stays one.
        folder: Where the frames go, `000000.png` and so on; made if need be.
        image: The source photo, as of the pipeline.
        appearance: From `encode_appearance`, in place of `image`.
        seed: Of the noise.
        shared_noise: Give all frames the same noise, which keeps what the pose does not change alike from frame to
            frame. Otherwise frame i has the noise of seed + i.
        micro_batch_size: Frames at once.
        **kwargs: As of the pipeline's call, e.g. `num_inference_steps`, `guidance_scale`, `output_size`. A callback's
            code, and numbers and texts that it holds under public names, are settings: frames made with others are
            not taken.

    Yields:
        The paths of all frames in their order, each once its picture is on the disk; no more after a callback has set
        `_interrupt`.

    Raises:
        ValueError: There is no pose, there are several sources, the folder holds the frames of another sequence, or
            as the pipeline.
        TypeError: `poses` are `PoseFeatures`, or as the pipeline.
        OSError: A frame cannot be written.
        RuntimeError: Another call uses the pipeline or its scheduler at the same moment.
    """
    if isinstance(poses, PoseFeatures):
        raise TypeError(
            "`poses` must be a list with a pose per frame, got `PoseFeatures`: pass what they were made of."
        )
    if len(poses) == 0:
        raise ValueError("`poses` is empty: pass at least one pose.")
    foreign = sorted({"output_type", "return_dict", "num_images_per_prompt", "generator", "latents"} & kwargs.keys())
    if foreign:
        raise ValueError(f"`render_sequence` does not take {', '.join(foreign)}: leave it out.")
    if (image is None) == (appearance is None):
        raise ValueError("Pass either `image` or `appearance` (from `encode_appearance`), and not both.")
    if micro_batch_size < 1:
        raise ValueError(f"`micro_batch_size` must be at least 1, got {micro_batch_size}.")
    if not 0 <= seed < 2**63 - len(poses):
        raise ValueError(f"`seed` must be at least 0 and small enough for one per frame, got {seed}.")
    source = pipe.encode_appearance(image) if appearance is None else appearance
    if len(source) != 1:
        raise ValueError(
            f"A sequence shows one person, got {len(source)} sources: average them with `Appearance.mean`."
        )
    poses = read_pose_sequence(poses, pipe.pose_estimator, shape=pipe.image_shape)
    frames = Path(folder)
    options = {"seed": seed, "shared_noise": shared_noise, **kwargs}
    # Not the encoded source, which may differ by rounding from run to run.
    inputs = [pipe.source_image_processor.preprocess(image)] if image is not None else _tensors(source)
    _claim_folder(frames, {"num_frames": len(poses), "made_from": _digest(pipe, inputs, poses, options)})
    digits = max(6, len(str(len(poses) - 1)))
    paths = [frames / f"{number:0{digits}d}.png" for number in range(len(poses))]
    for first in range(0, len(poses), micro_batch_size):
        batch = range(first, min(first + micro_batch_size, len(poses)))
        missing = [number for number in batch if not paths[number].is_file()]
        if missing:
            seeds = [seed if shared_noise else seed + number for number in missing]
            made: Any = plain_call(
                pipe,
                appearance=source,
                pose=[poses[number] for number in missing],
                generator=[torch.Generator().manual_seed(one) for one in seeds],
                return_dict=False,
                **kwargs,
            )
            if pipe.interrupt:
                return  # what was made is not finished
            for number, picture in zip(missing, made[0], strict=True):
                content = io.BytesIO()
                picture.save(content, format="PNG")
                write_file(paths[number], content.getvalue())
        yield from (paths[number] for number in batch)


def write_animation(
    frames: Iterable[str | os.PathLike[str]], path: str | os.PathLike[str], frames_per_second: float = 12.0
) -> None:
    """Put frames together into an animation that is there completely or not at all.

    Args:
        frames: Picture files of one size, in order, e.g. from [`render_sequence`].
        path: `.gif` (endless) or `.mp4` (MPEG-4 part 2; an odd row or column is repeated).
        frames_per_second: Speed, 0.01 to 1000, at most 50 for `.gif`, there in whole hundredths of a second per frame.

    Raises:
        ValueError: There is no frame, the ending is another, the speed is out of range, or the frames differ in size.
        OSError: A frame cannot be read, or the file cannot be written.
    """
    output = Path(path)
    suffix = output.suffix.lower()
    check_animation(output, frames_per_second)
    frames = list(frames)
    if not frames:
        raise ValueError("`frames` is empty: an animation needs at least one.")
    sizes = set()
    for frame in frames:
        with PIL.Image.open(frame) as picture:
            sizes.add(picture.size)
    if len(sizes) > 1:
        raise ValueError(f"All frames must have one size (width, height), got {sorted(sizes)}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output, keep_suffix=True) as partial:
        (_write_gif if suffix == ".gif" else _write_mp4)(frames, partial, frames_per_second)


def check_animation(path: Path, frames_per_second: float) -> None:
    """Check what [`write_animation`] is going to write, before there are frames.

    Args:
        path: As there.
        frames_per_second: As there.

    Raises:
        ValueError: The ending is another, or the speed is out of range.
    """
    suffix = path.suffix.lower()
    if suffix not in _ANIMATIONS:
        raise ValueError(f"An animation must end in .gif or .mp4, got {str(path)!r}.")
    limit = 50 if suffix == ".gif" else 1000
    if not 0.01 <= frames_per_second <= limit:
        raise ValueError(f"`frames_per_second` must be from 0.01 to {limit}, got {frames_per_second}.")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} must be text in UTF-8, got other bytes ({error.reason}).") from error


def _json_or_text(text: str) -> Any:
    """What a JSON text holds; the text itself if it is none, for the reader to say so."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_frame(value: Any, size: Size | None, person: int | None) -> Keypoints | None:
    """A frame's pose, or None if there is nobody, or not this person."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and "pose_keypoints_2d" in item for item in value)
    ):
        # A lone person may say the canvas.
        value = value[0] if len(value) == 1 and person is None else {"people": value}
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # as ComfyUI's pose nodes write it
    if value is None or (isinstance(value, list) and not value):
        return None
    if isinstance(value, dict) and isinstance(value.get("people"), list):
        people = value["people"]
        if len(people) <= (person or 0):
            return None
        chosen = people[person or 0]
        numbers = chosen.get("pose_keypoints_2d") if isinstance(chosen, dict) else None
        if (person is not None or len(people) == 1) and isinstance(numbers, list) and not any(numbers[2::3]):
            return None
        return Keypoints.from_openpose(value, size, person)
    if person is not None:
        raise ValueError(
            f"`person={person}` is for OpenPose data with a list of people, which this is not: leave it out."
        )
    rows = _rows(value)
    if rows is not None:
        missing = (~np.isfinite(rows[:, :2]) | (rows[:, :2] == -1)).any(axis=1)
        if missing.all() or not rows.any() or (rows.shape[1] == 3 and not (rows[:, 2] > 0).any()):
            return None
    return Keypoints.from_any(value, size)


def _rows(value: Any) -> npt.NDArray[Any] | None:
    """Joints (n, 2 or 3) of an array, of nested or flat lists, or of the field's two columns; None of all else."""
    if isinstance(value, dict) and "keypoints_x" in value and "keypoints_y" in value:
        value = list(zip(value["keypoints_x"], value["keypoints_y"], strict=False))
    if not isinstance(value, (np.ndarray, list)):
        return None
    try:
        rows = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if rows.shape in ((54,), (75,)):
        rows = rows.reshape(-1, 3)
    if rows.shape == (2, 18):
        rows = rows.T
    return rows if rows.ndim == 2 and rows.shape[1] in (2, 3) else None


def _fill_gaps(poses: Sequence[Keypoints | None], name: str) -> list[Keypoints]:
    known = {number: pose for number, pose in enumerate(poses) if pose is not None}
    if not known:
        raise ValueError(f"{name!r} has nobody in any of its {len(poses)} frames.")
    if len(known) < len(poses):
        logger.warning("%s: %d of %d frames have nobody and are filled in.", name, len(poses) - len(known), len(poses))
    numbers = sorted(known)
    filled = []
    for number in range(len(poses)):
        place = bisect.bisect_left(numbers, number)
        after = numbers[min(place, len(numbers) - 1)]
        before = after if number >= after else numbers[max(place - 1, 0)]
        part = (number - before) / (after - before) if before < number < after else 0.0
        filled.append(known[before].lerp(known[after], part) if part else known[before])
    return filled


def _natural_order(path: Path) -> list[Any]:
    """Sort names as people do, `frame2` before `frame10`."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", path.name)]


def _claim_folder(folder: Path, record: dict[str, Any]) -> None:
    """Say what the frames in a folder are; refuse one with those of something else."""
    file = folder / _RECORD
    has_pictures = folder.is_dir() and any(folder.glob("*.png"))
    if file.is_file() and has_pictures:
        try:
            previous = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            previous = None
        if previous != record:
            raise ValueError(
                f"{str(folder)!r} holds frames of another sequence, source, model or setting: choose another folder, "
                "or remove it."
            )
        return
    if has_pictures:
        raise ValueError(f"{str(folder)!r} holds pictures that are no frames of a sequence: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(record, indent=2).encode())


def _tensors(source: Appearance) -> list[torch.Tensor]:
    return [source.prompt_embeds, *source.query_biases.values()]


def _digest(pipe: CFLDPipeline, inputs: Sequence[torch.Tensor], poses: Sequence[Any], options: dict[str, Any]) -> str:
    """What the frames depend on: source, poses, weights, noise schedule and settings."""
    digest = hashlib.sha256()
    for tensor in inputs:
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    for sample in sample_weights(pipe):
        digest.update(sample)
    digest.update(repr(pipe.image_shape).encode())
    for pose in poses:
        numbers = [pose.size, pose.to_array()] if isinstance(pose, Keypoints) else pose
        digest.update(_describe(numbers).encode())
    scheduler = {**dict(pipe.scheduler.config), "class": type(pipe.scheduler).__name__}
    for name, module in uncompiled(pipe.unet).named_modules():
        # How strongly LoRAs, IP-Adapters and FreeU act, and which of them, is no weight.
        state = {key: getattr(module, key, None) for key in _ADAPTER_STATE + _FREEU_STATE}
        if any(value is not None for value in state.values()):
            digest.update(f"{name}{_describe(state)}".encode())
    digest.update(repr(sorted(scheduler.items(), key=repr)).encode() + _describe(options).encode())
    return digest.hexdigest()


def sample_weights(pipe: CFLDPipeline) -> Iterator[bytes]:
    """Take from a pipeline's weights what tells them from others, for a digest.

    Args:
        pipe: The pipeline.

    Yields:
        Name and shape of each, and one of 997 of its numbers where it is not on the meta device.
    """
    for part, component in pipe.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        for name, weight in uncompiled(component).named_parameters():
            yield f"{part}.{name}{tuple(weight.shape)}".encode()
            if not weight.is_meta:  # as under sequential offloading, where the shapes have to do
                yield weight.detach().flatten()[::997].float().cpu().numpy().tobytes()


def _describe(value: Any) -> str:
    """A text that is the same for the same value in every run."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_describe(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, PIL.Image.Image):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        content = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
        return f"{content.shape} {hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()}"
    if isinstance(value, FunctionType):
        # Not its text, which has an address.
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        # Functions by their names, since one may hold itself.
        held = [cell.__qualname__ if isinstance(cell, FunctionType) else _describe(cell) for cell in cells]
        parts = [_describe_code(value.__code__), _describe(value.__defaults__), _describe(value.__kwdefaults__), *held]
        return f"{value.__module__}.{value.__qualname__} {hashlib.sha256(' '.join(parts).encode()).hexdigest()}"
    if isinstance(value, MethodType):
        return f"{_describe(value.__func__)} of {_describe(value.__self__)}"
    if isinstance(value, partial):
        return f"partial {_describe([value.func, value.args, value.keywords])}"
    name = f"{type(value).__module__}.{type(value).__qualname__}"  # not its text, which may differ from run to run
    if isinstance(value, (DiffusionPipeline, torch.nn.Module)):
        return name
    # A callback, or whose method it is: what it does, and the numbers and texts that it was made with.
    kept: Any = dict(value.config) if isinstance(value, PipelineCallback) else getattr(value, "__dict__", {})
    facts = {key: one for key, one in kept.items() if key[:1] != "_" and isinstance(one, (bool, int, float, str))}
    methods = [getattr(type(value), method, None) for method in ("__call__", "callback_fn")]
    codes = [_describe_code(one.__code__) for one in methods if isinstance(one, FunctionType)]
    return f"{name} {codes} {_describe([facts, *getattr(value, 'callbacks', ())])}"


def _describe_code(code: CodeType) -> str:
    constants = [
        _describe_code(one)
        if isinstance(one, CodeType)
        else repr(sorted(one, key=repr) if isinstance(one, frozenset) else one)
        for one in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _write_gif(frames: Sequence[str | os.PathLike[str]], path: Path, frames_per_second: float) -> None:
    def opened(paths: Sequence[str | os.PathLike[str]]) -> Iterator[PIL.Image.Image]:
        for one in paths:
            with PIL.Image.open(one) as picture:
                yield picture.convert("RGB")

    duration = 10 * max(2, round(100 / frames_per_second))  # milliseconds
    first = next(opened(frames[:1]))
    first.save(path, save_all=True, append_images=opened(frames[1:]), duration=duration, loop=0)


def _write_mp4(frames: Sequence[str | os.PathLike[str]], path: Path, frames_per_second: float) -> None:
    import cv2

    with PIL.Image.open(frames[0]) as picture:
        width, height = picture.size
    even = (width + width % 2, height + height % 2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_second, even)
    if not writer.isOpened():
        raise OSError(f"{str(path)!r} cannot be written as MPEG-4: write a .gif or frames.")
    try:
        for frame in frames:
            with PIL.Image.open(frame) as picture:
                pixels = np.asarray(picture.convert("RGB"))[..., ::-1]
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            writer.write(pixels)
    finally:
        writer.release()
