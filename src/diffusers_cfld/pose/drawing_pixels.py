"""What is drawn where in a drawing of skeletons: lines and discs, in 18 hues."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .formats import FloatArray

__all__ = ["BACKGROUND", "NUM_HUES", "UNCLEAR", "Body", "Drawing", "Table"]

Body: TypeAlias = dict[int, FloatArray]
"""The joints of one body, each with its (x, y)."""

# Hue i of the wheel is 20 i degrees. More than half of 20, since blending and compression shift hues.
NUM_HUES, _HUE_TOLERANCE = 18, 14.0
# What stands for the hue where nothing is drawn, and in between.
BACKGROUND, UNCLEAR = 360, 361
# Of 255: above the noise that compression leaves on grey, and below a limb at 60 % whose joints have confidence 0.5.
_MIN_CHROMA = 32
# What is less colourful than this share of the brightest colours is no whole disc, but may be a fringe.
_MAX_FRINGE = 0.8
# Pixels that differ by less from the most common colour are background.
_BACKGROUND_TOLERANCE = 28
# Drawings are enlarged or, for speed, reduced: to these lengths of the longer side, this radius of the joints, pixels.
_MIN_SIDE, _MAX_SIDE, _MAX_RADIUS = 320, 1280, 7.0
# The smallest disc that has a middle; and the largest, as a share of the image's longer side.
_MIN_RADIUS, _MAX_RADIUS_SHARE = 1.5, 0.08
_NUM_SAMPLES = 20  # points at which a limb is looked for between two joints
_MAX_DISCS = 64  # of one hue: two hands have 42 points
# What a limb between discs that touch adds, of which nothing shows.
_TOUCH = 0.02


class Table(NamedTuple):
    """Which hue each joint has, and the bones (start, end, hue). Joints after the 18th are only landmarks."""

    hues: list[int]
    bones: list[tuple[int, int, int]]

    def swapped(self) -> Table:
        """The same with red and blue swapped: hue 0 (red) becomes 12 (blue)."""
        hues = [(12 - hue) % NUM_HUES for hue in self.hues]
        return Table(hues, [(start, end, (12 - hue) % NUM_HUES) for start, end, hue in self.bones])


class Drawing:
    """What is drawn where: lines and discs in each hue.

    Args:
        pixels: (H, W, 3), RGB.

    Attributes:
        scale: By how much the image was reduced or enlarged.
        radius: Radius of the joints' discs, pixels of the scaled image, as in the other attributes.
        hues: (H, W), degrees, or `BACKGROUND` or `UNCLEAR`.
        discs: For each hue, (n, 3): x and y of places where a disc may be, and how well it shows, at most 1.
        ends: For each hue, (n, 2): ends of its longest lines, where a joint may be that something covers.
        limbs: For each hue, (H, W), where it is drawn, and a pixel around it.
        empty: (H, W), where the background is, but for a pixel along its edge.
        is_plain: Whether the drawing has a background of one colour.
    """

    scale: float
    hues: npt.NDArray[np.int16]
    empty: npt.NDArray[np.bool_]

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        import cv2

        self._look(pixels, np.clip(1.0, _MIN_SIDE / max(pixels.shape), _MAX_SIDE / max(pixels.shape)))
        radius = self._find_radius()
        if radius > _MAX_RADIUS:
            self._look(pixels, self.scale * _MAX_RADIUS / radius)
        self.radius = min(max(radius, _MIN_RADIUS), _MAX_RADIUS)
        side = int(np.ceil(1.5 * self.radius))
        rows, columns = np.mgrid[-side : side + 1, -side : side + 1]
        distance = np.hypot(rows, columns)
        disc = np.clip(self.radius + 0.5 - distance, 0, 1)
        ring = np.clip(1.5 * self.radius + 0.5 - distance, 0, 1) - disc
        self._disc, self._ring = disc / disc.sum(), ring / ring.sum()
        self.is_plain = self.empty.mean() > 0.3
        self._emptiness = cv2.filter2D(self.empty.astype(np.float32), -1, self._disc, borderType=cv2.BORDER_CONSTANT)
        self.discs = [self._find_discs(hue) for hue in range(NUM_HUES)]
        self.ends = self._find_ends()
        # A pixel wider, because tools round the ends of limbs and their angles.
        square = np.ones((3, 3), np.uint8)
        self.limbs = [cv2.dilate(band, square) for band in self.bands]
        self.empty = cv2.erode(self.empty.astype(np.uint8), square).astype(bool)

    def _look(self, pixels: npt.NDArray[np.uint8], scale: float) -> None:
        """Sort the pixels of the image, scaled by `scale`, by hue."""
        import cv2

        self.scale = scale
        if scale != 1:
            size = [max(1, round(length * scale)) for length in pixels.shape[1::-1]]
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        # The most common colour, in steps of 8.
        steps = (pixels[::2, ::2] >> 3).astype(np.int64) @ (1024, 32, 1)
        common = np.array(np.unravel_index(np.bincount(steps.ravel()).argmax(), (32, 32, 32))) * 8 + 4
        background = (np.abs(pixels.astype(np.int16) - common) < _BACKGROUND_TOLERANCE).all(axis=2)
        hue = cv2.cvtColor(np.float32(pixels) / 255, cv2.COLOR_RGB2HSV)[..., 0]
        self.chroma = np.where(background, 0, np.ptp(pixels, axis=2))
        self.colored = self.chroma >= _MIN_CHROMA
        # Where colours meet, compression leaves a fringe of others, which is darker than what is drawn.
        self._fringe = _MAX_FRINGE * float(np.quantile(self.chroma[self.colored], 0.95)) if self.colored.any() else 0.0
        self.empty = background & ~self.colored
        self.hues = np.where(
            self.colored, np.rint(hue).astype(np.int16) % 360, np.where(self.empty, BACKGROUND, UNCLEAR)
        )
        self.bands = [np.zeros(hue.shape, np.uint8) for _ in range(NUM_HUES)]
        drawn = np.flatnonzero(self.colored)
        for number, band in enumerate(self.bands):
            turn = (hue.ravel()[drawn] - 20 * number + 180) % 360 - 180
            band.ravel()[drawn] = np.abs(turn) <= _HUE_TOLERANCE
        # Half the width of what is drawn, along its middle. Padded, so that the image's edge is an edge.
        self.widths = [
            cv2.distanceTransform(np.pad(band, 1), cv2.DIST_L2, 5)[1:-1, 1:-1] if band.any() else np.zeros(hue.shape)
            for band in self.bands
        ]

    def _find_radius(self) -> float:
        """The radius that discs of most hues have; 0 if there is none."""
        import cv2

        found = []
        for number, (band, width) in enumerate(zip(self.bands, self.widths, strict=True)):
            ridge = (width > 0) & (width >= cv2.dilate(np.float32(width), np.ones((3, 3), np.uint8)) - 1e-3)
            y, x = np.nonzero(ridge)
            radius = np.maximum(width[y, x] - 0.5, 0.5)
            half = np.rint(2 * radius).astype(int)
            sums = cv2.integral(band)
            top, bottom = np.clip(y - half, 0, None), np.clip(y + half + 1, None, band.shape[0])
            left, right = np.clip(x - half, 0, None), np.clip(x + half + 1, None, band.shape[1])
            around = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            # Of a line that runs through the square: 1 along a line, 0.7 at its end, 0.4 for a disc.
            share = around / (2 * radius * (2 * half + 1))
            is_disc = (share < 0.62) & (radius >= _MIN_RADIUS) & (radius < _MAX_RADIUS_SHARE * max(band.shape))
            found += [(value, number) for value in np.unique(radius[is_disc].round(1))]
        radii, hues = np.array(found).reshape(-1, 2).T
        best = (0.0, 0.0)
        for value in np.unique(radii):
            near = (radii > 0.8 * value) & (radii < 1.25 * value)
            # Squared, because blended edges of discs are small discs of other hues.
            best = max(best, (len(np.unique(hues[near])) ** 2 * value, float(np.median(radii[near]))))
        return best[1]

    def _find_discs(self, number: int) -> FloatArray:
        """Where discs of a hue are. Of a covered one, the middle is where a disc neither sticks out nor shows less."""
        import cv2

        band, reach = self.bands[number], int(np.ceil(2 * self.radius))
        left, top, width, height = cv2.boundingRect(band)
        if not width:
            return np.zeros((0, 3))
        rows = slice(max(top - reach, 0), top + height + reach)
        columns = slice(max(left - reach, 0), left + width + reach)
        # Relative to the brightest pixels of this hue, and squared, since limbs are often darker than joints.
        chroma = np.where(band[rows, columns], self.chroma[rows, columns], 0)
        brightest = np.partition(chroma, -min(20, chroma.size), axis=None)[-min(20, chroma.size)]
        level = np.float32(np.minimum(chroma / max(brightest, self._fringe, 1), 1) ** 2)
        cover = cv2.filter2D(level, -1, self._disc, borderType=cv2.BORDER_CONSTANT)
        around = cv2.filter2D(level, -1, self._ring, borderType=cv2.BORDER_CONSTANT)
        shows = cover - 0.6 * around - 0.5 * self._emptiness[rows, columns]
        window = np.ones((2 * round(self.radius) + 1,) * 2, np.uint8)
        peaks = (shows >= cv2.dilate(shows, window) - 1e-4) & (shows > 0.03) & (cover > 0.06)
        count, labels, _, centers = cv2.connectedComponentsWithStats(peaks.astype(np.uint8), connectivity=8)
        values = np.zeros(count)
        np.maximum.at(values, labels[peaks], shows[peaks])
        order = 1 + np.argsort(-values[1:])[:_MAX_DISCS]
        found = centers[order]
        return np.column_stack([np.add(found, (columns.start, rows.start)), values[order]])

    def _find_ends(self) -> list[FloatArray]:
        """The middle of a joint at either end of the longest lines of each hue."""
        import cv2

        found = []
        for band, widths in zip(self.bands, self.widths, strict=True):
            _, labels, stats, _ = cv2.connectedComponentsWithStats(band, connectivity=8)
            tips = []
            for piece in 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:4]:
                left, top, width, height = stats[piece, :4]
                if max(width, height) < 3 * self.radius or widths[labels == piece].max() < 1.5 * max(self.scale, 1):
                    continue
                y, x = np.nonzero(labels[top : top + height, left : left + width] == piece)
                points = np.column_stack([x + left, y + top]).astype(np.float64)
                axis = np.linalg.eigh(np.cov(points.T))[1][:, 1]
                for direction in (axis, -axis):
                    along = points @ direction
                    tip = points[along > along.max() - 2].mean(axis=0)
                    tips.append(tip + direction * self.radius)  # what covers it is as wide as a joint
            found.append(np.array(tips).reshape(-1, 2))
        return found

    def match(self, starts: FloatArray, ends: FloatArray, hue: int, limb: npt.NDArray[np.uint8]) -> FloatArray:
        """How much of a limb is drawn from each start to each end, in long limbs, or -1 where it is not.

        Args:
            starts: (n, 3), places as in `discs`.
            ends: (m, 3), likewise.
            hue: The limb's hue.
            limb: (H, W), where this hue is drawn.

        Returns:
            (n, m).
        """
        radius = self.radius
        way = ends[None, :, :2] - starts[:, None, :2]
        length = np.hypot(way[..., 0], way[..., 1])
        unit = way / np.maximum(length, 1e-6)[..., None]
        gap = length - 2 * radius - 3  # between the discs, which are drawn over the limb
        inset = np.where(gap > 1, radius + 1.5, 0)
        steps = (np.arange(_NUM_SAMPLES) + 0.5) / _NUM_SAMPLES
        along = inset[..., None] + (length - 2 * inset)[..., None] * steps
        points = starts[:, None, None, :2] + unit[:, :, None] * along[..., None]
        is_own, is_colored = self.sample(limb, points) > 0, self.sample(self.colored, points)
        # Wide areas are no lines.
        is_own &= self.sample(self.widths[hue], points) < np.maximum(length / 4, 2 * radius + 2)[..., None]
        own, empty = is_own.mean(axis=2), (self.sample(self.empty, points) & ~is_own).mean(axis=2)
        # Other colours may cover the limb; the background does not.
        score = own - 0.3 * (is_colored & ~is_own).mean(axis=2) - 2 * empty
        drawn = score * np.sqrt(np.clip(gap / (8 * radius), 0.05, 4))
        # Between discs that touch, no limb shows, and others may cover all of it.
        touch = (gap <= radius) & (empty < 0.05)
        result = np.where((gap > 1) & (own > 0.25) & (score > 0.05), drawn, np.where(touch, _TOUCH, -1.0))
        result[length < 0.3 * radius] = -1
        return result

    def first_disc(self, start: FloatArray, end: FloatArray, hue: int) -> FloatArray:
        """Of the places around `end` where the drawing is as wide as a disc, the one that is closest to `start`."""
        wide = np.argwhere(self.widths[hue] > 0.9 * self.radius)[:, ::-1].astype(np.float64)
        wide = wide[np.hypot(*(wide - end).T) < 4 * self.radius]
        return wide[np.hypot(*(wide - start).T).argmin()] if len(wide) else end

    def is_line(self, start: FloatArray, end: FloatArray, hue: int) -> bool | None:
        """Whether a limb is a line, with its colour from end to end and not beside it; None if it is too short."""
        length = float(np.hypot(*(end - start)))
        inset = self.radius + 1.5
        if length < 2 * inset + 1:
            return None
        unit = (end - start) / length
        along = start + unit * np.linspace(inset, length - inset, _NUM_SAMPLES)[:, None]
        own, width = self.sample(self.limbs[hue], along) > 0, self.sample(self.widths[hue], along)
        if own.mean() <= 0.7:
            return False
        aside = (np.quantile(width[own], 0.9) + 3) * np.array([-unit[1], unit[0]])
        return sum(float(self.sample(self.limbs[hue], along + offset).mean()) for offset in (aside, -aside)) < 0.7

    def count_lines(self, table: Table, body: Body) -> int:
        """Count the limbs that are lines; 0 if they are less than half of the limbs' length."""
        lengths, is_line = [0.0], [False]
        for start, end, hue in table.bones:
            if start in body and end in body:
                found = self.is_line(body[start], body[end], hue)
                if found is not None:
                    lengths.append(float(np.hypot(*(body[end] - body[start]))))
                    is_line.append(found)
        return sum(is_line) if np.dot(lengths, is_line) > 0.5 * sum(lengths) else 0

    def sample(self, values: npt.NDArray[Any], points: FloatArray) -> npt.NDArray[Any]:
        """The values at points (..., 2), or at the nearest ones inside the image."""
        x, y = np.moveaxis(np.rint(points).astype(int), -1, 0)
        return values[y.clip(0, values.shape[0] - 1), x.clip(0, values.shape[1] - 1)]
