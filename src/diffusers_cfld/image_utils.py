"""Images of any mode as upright 8-bit RGB, and their sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
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
    """Turn an image as its EXIF data says.

    Args:
        image: The image.

    Returns:
        A copy, turned if need be.

    Raises:
        ValueError: The EXIF data is damaged.
        OSError: The image was opened from a file that cannot be read to its end.
    """
    image.load()  # here, so that a truncated file is not taken for damaged EXIF data
    try:
        return PIL.ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged EXIF data
        raise ValueError(f"The image's EXIF data is damaged ({error}): save the image again without it.") from error


def has_transparency(image: PIL.Image.Image) -> bool:
    """Tell whether an image has transparent parts, or could have.

    Args:
        image: The image.

    Returns:
        Whether its mode or its palette has transparency.
    """
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgb(image: PIL.Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> PIL.Image.Image:
    """Turn an image upright by its EXIF data, lay transparency over a colour, convert greys and 16 bits.

    Args:
        image: The image, of any mode.
        background: RGB, 0 to 255.

    Returns:
        RGB.

    Raises:
        ValueError: Values of an image of mode `F` lie outside [0, 1], or its EXIF data is damaged.
    """
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        # 16-bit files open as I;16, or as I in older formats; only F does not tell its range.
        if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                "An image of PIL mode 'F' must hold values in [0, 1], got "
                f"{values.min():.4g} to {values.max():.4g}: convert it to 'L' or 'RGB' first."
            )
        scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
        image = PIL.Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
    if has_transparency(image):
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB")


def load_image(image: PIL.Image.Image | str | os.PathLike[str]) -> PIL.Image.Image:
    """Open an image unless it is open.

    Args:
        image: A PIL image or a path.

    Returns:
        The image, upright.

    Raises:
        OSError: The file does not exist or is not an image.
        ValueError: Its EXIF data is damaged.
    """
    if isinstance(image, PIL.Image.Image):
        return upright(image)
    try:
        opened = PIL.Image.open(image)
        opened.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow does not always name the file
        raise OSError(f"{os.fspath(image)!r} cannot be read as an image: {error}") from error
    return upright(opened)


def is_image(value: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    """Tell images and paths of images from anything else.

    Args:
        value: Anything.

    Returns:
        Whether it is a PIL image, or a path that ends like an image's.
    """
    return isinstance(value, PIL.Image.Image) or path_suffix(value) in PIL.Image.registered_extensions()


def path_suffix(value: object) -> str:
    """Tell how a path ends.

    Args:
        value: Anything.

    Returns:
        The suffix in lower case, with its dot; empty if there is none, or if `value` is no path.
    """
    return PurePath(value).suffix.lower() if isinstance(value, (str, os.PathLike)) else ""


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
    """Choose the size in which squashed images get their original aspect ratio back.

    Args:
        size: (height, width) of the squashed images, pixels.
        image_shape: (height, width) with the original aspect ratio.

    Returns:
        (height, width), of the same height.
    """
    return size[0], round(size[0] * image_shape[1] / image_shape[0])
