"""Images of any mode as upright 8-bit RGB, and their sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
import PIL.Image
import PIL.ImageOps

__all__ = [
    "as_pair",
    "has_transparency",
    "is_image",
    "load_image",
    "path_suffix",
    "to_rgb",
    "unsquash_size",
    "upright",
]


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn a picture as its EXIF data says.

    Args:
        image: The picture.

    Returns:
        A copy, turned if need be.

    Raises:
        ValueError: The EXIF data are damaged.
        OSError: The picture was opened from a file that cannot be read to its end.
    """
    image.load()  # before, so that only what is wrong with the EXIF data is told as that
    try:
        return PIL.ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's reader of EXIF raises nearly anything on damaged data
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`image` must have EXIF data that can be read, or none, got damaged ones ({reason}): save it again "
            "without them."
        ) from error


def has_transparency(image: PIL.Image.Image) -> bool:
    """Tell whether a picture has transparent parts, or could have.

    Args:
        image: The picture.

    Returns:
        Whether its mode or its palette has transparency.
    """
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgb(image: PIL.Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> PIL.Image.Image:
    """Turn a picture upright by its EXIF data, lay transparency over a colour, convert greys and 16 bits.

    Args:
        image: The picture, of any mode.
        background: RGB, 0 to 255.

    Returns:
        RGB.

    Raises:
        ValueError: A picture of mode `F` leaves [0, 1], or its EXIF data are damaged.
    """
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        # 16-bit files open as I;16, or as I in older formats; only F says nothing about its range.
        if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                "`image` of PIL mode 'F' must hold values in [0, 1], got "
                f"{values.min():.4g} to {values.max():.4g}. Convert it to 'L' or 'RGB' first."
            )
        scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
        image = PIL.Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
    if has_transparency(image):
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB")


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Expand a size to (height, width).

    Args:
        size: One number for a square, or both.

    Returns:
        (height, width).
    """
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def unsquash_size(size: tuple[int, int], image_shape: tuple[int, int]) -> tuple[int, int]:
    """Tell the size in which squashed pictures have their photos' shape again.

    Args:
        size: (height, width) of the squashed pictures, pixels.
        image_shape: (height, width) with the photos' aspect ratio.

    Returns:
        (height, width), of the same height.
    """
    return size[0], round(size[0] * image_shape[1] / image_shape[0])


def is_image(pose: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    """Tell a picture, opened or by its path, from the other forms of a pose.

    Args:
        pose: Anything.

    Returns:
        Whether it is a PIL image, or a path with the ending of one.
    """
    return isinstance(pose, PIL.Image.Image) or path_suffix(pose) in PIL.Image.registered_extensions()


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


def path_suffix(path: object) -> str:
    """Tell the ending of a path.

    Args:
        path: Anything.

    Returns:
        In small letters, with its dot; empty for what is no path.
    """
    if isinstance(path, Path):
        return path.suffix.lower()
    # JSON and the lines of CSV files are strings too; they end with a bracket.
    return os.path.splitext(path)[1].lower() if isinstance(path, str) else ""
