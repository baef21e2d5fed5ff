"""Sizes as configurations write them: one number for a square, or height and width."""

from __future__ import annotations

from collections.abc import Sequence


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


def unsquash_size(size: tuple[int, int], photo_shape: tuple[int, int]) -> tuple[int, int]:
    """Tell the size in which squashed pictures have their photos' shape again.

    Args:
        size: (height, width) of the squashed pictures, pixels.
        photo_shape: (height, width) with the photos' aspect ratio.

    Returns:
        (height, width), of the same height.
    """
    return size[0], round(size[0] * photo_shape[1] / photo_shape[0])
