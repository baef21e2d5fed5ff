"""From a pair of files to the tensors of one training example.

The published code (YanzuoLu/CFLD `datasets/deepfashion.py` @ f2ea2a7) flips the source image alone with probability
0.5, so that left and right of a garment cannot be learned; here that is an option and off: docs/deviations.md.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..image_utils import as_pair, to_rgb
from ..pose.keypoints import Keypoints
from ..processors.pose_map import render_pose_map
from ..processors.source_image import SourceImageProcessor

__all__ = [
    "PairTransform",
    "PosePair",
    "UnreadableImageError",
    "check_size",
    "decode_picture",
    "read_bytes",
    "read_photo",
    "read_picture",
]

_FLIP_STREAM = 1  # first entry of the seed sequences

# The machine is at its limits, which says nothing about the file.
NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class PosePair:
    """Two pictures of one person and the poses in them.

    Args:
        source: Path of the source picture, or the encoded picture itself.
        target: Likewise of the target.
        source_keypoints: Pose in the source picture.
        target_keypoints: Pose in the target picture.
        source_name: What the data set calls the source picture. Default: its path.
        target_name: Likewise of the target.

    Raises:
        ValueError: A picture is given as bytes and has no name.
    """

    source: str | bytes
    target: str | bytes
    source_keypoints: Keypoints
    target_keypoints: Keypoints
    source_name: str = ""
    target_name: str = ""

    def __post_init__(self) -> None:
        for role, image, name in (
            ("source", self.source, self.source_name),
            ("target", self.target, self.target_name),
        ):
            if not name:
                if isinstance(image, bytes):
                    raise ValueError(f"`{role}_name` is missing: pictures given as bytes need a name for reports.")
                object.__setattr__(self, f"{role}_name", image)


class UnreadableImageError(ValueError):
    """A picture does not exist or is damaged.

    Args:
        path: Its path, or its name if it was given as bytes.
        reason: What is wrong with it, as the end of a sentence.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"'{path}' {reason}.")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def read_bytes(image: str | bytes) -> bytes:
    """Read an encoded picture.

    Args:
        image: Path, or the encoded picture.

    Returns:
        The encoded picture.

    Raises:
        UnreadableImageError: There is no such file, or it cannot be read.
        OSError: The process has no file descriptors or memory left.
    """
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except FileNotFoundError as error:
        raise UnreadableImageError(image, "does not exist") from error
    except ValueError as error:  # a null byte in the name
        raise UnreadableImageError(image, f"cannot be read ({error})") from error
    except OSError as error:
        if error.errno in NOT_THE_FILES_FAULT:
            raise
        raise UnreadableImageError(image, f"cannot be read ({error.strerror or _one_line(error)})") from error


