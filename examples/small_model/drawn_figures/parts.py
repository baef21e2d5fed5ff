"""Which part of a drawn figure each pixel shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .brush import ImageArray
from .figures import draw_figure
from .people import Color, DrawnIdentity, DrawnPose, Fabric

__all__ = ["ARMS", "PARTS", "PATTERN_ACCENTS", "draw_arms", "draw_parts"]

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
PARTS = tuple(_CODES)
"""What can cover a pixel: the wall, skin, hair or headgear, the garments, shoes, what is worn under a jacket."""

PATTERN_ACCENTS = ("upper_accent", "lower_accent")
"""Those of the parts that are the accents of the garments' patterns."""

_ARM_CODES: dict[str, Color] = {
    "rest": (255, 255, 255),
    "right_skin": (255, 0, 0),
    "right_sleeve": (255, 255, 0),
    "left_skin": (0, 0, 255),
    "left_sleeve": (0, 255, 255),
}
ARMS = tuple(_ARM_CODES)
"""Skin and sleeve of the person's own right and left arm, hands included, after everything that is not an arm."""


def draw_parts(identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Draw a figure with one colour for each part, and tell the parts apart.

    A pixel on the edge between two parts counts as the part that its colour resembles, which may be a third one.

    Args:
        identity: The person.
        pose: How they stand and how they are framed.
        size: (height, width) of the image, pixels.

    Returns:
        (height, width), each pixel's index in `PARTS`.
    """
    clothes = identity.clothes
    garments: dict[str, Fabric] = {}
    absent = set()
    for name, fabric in (("upper", clothes.upper), ("lower", clothes.lower)):
        accent = f"{name}_accent"
        if fabric.pattern == "plain":
            garments[name] = Fabric(_CODES[name], _CODES[name])
            absent.add(accent)
        else:
            garments[name] = replace(fabric, color=_CODES[name], accent=_CODES[accent])
    coded = _recolor(identity, _CODES, garments["upper"], garments["lower"])
    likeness = _resemble(draw_figure(coded, pose, size)[0], list(_CODES.values()))
    # An edge between two parts can have the colour of an accent.
    likeness[:, [name in absent for name in PARTS]] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size), dtype=np.int64)


def draw_arms(identity: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Draw a figure in white except for its arms, and tell skin and sleeve of each arm apart.

    A pixel on the edge between two parts counts as the part that its colour resembles, which may be a third one.

    Args:
        identity: The person.
        pose: How they stand and how they are framed.
        size: (height, width) of the image, pixels.

    Returns:
        (height, width), each pixel's index in `ARMS`.
    """
    white = _ARM_CODES["rest"]
    cloth = Fabric(white, white)
    blank = _recolor(identity, dict.fromkeys(PARTS, white), cloth, cloth)
    fabrics = {name: Fabric(color, color) for name, color in _ARM_CODES.items()}
    arms = [(fabrics[f"{side}_skin"], fabrics[f"{side}_sleeve"]) for side in ("right", "left")]
    image = draw_figure(blank, pose, size, arms=arms)[0]
    likeness = _resemble(image, list(_ARM_CODES.values()))
    # Lips and eyes have colours of their own, but paler ones.
    likeness[np.ptp(image.reshape(-1, 3).astype(np.int64), axis=1) < 90, 1:] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size), dtype=np.int64)


def _recolor(identity: DrawnIdentity, colors: Mapping[str, Color], upper: Fabric, lower: Fabric) -> DrawnIdentity:
    """Give each part of a person another colour, and leave out belts and prints."""
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


def _resemble(image: ImageArray, colors: Sequence[Color]) -> npt.NDArray[np.float32]:
    """Return how much each pixel has of each colour, (pixels, colors)."""
    # Shading changes a colour's length, not its direction.
    directions = np.array(colors, np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(image.reshape(-1, 3).astype(np.float32) @ directions.T, dtype=np.float32)
