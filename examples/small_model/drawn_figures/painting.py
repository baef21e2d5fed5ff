"""Paint the parts of a figure from the farthest to the nearest, four samples per pixel.

Garments are cut around the same joints as the body, and their patterns are measured along and across the limb or the
trunk they clothe, so that both move with the pose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from .brush import Axes, Brush, ImageArray, Shape, circle, darker, hull, smooth
from .head import HeadPainter
from .people import DrawnIdentity, Fabric
from .skeleton import (
    FRAME,
    HANDS,
    HEAD,
    HEELS,
    HIPS,
    TOES,
    Array,
    Skeleton,
)

__all__ = ["paint_figure"]

_SAMPLES = 4

# Half the breadth and half the depth of the trunk, and how far forward its middle lies, from the neck (0) to the hips
# (1). Breadths are in units of those of the neck (n), the shoulders (s), the waist (w) or the hips (h).
_TRUNK = (
    (-0.15, "n", 0.9, 0.55, 0.0),
    (-0.085, "n", 1.2, 0.6, 0.0),
    (-0.05, "s", 0.68, 0.68, 0.0),
    (-0.015, "s", 0.97, 0.76, 0.0),
    (0.03, "s", 1.13, 0.82, 0.0),
    (0.1, "s", 1.1, 0.9, 0.0),
    (0.22, "s", 0.98, 1.0, 0.006),
    (0.4, "s", 0.88, 1.02, 0.01),
    (0.55, "w", 1.06, 0.92, 0.006),
    (0.68, "w", 1.0, 0.85, 0.0),
    (0.84, "h", 0.95, 0.95, -0.006),
    (1.0, "h", 1.0, 1.02, -0.012),
    (1.12, "h", 0.96, 0.95, -0.012),
)
_NECK = 0.036


def paint_figure(
    identity: DrawnIdentity,
    skeleton: Skeleton,
    size: tuple[int, int],
    arms: Sequence[tuple[Fabric, Fabric]] | None = None,
) -> ImageArray:
    """Paint a figure.

    Args:
        identity: The person.
        skeleton: Their points, from `place_skeleton`.
        size: (height, width) of the image, pixels, to which the figure's 256x176 pixels are squeezed.
        arms: Colours of skin and sleeve of the right and the left arm; None for the person's own.

    Returns:
        (height, width, 3), RGB.
    """
    scale = _SAMPLES * max(size) / FRAME[0]
    painter = _Painter(identity, skeleton, scale, arms)
    painter.paint_all()
    # Averaging the area of each pixel smooths every edge.
    image = cv2.resize(painter.canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(image, dtype=np.uint8)


class _Painter:
    """A canvas and the figure's geometry in its pixels."""

    def __init__(
        self,
        identity: DrawnIdentity,
        skeleton: Skeleton,
        scale: float,
        arms: Sequence[tuple[Fabric, Fabric]] | None = None,
    ) -> None:
        self.identity = identity
        self.body = identity.body
        self.clothes = identity.clothes
        self.points = skeleton.points * scale - 0.5
        self.depth = skeleton.depth
        self.unit = skeleton.unit * scale
        self.hip_turn, self.turn, _ = skeleton.turns
        self.height, self.width = round(FRAME[0] * scale), round(FRAME[1] * scale)
        self.canvas = self._paint_background()
        self.background = self.canvas[:, :1].copy()
        self.skin = Fabric(self.body.skin, self.body.skin)
        # A block of colour belongs to the trunk, and sleeves have the ground's colour.
        upper = self.clothes.upper
        sleeve = upper if upper.pattern != "block" else replace(upper, pattern="plain")
        self.arm_fabrics = arms or ((self.skin, sleeve),) * 2
        self.frontal = np.cos(self.turn) > 0

        units = {"n": _NECK, "s": self.body.shoulder, "w": self.body.waist, "h": self.body.breadth}
        self.table = np.array([[k, units[name] * w, self.body.depth * d, z] for k, name, w, d, z in _TRUNK])
        neck, hips = self.points[1], self.points[HIPS]
        self.spine = hips - neck
        self.down = self.spine / max(_norm(self.spine), 1e-6)
        self.right = np.array([self.down[1], -self.down[0]])  # of the image
        self.slants = (self._slant(2, 5, self.turn), self._slant(8, 11, self.hip_turn))
        # Patterns are measured on the cloth, which turns away at the sides of a body seen obliquely.
        across = self.right * self.unit * max(abs(float(np.cos(self.turn))), 0.55)
        front = neck + self.right * self.unit * 0.5 * self.body.depth * np.sin(self.turn)
        self.trunk_axes = Axes(front, self.down * self.unit, across)
        self.arms = tuple(self.points[[2 + 3 * i, 3 + 3 * i, 4 + 3 * i, HANDS[i]]] for i in (0, 1))
        self.legs = tuple(self.points[[8 + 3 * i, 9 + 3 * i, 10 + 3 * i]] for i in (0, 1))
        self.brush = Brush(self.canvas, self.unit)
        self.head = HeadPainter(identity, skeleton, self.points, self.right, self.down, self.brush)
        self.far, self.near = (0, 1) if self._leg_depth(0) <= self._leg_depth(1) else (1, 0)

    # The order of things ----------------------------------------------------------------------------------------

    def paint_all(self) -> None:
        self._paint_shadow()
        behind, before, forearms = self._sort_arms()
        if self.frontal:
            self.head.paint_hair_fall()
        for index in behind:
            self._paint_arm(index)
        self.brush.fill([Shape(polygons=[self._trunk(-0.08, 1.0, 0.0)])], self.skin)
        self._paint_legs()
        self._paint_trunk()
        self._paint_neck()
        self.head.paint()
        if not self.frontal:
            self.head.paint_hair_fall()
        for index in before:
            self._cast_shadow(index)
            self._paint_arm(index)
        for index in forearms:
            self._cast_shadow(index)
            self._paint_arm(index, forearm_only=True)

    def _sort_arms(self) -> tuple[list[int], list[int], list[int]]:
        """Return the arms behind the trunk, those in front of it, and forearms that reach around to the front."""
        behind, before, forearms = [], [], []
        middle = 0.5 * (self.depth[2] + self.depth[5])
        lean = (self.depth[1] - self.depth[HIPS]) * np.array([0.55, 1.0])  # the trunk's depth beside elbow and wrist
        for index in sorted((0, 1), key=lambda i: self.depth[4 + 3 * i]):
            shoulder, elbow, wrist = self.depth[2 + 3 * index : 5 + 3 * index] - self.depth[HIPS]
            shoulder -= middle - self.depth[HIPS]
            upper = 0.5 * shoulder + 0.5 * (elbow - lean[0])
            lower = wrist - lean[0] if self.points[4 + 3 * index, 1] < self.points[HIPS, 1] else wrist
            if upper > -0.035 and lower > -0.075:
                before.append(index)
            else:
                behind.append(index)
                if lower > 0.03:
                    forearms.append(index)
        return behind, before, forearms

    # Geometry ---------------------------------------------------------------------------------------------------

    def _slant(self, right: int, left: int, turn: float) -> float:
        """Return the angle by which a line through two joints slants against the spine's normal, radians."""
        difference = self.points[left] - self.points[right]
        if np.cos(turn) < 0:
            difference = -difference
        weight = abs(float(np.cos(turn)))
        angle = np.arctan2(difference @ self.down, max(float(difference @ self.right), 1e-3))
        return float(np.clip(angle, -0.3, 0.3)) * weight

    def _leg_depth(self, index: int) -> float:
        return float(self.depth[[8 + 3 * index, 9 + 3 * index, 10 + 3 * index]].sum())

    def _level(self, level: float) -> Array:
        """Return the trunk's middle at a level (0 neck, 1 hips)."""
        return np.asarray(self.points[1] + level * self.spine)

    def _trunk_points(self, levels: Sequence[float], ease: float, straight: float = 0.0) -> tuple[Array, Array]:
        """Return the trunk's outline at some levels: two (n, 2), at its left and its right in the image."""
        body = self.body
        places = np.array(levels, dtype=np.float64)
        # At the hips and below, the trunk turns with the hips; at the neck, with the shoulders.
        weight = places.clip(0, 1)
        breadth, depth, forward = (np.interp(places, self.table[:, 0], self.table[:, column]) for column in (1, 2, 3))
        box = max(body.shoulder * 0.9, body.breadth)
        breadth = breadth + (places > 0.3) * straight * np.maximum(box - breadth, 0.0)
        turn = self.turn + (self.hip_turn - self.turn) * weight
        half = (np.hypot(breadth * np.cos(turn), depth * np.sin(turn)) + ease)[:, None] * self.unit
        angle = ((1 - weight) * self.slants[0] + weight * self.slants[1])[:, None]
        across = self.right * np.cos(angle) + self.down * np.sin(angle)
        middle = self.points[1] + places[:, None] * self.spine
        middle = middle + self.right * (self.unit * forward * np.sin(turn))[:, None]
        return middle - across * half, middle + across * half

    def _trunk(self, top: float, bottom: float, ease: float, straight: float = 0.0) -> Array:
        levels = [top, *(row[0] for row in _TRUNK if top + 0.01 < row[0] < bottom - 0.01), bottom]
        left, right = self._trunk_points(levels, ease, straight)
        middle = self._level(bottom)
        # The lower edge runs around the body, so it looks curved.
        curve = middle + self.down * self.unit * 0.012
        return smooth(np.concatenate([left, [curve], right[::-1]]))

    def _front(self, level: float, depth: float = 1.0) -> Array:
        """Return where the middle of the front appears at a level."""
        middle = self._level(level)
        return middle + self.right * self.unit * depth * self.body.depth * np.sin(self.turn)

    def _drape(self, hem: float, width: float, sag: float = 0.014) -> Shape:
        """Return what hangs from the hips around both legs down to `hem` (1 hips, 2 knees, 3 ankles)."""
        left, right = self._trunk_points([0.84, 1.0, 1.1], 0.006)
        corners = [*left, *right]
        ends = []
        for path in self.legs:
            if hem > 2:
                corners += list(circle(path[1], (0.04 * self.body.limb + 0.006) * self.unit)[::4])
            end, direction = _along(path, hem - 1)
            radius = np.interp(hem - 1, [0, 1, 2], [0.052, 0.036, 0.026]) * self.body.limb
            half = (radius + 0.004 + width * (0.4 + 0.6 * (hem - 1))) * self.unit
            across = np.array([abs(direction[1]), -direction[0] * np.sign(direction[1] or 1.0)])
            across = 0.5 * across + 0.5 * np.array([1.0, 0.0])
            corners += [end - across * half, end + across * half]
            ends.append(end)
        middle = 0.5 * (ends[0] + ends[1])
        corners.append(middle + np.array([0.0, sag * self.unit * (1 + 4 * width)]))
        top = self._level(1.0) + self.right * self.unit * 0.5 * self.body.depth * np.sin(self.turn)
        along = middle - top
        along = along / max(_norm(along), 1e-6)
        start = _norm(self.spine) / self.unit
        axes = Axes(top, along * self.unit, np.array([along[1], -along[0]]) * _norm(self.trunk_axes.across), start)
        return Shape(axes, [hull(np.array(corners))])

    def _limb_axes(self, start: Array, end: Array, length: float, at: float = 0.0) -> Axes:
        """Return a pattern's axes on a limb of the given true length, statures."""
        step = end - start
        seen = max(_norm(step), 1e-6)
        along = step / seen
        across = np.array([along[1], -along[0]]) * self.unit
        return Axes(start, along * self.unit * max(seen / (length * self.unit), 0.35), across, at)

    # Background -------------------------------------------------------------------------------------------------

    def _paint_background(self) -> ImageArray:
        top, bottom = np.array(self.identity.background, dtype=np.float64)
        weight = np.linspace(0, 1, self.height)[:, None]
        rows = top + weight * (bottom - top)
        if self.identity.floor:
            rows *= 1 - 0.1 * np.clip((weight - 0.82) * 25, 0, 1)
        column = np.rint(rows).astype(np.uint8)[:, None, :]
        return np.asarray(cv2.repeat(column, 1, self.width))

    def _paint_shadow(self) -> None:
        """Darken the floor around the feet."""
        feet = self.points[[*HEELS, *TOES]]
        center = feet.mean(axis=0) + np.array([0.0, 0.012 * self.unit])
        half = np.array([0.5 * np.ptp(feet[:, 0]) + 0.09 * self.unit, 0.028 * self.unit])
        low = np.maximum((center - half).astype(int), 0)
        high = np.minimum((center + half).astype(int) + 1, (self.width, self.height))
        if (low >= high).any():
            return
        x = (np.arange(low[0], high[0]) - center[0]) / half[0]
        y = (np.arange(low[1], high[1]) - center[1]) / half[1]
        dark = 0.2 * np.clip(1 - np.add.outer(y**2, x**2), 0, 1)
        region = self.canvas[low[1] : high[1], low[0] : high[0]]
        region[:] = np.rint(region * (1 - dark[:, :, None]))

    # Legs -------------------------------------------------------------------------------------------------------

    def _paint_legs(self) -> None:
        clothes = self.clothes
        boots_outside = clothes.shoe_kind == "boot" and (
            clothes.kind == "dress" or clothes.lower_kind == "skirt" or clothes.lower_width < 0.01
        )
        for index in (self.far, self.near):
            light = 0.9 if index == self.far else 1.0
            self._paint_bare_leg(index, light)
            if not boots_outside:
                self._paint_shoe(index, light)
            if clothes.kind != "dress" and clothes.lower_kind == "trousers":
                self._paint_trouser_leg(index, light)
            if boots_outside:
                self._paint_shoe(index, light)

    def _paint_bare_leg(self, index: int, light: float) -> None:
        hip, knee, ankle = self.legs[index]
        limb = self.body.limb
        shape = Shape()
        path = np.array([hip, knee, knee + 0.32 * (ankle - knee), ankle])
        radii = np.array([self._thigh(), 0.034 * limb, 0.033 * limb, 0.019 * limb])
        self.brush.tube(path, radii.tolist(), shape)
        self.brush.fill([shape], self.skin, light=light)

    def _thigh(self) -> float:
        """Return the radius of a thigh at the hip, for which the pelvis has room."""
        return self.body.breadth - self.body.hip + 0.002

    def _paint_shoe(self, index: int, light: float) -> None:
        clothes = self.clothes
        ankle, heel, toe = self.points[10 + 3 * index], self.points[HEELS[index]], self.points[TOES[index]]
        fabric = Fabric(clothes.shoe, clothes.shoe)
        foot = Shape(polygons=[self._foot(ankle, heel, toe, 0.0)])
        if clothes.shoe_kind == "sandal":
            self.brush.fill([foot], self.skin, soft=0.02, light=light)
            for weight in (0.25, 0.65):
                middle = ankle + weight * (toe - ankle)
                across = np.array([0.024 * self.unit, 0.004 * self.unit])
                self.brush.line(np.array([middle - across, middle + across]), clothes.shoe, 0.011)
            return
        if clothes.shoe_kind == "sneaker":
            sole = Shape(polygons=[self._foot(ankle, heel, toe, 0.008)])
            pale = (236, 236, 232) if sum(clothes.shoe) < 600 else (120, 120, 124)
            self.brush.fill([sole], Fabric(pale, pale), soft=0.012, light=light)
            self.brush.fill([foot], fabric, soft=0.02, light=light)
            return
        knee = self.points[9 + 3 * index]
        shaft = Shape()
        top = ankle + 0.42 * (knee - ankle)
        self.brush.tube(np.array([ankle, top]), [0.027 * self.body.limb, 0.036 * self.body.limb], shaft, flat_end=True)
        self.brush.fill([foot, shaft], fabric, soft=0.025, light=light)

    def _foot(self, ankle: Array, heel: Array, toe: Array, lower: float) -> Array:
        """Return a shoe's outline; `lower` moves it down, statures."""
        unit = self.unit
        down = np.array([0.0, lower * unit])
        circles = [circle(ankle + down, 0.022 * unit), circle(heel + down, 0.021 * unit)]
        circles.append(circle(toe + down, 0.019 * unit))
        return hull(np.concatenate(circles))

    def _trouser_shape(self, index: int) -> list[Shape]:
        clothes, body = self.clothes, self.body
        path = self.legs[index]
        loose = clothes.lower_width
        thigh, shin = 0.51 * body.leg, 0.49 * body.leg
        end = clothes.lower_hem - 1
        radii = np.array([self._thigh() + 0.006, 0.036 * body.limb + 0.7 * loose, 0.021 * body.limb + 1.05 * loose])
        upper = Shape(self._limb_axes(path[0], path[1], thigh))
        if end <= 1:
            stop, _ = _along(path, end)
            # Short trouser legs stand off at their ends.
            radius = float(np.interp(end, [0, 1], radii[:2])) + 0.006
            self.brush.tube(np.array([path[0], stop]), [radii[0], radius], upper, flat_end=True)
            return [upper]
        self.brush.tube(path[:2], radii[:2].tolist(), upper)
        stop, _ = _along(path, end)
        lower = Shape(self._limb_axes(path[1], path[2], shin, thigh))
        radius = float(np.interp(end - 1, [0, 1], radii[1:]))
        self.brush.tube(np.array([path[1], stop]), [radii[1], radius], lower, flat_end=True)
        return [upper, lower]

    def _paint_trouser_leg(self, index: int, light: float) -> None:
        shapes = self._trouser_shape(index)
        if index == self.near:
            axes = replace(self.trunk_axes, start=0.0)
            shapes.insert(0, Shape(axes, [self._trunk(0.78, 1.13, 0.006)]))
        self.brush.fill(shapes, self.clothes.lower, light=light, soft=0.035)

    # Trunk ------------------------------------------------------------------------------------------------------

    def _paint_trunk(self) -> None:
        clothes = self.clothes
        if clothes.kind == "dress":
            self._paint_upper(clothes.upper)
            self._paint_belt(0.68)
            return
        if clothes.tucked:
            self._paint_upper(clothes.upper)
        if clothes.lower_kind == "skirt":
            band = Shape(self.trunk_axes, [self._trunk(0.74, 1.02, 0.008)])
            self.brush.fill([band, self._drape(clothes.lower_hem, clothes.lower_width)], clothes.lower, soft=0.045)
        elif clothes.tucked:
            self.brush.fill([Shape(self.trunk_axes, [self._trunk(0.76, 1.0, 0.008)])], clothes.lower,
                       merge=Shape(polygons=[self._trunk(0.9, 1.3, 0.0)]))  # fmt: skip
        self._paint_belt(0.79)
        if not clothes.tucked:
            self._paint_upper(clothes.upper)

    def _paint_belt(self, level: float) -> None:
        if self.clothes.belt is None:
            return
        left, right = self._trunk_points([level, level + 0.055], 0.011)
        sag = self.down * self.unit * 0.007
        middle = 0.5 * (left + right) + sag
        band = np.array([left[0], middle[0], right[0], right[1], middle[1], left[1]])
        self.brush.fill([Shape(polygons=[band])], Fabric(self.clothes.belt, self.clothes.belt), soft=0.01)

    def _upper_shapes(self, ease: float) -> list[Shape]:
        clothes = self.clothes
        straight = float(np.clip(ease / 0.018, 0, 1)) * (0.4 if clothes.kind == "dress" else 0.9)
        bottom = 0.8 if clothes.tucked else min(clothes.hem, 1.12)
        shapes = [Shape(self.trunk_axes, [self._trunk(-0.075, bottom, ease, straight)])]
        if clothes.hem > 1.14 and not clothes.tucked:
            width = clothes.lower_width if clothes.kind == "dress" and clothes.lower_kind == "skirt" else 0.02
            shapes.append(self._drape(clothes.hem, max(width, ease)))
        return shapes

    def _paint_upper(self, fabric: Fabric) -> None:
        clothes = self.clothes
        if clothes.kind == "jacket":
            inner = Fabric(clothes.inner, clothes.inner)
            self.brush.fill([Shape(polygons=[self._trunk(-0.075, 1.02, 0.004)])], inner)
            if self.frontal:
                self._paint_neckline(0.9)
            self.brush.fill(self._upper_shapes(clothes.ease + 0.006), fabric, soft=0.04, cut=self._opening())
            if self.frontal:
                self._paint_lapels()
            return
        self.brush.fill(self._upper_shapes(clothes.ease), fabric, soft=0.045)
        if self.frontal:
            self._paint_print()
            if clothes.kind == "shirt":
                self._paint_buttons()
        self._paint_neckline(1.0)

    def _opening(self) -> list[Array]:
        """Return the wedge that an open jacket leaves free in front."""
        cos = float(np.cos(self.turn))
        if cos <= 0.05:
            return []
        across = self.right * self.unit * cos
        levels = ((-0.12, 0.034), (0.05, 0.036), (0.5, 0.022), (1.0, 0.034), (2.6, 0.12))
        left = [self._front(level) - across * half for level, half in levels]
        right = [self._front(level) + across * half for level, half in levels]
        return [np.array(left + right[::-1])]

    def _paint_lapels(self) -> None:
        cos = float(np.cos(self.turn))
        if cos <= 0.25:
            return
        color = darker(self.clothes.upper.color, 0.68)
        across = self.right * self.unit * cos
        for side in (-1.0, 1.0):
            corners = ((-0.03, 0.036), (0.14, 0.072), (0.2, 0.058), (0.46, 0.024), (0.05, 0.037))
            points = [self._front(level) + side * half * across for level, half in corners]
            self.brush.fill([Shape(polygons=[np.array(points)])], Fabric(color, color), soft=0.01)

    def _paint_buttons(self) -> None:
        cos = float(np.cos(self.turn))
        if cos < 0.2:
            return
        end = min(self.clothes.hem, 1.1) if not self.clothes.tucked else 0.76
        color = darker(self.clothes.upper.color, 0.6)
        self.brush.line(np.array([self._front(level) for level in (0.06, 0.3, 0.6, end)]), color, 0.005)
        for level in np.arange(0.16, end, 0.15):
            point = self._front(float(level))
            self.brush.disc(point, 0.0065 * self.unit, (240, 240, 236))

    def _paint_print(self) -> None:
        shape, cos = self.clothes.print_shape, float(np.cos(self.turn))
        if shape == "none" or cos < 0.25:
            return
        center, radius = self._front(0.36, 0.9), 0.052 * self.unit
        if shape == "bar":
            outline = np.array([[-1.15, -0.45], [1.15, -0.45], [1.15, 0.45], [-1.15, 0.45]])
        else:
            count = {"disc": 24, "diamond": 4, "star": 10}[shape]
            angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
            lengths = np.where(np.arange(count) % 2, 0.45, 1.15) if shape == "star" else np.ones(count)
            outline = np.column_stack([np.cos(angles), np.sin(angles)]) * lengths[:, None]
        points = center + radius * (outline[:, :1] * self.right * cos + outline[:, 1:] * self.down)
        accent = self.clothes.upper.accent
        self.brush.fill([Shape(polygons=[points])], Fabric(accent, accent), soft=0.01)

    def _paint_neckline(self, width: float) -> None:
        """Show the skin above the garment's upper edge, deeper in front than at the back."""
        kind, cos = self.clothes.neckline, float(np.cos(self.turn))
        if kind in ("turtle", "collar") and self.clothes.kind != "jacket":
            return
        # Half its width, where it starts and where it ends in front.
        kinds = {"round": (0.041, -0.085, 0.09), "v": (0.039, -0.085, 0.24), "boat": (0.055, -0.06, 0.02)}
        half, top, bottom = kinds.get(kind, (0.041, -0.085, 0.09))
        if cos <= 0:
            bottom = 0.55 * top
        shift = self.right * self.unit * 0.4 * self.body.depth * np.sin(self.turn)
        across = self.right * self.unit * width * half * max(abs(cos), 0.6)
        start, low = self._level(top), self._level(bottom) + shift
        left, right = start - across, start + across
        if kind == "v" and cos > 0:
            outline = np.array([left, low, right])
        else:
            angles = np.linspace(0, np.pi, 12)
            outline = start - np.cos(angles)[:, None] * across + np.sin(angles)[:, None] * (low - start)
        self.brush.fill(
            [Shape(polygons=[outline])],
            self.skin,
            soft=0.02,
            merge=Shape(discs=[(left, 0.04 * self.unit), (right, 0.04 * self.unit)]),
        )

    def _paint_neck(self) -> None:
        clothes, body = self.clothes, self.body
        neck, head = self.points[1], self.points[HEAD]
        shape = Shape()
        # It ends in the neckline; the chin's shadow comes from the head's edge.
        path = np.array([head, neck - self.down * 0.014 * self.unit])
        self.brush.tube(path, [0.031 * body.limb**0.5, 0.035 * body.limb**0.5], shape, flat_end=True)
        self.brush.fill([shape], self.skin, light=0.93, merge=Shape(discs=[(neck, 0.06 * self.unit)]))
        if clothes.kind == "jacket":
            return
        if clothes.neckline == "turtle":
            collar = Shape(self.trunk_axes)
            step = (head - neck) * 0.42
            self.brush.tube(np.array([neck, neck + step]), [0.043, 0.038], collar, flat_end=True)
            self.brush.fill([collar], clothes.upper, soft=0.025, merge=Shape(discs=[(neck, 0.06 * self.unit)]))
        elif clothes.neckline == "collar":
            self._paint_collar()

    def _paint_collar(self) -> None:
        color = darker(self.clothes.upper.color, 0.8)
        fabric = Fabric(color, color)
        cos = float(np.cos(self.turn))
        across = self.right * self.unit
        if cos < 0:
            points = [self._level(-0.11) - 0.04 * across, self._level(-0.11) + 0.04 * across]
            points += [self._level(0.03) + 0.048 * across, self._level(0.03) - 0.048 * across]
            self.brush.fill([Shape(polygons=[np.array(points)])], fabric, soft=0.012)
            return
        for side in (-1.0, 1.0):
            inner = self._front(0.06, 0.6)
            outer = self._level(-0.11) + side * 0.038 * across
            tip = self._front(0.16, 0.6) + side * 0.045 * across * max(cos, 0.3)
            self.brush.fill(
                [Shape(polygons=[np.array([inner, outer, self._level(0.0) + side * 0.055 * across, tip])])],
                fabric,
                soft=0.012,
            )

    # Arms -------------------------------------------------------------------------------------------------------

    def _paint_arm(self, index: int, forearm_only: bool = False) -> None:
        clothes, body = self.clothes, self.body
        shoulder, elbow, wrist, hand = self.arms[index]
        far = self.depth[2 + 3 * index] < self.depth[5 - 3 * index] - 0.05
        light = 0.92 if far else 1.0
        start = 1 if forearm_only else 0
        radii = self._arm_radii()
        skin = self.arm_fabrics[index][0]
        bare = Shape()
        palm = wrist + 0.55 * (hand - wrist)
        path = np.array([shoulder, elbow, wrist])[start:]
        # Sleeves and skin run into the shoulder without an edge.
        joint = Shape(discs=[(shoulder + self.down * 0.01 * self.unit, 0.066 * self.unit)])
        merge = None if forearm_only or far else joint
        if clothes.sleeve < 1.9:
            self.brush.tube(path, radii[start:3].tolist(), bare)
            self.brush.fill([bare], skin, light=light, merge=merge)
        fist = Shape()
        self.brush.tube(np.array([wrist, palm, hand]), [radii[2], 0.029 * body.limb**0.5, 0.019], fist)
        near = self.depth[HANDS[index]] > self.depth[3 + 3 * index] + 0.04
        if near and clothes.sleeve > start:
            self._paint_sleeve(index, start, radii, light, merge)
        self.brush.fill([fist], skin, light=light, soft=0.02, merge=Shape(discs=[(wrist, 0.028 * self.unit)]))
        # A hand that points away from the camera goes into its sleeve.
        if not near and clothes.sleeve > start:
            self._paint_sleeve(index, start, radii, light, merge)

    def _arm_radii(self) -> Array:
        """Return the radii of an arm at shoulder, elbow and wrist, statures."""
        return np.array([0.035, 0.033, 0.027]) * self.body.limb

    def _sleeve_ease(self) -> float:
        """Return how far a sleeve stands off the arm where it begins, statures."""
        return 0.4 * self.clothes.ease + 0.003

    def _cast_shadow(self, index: int) -> None:
        """Darken what is behind an arm in front of the body, so that a sleeve stands out from its own garment."""
        shoulder, elbow, wrist, hand = self.arms[index]
        radii = self._arm_radii() + (self._sleeve_ease() if self.clothes.sleeve > 0 else 0.0)
        # Not at the shoulder, from which the arm grows.
        start = shoulder + 0.45 * (elbow - shoulder)
        shape = Shape()
        self.brush.tube(np.array([start, elbow, wrist, hand]), [radii[1], radii[1], radii[2], 0.019], shape)
        self.brush.shadow(shape, self.background)

    def _paint_sleeve(self, index: int, start: int, radii: Array, light: float, merge: Shape | None) -> None:
        clothes, body = self.clothes, self.body
        shoulder, elbow, wrist, _ = self.arms[index]
        lengths = (0.53 * body.arm, 0.47 * body.arm)
        end = clothes.sleeve
        flare = clothes.sleeve_width * np.array([0.1, 0.5, 1.0]) * (1.0 if end > 1 else 1.6)
        widths = radii + self._sleeve_ease() + flare
        shapes = []
        if start == 0:
            upper = Shape(self._limb_axes(shoulder, elbow, lengths[0]))
            stop = shoulder + min(end, 1.0) * (elbow - shoulder)
            width = float(np.interp(min(end, 1.0), [0, 1], widths[:2]))
            self.brush.tube(np.array([shoulder, stop]), [widths[0], width], upper, flat_end=end <= 1)
            shapes.append(upper)
        if end > 1:
            lower = Shape(self._limb_axes(elbow, wrist, lengths[1], lengths[0]))
            stop = elbow + (end - 1) * (wrist - elbow)
            width = float(np.interp(end - 1, [0, 1], widths[1:]))
            self.brush.tube(np.array([elbow, stop]), [widths[1], width], lower, flat_end=True)
            shapes.append(lower)
        self.brush.fill(shapes, self.arm_fabrics[index][1], light=light, soft=0.035, merge=merge)


def _along(path: Array, place: float) -> tuple[Array, Array]:
    """Return the point at `place` (0 to 2) of a path of three points, and the direction there."""
    index = 0 if place <= 1 else 1
    step = path[index + 1] - path[index]
    return path[index] + (place - index) * step, step / max(_norm(step), 1e-6)


def _norm(vector: Array) -> float:
    return math.hypot(vector[0], vector[1])