def decode_picture(data: bytes, name: str, *, reduced: bool = False) -> PIL.Image.Image:
    """Decode a picture to its end.

    Args:
        data: The encoded picture.
        name: Its path or name, for the error.
        reduced: Whether a JPEG may come out at an eighth of its size, which is several times as fast and finds the
            same damage.

    Returns:
        The picture; its pixels are loaded.

    Raises:
        UnreadableImageError: It cannot be decoded.
    """
    try:
        picture = PIL.Image.open(io.BytesIO(data))
        if reduced:
            picture.draft(None, (max(1, picture.width // 8), max(1, picture.height // 8)))
        picture.load()
    except MemoryError:
        raise
    except PIL.UnidentifiedImageError as error:  # whose message is the address of a buffer
        raise UnreadableImageError(name, "is no picture of a known format" if data else "is empty") from error
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        raise UnreadableImageError(name, f"cannot be decoded ({_one_line(error)})") from error
    return picture


def read_photo(image: str | bytes, name: str | None = None) -> PIL.Image.Image:
    """Decode a picture as everything else takes it.

    Args:
        image: Path, or the encoded picture.
        name: For the error, if `image` is bytes.

    Returns:
        Upright, 8-bit RGB.

    Raises:
        UnreadableImageError: There is no such file, it cannot be decoded, or its values or EXIF data are of no use.
        OSError: The process has no file descriptors or memory left.
    """
    path = image if isinstance(image, str) else name or "picture"
    picture = decode_picture(read_bytes(image), path)
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise UnreadableImageError(path, f"cannot be used ({_one_line(error).rstrip('.')})") from error


def read_picture(
    image: str | bytes, processors: Sequence[SourceImageProcessor], name: str | None = None
) -> list[torch.Tensor]:
    """Decode a picture once and bring it to several sizes.

    Args:
        image: Path, or the encoded picture.
        processors: One per size.
        name: For the error, if `image` is bytes.

    Returns:
        One tensor (3, height, width), float32, [-1, 1], per processor: squeezed, bicubic with antialias, exactly as
        the pipeline treats its source image.

    Raises:
        UnreadableImageError: As [`read_photo`].
        OSError: The process has no file descriptors or memory left.
    """
    photo = read_photo(image, name)
    return [processor.preprocess(photo)[0] for processor in processors]


class PairTransform:
    """Turn a pair into tensors; the same for every way of storing pairs.

    Args:
        source_size: (height, width) of the source encoder's input, or one number for a square; pixels.
        image_size: Likewise of what the VAE encodes.
        pose_size: Likewise of the pose maps.
        flip_source_prob: Probability in [0, 1] that `source_image` alone is mirrored, as in the published training.
        load_pixel_values: Whether the pictures for the VAE are wanted; not when their latents are cached.
        seed: Of the mirroring, whole number >= 0.

    Raises:
        ValueError: A size is not positive, the probability is outside [0, 1], or the seed is negative.
    """

    def __init__(
        self,
        source_size: int | Sequence[int] = 256,
        image_size: int | Sequence[int] = 512,
        pose_size: int | Sequence[int] = 256,
        *,
        flip_source_prob: float = 0.0,
        load_pixel_values: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 <= flip_source_prob <= 1:
            raise ValueError(f"`flip_source_prob` must be a probability in [0, 1], got {flip_source_prob}.")
        if seed < 0:
            raise ValueError(f"`seed` must be a whole number >= 0, got {seed}.")
        self.pose_size = check_size(pose_size, "pose_size")
        self.flip_source_prob = flip_source_prob
        self.load_pixel_values = load_pixel_values
        self.seed = seed
        self.source_processor = SourceImageProcessor(*check_size(source_size, "source_size"))
        self.image_processor = SourceImageProcessor(*check_size(image_size, "image_size"))
        self._last_source: tuple[str | bytes | None, list[torch.Tensor]] = (None, [])

    def __call__(self, pair: PosePair, index: int, epoch: int) -> dict[str, Any]:
        """Read a pair.

        Args:
            pair: The pair.
            index: Its number in the data set; decides about the mirroring together with `epoch` and the seed.
            epoch: Number of the epoch, >= 0.

        Returns:
            A dict of `source_image` (3, *source_size), `source_pixel_values` and `target_pixel_values`
            (3, *image_size), each float32 in [-1, 1]; `source_pose_map` and `target_pose_map` (21, *pose_size),
            float32, [0, 1]; `index`. The two pixel values are left out without `load_pixel_values`.

        Raises:
            UnreadableImageError: A picture cannot be read.
            OSError: The process has no file descriptors or memory left.
        """
        source = self._read_source(pair)
        item: dict[str, Any] = {"source_image": source[0].flip(-1) if self._flips(index, epoch) else source[0]}
        if self.load_pixel_values:
            item["source_pixel_values"] = source[1]
            item["target_pixel_values"] = read_picture(pair.target, [self.image_processor], pair.target_name)[0]
        item["source_pose_map"] = torch.from_numpy(render_pose_map(pair.source_keypoints, self.pose_size))
        item["target_pose_map"] = torch.from_numpy(render_pose_map(pair.target_keypoints, self.pose_size))
        item["index"] = index
        return item

    def _read_source(self, pair: PosePair) -> list[torch.Tensor]:
        # With several targets per source a source's pairs follow one another.
        if self._last_source[0] != pair.source:
            processors = [self.source_processor, self.image_processor][: 1 + self.load_pixel_values]
            self._last_source = (pair.source, read_picture(pair.source, processors, pair.source_name))
        return [picture.clone() for picture in self._last_source[1]]

    def _flips(self, index: int, epoch: int) -> bool:
        if not self.flip_source_prob:
            return False
        return np.random.default_rng([_FLIP_STREAM, self.seed, epoch, index]).random() < self.flip_source_prob


def check_size(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Expand a size and check it.

    Args:
        size: One number for a square, or (height, width); pixels.
        name: Of the argument, for the error.

    Returns:
        (height, width).

    Raises:
        ValueError: It is neither one nor two positive whole numbers.
    """
    try:
        height, width = as_pair(size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be one number or (height, width), got {size!r}.") from error
    if height < 1 or width < 1:
        raise ValueError(f"`{name}` must be positive pixels, got {size!r}.")
    return height, width


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
