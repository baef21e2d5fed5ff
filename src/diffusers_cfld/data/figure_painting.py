"""Paint drawn people: the parts of a figure from the farthest to the nearest, four samples per pixel.

Garments are cut around the same joints as the body, and their patterns are measured along and across the limb or the
trunk they clothe, so that both move with the pose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from .drawn_people import Body, DrawnIdentity, Fabric
from .figure_brush import Axes, Brush, Picture, Shape, circle, darker, ellipse, hull, smooth
from .figure_skeleton import (
    FRAME,
    HANDS,
    HEAD,
    HEAD_DEPTH,
    HEAD_WIDTH,
    HEELS,
    HIPS,
    TOES,
    Array,
    Skeleton,
)

__all__ = ["paint_figure", "trunk_axes"]

_SAMPLES = 4

# Half breadth and half depth of the trunk and how far its middle lies forward, from the neck (0) to the hips (1).
# Breadths are in units of: n the neck, s the shoulders, w the waist, h the hips.
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
) -> Picture:
    """Paint a figure.

    Args:
        identity: Who.
        skeleton: Their points, from `place_skeleton`.
        size: (height, width) of the picture, pixels. The frame of 256x176 is squeezed into it.
        arms: Skin and sleeve of the right and of the left arm, where they are not to be the identity's own.

    Returns:
        (height, width, 3), RGB.
    """
    scale = _SAMPLES * max(size) / FRAME[0]
    painter = _Painter(identity, skeleton, scale, arms)
    painter.paint_all()
    # The area of each pixel is averaged, which smooths every edge.
    picture = cv2.resize(painter.canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(picture, dtype=np.uint8)


def trunk_axes(body: Body, neck: Array, hips: Array, unit: float, turn: float) -> Axes:
    """Find the axes of a pattern on the trunk.

    Args:
        body: Proportions.
        neck: (2,), x and y.
        hips: (2,), the middle between the hip joints.
        unit: Pixels that the stature measures.
        turn: Of the shoulders, radians.

    Returns:
        The axes, in the same pixels.
    """
    spine = hips - neck
    down = spine / max(_norm(spine), 1e-6)
    right = np.array([down[1], -down[0]])  # to the picture's right
    # Patterns are measured on the cloth, which turns away at the sides of a body seen obliquely.
    across = right * unit * max(abs(float(np.cos(turn))), 0.55)
    return Axes(neck + right * unit * 0.5 * body.depth * np.sin(turn), down * unit, across)


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
        self.known = skeleton.known
        self.unit = skeleton.unit * scale
        self.hip_turn, self.turn, self.face_turn = skeleton.turns
        self.height, self.width = round(FRAME[0] * scale), round(FRAME[1] * scale)
        self.canvas = self._paint_background()
        self.background = self.canvas[:, :1].copy()
        self.brush = Brush(self.canvas, self.unit)
        self.skin = Fabric(self.body.skin, self.body.skin)
        # A block of colour belongs to the trunk; the sleeves show its ground.
        upper = self.clothes.upper
        sleeve = upper if upper.pattern != "block" else replace(upper, pattern="plain")
        self.arm_fabrics = arms or ((self.skin, sleeve),) * 2
        self.frontal = np.cos(self.turn) > 0

        units = {"n": _NECK, "s": self.body.shoulder, "w": self.body.waist, "h": self.body.breadth}
        self.table = np.array([[k, units[name] * w, self.body.depth * d, z] for k, name, w, d, z in _TRUNK])
        neck, hips = self.points[1], self.points[HIPS]
        self.spine = hips - neck
        self.down = self.spine / max(_norm(self.spine), 1e-6)
        self.right = np.array([self.down[1], -self.down[0]])  # to the picture's right
        self.slants = (self._slant(2, 5, self.turn), self._slant(8, 11, self.hip_turn))
        self.trunk_axes = trunk_axes(self.body, neck, hips, self.unit, self.turn)
        self.arms = tuple(self.points[[2 + 3 * i, 3 + 3 * i, 4 + 3 * i, HANDS[i]]] for i in (0, 1))
        self.legs = tuple(self.points[[8 + 3 * i, 9 + 3 * i, 10 + 3 * i]] for i in (0, 1))
        self.far, self.near = (0, 1) if self._leg_depth(0) <= self._leg_depth(1) else (1, 0)

    # The order of things ----------------------------------------------------------------------------------------

    def paint_all(self) -> None:
        self._paint_shadow()
        behind, before, forearms = self._sort_arms()
        if self.frontal:
            self._paint_hair_fall()
        for index in behind:
            self._paint_arm(index)
        self.brush.fill([Shape(polygons=[self._trunk(-0.08, 1.0, 0.0)])], self.skin)
        self._paint_legs()
        self._paint_trunk()
        self._paint_neck()
        self._paint_head()
        if not self.frontal:
            self._paint_hair_fall()
        for index in before:
            self._cast_shadow(index)
            self._paint_arm(index)
        for index in forearms:
            self._cast_shadow(index)
            self._paint_arm(index, forearm_only=True)

    def _sort_arms(self) -> tuple[list[int], list[int], list[int]]:
        """Return the arms that lie behind the trunk, those before it, and forearms that reach around to the front."""
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
        """Return the trunk's outline at some levels: two (n, 2), at its left and its right in the picture."""
        body = self.body
        places = np.array(levels, dtype=np.float64)
        # At the hips and below the trunk turns with the hips, at the neck with the shoulders.
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
        # The lower edge runs around the body, so the camera sees it curved.
        curve = middle + self.down * self.unit * 0.012
        return smooth(np.concatenate([left, [curve], right[::-1]]))

    def _front(self, level: float, depth: float = 1.0) -> Array:
        """Return where the middle of the front is seen at a level."""
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

    def _tube(self, path: Array, radii: Sequence[float], shape: Shape, *, flat_end: bool = False) -> None:
        """Add a limb along `path` (n, 2) to a shape; radii in statures at each point."""
        for index in range(len(path) - 1):
            step = path[index + 1] - path[index]
            normal = np.array([-step[1], step[0]]) / max(_norm(step), 1e-6)
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

    def _limb_axes(self, start: Array, end: Array, length: float, at: float = 0.0) -> Axes:
        """Return a pattern's axes on a limb of the given true length, statures."""
        step = end - start
        seen = max(_norm(step), 1e-6)
        along = step / seen
        across = np.array([along[1], -along[0]]) * self.unit
        return Axes(start, along * self.unit * max(seen / (length * self.unit), 0.35), across, at)

    # Background -------------------------------------------------------------------------------------------------

    def _paint_background(self) -> Picture:
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
        self._tube(path, radii.tolist(), shape)
        self.brush.fill([shape], self.skin, light=light)

    def _thigh(self) -> float:
        """Return the radius of a thigh at the hip: as much as the pelvis has room for."""
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
        self._tube(np.array([ankle, top]), [0.027 * self.body.limb, 0.036 * self.body.limb], shaft, flat_end=True)
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
            # Short legs stand off at their end.
            radius = float(np.interp(end, [0, 1], radii[:2])) + 0.006
            self._tube(np.array([path[0], stop]), [radii[0], radius], upper, flat_end=True)
            return [upper]
        self._tube(path[:2], radii[:2].tolist(), upper)
        stop, _ = _along(path, end)
        lower = Shape(self._limb_axes(path[1], path[2], shin, thigh))
        radius = float(np.interp(end - 1, [0, 1], radii[1:]))
        self._tube(np.array([path[1], stop]), [radii[1], radius], lower, flat_end=True)
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
        self._tube(path, [0.031 * body.limb**0.5, 0.035 * body.limb**0.5], shape, flat_end=True)
        self.brush.fill([shape], self.skin, light=0.93, merge=Shape(discs=[(neck, 0.06 * self.unit)]))
        if clothes.kind == "jacket":
            return
        if clothes.neckline == "turtle":
            collar = Shape(self.trunk_axes)
            step = (head - neck) * 0.42
            self._tube(np.array([neck, neck + step]), [0.043, 0.038], collar, flat_end=True)
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
            self._tube(path, radii[start:3].tolist(), bare)
            self.brush.fill([bare], skin, light=light, merge=merge)
        fist = Shape()
        self._tube(np.array([wrist, palm, hand]), [radii[2], 0.029 * body.limb**0.5, 0.019], fist)
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
        """Return by how much a sleeve stands off the arm where it begins, statures."""
        return 0.4 * self.clothes.ease + 0.003

    def _cast_shadow(self, index: int) -> None:
        """Darken what an arm before the body lies on, or sleeves would not be seen before the garment they are of."""
        shoulder, elbow, wrist, hand = self.arms[index]
        radii = self._arm_radii() + (self._sleeve_ease() if self.clothes.sleeve > 0 else 0.0)
        # Not at the shoulder, which the arm grows out of.
        start = shoulder + 0.45 * (elbow - shoulder)
        shape = Shape()
        self._tube(np.array([start, elbow, wrist, hand]), [radii[1], radii[1], radii[2], 0.019], shape)
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
            self._tube(np.array([shoulder, stop]), [widths[0], width], upper, flat_end=end <= 1)
            shapes.append(upper)
        if end > 1:
            lower = Shape(self._limb_axes(elbow, wrist, lengths[1], lengths[0]))
            stop = elbow + (end - 1) * (wrist - elbow)
            width = float(np.interp(end - 1, [0, 1], widths[1:]))
            self._tube(np.array([elbow, stop]), [widths[1], width], lower, flat_end=True)
            shapes.append(lower)
        self.brush.fill(shapes, self.arm_fabrics[index][1], light=light, soft=0.035, merge=merge)

    # Head -------------------------------------------------------------------------------------------------------

    def _head_axes(self) -> tuple[Array, Array, float]:
        """Return the head's direction to the picture's right and down, and half its height in pixels."""
        ears = self.points[17] - self.points[16]
        cos = float(np.cos(self.face_turn))
        down = self.down
        if abs(cos) > 0.3:
            ears = ears * np.sign(cos)
            # Half of it: the ears also slant when a nodding head is seen from the side.
            angle = np.arctan2(ears[1], ears[0])
            down = np.array([-np.sin(angle), np.cos(angle)])
        return np.array([down[1], -down[0]]), down, self.body.head * self.unit

    def _on_head(self, points: npt.ArrayLike) -> Array:
        """Convert points (n, 2) from half heads (to the picture's right, down) to pixels."""
        right, down, half = self._head_axes()
        pairs = np.asarray(points, dtype=np.float64)
        return self.points[HEAD] + half * (pairs[:, :1] * right + pairs[:, 1:] * down)

    def _head_width(self) -> float:
        return float(np.hypot(HEAD_WIDTH * np.cos(self.face_turn), HEAD_DEPTH * np.sin(self.face_turn)))

    def _paint_head(self) -> None:
        sin, cos = float(np.sin(self.face_turn)), float(np.cos(self.face_turn))
        width = self._head_width()
        for row in (16, 17):
            if self.known[row] and self.identity.hair.style in ("short", "bun", "ponytail", "bald", "cap"):
                self.brush.fill(
                    [Shape(discs=[(self.points[row], 0.15 * self.body.head * self.unit)])], self.skin, soft=0.01
                )
        outline = ellipse(0, 0, width, 1.0)
        outline[:, 0] *= 1 - 0.2 * np.clip(outline[:, 1], 0, 1) ** 2
        self.brush.fill([Shape(polygons=[self._on_head(outline)])], self.skin, soft=0.035)
        if cos > -0.45:
            self._paint_face(sin, cos)
        self._paint_hair(sin, cos, width)

    def _paint_face(self, sin: float, cos: float) -> None:
        half = self.body.head * self.unit
        dark = darker(self.body.skin, 0.62)
        for row in (14, 15):
            if not self.known[row]:
                continue
            center = self.points[row]
            # Eyes are narrower where the face turns away.
            side = np.radians(26.0 if row == 15 else -26.0)
            narrow = max(float(np.cos(self.face_turn + side)), 0.3)
            self.brush.disc(center, 0.085 * half, (245, 243, 240), width=1.8 * narrow)
            pupil = center + np.array([0.04 * half * sin, 0.0])
            self.brush.disc(pupil, 0.085 * half, (38, 28, 26))
            right, down, _ = self._head_axes()
            brow = [center - down * 0.2 * half + right * x * half * narrow for x in (-0.17, 0.17)]
            self.brush.line(np.array(brow), darker(self.identity.hair.color, 0.8), 0.006)
        if self.known[0]:
            nose = self.points[0]
            right, down, _ = self._head_axes()
            tip = [nose - down * 0.16 * half, nose + right * 0.07 * half * (np.sign(sin) if abs(sin) > 0.3 else 1)]
            self.brush.line(np.array([*tip, nose - right * 0.04 * half]), dark, 0.004)
            if cos < 0.05:
                return
            depth = HEAD_DEPTH * 0.86 * sin
            mouth = self._on_head([[depth - 0.2 * cos, 0.53], [depth, 0.575], [depth + 0.2 * cos, 0.53]])
            red, green, blue = self.body.skin
            self.brush.line(mouth, (int(0.72 * red + 30), int(0.5 * green), int(0.52 * blue)), 0.0075)

    def _face_outline(self, sin: float, cos: float, fringe: float) -> list[Array]:
        """Return the part of the head that hair leaves free, (n, 2) in half heads; empty when seen from behind."""
        free = float(np.clip((cos + 0.5) / 0.5, 0, 1))
        if free < 0.15:
            return []
        middle = sin * (0.5 + 0.35 * (1 - free))
        half = free * float(np.hypot(0.63 * max(cos, 0.0), 0.5 * sin))
        top = -0.6 + 0.32 * fringe
        outline = ellipse(middle, 0.5 * (top + 1.1), half, 0.5 * (1.1 - top))
        # A straight hairline, not a pointed one.
        high = outline[:, 1] < top + 0.35
        outline[high, 1] = np.maximum(outline[high, 1] - 0.12, top)
        if abs(sin) < 0.25:
            return [outline]
        # No hair in front of a face that is seen from the side.
        return [outline, outline + np.array([0.45 * np.sign(sin), 0.0])]

    def _paint_hair(self, sin: float, cos: float, width: float) -> None:
        hair = self.identity.hair
        fabric, hat = Fabric(hair.color, hair.color), Fabric(hair.hat, hair.hat)
        if hair.style == "bald":
            return
        face = [self._on_head(outline) for outline in self._face_outline(sin, cos, hair.fringe)]
        # The nape is covered lower down than the temples.
        low = 0.12 + 0.38 * (1 - cos) / 2 * 1.5
        dome = ellipse(-0.04 * sin, -0.06, 1.09 * width + 0.02, 1.08)
        if hair.style in ("bob", "long"):
            end = 0.95 if hair.style == "bob" else 1.05
            upper = dome[dome[:, 1] <= 0.0]
            side = 1.17 * width + 0.02
            sides = [[side, 0.5], [0.98 * side, end], [0.5 * side, end + 0.08]]
            sides += [[-0.5 * side, end + 0.08], [-0.98 * side, end], [-side, 0.5]]
            upper = upper[np.argsort(np.arctan2(upper[:, 1], upper[:, 0]))]
            shapes = [Shape(polygons=[smooth(self._on_head(np.concatenate([upper, sides])))])]
        elif hair.style == "afro":
            shapes = [Shape(polygons=[self._on_head(ellipse(-0.12 * sin, -0.22, 1.5 * width, 1.3))])]
        else:
            dome[:, 1] = np.minimum(dome[:, 1], low)
            shapes = [Shape(polygons=[self._on_head(dome)])]
        if hair.style == "bun":
            shapes.append(Shape(discs=[(self._on_head([[-0.45 * sin, -1.2]])[0], 0.42 * self.body.head * self.unit)]))
        # From the side hair covers the back of the neck, not the throat.
        throat = []
        if hair.style in ("bob", "long") and cos > -0.3:
            edge = sin * (0.5 + 0.35 * (1 - float(np.clip((cos + 0.5) / 0.5, 0, 1))))
            half = max(0.36 * cos, 0.0) + 0.45 * abs(sin)
            low_edge = edge - half - (0.7 if sin < -0.25 else 0.0)
            high_edge = edge + half + (0.7 if sin > 0.25 else 0.0)
            corners = [[low_edge, 0.6], [high_edge, 0.6], [high_edge, 1.6], [low_edge, 1.6]]
            throat = [self._on_head(corners)]
        if hair.style not in ("cap", "beanie"):
            self.brush.fill(shapes, fabric, soft=0.035, cut=[*face, *throat])
            return
        self.brush.fill(shapes, fabric, soft=0.035, cut=face)
        brim = -0.3 if hair.style == "cap" else -0.34
        crown = ellipse(-0.04 * sin, -0.08, 1.13 * width + 0.03, 1.12 if hair.style == "cap" else 1.22)
        crown[:, 1] = np.minimum(crown[:, 1], brim)
        self.brush.fill([Shape(polygons=[self._on_head(crown)])], hat, soft=0.03)
        if hair.style == "beanie":
            edge = 1.14 * width + 0.03
            band = [[-edge, brim - 0.22], [edge, brim - 0.22], [edge, brim + 0.06], [-edge, brim + 0.06]]
            color = darker(hair.hat, 0.75)
            self.brush.fill([Shape(polygons=[self._on_head(band)])], Fabric(color, color), soft=0.015)
        elif cos > -0.4:
            visor = ellipse(0.95 * sin, brim + 0.03, 0.35 + 0.35 * max(cos, 0.0), 0.13)
            color = darker(hair.hat, 0.7)
            self.brush.fill([Shape(polygons=[self._on_head(visor)])], Fabric(color, color), soft=0.01)

    def _paint_hair_fall(self) -> None:
        """Paint what hangs down the back: behind the trunk in front views, over it in back views."""
        hair, sin = self.identity.hair, float(np.sin(self.face_turn))
        if hair.style not in ("long", "ponytail"):
            return
        length = hair.length * self.unit
        width = self._head_width() * self.body.head * self.unit
        back = self.points[HEAD] - self.right * self.unit * 0.035 * sin
        shape = Shape()
        if hair.style == "long":
            end = back + self.down * length
            corners = [back - self.right * 1.1 * width, back + self.right * 1.1 * width]
            corners += [end + self.right * 1.0 * width, end + self.right * 0.5 * width + self.down * 0.03 * self.unit]
            corners += [end - self.right * 0.5 * width + self.down * 0.03 * self.unit, end - self.right * 1.0 * width]
            shape.polygons.append(smooth(np.array(corners)))
            merge = Shape(discs=[(self.points[HEAD], 1.1 * width)])
        else:
            knot = self._on_head([[-0.95 * sin, -0.15]])[0]
            drop = 0.75 * length * self.down
            away = -self.right * 0.05 * self.unit * sin
            self._tube(np.array([knot, knot + away + 0.4 * drop, knot + away + drop]), [0.02, 0.03, 0.012], shape)
            merge = None
        self.brush.fill([shape], Fabric(hair.color, hair.color), soft=0.035, merge=merge)


def _along(path: Array, place: float) -> tuple[Array, Array]:
    """Return the point at `place` (0 to 2) of a path of three points, and the direction there."""
    index = 0 if place <= 1 else 1
    step = path[index + 1] - path[index]
    return path[index] + (place - index) * step, step / max(_norm(step), 1e-6)


def _norm(vector: Array) -> float:
    return math.hypot(vector[0], vector[1])
