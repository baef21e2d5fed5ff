"""Which part of a drawn figure each pixel shows, and where on its cloth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .figures import check_picture_size, draw_figure
from .painting import paint_places
from .people import Color, DrawnIdentity, DrawnPose, Fabric
from .skeleton import place_skeleton

__all__ = ["ARMS", "PARTS", "PATTERN_ACCENTS", "draw_arms", "draw_parts", "draw_places"]

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

_ARM_CODES: dict[str, Color] = {
    "rest": (255, 255, 255),
    "right_skin": (255, 0, 0),
    "right_sleeve": (255, 255, 0),
    "left_skin": (0, 0, 255),
    "left_sleeve": (0, 255, 255),
}
ARMS = tuple(_ARM_CODES)
"""Skin and sleeve of the person's own right and left arm, hands included, after all that is no arm."""


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
    garments: dict[str, Fabric] = {}
    absent = set()
    for name, fabric in (("upper", clothes.upper), ("lower", clothes.lower)):
        accent = f"{name}_accent"
        if accent in parts and fabric.pattern != "plain":
            garments[name] = replace(fabric, color=_CODES[name], accent=_CODES[accent])
        else:
            garments[name] = Fabric(_CODES[name], _CODES[name])
            absent.add(accent)
    coded = _recolor(identity, _CODES, garments["upper"], garments["lower"])
    likeness = _resemble(draw_figure(coded, pose, size)[0], [_CODES[name] for name in parts])
    # An edge between two parts can have the colour of an accent.
    likeness[:, [name in absent for name in parts]] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size), dtype=np.int64)


def draw_arms(identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Draw a figure once more, all of it white but its arms, and tell these and their sleeves apart.

    A pixel on the edge of two counts as the one that its colour resembles, which may be a third.

    Args:
        identity: Who.
        pose: How they stand and how they are framed.
        size: (height, width) of the picture, pixels.

    Returns:
        (height, width), each pixel's index in `ARMS`.

    Raises:
        ValueError: `size` is smaller than 8 or larger than 2048 pixels.
        TypeError: `size` is not a pair of whole numbers.
    """
    white = _ARM_CODES["rest"]
    cloth = Fabric(white, white)
    blank = _recolor(identity, dict.fromkeys(PARTS, white), cloth, cloth)
    fabrics = {name: Fabric(color, color) for name, color in _ARM_CODES.items()}
    arms = [(fabrics[f"{side}_skin"], fabrics[f"{side}_sleeve"]) for side in ("right", "left")]
    picture = draw_figure(blank, pose, size, arms=arms)[0]
    likeness = _resemble(picture, list(_ARM_CODES.values()))
    # Lips and eyes have colours of their own, but paler ones.
    likeness[np.ptp(picture.reshape(-1, 3).astype(np.int64), axis=1) < 90, 1:] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size), dtype=np.int64)


def draw_places(identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Tell where on its cloth each pixel of a figure lies, as its pattern is measured.

    Args:
        identity: Who.
        pose: How they stand and how they are framed.
        size: (height, width) of the picture, pixels.

    Returns:
        (height, width, 2), along and across the trunk, the limb or what hangs from the hips, statures; NaN where no
        cloth that can have a pattern is seen. Multiples of a fabric's period are where its pattern begins again.

    Raises:
        ValueError: `size` is smaller than 8 or larger than 2048 pixels.
        TypeError: `size` is not a pair of whole numbers.
    """
    size = check_picture_size(size)
    return paint_places(identity, place_skeleton(identity, pose), size)


def _recolor(identity: DrawnIdentity, colors: Mapping[str, Color], upper: Fabric, lower: Fabric) -> DrawnIdentity:
    """Give each part of a person another colour; belts and prints, which are no parts, are left out."""
    return replace(
        identity,
        body=replace(identity.body, skin=colors["skin"]),
        hair=replace(identity.hair, color=colors["hair"], hat=colors["hair"]),
        background=(colors["wall"], colors["wall"]),
        clothes=replace(
            identity.clothes,
            upper=upper,
            lower=lower,
            inner=colors["inner"],
            shoe=colors["shoe"],
            belt=None,
            print_shape="none",
        ),
    )


def _resemble(picture: npt.NDArray[np.uint8], colors: Sequence[Color]) -> npt.NDArray[np.float32]:
    """Return how much each pixel has of each colour, (pixels, colors)."""
    # Shading changes a colour's length, not its direction.
    directions = np.array(colors, np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(picture.reshape(-1, 3).astype(np.float32) @ directions.T, dtype=np.float32)
