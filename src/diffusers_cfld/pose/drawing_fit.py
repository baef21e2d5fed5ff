"""Fitting bodies to a drawing of skeletons by drawing them again.

Whatever the tool, a drawing shows limbs, and discs over them, in the hues of its table. So the bodies are drawn in the
same way, and their joints are moved, added and taken away one by one, as long as that explains more of the drawing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .drawing_pixels import BACKGROUND, NUM_HUES, UNCLEAR, Body, Drawing, Table
from .formats import FloatArray

__all__ = ["fit_bodies"]

# Limbs are ellipses at whole degrees (ControlNet's and its copies') or lines (ours, OpenPose's), with half their width
# in radii of the joints.
_SHAPES = [(True, 1.0), (True, 0.5), (False, 1.0), (False, 0.54), (False, 1 / 3)]
# The worth of a pixel falls from 1 between these differences in hue, degrees; 20 is one step of the wheel. It is less
# than zero where another colour may cover the limb, where nothing is drawn, and at the edges of what is drawn.
_SAME_HUE, _OTHER_HUE = 4.0, 16.0
_COVERED, _EMPTY, _EDGE = -0.3, -1.0, -0.1
_MIN_AGREEING = 0.3
# What a joint has to explain, as a share of its disc, if none, one or more of its neighbours are there.
_COSTS = (0.7, 0.3, 0.1)
# What a new place has to explain beyond the old one, in squares of the radius.
_MIN_GAIN = 0.05
# Pixels by which joints are moved: not before the others have been added, and then less and less.
_STEPS = [(), (4.0, 2.0, 1.0), (2.0, 1.0, 0.5)]
_MAX_ROUNDS, _MAX_MOVES = 6, 6
_DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
_CORNERS = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
# Where this share of the pixels around a joint agree, it stays.
_MIN_RIGHT = 0.9
_MAX_DISCS, _MAX_LIMB = 24, 0.5  # places that are tried; a limb's length as a share of the body's
_WHOLE = 0.35  # how well discs show of which nothing is covered
_FIRST_OF_FACE = 14  # eyes and ears are so close together that others may cover their discs
_SHIFT = 4  # OpenCV's fractional bits of a coordinate

_Box = tuple[int, int, int, int]  # left, top, right and bottom


def fit_bodies(drawing: Drawing, table: Table, bodies: list[Body]) -> None:
    """Move, add and take away joints until no such change explains more of the drawing.

    Args:
        drawing: The drawing.
        table: Its colours.
        bodies: What was found in it, changed in place.
    """
    scene = _Scene(drawing, table, bodies)
    recent: list[_Box] = []
    for number in range(_MAX_ROUNDS):
        changed: list[_Box] = []
        for body in bodies:
            for joint in range(len(table.hues)):
                box = scene.box(body, joint, [] if joint in body else body.values())
                # Later, only where something has changed.
                if not body or (number > 1 and not any(_overlap(box, other) for other in recent + changed)):
                    continue
                place = body.get(joint)
                scene.improve(body, joint, _STEPS[min(number, 2)])
                if body.get(joint) is not place:
                    changed.append(scene.box(body, joint, [] if place is None else [place]))
        if number and not changed:
            return
        recent = changed


class _Scene:
    """Bodies, drawn as the tool drew them, and how much of its drawing that explains."""

    def __init__(self, drawing: Drawing, table: Table, bodies: list[Body]) -> None:
        self.drawing, self.table, self.bodies, self.radius = drawing, table, bodies, drawing.radius
        self.neighbours: list[list[int]] = [[] for _ in table.hues]
        for start, end, _ in table.bones:
            self.neighbours[start].append(end)
            self.neighbours[end].append(start)
        # The worth of a pixel, by what is drawn there now (0: nothing, or 1 + hue) and in the drawing.
        hues = 20 * np.arange(-1, NUM_HUES)
        apart = np.abs((np.arange(360) - hues[:, None] + 180) % 360 - 180)
        self.worth = np.full((1 + NUM_HUES, 2 + 360), _EMPTY)
        self.worth[:, :360] = (1 - (apart - _SAME_HUE) / (_OTHER_HUE - _SAME_HUE)).clip(_COVERED, 1)
        self.worth[:, UNCLEAR] = _EDGE
        self.worth[0] = 0
        self.height, self.width = drawing.hues.shape
        self.outlines: dict[tuple[object, ...], tuple[npt.NDArray[np.int32], _Box]] = {}
        self.shape = max(_SHAPES, key=self._explained_by)

    def _explained_by(self, shape: tuple[bool, float]) -> float:
        """The worth of the whole scene if its limbs have this shape, which they keep."""
        self.shape = shape
        return self.explained((0, 0, self.width, self.height))

    def improve(self, body: Body, joint: int, steps: Iterable[float]) -> None:
        """Put a joint where it explains most, or take it away."""
        if joint in body and self._is_right(body[joint]):
            self._choose(body, joint, [None], 0.0)
            return
        nowhere = [None] if joint in body else []
        self._choose(body, joint, [*nowhere, *self._candidates(body, joint)], _MIN_GAIN * self.radius**2)
        for step in steps if joint in body else ():
            for _ in range(_MAX_MOVES):
                if not self._choose(body, joint, [*(body[joint] + step * _DIRECTIONS)], 1e-3):
                    break

    def _choose(self, body: Body, joint: int, places: Iterable[FloatArray | None], least: float) -> bool:
        """Put a joint at the place (None: nowhere) that explains most, if it is that much more than now."""
        old, best = body.get(joint), body.get(joint)
        before: dict[_Box, float] = {}
        for place in places:
            box = self.box(body, joint, [] if place is None else [place])
            if box not in before:
                before[box] = self.explained(box) - self._cost(body)
            _put(body, joint, place)
            gain = self.explained(box) - self._cost(body) - before[box]
            if gain > least:
                best, least = place, gain
            _put(body, joint, old)
        _put(body, joint, best)
        return best is not old

    def _candidates(self, body: Body, joint: int) -> FloatArray:
        """Places (n, 2) where a joint may be."""
        drawing, table = self.drawing, self.table
        discs = drawing.discs[table.hues[joint]]
        others = [other for other in self.bodies if other and other is not body]
        linked = [body[other] for other in self.neighbours[joint] if other in body]
        if linked:
            found = [discs[np.argsort(-discs[:, 2])][:_MAX_DISCS, :2]]
            found += [drawing.ends[hue] for start, end, hue in table.bones if joint in (start, end)]
            if joint >= _FIRST_OF_FACE:
                found += [place + 1.5 * self.radius * _DIRECTIONS for place in linked]
            places = np.concatenate(found)
            way = np.array(linked)[:, None] - places
            longest = _MAX_LIMB * np.ptp([*body.values()], axis=0).max() + 3 * self.radius
            along = places + np.linspace(0, 1, 12)[:, None, None, None] * way
            is_drawn = drawing.sample(drawing.empty, along).mean(axis=0) < 0.3
            keep = (is_drawn & (np.hypot(way[..., 0], way[..., 1]) < longest)).any(axis=0)
        else:
            # A whole disc by itself is a joint of the closest body that lacks it, but not one of many, as hands have.
            places = discs[discs[:, 2] > _WHOLE, :2]
            keep = np.full(len(places), len(places) <= len(self.bodies))
            for other in others:
                keep &= (joint in other) | (_distances(body, places) <= _distances(other, places))
        for other in others:
            if joint in other:
                keep &= np.hypot(*(places - other[joint]).T) > self.radius
        return places[keep]

    def _is_right(self, place: FloatArray) -> bool:
        """Whether what is drawn now agrees with the drawing around a place."""
        box = self._clip(place - 2 * self.radius, place + 2 * self.radius)
        drawn, pixels = self._draw(box), self._cut(box)
        agrees = np.where(drawn > 0, self.worth[drawn, pixels] > _MIN_AGREEING, pixels >= BACKGROUND)
        return bool(agrees.mean() > _MIN_RIGHT)

    def _cost(self, body: Body) -> float:
        """What the joints of a body cost."""
        counts = [sum(other in body for other in self.neighbours[joint]) for joint in body]
        return float(np.pi * self.radius**2) * sum(_COSTS[min(count, 2)] for count in counts)

    def explained(self, box: _Box) -> float:
        """The worth of what is drawn now in a box."""
        drawn = self._draw(box).ravel()
        where = np.flatnonzero(drawn)
        return float(self.worth[drawn[where], self._cut(box).ravel()[where]].sum())

    def _draw(self, box: _Box) -> npt.NDArray[np.uint8]:
        """What is drawn now in a box: 0, or 1 + hue."""
        import cv2

        left, top, right, bottom = box
        drawn = np.zeros((bottom - top, right - left), np.uint8)
        corner = np.array([left, top]) << _SHIFT
        for body in self.bodies:
            for start, end, hue in self.table.bones:
                if start in body and end in body:
                    outline, bounds = self._outline(body[start], body[end])
                    if _overlap(bounds, box):
                        cv2.fillConvexPoly(drawn, outline - corner, (1 + hue,), shift=_SHIFT)
        size = round((self.radius + 0.25) * 2**_SHIFT)
        for body in self.bodies:
            for joint, place in sorted(body.items()):
                x, y = (np.rint(place * 2**_SHIFT).astype(int) - corner).tolist()
                cv2.circle(drawn, (x, y), size, (1 + self.table.hues[joint],), -1, shift=_SHIFT)
        return drawn

    def _outline(self, start: FloatArray, end: FloatArray) -> tuple[npt.NDArray[np.int32], _Box]:
        """The outline of a limb, (n, 2), in fractions of pixels, and the box around it."""
        key = (self.shape, *start, *end)
        if key not in self.outlines:
            is_ellipse, share = self.shape
            way, turn = start - end, np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.column_stack([np.cos(turn), np.sin(turn)]) if is_ellipse else _CORNERS
            angle = float(np.arctan2(way[1], way[0]))
            angle = np.radians(int(np.degrees(angle))) if is_ellipse else angle
            axes = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
            points = (start + end) / 2 + points * (np.hypot(*way) / 2, share * self.radius) @ axes
            bounds = [*np.floor(points.min(axis=0)), *np.ceil(points.max(axis=0))]
            self.outlines[key] = np.rint(points * 2**_SHIFT).astype(np.int32), tuple(bounds)
        return self.outlines[key]

    def box(self, body: Body, joint: int, places: Iterable[FloatArray]) -> _Box:
        """What a joint's disc and limbs cover, at its place and at others."""
        points = np.array([*places, *(body[other] for other in (joint, *self.neighbours[joint]) if other in body)])
        margin = self.radius + 3
        return self._clip(points.min(axis=0) - margin, points.max(axis=0) + margin)

    def _clip(self, first: FloatArray, last: FloatArray) -> _Box:
        """The pixels from one point to another, inside the drawing."""
        left, top = np.floor(first).astype(int).clip(0, (self.width - 1, self.height - 1)).tolist()
        right, bottom = np.ceil(last).astype(int).tolist()
        return left, top, min(max(right, left + 1), self.width), min(max(bottom, top + 1), self.height)

    def _cut(self, box: _Box) -> npt.NDArray[np.int16]:
        """The drawing's hues in a box."""
        left, top, right, bottom = box
        return self.drawing.hues[top:bottom, left:right]


def _put(body: Body, joint: int, place: FloatArray | None) -> None:
    """Put a joint somewhere, or take it away."""
    if place is None:
        body.pop(joint, None)
    else:
        body[joint] = place


def _distances(body: Body, places: FloatArray) -> FloatArray:
    """From places to the closest joint of a body."""
    away = np.array([*body.values()])[:, None] - places
    return np.hypot(away[..., 0], away[..., 1]).min(axis=0)


def _overlap(box: _Box, other: _Box) -> bool:
    """Whether two boxes have pixels in common."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
