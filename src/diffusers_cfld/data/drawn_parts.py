"""Which part of a drawn figure each pixel shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .drawn_figures import draw_figure
from .drawn_people import Color, DrawnIdentity, DrawnPose, Fabric

__all__ = ["PARTS", "PATTERN_ACCENTS", "draw_parts"]

# The colour that stands for a part.
_CODES: dict[str, Color] = {
    "wall": (255, 255, 255),
    "skin": (255, 0, 0),
    "hair": (0, 255, 0),
    "upper": (0, 0, 255),
    "lower": (255, 255, 0),
    "shoe": (255, 0, 255),
    "inner": (0, 255, 255),
    "upper_accent": (110, 0, 255),
    "lower_accent": (255, 110, 0),
}
PATTERN_ACCENTS = ("upper_accent", "lower_accent")
"""The accents of the garments' patterns, which count as the garments where they are not asked for."""

PARTS = tuple(name for name in _CODES if name not in PATTERN_ACCENTS)
"""What can cover a pixel: the wall, skin, hair or headgear, the garments, shoes, what is worn under a jacket."""


def draw_parts(
    identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int], parts: Sequence[str] = PARTS
) -> npt.NDArray[np.int64]:
    """Draw a figure once more, in one colour for each part, and tell them apart.

    A pixel on the edge of two parts counts as the one that its colour resembles, which may be a third.

    Args:
        identity: Who.
        pose: How they stand and how they are framed.
        size: (height, width) of the picture, pixels.
        parts: All of `PARTS`, and either or both of `PATTERN_ACCENTS`, in the order of their numbers.

    Returns:
        (height, width), the number of each pixel's part.

    Raises:
        ValueError: `parts` lacks one of `PARTS` or has an unknown or repeated one; or as [`draw_figure`].
    """
    if len(set(parts)) < len(parts) or not set(PARTS) <= set(parts) <= set(_CODES):
        raise ValueError(f"`parts` must hold {PARTS}, and of {PATTERN_ACCENTS} what is wanted, got {tuple(parts)}.")
    clothes = identity.clothes
    garments: dict[str, Any] = {}
    absent = set()
    for name, fabric in (("upper", clothes.upper), ("lower", clothes.lower)):
        accent = f"{name}_accent"
        if accent in parts and fabric.pattern != "plain":
            garments[name] = replace(fabric, color=_CODES[name], accent=_CODES[accent])
        else:
            garments[name] = Fabric(_CODES[name], _CODES[name])
            absent.add(accent)
    coded = replace(
        identity,
        body=replace(identity.body, skin=_CODES["skin"]),
        hair=replace(identity.hair, color=_CODES["hair"], hat=_CODES["hair"]),
        background=(_CODES["wall"], _CODES["wall"]),
        clothes=replace(
            clothes, **garments, inner=_CODES["inner"], shoe=_CODES["shoe"], belt=None, print_shape="none"
        ),
    )
    pixels = draw_figure(coded, pose, size)[0].reshape(-1, 3).astype(np.float32)
    # Shading changes a colour's length, not its direction.
    directions = np.array([_CODES[name] for name in parts], np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    likeness = pixels @ directions.T
    # An edge between two parts can have the colour of an accent.
    likeness[:, [name in absent for name in parts]] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size), dtype=np.int64)
