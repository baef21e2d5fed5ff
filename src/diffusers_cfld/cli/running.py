"""What the commands that make pictures have in common."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..file_writing import write_file

if TYPE_CHECKING:
    import PIL.Image
    import torch


def best_device() -> str:
    """Choose the fastest kind of device.

    Returns:
        "cuda", "mps" or "cpu".
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def seeded_generators(seed: int | None, first: int, count: int) -> list[torch.Generator] | None:
    """Make the generators of some pictures, so that each has its own noise, whatever batch it is made in.

    Args:
        seed: Of picture 0; None leaves everything to chance.
        first: Number of the first picture.
        count: How many.

    Returns:
        One generator for each picture, picture i with seed + i; None without a seed.
    """
    import torch

    if seed is None:
        return None
    return [torch.Generator().manual_seed(seed + first + i) for i in range(count)]


def check_picture_name(path: str) -> None:
    """Check an output's name before any work is done.

    Args:
        path: The picture that will be written.

    Raises:
        ValueError: No format has this suffix.
    """
    import PIL.Image

    if PIL.Image.registered_extensions().get(Path(path).suffix.lower()) not in PIL.Image.SAVE:
        raise ValueError(f"--output must end like a picture, e.g. .png or .jpg, got {path!r}.")


def save_image(image: PIL.Image.Image, path: Path) -> None:
    """Write a picture, so that an interruption leaves no half of it.

    Args:
        image: The picture.
        path: Where; the suffix decides the format, see [`check_picture_name`].

    Raises:
        OSError: It cannot be written.
    """
    import PIL.Image

    content = io.BytesIO()
    image.save(content, format=PIL.Image.registered_extensions()[path.suffix.lower()])
    write_file(path, content.getvalue())
