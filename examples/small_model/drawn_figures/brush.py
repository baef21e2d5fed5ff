"""The brush that paints one part of a figure: its outline, its pattern and its shading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from .people import Color, Fabric

__all__ = ["Axes", "Brush", "ImageArray", "Shape", "circle", "darker", "ellipse", "hull", "smooth"]

Array: TypeAlias = npt.NDArray[np.float64]
ImageArray: TypeAlias = npt.NDArray[np.uint8]

_SHIFT = 3  # binary digits for fractions of a pixel in OpenCV's drawing functions
_SHADE = np.linspace(0, 1, 256)[:, None]
# Shadows are darker and a little bluer.
_TINT = (0.5 + 0.55 * _SHADE) * (1 + (1 - _SHADE) * np.array([-0.04, -0.02, 0.05]))
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES)])
# Light also falls on black cloth, so that its folds and edges show.
_LIFT = 14 * _SHADE**2


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """The axes of a pattern: where it starts, and one stature in pixels along (down) and across the part."""

    origin: Array
    along: Array
    across: Array
    start: float = 0.0


@dataclass(slots=True, eq=False)
class Shape:
    """Polygons (n, 2) and discs (centre, radius), canvas pixels, that share the axes of their pattern."""

    axes: Axes | None = None
    polygons: list[Array] = field(default_factory=list)
    discs: list[tuple[Array, float]] = field(default_factory=list)


class Brush:
    """Paints on a canvas.

    Args:
        canvas: (H, W, 3), RGB; painted on in place.
        unit: The figure's stature in pixels.
    """

    def __init__(self, canvas: ImageArray, unit: float) -> None:
        self.canvas = canvas
        self.height, self.width = canvas.shape[:2]
        self.unit = unit

    def tube(self, path: Array, radii: Sequence[float], shape: Shape, *, flat_end: bool = False) -> None:
        """Add a limb along `path` (n, 2) to a shape, with a radius in statures at each point."""
        for index in range(len(path) - 1):
            step = path[index + 1] - path[index]
            normal = np.array([-step[1], step[0]]) / max(math.hypot(*step), 1e-6)
            first, second = normal * radii[index] * self.unit, normal * radii[index + 1] * self.unit
            shape.polygons.append(
                np.array(
                    [path[index] + first, path[index + 1] + second, path[index + 1] - second, path[index] - first]
                )
            )
            if index or not flat_end:
                shape.discs.append((path[index], radii[index] * self.unit))
        if flat_end:
            shape.discs.append((path[0], radii[0] * self.unit))
        else:
            shape.discs.append((path[-1], radii[-1] * self.unit))

    def fill(
        self,
        shapes: Sequence[Shape],
        fabric: Fabric,
        *,
        soft: float = 0.03,
        cut: Sequence[Array] = (),
        merge: Shape | None = None,
        light: float = 1.0,
    ) -> None:
        """Paint shapes in a fabric.

        Args:
            shapes: The shapes to paint.
            fabric: The fabric to paint them in.
            soft: Width of the darker edge, statures.
            cut: Polygons to leave out.
            merge: Shape that counts as the same surface for the shading, so that there is no edge between the two.
            light: Factor for the brightness.
        """
        x0, y0, x1, y1 = self._box(shapes, 2, 3)
        if x0 >= x1 or y0 >= y1:
            return
        corner = np.array([x0, y0], dtype=np.float64)
        mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        for shape in shapes:
            _draw(mask, shape, corner, 255)
        for polygon in cut:
            _draw(mask, Shape(polygons=[polygon]), corner, 0)
        around = mask
        if merge is not None:
            around = mask.copy()
            _draw(around, merge, corner, 255)
        reach = max(round(soft * self.unit), 2)
        edge = cv2.blur(around, (reach, reach), borderType=cv2.BORDER_REPLICATE)
        reach *= 2
        # A window to the right of and below the pixel: parts are lit from the upper left.
        lit = cv2.blur(around, (reach, reach), anchor=(reach // 4, reach // 3), borderType=cv2.BORDER_REPLICATE)
        shade = cv2.addWeighted(edge, 0.45, lit, 0.55, 0)
        shade = cv2.merge((shade, shade, shade))
        cloth = cv2.LUT(shade, _shades(fabric.color, light))
        if fabric.pattern != "plain" and any(shape.axes is not None for shape in shapes):
            figure = np.zeros_like(mask)
            for shape in shapes:
                if shape.axes is None:
                    continue
                woven = _weave(shape.axes, fabric, corner, mask.shape)
                if len(shapes) == 1:
                    figure = woven
                else:
                    own = np.zeros_like(mask)
                    _draw(own, shape, corner, 255)
                    cv2.copyTo(woven, own, figure)
            cv2.copyTo(cv2.LUT(shade, _shades(fabric.accent, light)), figure, cloth)
        cv2.copyTo(cloth, mask, self.canvas[y0:y1, x0:x1])

    def shadow(self, shape: Shape, background: ImageArray, *, reach: float = 0.034, dark: float = 0.6) -> None:
        """Darken what has been painted around a shape, except for the background.

        Args:
            shape: The shape that casts the shadow.
            background: (H, 1, 3), the colour of each row where nothing has been painted.
            reach: How far the shadow reaches beyond the shape, statures.
            dark: How much light is lost below the shape, 0 to 1; half of that is lost at its edge.
        """
        pixels = max(round(reach * self.unit), 2)
        x0, y0, x1, y1 = self._box([shape], pixels, pixels)
        if x0 >= x1 or y0 >= y1:
            return
        mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        _draw(mask, shape, np.array([x0, y0], dtype=np.float64), 255)
        for _ in range(2):
            mask = cv2.blur(mask, (pixels, pixels))
        region = self.canvas[y0:y1, x0:x1]
        is_painted = (region != background[y0:y1]).any(axis=2)
        lost = mask.astype(np.float32) * is_painted * (dark / 255)
        region[:] = np.rint(region * (1 - lost[:, :, None]))

    def _box(self, shapes: Sequence[Shape], before: int, after: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the shapes on the canvas, with pixels to spare around them."""
        corners = [polygon for shape in shapes for polygon in shape.polygons]
        corners += [np.array([c - r, c + r]) for shape in shapes for c, r in shape.discs]
        box = np.concatenate(corners)
        x0, y0 = np.maximum(np.floor(box.min(axis=0)).astype(int) - before, 0).tolist()
        x1, y1 = np.minimum(np.ceil(box.max(axis=0)).astype(int) + after, (self.width, self.height)).tolist()
        return x0, y0, x1, y1

    def disc(self, center: Array, radius: float, color: Color, width: float = 1.0) -> None:
        """Paint a flat disc of `radius` pixels; `width` narrows it to an ellipse."""
        axes = (_length(radius * width), _length(radius))
        cv2.ellipse(self.canvas, _fixed(center).tolist(), axes, 0, 0, 360, color, -1, 8, _SHIFT)

    def line(self, points: Array, color: Color, width: float) -> None:
        """Draw an open line (n, 2); `width` in statures."""
        cv2.polylines(
            self.canvas, [_fixed(points)], False, color, max(round(width * self.unit), 1), cv2.LINE_8, _SHIFT
        )


