"""Reading the joints back from drawn skeletons, whichever of OpenPose's colour tables they were drawn with.

A joint is a disc of its own colour at the end of limbs of the right colours. All tables take their colours from one
wheel of 18 hues, and dimming or blending changes a colour's brightness rather than its hue. So the discs of all hues
are found first. Then each table joins them into bodies, as far as limbs of its colours are drawn between them, and the
table that explains most limbs is the one in use. If it explains too few, the image is no skeleton.

Tables: `poseParametersRender.hpp` of CMU's OpenPose (COCO and BODY_25), and `util.py` of controlnet_aux (OpenPose and
DWPose), which AnimateAnyone, MusePose and others share; each also with red and blue swapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..image_utils import to_rgb
from .formats import FloatArray, Joints
from .skeleton import LIMBS, NUM_JOINTS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_drawing"]

# Hue i of the wheel is 20 i degrees. More than half of 20, since blending and compression shift hues.
_NUM_HUES, _HUE_TOLERANCE = 18, 14.0
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
# A colour that more discs have than people fit into an image is that of the hands' points.
_MAX_PEOPLE = 12
# What a limb between discs that touch adds, of which nothing shows.
_TOUCH = 0.02
# What the end of a limb is worth as a joint, compared with the square of how well a disc shows.
_LIMB_END = -0.05
# How well a disc shows at least of which a thin part shows, since it may be a fringe; a wrist under a drawn hand; and
# an ear, since ears are drawn last, so that no other joint covers them.
_MIN_THIN, _MIN_WRIST, _MIN_EAR = 0.05, 0.5, 0.35
# Half of a body's joints show as well as this, squared as above.
_MIN_SEEN = 0.1
# Of how many limbs a person must show lines, and a part of one that is not connected with the rest.
_MIN_PERSON, _MIN_PART = 3, 2
# Over a photo, which has lines of its own, all limbs of arms and legs.
_MIN_PERSON_OVER_PHOTO = 12


class _Table(NamedTuple):
    """Which hue each joint has, and the bones (start, end, hue). Joints after the 18th are only landmarks."""

    hues: list[int]
    bones: list[tuple[int, int, int]]

    def swapped(self) -> _Table:
        """The same with red and blue swapped: hue 0 (red) becomes 12 (blue)."""
        hues = [(12 - hue) % _NUM_HUES for hue in self.hues]
        return _Table(hues, [(start, end, (12 - hue) % _NUM_HUES) for start, end, hue in self.bones])


# OpenPose gives a bone the colour of its end; ControlNet gives bone i the colour of joint i, dimmed.
_COCO_HUES = [17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 14, 15, 13]
_WRISTS, _EARS, _MID_HIP = (4, 7), (16, 17), NUM_JOINTS
# The middle of the hips, and the toes and heels (left, right), which have the colours of neck and ankles.
_BODY_25_HUES = [*_COCO_HUES, 0, 12, 12, 12, 9, 9, 9]
_BODY_25_LIMBS = [(1, _MID_HIP), *((_MID_HIP if pair in ((1, 8), (1, 11)) else pair[0], pair[1]) for pair in LIMBS)]
_TABLES = [
    _Table(list(range(NUM_JOINTS)), [(start, end, hue) for hue, (start, end) in enumerate(LIMBS)]),
    _Table(_COCO_HUES, [(start, end, _COCO_HUES[end]) for start, end in LIMBS]),
    _Table(_BODY_25_HUES, [(start, end, _BODY_25_HUES[end]) for start, end in _BODY_25_LIMBS]),
]
_TABLES += [table.swapped() for table in _TABLES]


_Joints: TypeAlias = dict[int, FloatArray]
"""The joints of one body, each with its (x, y)."""


def read_drawing(image: Image.Image) -> list[Joints]:
    """Find the people in a drawing of skeletons.

    Args:
        image: The drawing, of any mode.

    Returns:
        The people, from left to right; each joint is in the middle of its disc. Empty if the image is no such drawing.

    Raises:
        ValueError: As in `to_rgb`.
    """
    # What is transparent is black, as the background of most drawings.
    pixels = np.asarray(to_rgb(image, background=(0, 0, 0)))
    drawing = _Drawing(pixels)
    # The table by which most lines are limbs of one body. Squared: single lines of hands fit other tables too.
    no_ends = [np.zeros((0, 4))] * _NUM_HUES
    lines = [
        sum(drawing.count_lines(table, body) ** 2 for body in _find_bodies(drawing, table, no_ends))
        for table in _TABLES
    ]
    table = _TABLES[int(np.argmax(lines))]
    people: list[_Joints] = []
    for body in _find_bodies(drawing, table, drawing.ends()):
        # Without a neck, for instance, one person's legs are not connected with the rest.
        rest = [person for person in people if not person.keys() & body.keys()]
        if rest:
            min(rest, key=lambda person: _distance(person, body)).update(body)
        else:
            people.append(body)
    enough = _MIN_PERSON if drawing.is_plain else _MIN_PERSON_OVER_PHOTO
    people = [person for person in people if drawing.count_lines(table, person) >= enough]
    if len(people) == 1 and drawing.is_plain:
        people[0].update(_lone_discs(drawing, table, people[0]))
    found = []
    for person in people:
        xy, visible = np.full((NUM_JOINTS, 2), -1.0), np.zeros(NUM_JOINTS, dtype=bool)
        for joint, point in person.items():
            if joint < NUM_JOINTS:
                # Pixel centres are at whole numbers.
                xy[joint], visible[joint] = (point + 0.5) / drawing.scale - 0.5, True
        found.append(Joints(xy, visible, None, (pixels.shape[0], pixels.shape[1])))
    return sorted(found, key=lambda person: float(person.xy[person.visible, 0].mean()))


class _Drawing:
    """What is drawn where: lines and discs in each hue.

    Args:
        pixels: (H, W, 3), RGB.

    Attributes:
        scale: By how much the image was reduced or enlarged.
        radius: Radius of the joints' discs, pixels of the scaled image, as in the other attributes.
        discs: For each hue, (n, 4): x and y of places where a disc may be; how well it shows, at most 1; and whether
            it is more than the edge of another disc or a part of a limb.
        limbs: For each hue, (H, W), where it is drawn.
        empty: (H, W), where the background is.
        is_plain: Whether the drawing has a background of one colour.
    """

    scale: float
    bands: list[npt.NDArray[np.uint8]]
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
        self.discs = [self._find_discs(hue) for hue in range(_NUM_HUES)]
        self.crowded = [bool((discs[:, 2] > 0.5).sum() > _MAX_PEOPLE) for discs in self.discs]
        self.has_hands = any(self.crowded)
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
        turns = (hue[..., None] - 20 * np.arange(_NUM_HUES, dtype=np.float32) + 180) % 360 - 180
        masks = self.colored[..., None] & (np.abs(turns) <= _HUE_TOLERANCE)
        self.bands = [np.ascontiguousarray(masks[..., number], dtype=np.uint8) for number in range(_NUM_HUES)]
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
            return np.zeros((0, 4))
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
        # Blended edges of discs are narrower than three pixels, and limbs do not fill the place of a disc.
        widest = cv2.dilate(np.float32(self.widths[number][rows, columns]), window)
        is_solid = (self._sample(widest, found) > 1.5 * max(self.scale, 1)) & (
            self._sample(self._emptiness[rows, columns], found) < 0.15
        )
        discs = np.column_stack([np.add(found, (columns.start, rows.start)), values[order], is_solid])
        return discs[is_solid | (discs[:, 2] > _MIN_THIN)]

    def ends(self) -> list[FloatArray]:
        """For each hue, the ends of its longest lines, (n, 4), as discs that do not show."""
        import cv2

        found = []
        for band, widths in zip(self.bands, self.widths, strict=True):
            if self.has_hands:  # fingers are thinner than limbs
                band = cv2.morphologyEx(band, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
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
                    tips.append([*(tip + direction * self.radius), 0.0, 0.0])  # what covers it is as wide as a joint
            found.append(np.array(tips).reshape(-1, 4))
        return found

    def match(
        self,
        starts: FloatArray,
        ends: FloatArray,
        hue: int,
        limb: npt.NDArray[np.uint8],
        *,
        is_crowded: bool,
        is_first: bool,
    ) -> FloatArray:
        """How much of a limb is drawn from each start to each end, in long limbs, or -1 where it is not.

        Args:
            starts: (n, 4), places as in `discs`.
            ends: (m, 4), likewise.
            hue: The limb's hue.
            limb: (H, W), where this hue is drawn.
            is_crowded: Whether start or end have the colour of the hands' points.
            is_first: Whether other joints have the end's colour, so that the limb ends at the first disc it meets.

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
        is_own, is_colored = self._sample(limb, points) > 0, self._sample(self.colored, points)
        # Wide areas are no lines.
        is_own &= self._sample(self.widths[hue], points) < np.maximum(length / 4, 2 * radius + 2)[..., None]
        own, empty = is_own.mean(axis=2), (self._sample(self.empty, points) & ~is_own).mean(axis=2)
        # Other colours may cover the limb; the background does not.
        score = own - 0.3 * (is_colored & ~is_own).mean(axis=2) - 2 * empty
        drawn = score * np.sqrt(np.clip(gap / (8 * radius), 0.05, 4))
        # Between discs that touch, no limb shows, and others may cover all of it.
        is_hidden = (gap <= radius) | ((starts[:, None, 2] > 0.6) & (ends[None, :, 2] > 0.6))
        touch = is_hidden & (empty < 0.05) & (not is_crowded) & (starts[:, None, 2] > 0) & (ends[None, :, 3] > 0)
        result = np.where((gap > 1) & (own > 0.25) & (score > 0.05), drawn, np.where(touch, _TOUCH, -1.0))
        result[length < 0.3 * radius] = -1
        if is_first and len(ends):
            stops = ends[ends[:, 2] > max(0.5, 0.85 * ends[:, 2].max()), :2] - starts[:, None, None, :2]
            ahead = (stops * unit[:, :, None]).sum(axis=3)
            aside = np.abs(stops[..., 0] * unit[:, :, None, 1] - stops[..., 1] * unit[:, :, None, 0])
            is_between = (ahead > 1.5 * radius) & (ahead < length[..., None] - 0.7 * radius) & (aside < radius)
            result[is_between.any(axis=2)] = -1
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
        own, width = self._sample(self.limbs[hue], along) > 0, self._sample(self.widths[hue], along)
        if own.mean() <= 0.7:
            return False
        aside = (np.quantile(width[own], 0.9) + 3) * np.array([-unit[1], unit[0]])
        return sum(float(self._sample(self.limbs[hue], along + offset).mean()) for offset in (aside, -aside)) < 0.7

    def count_lines(self, table: _Table, joints: _Joints) -> int:
        """Count the limbs that are lines; 0 if they are less than half of the limbs' length."""
        lengths, is_line = [0.0], [False]
        for start, end, hue in table.bones:
            if start in joints and end in joints:
                found = self.is_line(joints[start], joints[end], hue)
                if found is not None:
                    lengths.append(float(np.hypot(*(joints[end] - joints[start]))))
                    is_line.append(found)
        return sum(is_line) if np.dot(lengths, is_line) > 0.5 * sum(lengths) else 0

    def _sample(self, values: npt.NDArray[Any], points: FloatArray) -> npt.NDArray[Any]:
        """The values at points (..., 2), or at the nearest ones inside the image."""
        x, y = np.moveaxis(np.rint(points).astype(int), -1, 0)
        return values[y.clip(0, values.shape[0] - 1), x.clip(0, values.shape[1] - 1)]


