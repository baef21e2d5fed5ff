"""One person in many poses: read a sequence of poses, make its frames a few at a time, and write an animation."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from .image_utils import is_image, load_image
from .io_utils import replacing, write_file
from .pose.format_readers import split_frames
from .pose.formats import NobodyError, Size, warn_if_swapped
from .pose.images import expand_series, find_people, find_person, is_series
from .pose.keypoints import Keypoints
from .pose.reading import choose_image, choose_person, load_images, read_people
from .processors.pose_map import read_pose_sequence

if TYPE_CHECKING:
    from .pipelines.pipeline_cfld import CFLDPipeline
    from .pipelines.pipeline_output import Appearance
    from .pose.estimation import PoseEstimator
    from .processors.pose_map import OnePose
    from .processors.source_image import ImageInput

logger = logging.getLogger(__name__)


# Neighbouring poses jump if their joints are further apart than this share of the larger one's height or width.
_MAX_STEP = 0.5


def load_pose_sequence(
    path: str | os.PathLike[str],
    size: Size | None = None,
    person: int | None = None,
    normalized: bool = False,
    estimator: PoseEstimator | None = None,
) -> list[Keypoints]:
    """Read the poses of a movement.

    If there are several people, the one chosen in the first frame is followed: in each frame, whoever's joints are
    nearest to those in the frame before (by their mean distance). A warning names frames to which the pose jumps by
    more than half of its height or width. Frames in which nobody was found are interpolated between their neighbours
    (`Keypoints.lerp`); those before the first pose and after the last one repeat that pose. A warning says how many
    there are.

    Args:
        path: `.json`: a list of poses or of everyone in each image (ComfyUI), results of several images (AlphaPose,
            MMPose), or a COCO file. `.jsonl`: one frame per line in any form that `Keypoints.from_any` reads, `null`
            for frames without anybody. A folder: its `.json` files, e.g. OpenPose's, or else its images, in the order
            of the numbers in their names. A video (`.mp4`, `.gif` and so on). Images and videos show drawn skeletons,
            or people whom `estimator` finds. `.npy`: an array of shape (T, joints, 2 or 3), or
            (T, people, joints, 2 or 3).
        size: (height, width) in pixels of the images that the joints were measured on; None as in
            `Keypoints.from_any`.
        person: Which of several people in the first frame, from 0.
        normalized: As in `Keypoints.from_any`.
        estimator: Finds the people in images that are no drawn skeletons.

    Returns:
        One pose per frame.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        OSError: An image or the video cannot be read.
        ValueError: The content cannot be read, or no frame has a person; the message names the file and the frame.
    """
    file, place = Path(path), ""
    poses: list[Keypoints | None] = []
    try:
        for place, value in _read_frames(file):  # noqa: B007 - the error says where
            poses.append(_read_pose(value, size, person, normalized, _expect_pose(poses), estimator))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"Cannot read poses from {str(file)!r}{place}: {error}") from error
    filled = _fill_gaps(poses, file)
    if len({pose.size for pose in filled}) == 1:
        warn_if_swapped(np.concatenate([pose.xy[pose.visible] for pose in filled]), filled[0].size)
    return filled


def render_sequence(
    pipe: CFLDPipeline,
    poses: Sequence[OnePose],
    folder: str | os.PathLike[str],
    *,
    image: ImageInput | None = None,
    appearance: Appearance | None = None,
    seed: int = 0,
    shared_noise: bool = True,
    micro_batch_size: int = 4,
    **kwargs: Any,
) -> Iterator[Path]:
    """Make the frames of a sequence a few at a time, and write each as soon as it is made.

    The source is encoded once. Frames that an earlier run left in the folder are kept if `sequence.json` beside them
    names the same model, the same image, poses and scheduler (by their SHA-256), the same LoRAs (by their adapters'
    names) and the same options; otherwise they are refused. Options that JSON cannot hold, such as callbacks
    and embeddings, are not recorded: if you change them, choose another folder.

    Args:
        pipe: The pipeline; `CFLDPipeline.from_pipe` makes one from another pipeline.
        poses: One pose per frame, in any form that the pipeline takes. If people are found in images of one size, all
            are cropped with the same window, so that their movement through the image is kept.
        folder: Where the frames go, as `000000.png` and so on; created if it does not exist.
        image: The source image, as in the pipeline's call.
        appearance: From `encode_appearance`, instead of `image`.
        seed: Seed of the noise.
        shared_noise: Give all frames the same noise, so that what does not depend on the pose stays similar from frame
            to frame. Otherwise frame i has the noise of seed + i.
        micro_batch_size: How many frames to make at once.
        **kwargs: As in the pipeline's call, e.g. `num_inference_steps`, `guidance_scale`, `output_size`.

    Yields:
        The paths of all frames in order, each as soon as its image is on the disk. They end once a callback has set
        `_interrupt`.

    Raises:
        ValueError: There are several sources, or both `image` and `appearance`; the folder has frames of another
            sequence; or as in the pipeline's call.
        TypeError: As in the pipeline's call.
        OSError: A frame cannot be written.
    """
    if image is not None and appearance is None:
        # The note has the digest of an image itself, since its encoding may differ by rounding from run to run.
        source, inputs = pipe.encode_appearance(image), [pipe.source_image_processor.preprocess(image)]
    elif appearance is not None and image is None:
        source, inputs = appearance, [appearance.prompt_embeds, *appearance.query_biases.values()]
    else:
        raise ValueError("Pass exactly one of `image` and `appearance` (from `encode_appearance`).")
    if len(source) != 1:
        raise ValueError(f"A sequence shows one person, got {len(source)} sources: combine them by `Appearance.mean`.")
    poses = read_pose_sequence(poses, pipe.pose_estimator, shape=pipe.image_shape)
    setup = str(sorted((name, value) for name, value in pipe.scheduler.config.items() if name[0] != "_"))
    inputs.append(torch.tensor(list(setup.encode())))
    tensors = itertools.chain(inputs, map(pipe.pose_processor.preprocess, poses))
    digest = digest_arrays(tensor.float().cpu().numpy() for tensor in tensors)
    frames = Path(folder)
    paths = [frames / f"{number:06d}.png" for number in range(len(poses))]
    options = {"seed": seed, "shared_noise": shared_noise, "scheduler": type(pipe.scheduler).__name__, **kwargs}
    if getattr(pipe.unet, "peft_config", None):
        options["adapters"] = pipe.get_active_adapters()
    claim_images(frames / "sequence.json", frames.glob("*.png"), pipe.name_or_path, options, digest)
    for first in range(0, len(poses), micro_batch_size):
        batch = range(len(poses))[first : first + micro_batch_size]
        missing = [number for number in batch if not paths[number].is_file()]
        if missing:
            seeds = [seed if shared_noise else seed + number for number in missing]
            (made,) = pipe(
                appearance=source,
                pose=[poses[number] for number in missing],
                generator=[torch.Generator().manual_seed(one) for one in seeds],
                num_images_per_prompt=1,
                output_type="pil",
                return_dict=False,
                **kwargs,
            )
            if pipe.interrupt:
                return  # these frames are not finished
            for number, frame in zip(missing, made, strict=True):
                with replacing(paths[number], keep_suffix=True) as partial:
                    frame.save(partial)
        yield from (paths[number] for number in batch)


def write_animation(
    frames: Iterable[str | os.PathLike[str]], path: str | os.PathLike[str], frames_per_second: float = 12.0
) -> None:
    """Write frames as an animation; an interruption leaves no half-written file.

    Args:
        frames: Image files of one size, in order, e.g. from [`render_sequence`].
        path: `.gif` (repeated endlessly) or `.mp4` (MPEG-4 part 2; an odd last row or column is repeated).
        frames_per_second: Speed, above 0. A `.gif` shows each frame for whole hundredths of a second, at least two.

    Raises:
        ValueError: There are no frames, they differ in size, or `path` or `frames_per_second` is not as described.
        OSError: A frame cannot be read, or the file cannot be written.
    """
    output, paths = Path(path), list(frames)
    if output.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"The path of an animation must end in .gif or .mp4, got {str(output)!r}.")
    if not frames_per_second > 0:
        raise ValueError(f"`frames_per_second` must be above 0, got {frames_per_second}.")
    sizes = {image.size for image in _opened(paths)}
    if len(sizes) != 1:
        raise ValueError(f"An animation needs frames of one size (width, height), got {sorted(sizes) or 'no frames'}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gif if output.suffix.lower() == ".gif" else _write_mp4
    with replacing(output, keep_suffix=True) as partial:
        write(paths, partial, frames_per_second)


def claim_images(note: Path, images: Iterable[Path], model: object, options: Mapping[str, Any], digest: str) -> None:
    """Record what images are made from, or refuse images that were made from something else.

    Args:
        note: The file beside the images.
        images: Paths of the images, which may exist already.
        model: The model's name.
        options: What else the images depend on; values that JSON cannot hold are left out.
        digest: Digest of the source images and poses, by [`digest_arrays`].

    Raises:
        ValueError: Some of the images exist, but the note does not, or it differs.
    """
    plain = {name: value for name, value in options.items() if _is_plain(value)}
    content = json.dumps({"model": str(model), "options": plain, "sha256": digest}, indent=2, sort_keys=True).encode()
    found = next((image for image in images if image.exists()), None)
    if found is None:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_file(note, content)
    elif not note.is_file() or note.read_bytes() != content:
        raise ValueError(
            f"{str(found)!r} exists, but {note.name!r} does not say that it was made with this model, image, pose "
            "and options: choose another place, or delete what is there (`animate --overwrite` does)."
        )


def digest_arrays(arrays: Iterable[npt.ArrayLike]) -> str:
    """Compute the SHA-256 of arrays.

    Args:
        arrays: Any arrays; their shapes count as well.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _read_frames(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield, for each frame of a sequence, its place in the file and its content."""
    if is_series(file):
        for number, one in enumerate(expand_series(file)):
            if isinstance(one, Path):
                yield f", {one.name}", load_image(one) if is_image(one) else choose_image(load_images(one), None)
            else:
                yield f", frame {number}", one
    elif file.suffix.lower() == ".json":
        for name, value in split_frames(load_images(file)).items():
            yield f", {name}", value
    elif file.suffix.lower() == ".jsonl":
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                yield f", line {number}", line
    elif file.suffix.lower() == ".npy":
        yield from ((f", frame {number}", pose) for number, pose in enumerate(np.load(file, allow_pickle=False)))
    else:
        file.stat()  # for the error of a file that does not exist
        raise ValueError("it must be a folder, or a file that ends in .json, .jsonl or .npy, or a video.")


def _read_pose(
    value: Any,
    size: Size | None,
    person: int | None,
    normalized: bool,
    expected: Keypoints | None,
    estimator: PoseEstimator | None,
) -> Keypoints | None:
    """The person chosen, or whoever is nearest to the expected pose; None if there is nobody."""
    try:
        if isinstance(value, PIL.Image.Image):
            poses = find_people(value, estimator)[0] if expected else [find_person(value, estimator, person)[0]]
        else:
            people = [] if value is None else read_people(value)
            found = [
                one.convert(size, normalized) for one in (people if expected else [choose_person(people, person)])
            ]
            poses = [Keypoints(*joints) for joints in found if joints.visible.any()]
    except NobodyError:
        return None
    return min(poses, key=lambda pose: _distance(expected, pose) if expected else 0.0, default=None)


def _expect_pose(poses: Sequence[Keypoints | None]) -> Keypoints | None:
    """Where the person is next, who moves on as before: two people who cross must not be exchanged."""
    last = next((pose for pose in reversed(poses) if pose is not None), None)
    if last is None or len(poses) < 2 or poses[-1] is None or poses[-2] is None:
        return last
    before = poses[-2].rescale(last.size)
    common = last.visible & before.visible
    step = (last.xy - before.xy)[common].mean(axis=0) if common.any() else 0.0
    return Keypoints(last.xy + step, last.visible, None, last.size)


def _distance(pose: Keypoints, other: Keypoints) -> float:
    """How far two poses are apart, pixels: the mean over the joints that both have, or between their middles."""
    other = other.rescale(pose.size)
    common = pose.visible & other.visible
    if not common.any():
        return float(np.linalg.norm(pose.xy[pose.visible].mean(axis=0) - other.xy[other.visible].mean(axis=0)))
    return float(np.linalg.norm(pose.xy[common] - other.xy[common], axis=1).mean())


def _fill_gaps(poses: Sequence[Keypoints | None], file: Path) -> list[Keypoints]:
    """Interpolate the frames without a person, and warn of them and of jumps."""
    known = [(number, pose) for number, pose in enumerate(poses) if pose is not None]
    if not known:
        raise ValueError(f"{str(file)!r} must have a person in at least one of its {len(poses)} frames, but has none.")
    filled, jumps = [known[0][1]] * known[0][0], []
    for (before, pose), (after, other) in itertools.pairwise(known):
        lengths = [np.ptp(one.xy[one.visible], axis=0).max() for one in (pose, other.rescale(pose.size))]
        if _distance(pose, other) > _MAX_STEP * max(lengths) * (after - before):
            jumps.append(after)
        filled += [pose, *(pose.lerp(other, step / (after - before)) for step in range(1, after - before))]
    filled += [known[-1][1]] * (len(poses) - known[-1][0])
    if jumps:
        others = f" and {len(jumps) - 10} others" if len(jumps) > 10 else ""
        logger.warning(
            "%s: the pose jumps by more than half of its height or width at frames %s%s (counted from 0): is it "
            "always the same person?",
            *(file, ", ".join(map(str, jumps[:10])), others),
        )
    if len(known) < len(poses):
        num_missing = len(poses) - len(known)
        logger.warning("%s: %d of %d frames have no person and are interpolated.", file, num_missing, len(poses))
    return filled


def _opened(paths: Iterable[str | os.PathLike[str]]) -> Iterator[PIL.Image.Image]:
    for path in paths:
        with PIL.Image.open(path) as image:
            yield image


def _write_gif(paths: Sequence[str | os.PathLike[str]], output: Path, frames_per_second: float) -> None:
    duration = 10 * max(2, round(100 / frames_per_second))  # milliseconds
    images = (image.convert("RGB") for image in _opened(paths))
    next(images).save(output, save_all=True, append_images=images, duration=duration, loop=0)


def _write_mp4(paths: Sequence[str | os.PathLike[str]], output: Path, frames_per_second: float) -> None:
    with PIL.Image.open(paths[0]) as image:
        width, height = image.size
    odd = height % 2, width % 2
    size = (width + odd[1], height + odd[0])
    writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_second, size)
    if not writer.isOpened():
        raise OSError(f"{str(output)!r} cannot be written as MPEG-4: choose a .gif, or a folder of frames.")
    for image in _opened(paths):
        pixels = np.asarray(image.convert("RGB"))[..., ::-1]
        writer.write(cv2.copyMakeBorder(pixels, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE))
    writer.release()
