"""Images of any mode as upright 8-bit RGB, and their sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import TypeGuard

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Rotate an image as its EXIF data says.

    Args:
        image: The image.

    Returns:
        The image itself, or a rotated copy if its EXIF data say so.

    Raises:
        ValueError: The image has no pixels, or its EXIF data is damaged.
        OSError: The file that the image was opened from is truncated.
    """
    if 0 in image.size:
        raise ValueError(f"An image must have pixels, got one of {image.height}x{image.width} (height x width).")
    image.load()  # here, so that a truncated file is not mistaken for damaged EXIF data
    try:
        is_upright = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
        return image if is_upright else PIL.ImageOps.exif_transpose(image)  # which would copy it
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises all kinds of errors on damaged EXIF data
        raise ValueError(f"The image's EXIF data is damaged ({error}): save the image again without it.") from error


def read_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Read the size that an image has when it is upright; of one just opened, only the header is read.

    Args:
        image: The image.

    Returns:
        (height, width), pixels.
    """
    # From 5 on, the values of the EXIF orientation exchange height and width.
    is_turned = image.getexif().get(PIL.ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return image.size if is_turned else (image.height, image.width)


def to_rgb(image: PIL.Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> PIL.Image.Image:
    """Convert an image to RGB: rotate it as its EXIF data says, lay it over a colour, convert grey and 16-bit values.

    Args:
        image: The image, of any mode.
        background: Colour behind transparent parts, RGB, 0 to 255.

    Returns:
        An RGB image; the image itself if it is one already.

    Raises:
        ValueError: Values of an image of mode `F` lie outside [0, 1], or its EXIF data is damaged.
    """
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        # 16-bit files are opened as I;16, or as I in older formats; only for F is the range unknown.
        if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                "An image of PIL mode 'F' must hold values in [0, 1], got "
                f"{values.min():.4g} to {values.max():.4g}: convert it to 'L' or 'RGB' first."
            )
        scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
        image = PIL.Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (*background, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def load_image(image: PIL.Image.Image | str | os.PathLike[str]) -> PIL.Image.Image:
    """Open an image, unless it is open already.

    Args:
        image: A PIL image, a path or a URL.

    Returns:
        The image, upright.

    Raises:
        OSError: The file does not exist or is not an image, or the URL does not answer with one.
        ValueError: Its EXIF data is damaged.
    """
    if isinstance(image, PIL.Image.Image):
        return upright(image)
    if is_url(image):
        return _fetch_image(image)
    try:
        opened = PIL.Image.open(image)
        opened.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # raised again because Pillow does not always name the file
        raise OSError(f"{os.fspath(image)!r} cannot be read as an image: {error}") from error
    return upright(opened)


def _fetch_image(url: str) -> PIL.Image.Image:
    from diffusers.utils import load_image as fetch

    try:
        return upright(fetch(url, convert_method=lambda image: image))
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{url!r} does not answer with an image ({type(error).__name__}).") from error


def is_url(value: object) -> TypeGuard[str]:
    """Return whether a value is the address of something on the web.

    Args:
        value: Anything.

    Returns:
        Whether it is a string that starts with `http://` or `https://`.
    """
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def is_image(value: object) -> TypeGuard[PIL.Image.Image | str | os.PathLike[str]]:
    """Return whether a value is an image, or the path or URL of one.

    Args:
        value: Anything.

    Returns:
        Whether it is a PIL image, a path with the suffix of an image file, or a URL.
    """
    is_file = path_suffix(value) in PIL.Image.registered_extensions()
    return isinstance(value, PIL.Image.Image) or is_file or is_url(value)


def path_suffix(value: object) -> str:
    """Return the suffix of a path.

    Args:
        value: Anything.

    Returns:
        The suffix in lower case, with its dot; empty if there is none, or if `value` is not a path.
    """
    return PurePath(value).suffix.lower() if isinstance(value, (str, os.PathLike)) else ""


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Expand a size to (height, width).

    Args:
        size: One number for a square, or both height and width.

    Returns:
        (height, width).
    """
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def unsquash_size(size: tuple[int, int], image_shape: tuple[int, int]) -> tuple[int, int]:
    """Choose the size that gives squashed images their original aspect ratio back.

    Args:
        size: (height, width) of the squashed images, pixels.
        image_shape: (height, width) with the original aspect ratio.

    Returns:
        (height, width); the height is that of `size`.
    """
    return size[0], round(size[0] * image_shape[1] / image_shape[0])
