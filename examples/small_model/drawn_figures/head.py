"""Paint a figure's head: face, hair and headgear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .brush import Brush, Shape, darker, ellipse, smooth
from .people import DrawnIdentity, Fabric
from .skeleton import HEAD, HEAD_DEPTH, HEAD_WIDTH, Array, Skeleton

__all__ = ["HeadPainter"]


class HeadPainter:
    """Paints one figure's head.

    Args:
        identity: The person.
        skeleton: Their points.
        points: The skeleton's points in pixels of the brush's canvas.
        right: (2,), the direction across the trunk, to the right of the image.
        down: (2,), the direction from the neck to the hips.
        brush: The brush to paint with.
    """

    def __init__(
        self, identity: DrawnIdentity, skeleton: Skeleton, points: Array, right: Array, down: Array, brush: Brush
    ) -> None:
        self.identity = identity
        self.points = points
        self.known = skeleton.known
        self.turn = skeleton.turns[2]
        self.right, self.down = right, down
        self.brush, self.unit = brush, brush.unit
        self.half = identity.body.head * brush.unit
        self.width = float(np.hypot(HEAD_WIDTH * np.cos(self.turn), HEAD_DEPTH * np.sin(self.turn)))
        self.head_right, self.head_down = self._axes()
        self.skin = Fabric(identity.body.skin, identity.body.skin)

    def paint(self) -> None:
        """Paint everything except what `paint_hair_fall` paints."""
        sin, cos = float(np.sin(self.turn)), float(np.cos(self.turn))
        for row in (16, 17):
            if self.known[row] and self.identity.hair.style in ("short", "bun", "ponytail", "bald", "cap"):
                self.brush.fill([Shape(discs=[(self.points[row], 0.15 * self.half)])], self.skin, soft=0.01)
        outline = ellipse(0, 0, self.width, 1.0)
        outline[:, 0] *= 1 - 0.2 * np.clip(outline[:, 1], 0, 1) ** 2
        self.brush.fill([Shape(polygons=[self._on_head(outline)])], self.skin, soft=0.035)
        if cos > -0.45:
            self._paint_face(sin, cos)
        self._paint_hair(sin, cos)

    def paint_hair_fall(self) -> None:
        """Paint what hangs down the back: behind the trunk in front views, over it in back views."""
        hair, sin = self.identity.hair, float(np.sin(self.turn))
        if hair.style not in ("long", "ponytail"):
            return
        length = hair.length * self.unit
        width = self.width * self.half
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
            self.brush.tube(np.array([knot, knot + away + 0.4 * drop, knot + away + drop]), [0.02, 0.03, 0.012], shape)
            merge = None
        self.brush.fill([shape], Fabric(hair.color, hair.color), soft=0.035, merge=merge)

    def _axes(self) -> tuple[Array, Array]:
        """Return the head's directions to the right of the image and down."""
        ears = self.points[17] - self.points[16]
        cos = float(np.cos(self.turn))
        down = self.down
        # Seen from the side, ears also slant when the head nods, so they do not show its tilt.
        if abs(cos) > 0.3:
            ears = ears * np.sign(cos)
            angle = np.arctan2(ears[1], ears[0])
            down = np.array([-np.sin(angle), np.cos(angle)])
        return np.array([down[1], -down[0]]), down

    def _on_head(self, points: npt.ArrayLike) -> Array:
        """Convert points (n, 2) from half heads (right, down) to pixels."""
        pairs = np.asarray(points, dtype=np.float64)
        return self.points[HEAD] + self.half * (pairs[:, :1] * self.head_right + pairs[:, 1:] * self.head_down)

    def _paint_face(self, sin: float, cos: float) -> None:
        half, right, down = self.half, self.head_right, self.head_down
        dark = darker(self.identity.body.skin, 0.62)
        for row in (14, 15):
            if not self.known[row]:
                continue
            center = self.points[row]
            # Eyes are narrower where the face turns away.
            side = np.radians(26.0 if row == 15 else -26.0)
            narrow = max(float(np.cos(self.turn + side)), 0.3)
            self.brush.disc(center, 0.085 * half, (245, 243, 240), width=1.8 * narrow)
            pupil = center + np.array([0.04 * half * sin, 0.0])
            self.brush.disc(pupil, 0.085 * half, (38, 28, 26))
            brow = [center - down * 0.2 * half + right * x * half * narrow for x in (-0.17, 0.17)]
            self.brush.line(np.array(brow), darker(self.identity.hair.color, 0.8), 0.006)
        if self.known[0]:
            nose = self.points[0]
            tip = [nose - down * 0.16 * half, nose + right * 0.07 * half * (np.sign(sin) if abs(sin) > 0.3 else 1)]
            self.brush.line(np.array([*tip, nose - right * 0.04 * half]), dark, 0.004)
            if cos < 0.05:
                return
            depth = HEAD_DEPTH * 0.86 * sin
            mouth = self._on_head([[depth - 0.2 * cos, 0.53], [depth, 0.575], [depth + 0.2 * cos, 0.53]])
            red, green, blue = self.identity.body.skin
            self.brush.line(mouth, (int(0.72 * red + 30), int(0.5 * green), int(0.52 * blue)), 0.0075)

    def _face_outline(self, sin: float, cos: float, fringe: float) -> list[Array]:
        """Return outlines (n, 2) of what hair leaves free, in half heads; none when seen from behind."""
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

    def _paint_hair(self, sin: float, cos: float) -> None:
        hair, width = self.identity.hair, self.width
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
            shapes.append(Shape(discs=[(self._on_head([[-0.45 * sin, -1.2]])[0], 0.42 * self.half)]))
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