def _find_bodies(drawing: _Drawing, table: _Table, ends: list[FloatArray]) -> Iterator[_Joints]:
    """Find bodies one by one: the joints and limbs of which most is drawn, until their limbs are no lines.

    Args:
        drawing: The drawing.
        table: The colours.
        ends: For each hue, the ends of lines, where joints may be that something else covers.
    """
    import cv2

    hues, bones = table
    places, values = [], []
    for joint in range(1 + max(end for _, end, _ in bones)):
        more = [ends[hue] for start, end, hue in bones if joint in (start, end)]
        discs = drawing.discs[hues[joint]]
        if drawing.has_hands and joint in _WRISTS:
            discs = discs[discs[:, 2] > _MIN_WRIST]
        places.append(discs[discs[:, 2] > _MIN_EAR] if joint in _EARS else np.concatenate([discs, *more]))
        shows = places[-1][:, 2]
        values.append(np.where(shows > 0, shows**2, _LIMB_END))
    limbs = [limb.copy() for limb in drawing.limbs]
    while True:
        # The best tree below each place of a joint, from the ends of arms, legs and face up to the neck.
        best, matches, choices = [value.copy() for value in values], {}, {}
        for start, end, hue in reversed(bones):
            if not len(places[start]) or not len(places[end]):
                continue
            matches[start, end] = match = drawing.match(
                places[start],
                places[end],
                hue,
                limbs[hue],
                is_crowded=drawing.crowded[hues[start]] or drawing.crowded[hues[end]],
                is_first=hues.count(hues[end]) > 1,
            )
            totals = np.where(match > 0, match + best[end], -1.0)
            choices[start, end] = np.where(totals.max(axis=1) > 0, totals.argmax(axis=1), -1)
            best[start] += totals.max(axis=1).clip(0)
        # And from the best one down again.
        root = max(range(len(places)), key=lambda joint: best[joint].max(initial=-1.0))
        if best[root].max(initial=-1.0) < 0:
            return
        chosen = {root: int(best[root].argmax())}
        joints = {root: places[root][chosen[root], :2]}
        for start, end, hue in bones:
            place = int(choices[start, end][chosen[start]]) if start in chosen and (start, end) in choices else -1
            if place < 0:
                continue
            gain, point = float(matches[start, end][chosen[start], place]), places[end][place, :2]
            if gain <= _TOUCH and _is_on_limb(point, hues[end], table, joints, drawing.radius):
                continue
            # In a photo, there is some of each colour.
            if not drawing.is_plain and drawing.is_line(joints[start], point, hue) is False:
                continue
            if hues.count(hues[end]) > 1 and hues[start] != hues[end]:  # an ankle, of the colour of its toes
                point = drawing.first_disc(joints[start], point, hues[end])
            chosen[end], joints[end] = place, point
        is_seen = [values[joint][place] > _MIN_SEEN for joint, place in chosen.items()]
        if drawing.count_lines(table, joints) < _MIN_PART or np.mean(is_seen) < 0.5:
            return
        yield joints.copy()
        for joint, point in joints.items():
            near = np.hypot(*(places[joint][:, :2] - point).T) < 1.5 * drawing.radius
            values[joint][near] = -99.0
        for start, end, hue in bones:
            if start in joints and end in joints:
                ends_of_line = [np.rint(joints[joint]).astype(int).tolist() for joint in (start, end)]
                cv2.line(limbs[hue], ends_of_line[0], ends_of_line[1], (0,), 1 + round(3 * drawing.radius))


