import numpy as np
import pytest

from diffusers_cfld.data.drawn_figures import DrawnFigures, draw_figure
from diffusers_cfld.data.drawn_parts import PARTS, PATTERN_ACCENTS, draw_parts

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


def test_errors():
    person, pose = PEOPLE.identity(0), PEOPLE.pose(0, 0)
    for parts in (PARTS[1:], (*PARTS, "belt"), (*PARTS, "wall")):
        with pytest.raises(ValueError, match="`parts` must hold"):
            draw_parts(person, pose, (128, 88), parts)
