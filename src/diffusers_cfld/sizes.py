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