def _distance(person: _Joints, part: _Joints) -> float:
    """Between the joints that are closest to each other."""
    apart = np.array([*person.values()])[:, None] - np.array([*part.values()])
    return float(np.hypot(apart[..., 0], apart[..., 1]).min())


def _is_on_limb(point: FloatArray, hue: int, table: _Table, joints: _Joints, radius: float) -> bool:
    """Whether a place in some hue is only a part of a limb that has this hue."""
    for start, end, limb_hue in table.bones:
        if limb_hue == hue and start in joints and end in joints:
            way, offset = joints[end] - joints[start], point - joints[start]
            share = np.clip(way @ offset / np.maximum(way @ way, 1e-6), 0, 1)
            if np.hypot(*(offset - share * way)) < radius:
                return True
    return False


def _lone_discs(drawing: _Drawing, table: _Table, person: _Joints) -> _Joints:
    """Joints that no limb leads to, since the next ones are missing: whole discs, the only ones in their hue."""
    lone = {}
    for joint, hue in enumerate(table.hues[:NUM_JOINTS]):
        whole = [disc[:2] for disc in drawing.discs[hue] if disc[2] > 0.7]
        whole = [point for point in whole if not _is_on_limb(point, hue, table, person, drawing.radius)]
        if joint not in person and len(whole) == table.hues.count(hue) == 1:
            lone[joint] = whole[0]
    return lone
