"""Reading the joints back from drawn skeletons, whichever of OpenPose's colour tables they were drawn with.

A joint is a disc of its own colour at the end of limbs of the right colours. All tables take their colours from one
wheel of 18 hues, and dimming or blending changes a colour's brightness rather than its hue. So the discs of all hues
are found first. Then each table joins them into bodies, as far as limbs of its colours are drawn between them, and the
table by which most lines are limbs is the one in use. At last the bodies are drawn again, and their joints are moved
until that explains most of the drawing.

Tables: `poseParametersRender.hpp` of CMU's OpenPose (COCO and BODY_25), and `util.py` of controlnet_aux (OpenPose and
DWPose), which AnimateAnyone, MusePose and others share; each also with red and blue swapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..image_utils import to_rgb
from .drawing_fit import fit_bodies
from .drawing_pixels import Body, Drawing, Table
from .formats import Joints
from .skeleton import LIMBS, NUM_JOINTS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_drawing"]

# OpenPose gives a bone the colour of its end; ControlNet gives bone i the colour of joint i, dimmed.
_COCO_HUES = [17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 14, 15, 13]
_HIPS, _MID_HIP = (8, 11), NUM_JOINTS
_BODY_25_HUES = [*_COCO_HUES, 0]
_BODY_25_LIMBS = [(1, _MID_HIP), *((_MID_HIP if end in _HIPS else start, end) for start, end in LIMBS)]
_TABLES = [
    Table(list(range(NUM_JOINTS)), [(start, end, hue) for hue, (start, end) in enumerate(LIMBS)]),
    Table(_COCO_HUES, [(start, end, _COCO_HUES[end]) for start, end in LIMBS]),
    Table(_BODY_25_HUES, [(start, end, _BODY_25_HUES[end]) for start, end in _BODY_25_LIMBS]),
]
_TABLES += [table.swapped() for table in _TABLES]
# BODY_25 draws toes and heels in the colours of the ankles.
_SHINS = [(9, 10), (12, 13)]

# How well discs show in half of a body's joints at least.
_MIN_SEEN = 0.3
# Of how many limbs a person must show lines, and a part of one that is not connected with the rest.
_MIN_PERSON, _MIN_PART = 3, 2
# Over a photo, which has lines of its own, all limbs of arms and legs.
_MIN_PERSON_OVER_PHOTO = 12


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
    drawing = Drawing(pixels)
    found = [(table, list(_find_bodies(drawing, table))) for table in _TABLES]
    # Squared, since single lines of hands fit other tables too.
    table, parts = max(found, key=lambda item: sum(drawing.count_lines(item[0], body) ** 2 for body in item[1]))
    # What could be a part of somebody, such as the legs of a person without a neck, is left for the fit to add.
    bodies: list[Body] = []
    for part in parts:
        if all(part.keys() & body.keys() for body in bodies):
            bodies.append(part)
    fit_bodies(drawing, table, bodies)
    enough = _MIN_PERSON if drawing.is_plain else _MIN_PERSON_OVER_PHOTO
    people = []
    for body in bodies:
        if drawing.count_lines(table, body) < enough:
            continue
        for knee, ankle in _SHINS if len(table.hues) > _MID_HIP else []:
            if knee in body and ankle in body:
                body[ankle] = drawing.first_disc(body[knee], body[ankle], table.hues[ankle])
        xy, visible = np.full((NUM_JOINTS, 2), -1.0), np.zeros(NUM_JOINTS, dtype=bool)
        for joint in body.keys() - {_MID_HIP}:
            # Pixel centres are at whole numbers.
            xy[joint], visible[joint] = (body[joint] + 0.5) / drawing.scale - 0.5, True
        people.append(Joints(xy, visible, None, (pixels.shape[0], pixels.shape[1])))
    return sorted(people, key=lambda person: float(person.xy[person.visible, 0].mean()))


def _find_bodies(drawing: Drawing, table: Table) -> Iterator[Body]:
    """Find bodies one by one: the joints and limbs of which most is drawn, until their limbs are no lines."""
    import cv2

    places = [drawing.discs[hue] for hue in table.hues]
    values = [discs[:, 2] ** 2 for discs in places]
    limbs = [limb.copy() for limb in drawing.limbs]
    while True:
        # The best tree below each place of a joint, from the ends of arms, legs and face up to the neck.
        best, choices = [value.copy() for value in values], {}
        for start, end, hue in reversed(table.bones):
            if len(places[start]) and len(places[end]):
                match = drawing.match(places[start], places[end], hue, limbs[hue])
                totals = np.where(match > 0, match + best[end], -1.0)
                choices[start, end] = np.where(totals.max(axis=1) > 0, totals.argmax(axis=1), -1)
                best[start] += totals.max(axis=1).clip(0)
        # And from the best one down again.
        root = max(range(len(places)), key=lambda joint: best[joint].max(initial=-1.0))
        if best[root].max(initial=-1.0) < 0:
            return
        chosen = {root: int(best[root].argmax())}
        body = {root: places[root][chosen[root], :2]}
        for start, end, hue in table.bones:
            place = int(choices[start, end][chosen[start]]) if start in chosen and (start, end) in choices else -1
            # In a photo, there is some of each colour.
            if place < 0 or (
                not drawing.is_plain and drawing.is_line(body[start], places[end][place, :2], hue) is False
            ):
                continue
            chosen[end], body[end] = place, places[end][place, :2]
        is_seen = [places[joint][place, 2] > _MIN_SEEN for joint, place in chosen.items()]
        if drawing.count_lines(table, body) < _MIN_PART or np.mean(is_seen) < 0.5:
            return
        yield body
        for joint, point in body.items():
            near = np.hypot(*(places[joint][:, :2] - point).T) < 1.5 * drawing.radius
            values[joint][near] = -99.0
        for start, end, hue in table.bones:
            if start in body and end in body:
                first, last = np.rint([body[start], body[end]]).astype(int).tolist()
                cv2.line(limbs[hue], first, last, (0,), 1 + round(3 * drawing.radius))
