from dataclasses import replace

import numpy as np
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

PEOPLE = DrawnFigures(12, 2)


def test_parts_have_the_figures_colours():
    for number in range(12):
        person, pose = PEOPLE.identity(number), PEOPLE.pose(number, 0)
        parts, image = draw_parts(person, pose, (128, 88)), draw_figure(person, pose, (128, 88))[0]
        assert parts.shape == (128, 88)
        assert set(np.unique(parts)) <= set(range(len(PARTS)))
        wall = image[parts == PARTS.index("wall")].astype(float)
        assert np.abs(wall.mean(0) - np.mean(person.background, axis=0)).max() < 25
        if person.clothes.upper.pattern == "plain" and person.clothes.print_shape == "none":
            colors = image[parts == PARTS.index("upper")].astype(float)
            assert np.abs(np.median(colors, axis=0) - person.clothes.upper.color).max() < 60


def test_the_accents_of_patterns_are_parts_of_their_own():
    for number in range(12):
        person, pose = PEOPLE.identity(number), PEOPLE.pose(number, 0)
        parts = draw_parts(person, pose, (128, 88))
        for accent in PATTERN_ACCENTS:
            if getattr(person.clothes, accent.split("_")[0]).pattern == "plain":
                assert not (parts == PARTS.index(accent)).any()
        if person.clothes.upper.pattern not in ("plain", "block"):
            is_accent = parts == PARTS.index("upper_accent")
            assert is_accent.any()
            # Without its pattern the garment covers the same pixels.
            plain = replace(person.clothes, upper=replace(person.clothes.upper, pattern="plain"), print_shape="none")
            parts = draw_parts(replace(person, clothes=plain), pose, (128, 88))
            assert (parts[is_accent] == PARTS.index("upper")).mean() > 0.9


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
