from dataclasses import replace

import numpy as np
import pytest
from drawn_figures import (
    ARMS,
    PARTS,
    PATTERN_ACCENTS,
    DrawnFigures,
    draw_arms,
    draw_figure,
    draw_parts,
    figure_keypoints,
)
from drawn_figures.parts import draw_places
from scipy.ndimage import binary_erosion

PEOPLE = DrawnFigures(12, 2)


def test_parts_have_the_figures_colours():
    for number in range(12):
        person, pose = PEOPLE.identity(number), PEOPLE.pose(number, 0)
        parts, picture = draw_parts(person, pose, (128, 88)), draw_figure(person, pose, (128, 88))[0]
        assert parts.shape == (128, 88)
        assert set(np.unique(parts)) <= set(range(len(PARTS)))
        wall = picture[parts == PARTS.index("wall")].astype(float)
        assert np.abs(wall.mean(0) - np.mean(person.background, axis=0)).max() < 25
        if person.clothes.upper.pattern == "plain" and person.clothes.print_shape == "none":
            colors = picture[parts == PARTS.index("upper")].astype(float)
            assert np.abs(np.median(colors, axis=0) - person.clothes.upper.color).max() < 60


def test_accents_are_parts_of_their_own_where_asked_for():
    for number in range(12):
        person, pose = PEOPLE.identity(number), PEOPLE.pose(number, 0)
        parts = draw_parts(person, pose, (128, 88), (*PARTS, *PATTERN_ACCENTS))
        for accent in PATTERN_ACCENTS:
            name = accent.split("_")[0]
            is_accent = parts == (*PARTS, *PATTERN_ACCENTS).index(accent)
            if getattr(person.clothes, name).pattern == "plain":
                assert not is_accent.any()
        if person.clothes.upper.pattern not in ("plain", "block"):
            is_accent = parts == len(PARTS)
            assert is_accent.any()
            # Without them they are the garment's.
            plain = draw_parts(person, pose, (128, 88))
            assert (plain[is_accent] == PARTS.index("upper")).mean() > 0.9


def test_arms_are_told_apart_and_where_their_sleeves_end():
    for number in range(12):
        person = PEOPLE.identity(number)
        # From the front, arms beside the body.
        pose = replace(PEOPLE.pose(number, 0), azimuth=0.0, twist=0.0, crop=None)
        hanging = replace(pose.right_arm, anchor="shoulder", offset=(0.17, 0.26, 0.0), elbow=(0.6, 0.2, -0.8))
        pose = replace(pose, right_arm=hanging, left_arm=hanging)
        keypoints = figure_keypoints(person, pose, (256, 176)).xy
        for sleeve in (0.0, 0.55, 1.5):
            person = replace(person, clothes=replace(person.clothes, kind="top", sleeve=sleeve))
            arms = draw_arms(person, pose, (256, 176))
            assert arms.shape == (256, 176)
            for side, elbow in (("right", 3), ("left", 6)):
                along = [keypoints[elbow] + part * (keypoints[elbow + 1] - keypoints[elbow]) for part in (0.2, 0.8)]
                upper, lower = (ARMS[arms[tuple(np.rint(point[::-1]).astype(int))]] for point in along)
                assert upper == (f"{side}_sleeve" if sleeve > 1.2 else f"{side}_skin")
                assert lower == f"{side}_skin"
                assert (arms == ARMS.index(f"{side}_sleeve")).any() == (sleeve > 0)


@pytest.mark.parametrize("garment", ["upper", "lower"])
@pytest.mark.parametrize("pattern", ["horizontal", "checks"])
def test_patterns_are_where_the_places_on_the_cloth_say(garment, pattern):
    kinds, size = (*PARTS, *PATTERN_ACCENTS), (256, 176)
    checked = 0
    for number in range(12):
        person, pose = PEOPLE.identity(number), PEOPLE.pose(number, 0)
        fabric = replace(getattr(person.clothes, garment), pattern=pattern, period=0.16)
        clothes = replace(person.clothes, belt=None, print_shape="none", **{garment: fabric})
        person = replace(person, clothes=clothes)
        parts, places = draw_parts(person, pose, size, kinds), draw_places(person, pose, size)
        assert places.shape == (256, 176, 2)
        along, across = np.moveaxis(places, 2, 0) / 0.16 % 1
        expected = along < 112 / 256 if pattern == "horizontal" else (along < 0.5) != (across < 0.5)
        is_accent = parts == kinds.index(f"{garment}_accent")
        # On its edge a part has no colour of its own.
        is_garment = binary_erosion(is_accent | (parts == kinds.index(garment)))
        if is_garment.sum() < 300:  # of a skirt below a long coat nothing may be seen
            continue
        checked += 1
        # Collars and lapels count as the garment, but have no pattern.
        assert np.isnan(along[is_garment]).mean() < 0.08
        assert (is_accent == expected)[is_garment].mean() > 0.9
        # Faces and the wall are no cloth.
        assert np.isnan(along[parts == PARTS.index("wall")]).mean() > 0.95
        assert np.isnan(along[parts == PARTS.index("skin")]).mean() > 0.8
    assert checked >= 6


def test_errors():
    person, pose = PEOPLE.identity(0), PEOPLE.pose(0, 0)
    for parts in (PARTS[1:], (*PARTS, "belt"), (*PARTS, "wall")):
        with pytest.raises(ValueError, match="`parts` must hold"):
            draw_parts(person, pose, (128, 88), parts)
    for draw in (draw_parts, draw_arms, draw_places):
        with pytest.raises(ValueError, match="from 8 to 2048"):
            draw(person, pose, (4, 88))
