"""Maps drawn over images, and images laid out in a sheet."""

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

_MARGIN, _HEADING = 8, 20  # pixels
_BACKGROUND, _INK = (255, 255, 255), (40, 40, 40)


def draw_heat_map(
    image: PIL.Image.Image, heat_map: torch.Tensor | npt.NDArray[Any], *, strength: float = 0.6
) -> PIL.Image.Image:
    """Lay a map over an image, from dark violet for its smallest values to yellow for its largest.

    Args:
        image: What the map covers, as the model saw it (`fit_photo(photo).image` for a photo of another shape).
        heat_map: (h, w), any finite values.
        strength: Opacity of the colours over the greyed image, in [0, 1].

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: The map has the wrong number of dimensions or is not finite, or `strength` is out of range.
    """
    values = heat_map.detach().float().cpu().numpy() if isinstance(heat_map, torch.Tensor) else heat_map
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"`heat_map` must have shape (h, w) and finite values, got shape {values.shape}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be in [0, 1], got {strength!r}.")
    image = to_rgb(image)
    span = values.max() - values.min()
    scaled = (values - values.min()) / (span if span > 0 else 1)
    levels = cv2.resize(np.rint(255 * scaled).astype(np.uint8), image.size, interpolation=cv2.INTER_CUBIC)
    colors = PIL.Image.fromarray(cv2.applyColorMap(levels, cv2.COLORMAP_PLASMA)[..., ::-1].copy())
    return PIL.Image.blend(image.convert("L").convert("RGB"), colors, strength)


def contact_sheet(
    rows: Sequence[Sequence[PIL.Image.Image]], labels: Sequence[Sequence[str]] | None = None
) -> PIL.Image.Image:
    """Lay out images in rows, each with its label above.

    Args:
        rows: The images; all are shown at the size of the first one.
        labels: One for each image.

    Returns:
        An RGB image.

    Raises:
        ValueError: There is no image, or there are not as many labels as images.
    """
    if not rows or not rows[0]:
        raise ValueError("`rows` must hold at least one image.")
    width, height = to_rgb(rows[0][0]).size
    heading = 0 if labels is None else _HEADING
    labels = [[""] * len(row) for row in rows] if labels is None else labels
    step = (width + _MARGIN, height + heading + _MARGIN)
    sheet = PIL.Image.new("RGB", (_MARGIN + max(map(len, rows)) * step[0], _MARGIN + len(rows) * step[1]), _BACKGROUND)
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=14)
    for y, (row, row_labels) in enumerate(zip(rows, labels, strict=True)):
        for x, (image, label) in enumerate(zip(row, row_labels, strict=True)):
            left, top = _MARGIN + x * step[0], _MARGIN + y * step[1]
            draw.text((left + width // 2, top + heading - 4), label, _INK, font, anchor="ms")
            sheet.paste(to_rgb(image).resize((width, height)), (left, top + heading))
    return sheet
