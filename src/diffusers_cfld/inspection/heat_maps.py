"""Maps drawn over photos, and pictures laid out in a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from ..image_utils import to_rgb

__all__ = ["contact_sheet", "draw_heat_map"]

_MARGIN, _HEADING = 8, 20  # pixels
_BACKGROUND, _INK = (255, 255, 255), (40, 40, 40)


def draw_heat_map(
    photo: PIL.Image.Image, heat_map: torch.Tensor | npt.NDArray[Any], *, strength: float = 0.6
) -> PIL.Image.Image:
    """Lay a map over a photo, from dark violet (its least) to yellow (its most).

    Args:
        photo: The photo that the map covers, as the model saw it (`fit_photo(photo).image` for one of another shape).
        heat_map: (h, w), any finite values.
        strength: In [0, 1], of the colours over the greyed photo.

    Returns:
        RGB, of the photo's size.

    Raises:
        ValueError: The map has another number of dimensions or is not finite, or `strength` is out of range.
    """
    values = heat_map.detach().float().cpu().numpy() if isinstance(heat_map, torch.Tensor) else heat_map
    values = np.asarray(values, dtype=np.float64)
    photo = to_rgb(photo)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"`heat_map` must be finite and of shape (h, w), got {values.shape}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be from 0 to 1, got {strength!r}.")
    span = values.max() - values.min()
    scaled = (values - values.min()) / (span if span > 0 else 1)
    levels = cv2.resize(np.rint(255 * scaled).astype(np.uint8), photo.size, interpolation=cv2.INTER_CUBIC)
    colors = PIL.Image.fromarray(cv2.applyColorMap(levels, cv2.COLORMAP_PLASMA)[..., ::-1].copy())
    return PIL.Image.blend(photo.convert("L").convert("RGB"), colors, strength)


def contact_sheet(
    rows: Sequence[Sequence[PIL.Image.Image]], labels: Sequence[Sequence[str]] | None = None
) -> PIL.Image.Image:
    """Lay pictures out in rows, each with its label above.

    Args:
        rows: The pictures; all are shown at the size of the first one.
        labels: One for each picture.

    Returns:
        RGB.

    Raises:
        ValueError: There is no picture, or there are not as many labels as pictures.
    """
    if not rows or not rows[0]:
        raise ValueError("`rows` must hold at least one picture.")
    if labels is not None and [len(row) for row in labels] != [len(row) for row in rows]:
        raise ValueError(
            f"`labels` must be as many as the pictures, {[len(row) for row in rows]} in the rows, got "
            f"{[len(row) for row in labels]}."
        )
    rows = [[to_rgb(picture) for picture in row] for row in rows]
    width, height = rows[0][0].size
    heading = _HEADING if labels is not None else 0
    step = (width + _MARGIN, height + heading + _MARGIN)
    sheet = PIL.Image.new("RGB", (_MARGIN + max(map(len, rows)) * step[0], _MARGIN + len(rows) * step[1]), _BACKGROUND)
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=14)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            left, top = _MARGIN + column * step[0], _MARGIN + number * step[1]
            if labels is not None:
                draw.text((left + width // 2, top + heading - 4), labels[number][column], _INK, font, anchor="ms")
            sheet.paste(picture.resize((width, height)), (left, top + heading))
    return sheet