def _draw(mask: ImageArray, shape: Shape, corner: Array, value: int) -> None:
    for polygon in shape.polygons:
        cv2.fillPoly(mask, [_fixed(polygon - corner)], value, 8, _SHIFT)
    for center, radius in shape.discs:
        cv2.circle(mask, _fixed(center - corner).tolist(), _length(radius), value, -1, 8, _SHIFT)


def _fixed(points: Array) -> npt.NDArray[np.int32]:
    return np.rint(points * 2**_SHIFT).astype(np.int32)


def _length(pixels: float) -> int:
    return max(round(pixels * 2**_SHIFT), 1)


def _shades(color: Color, light: float) -> ImageArray:
    """Return a table (1, 256, 3) from shading to colour."""
    table = np.array(color) * _TINT * light + _LIFT
    return np.rint(table).clip(0, 255).astype(np.uint8)[None]


def _weave(axes: Axes, fabric: Fabric, corner: Array, shape: tuple[int, ...]) -> ImageArray:
    """Return where the accent colour shows, (height, width), 0 or 255."""
    # Fixed point: 256 steps make one period, and & 255 is the place within it.
    height, width = shape

    def coordinate(axis: Array, start: float) -> npt.NDArray[np.int32]:
        per_pixel = axis / max(float(axis @ axis), 1e-6) * (256 / fabric.period)
        constant = (corner - axes.origin) @ per_pixel + start * 256 / fabric.period
        x = np.rint(np.arange(width) * per_pixel[0] + constant).astype(np.int32)
        y = np.rint(np.arange(height) * per_pixel[1]).astype(np.int32)
        return np.add.outer(y, x)

    pattern = fabric.pattern
    if pattern == "horizontal":
        chosen = (coordinate(axes.along, axes.start) & 255) < 112
    elif pattern == "vertical":
        chosen = ((coordinate(axes.across, 0.0) + 56) & 255) < 112
    elif pattern == "diagonal":
        chosen = ((coordinate(axes.along, axes.start) + coordinate(axes.across, 0.0)) & 255) < 112
    elif pattern == "dots":
        along, across = coordinate(axes.along, axes.start), coordinate(axes.across, 0.0)
        # Every other row is shifted by half a period.
        across = ((across + ((along >> 1) & 128)) & 255) - 128
        along = (along & 255) - 128
        chosen = along * along + across * across < 76**2
    elif pattern == "checks":
        chosen = ((coordinate(axes.along, axes.start) ^ coordinate(axes.across, 0.0)) & 128) > 0
    elif pattern == "windows":
        along, across = coordinate(axes.along, axes.start), coordinate(axes.across, 0.0)
        chosen = ((along & 255) < 64) | (((across + 32) & 255) < 64)
    else:  # a block
        chosen = coordinate(axes.along, axes.start) > round(0.15 * 256 / fabric.period)
    return chosen.astype(np.uint8) * 255


def smooth(polygon: Array) -> Array:
    """Cut the corners of a closed polygon (n, 2) once."""
    following = np.roll(polygon, -1, axis=0)
    return np.stack([0.8 * polygon + 0.2 * following, 0.2 * polygon + 0.8 * following], axis=1).reshape(-1, 2)


def hull(points: Array) -> Array:
    """Return the convex hull of points (n, 2)."""
    return np.asarray(cv2.convexHull(points.astype(np.float32)).reshape(-1, 2), dtype=np.float64)


def circle(center: Array, radius: float) -> Array:
    """Return the outline of a disc, (28, 2)."""
    return center + ellipse(0, 0, radius, radius)


def ellipse(x: float, y: float, width: float, height: float) -> Array:
    """Return the outline of an ellipse with these half axes, (28, 2)."""
    return np.asarray(_CIRCLE * (width, height) + (x, y))


def darker(color: Color, factor: float) -> Color:
    """Darken a colour, or lighten a very dark one, so that the two can be told apart."""
    if sum(color) < 150:
        red, green, blue = (min(round(c + 60 * (1 - factor) + 14), 255) for c in color)
        return red, green, blue
    red, green, blue = (round(c * factor) for c in color)
    return red, green, blue
