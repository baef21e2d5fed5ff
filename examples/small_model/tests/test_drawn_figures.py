"""Drawn figures: the same everywhere, with keypoints that lie on the figure, in pairs and folders."""

import doctest
import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from drawn_figures import DrawnFigures, DrawnIdentity, DrawnPose, draw_figure, figure_keypoints
from drawn_figures.brush import Brush, Shape
from drawn_figures.people import ArmPose, Fabric, LegPose
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_cfld.data import load_pairs
from diffusers_cfld.pose.skeleton import JOINT_NAMES

SIZE = (128, 88)
FACE = ("nose", "right_eye", "left_eye")


def row(name):
    return JOINT_NAMES.index(name)


def seen(keypoints, *names):
    return [bool(keypoints.visible[row(name)]) for name in names]


def standing(azimuth=0.0, **changes):
    """A person upright in the middle of the frame, arms a little apart, the same on both sides."""
    arm, leg = ArmPose("shoulder", (0.12, 0.26, 0.02), (0.6, 0.0, -1.0)), LegPose(6.0, 0.0, 2.0, 10.0)
    pose = DrawnPose(azimuth, 5.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), arm, arm, leg, leg, 210.0, None, (0.0, 0.5))
    return replace(pose, **changes)


def dressed(seed=0, **changes):
    identity = DrawnIdentity.from_seed(seed)
    return replace(identity, clothes=replace(identity.clothes, **changes))


def digest(figures, indices):
    value = hashlib.sha256()
    for index in indices:
        pair = figures[index]
        value.update(pair["source_image"].tobytes() + pair["target_image"].tobytes())
        value.update(pair["source_keypoints"].to_array().tobytes() + pair["target_keypoints"].to_array().tobytes())
    return value.hexdigest()


def color_at(image, x, y):
    return image[round(y), round(x)].astype(int)


def same_hue(color, other, limit=0.12):
    first, second = np.array(color) / np.linalg.norm(color), np.array(other) / np.linalg.norm(other)
    return bool(np.linalg.norm(first - second) < limit)


# Determinism ------------------------------------------------------------------------------------------------------


def test_items_do_not_depend_on_the_order_or_on_other_settings():
    figures = DrawnFigures(5, 3, SIZE, seed=3)
    indices = [0, 7, 29, 13]
    forward = [digest(figures, [index]) for index in indices]
    assert [digest(figures, [index]) for index in reversed(indices)] == forward[::-1]
    assert [digest(DrawnFigures(9, 3, SIZE, seed=3), [index]) for index in indices] == forward
    assert digest(DrawnFigures(5, 3, SIZE, seed=4), [0]) != forward[0]


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draw_figure(DrawnIdentity.from_seed(1), DrawnPose.from_seed(1), SIZE)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_seeds_make_equal_people_and_poses_and_generators_go_on():
    assert DrawnIdentity.from_seed(5) == DrawnIdentity.from_seed(5) != DrawnIdentity.from_seed(6)
    assert DrawnPose.from_seed(5) == DrawnPose.from_seed(5) != DrawnPose.from_seed(6)
    rng = np.random.default_rng(0)
    assert DrawnIdentity.from_seed(rng) != DrawnIdentity.from_seed(rng)


def test_an_excerpt_of_a_set_is_the_same_people():
    whole, rest = DrawnFigures(6, 2, SIZE), DrawnFigures(2, 2, SIZE, first_identity=4)
    assert digest(rest, range(4)) == digest(whole, range(8, 12))


# The set ------------------------------------------------------------------------------------------------------------


def test_every_ordered_pair_of_two_images_is_an_item():
    figures = DrawnFigures(3, 4)
    places = [figures.locate(index) for index in range(len(figures))]
    assert len(set(places)) == len(figures) == 3 * 4 * 3
    assert all(source != target for _, source, target in places)
    assert figures.locate(-1) == (2, 3, 2)
    with pytest.raises(IndexError):
        figures.locate(36)


def test_an_item_holds_two_images_of_one_person():
    figures = DrawnFigures(2, 3, SIZE)
    identity, source, target = figures.locate(8)
    pair = figures[8]
    for name, pose in (("source", source), ("target", target)):
        image, keypoints = figures.draw(identity, pose)
        assert (pair[f"{name}_image"] == image).all()
        assert pair[f"{name}_keypoints"] == keypoints
    assert not (pair["source_image"] == pair["target_image"]).all()
    assert len(list(DrawnFigures(1, 2, (16, 11)))) == 2


def test_sets_that_do_not_overlap_share_no_person():
    training, held_out = DrawnFigures(40, 2), DrawnFigures(40, 2, first_identity=40)
    people = {training.identity(index) for index in range(40)} | {held_out.identity(index) for index in range(40)}
    assert len(people) == 80


def test_people_are_selected_as_they_are(tmp_path):
    people = DrawnFigures(9, 2, (32, 22), seed=3, first_identity=4)
    selected = people.select([7, 2])
    assert len(selected) == 4
    assert digest(selected, range(4)) == digest(people, [14, 15, 4, 5])
    assert digest(selected.select([1]), [0]) == digest(people, [4])
    selected.write_folder(tmp_path)
    assert load_pairs(tmp_path)[0].target_name == "images/000011_01.png"


def test_identities_are_clearly_different():
    """In one pose two people differ by much more than a shade: mean absolute difference within the figure."""
    images = [draw_figure(DrawnIdentity.from_seed(seed), standing(), SIZE)[0].astype(int) for seed in range(30)]
    differences = [
        np.abs(first - second)[20:112, 24:64].mean() for index, first in enumerate(images) for second in images[:index]
    ]
    assert min(differences) > 8
    assert np.mean(differences) > 45


def test_all_choices_occur():
    clothes = [DrawnIdentity.from_seed(seed).clothes for seed in range(300)]
    assert {c.kind for c in clothes} == {"top", "shirt", "jacket", "dress"}
    assert {c.sleeve for c in clothes} == {0.0, 0.55, 1.0, 1.5, 1.95}
    assert len({c.upper.pattern for c in clothes} | {c.lower.pattern for c in clothes}) == 8
    assert {c.neckline for c in clothes} == {"round", "v", "boat", "turtle", "collar"}
    assert len({DrawnIdentity.from_seed(seed).hair.style for seed in range(300)}) == 9
    views = [DrawnPose.from_seed(seed).view for seed in range(300)]
    assert {view: views.count(view) > 12 for view in set(views)} == dict.fromkeys(
        ("front", "three-quarter", "profile", "back"), True
    )


def test_the_accent_of_checks_is_the_lighter_colour():
    people = [DrawnIdentity.from_seed(seed).clothes for seed in range(200)]
    checked = [fabric for c in people for fabric in (c.upper, c.lower) if fabric.pattern == "checks"]
    assert len(checked) > 10
    assert all(sum(fabric.accent) >= sum(fabric.color) for fabric in checked)


def test_the_examples_in_the_documentation_work():
    examples = [test for test in doctest.DocTestFinder().find(DrawnFigures, "DrawnFigures") if test.examples]
    assert len(examples) == 2
    assert all(doctest.DocTestRunner().run(example).failed == 0 for example in examples)


# Keypoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 88), (256, 176), (128, 128), (64, 64), (128, 64), (61, 203)])
def test_images_have_the_asked_size_and_keypoints_their_frame(size):
    identity, pose = DrawnIdentity.from_seed(2), standing()
    image, keypoints = draw_figure(identity, pose, size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert keypoints.size == size
    assert keypoints == figure_keypoints(identity, pose, size)
    assert keypoints.visible.all()
    # Every size is the same composition, squeezed.
    wide = figure_keypoints(identity, pose, (256, 176))
    scaled = (wide.xy + 0.5) * (size[1] / 176, size[0] / 256) - 0.5
    assert np.allclose(keypoints.xy, scaled, atol=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_visible_joints_lie_inside_the_frame_and_on_the_figure(person, stance):
    identity, pose = replace(DrawnIdentity.from_seed(person), floor=False), DrawnPose.from_seed(stance)
    walls = ((0, 0, 0), (255, 255, 255))
    images = [draw_figure(replace(identity, background=(wall, wall)), pose, SIZE)[0] for wall in walls]
    keypoints = figure_keypoints(identity, pose, SIZE)
    assert keypoints.visible.sum() >= 5
    for (x, y), name in zip(keypoints.xy[keypoints.visible], np.array(JOINT_NAMES)[keypoints.visible], strict=True):
        assert 0 <= x <= SIZE[1] - 1
        assert 0 <= y <= SIZE[0] - 1
        # The ears are at the head's edge, and under one pixel of it may be left.
        if "ear" not in name and "eye" not in name and name != "nose":
            dark, light = (color_at(image, x, y) for image in images)
            assert np.abs(light - dark).max() < 128, name  # the wall makes up less than half of the pixel


@pytest.mark.parametrize("azimuth", [0.0, 40.0, -40.0, 180.0, 140.0])
def test_limbs_are_drawn_between_their_joints(azimuth):
    """Bare arms and legs have the skin's hue at elbows and knees, and shoes are below the ankles."""
    identity = dressed(7, kind="top", hem=1.0, sleeve=0.0, lower_kind="trousers", lower_hem=1.5, shoe_kind="sneaker")
    image, keypoints = draw_figure(identity, standing(azimuth), (256, 176))
    names = ["knee", "wrist", "elbow"] if abs(azimuth) in (0.0, 180.0) else ["knee"]
    for side in ("right", "left"):
        for name in names:
            x, y = keypoints.xy[row(f"{side}_{name}")]
            assert same_hue(color_at(image, x, y), identity.body.skin), (side, name)
        x, y = keypoints.xy[row(f"{side}_ankle")]
        assert same_hue(color_at(image, x, y + 6), identity.clothes.shoe, 0.2), side


def test_right_and_left_are_the_persons_own():
    raised = ArmPose("shoulder", (0.1, -0.28, 0.0), (1.0, 0.0, -0.2))
    wrist = row("right_wrist")
    for azimuth, side in ((0.0, -1), (180.0, 1)):
        pose = standing(azimuth, right_arm=raised)
        keypoints = figure_keypoints(DrawnIdentity.from_seed(0), pose, (256, 176))
        assert keypoints.xy[wrist, 1] < keypoints.xy[1, 1] < keypoints.xy[row("left_wrist"), 1]
        assert np.sign(keypoints.xy[wrist, 0] - keypoints.xy[1, 0]) == side


def test_an_upright_pose_is_its_own_mirror_image_but_for_the_light():
    plain = Fabric((90, 120, 60), (90, 120, 60))
    image, keypoints = draw_figure(dressed(2, print_shape="none", lower=plain), standing(), (256, 176))
    assert np.allclose(keypoints.xy, keypoints.mirror().xy, atol=0.02)
    difference = np.abs(image.astype(int) - image[:, ::-1]).max(axis=2)
    assert (difference > 80).mean() < 0.02


def test_bones_are_as_long_in_every_pose_seen_from_the_front():
    """Orthographic projection shortens bones and never lengthens them."""
    for seed in range(40):
        pose = replace(DrawnPose.from_seed(seed), camera=0.0)
        identity = DrawnIdentity.from_seed(seed)
        keypoints = figure_keypoints(identity, pose, (256, 176))
        unit = 246.0 if pose.crop is None else 256.0 / pose.crop
        for start, end, length in ((8, 9, 0.51), (9, 10, 0.49), (11, 12, 0.51), (12, 13, 0.49)):
            if keypoints.visible[[start, end]].all():
                seen_length = np.linalg.norm(keypoints.xy[start] - keypoints.xy[end])
                assert seen_length <= length * identity.body.leg * unit + 0.1


# Views --------------------------------------------------------------------------------------------------------------


def test_a_front_view_shows_the_whole_face_and_a_back_view_none():
    identity = DrawnIdentity.from_seed(0)
    front = figure_keypoints(identity, standing(0.0), SIZE)
    back = figure_keypoints(identity, standing(180.0), SIZE)
    assert seen(front, *FACE, "right_ear", "left_ear") == [True] * 5
    assert seen(back, *FACE) == [False] * 3
    assert seen(back, "right_ear", "left_ear") == [True] * 2
    assert standing(0.0).view == "front"
    assert standing(180.0).view == "back"


def test_sampled_back_views_have_neither_nose_nor_eyes():
    poses = [pose for pose in map(DrawnPose.from_seed, range(300)) if pose.view == "back"]
    assert len(poses) > 20
    looking_away = [pose for pose in poses if abs(pose.head[0] + pose.twist) < 50]
    for pose in looking_away:
        assert seen(figure_keypoints(DrawnIdentity.from_seed(0), pose, SIZE), *FACE) == [False] * 3


@pytest.mark.parametrize(("azimuth", "near", "far"), [(90.0, "right", "left"), (-90.0, "left", "right")])
def test_a_profile_hides_the_far_eye_and_ear(azimuth, near, far):
    """Facing the image's right (azimuth 90) the person's right side is turned to the camera."""
    pose = standing(azimuth)
    keypoints = figure_keypoints(DrawnIdentity.from_seed(0), pose, SIZE)
    assert pose.view == "profile"
    assert seen(keypoints, "nose", f"{near}_eye", f"{near}_ear") == [True] * 3
    assert seen(keypoints, f"{far}_eye", f"{far}_ear") == [False] * 2
    assert np.sign(keypoints.xy[0, 0] - keypoints.xy[row(f"{near}_ear"), 0]) == np.sign(azimuth)


def test_a_print_is_on_the_front_only():
    identity = dressed(0, kind="top", print_shape="disc", sleeve=0.0, tucked=False, hem=1.0)
    fabric = replace(identity.clothes.upper, color=(20, 160, 40), accent=(220, 20, 200), pattern="plain")
    identity = replace(identity, clothes=replace(identity.clothes, upper=fabric))
    identity = replace(identity, hair=replace(identity.hair, style="short"))
    for azimuth, color in ((0.0, fabric.accent), (180.0, fabric.color)):
        image, keypoints = draw_figure(identity, standing(azimuth), (256, 176))
        hips = keypoints.xy[[8, 11]].mean(axis=0)
        x, y = keypoints.xy[1] + 0.36 * (hips - keypoints.xy[1])
        assert same_hue(color_at(image, x, y), color), azimuth


@pytest.mark.parametrize("sleeve", [0.0, 0.55, 1.5, 1.95])
def test_sleeves_end_where_the_garment_says(sleeve):
    identity = dressed(0, kind="top", sleeve=sleeve)
    fabric = replace(identity.clothes.upper, color=(20, 60, 220), pattern="plain")
    identity = replace(identity, clothes=replace(identity.clothes, upper=fabric, sleeve_width=0.004))
    arm = ArmPose("shoulder", (0.31, 0.0, 0.0), (0.0, 1.0, -1.0))
    image, keypoints = draw_figure(identity, standing(right_arm=arm, left_arm=arm), (256, 176))
    shoulder, elbow, wrist = keypoints.xy[[2, 3, 4]]
    for place in (0.3, 0.8, 1.25, 1.75):
        point = shoulder + place * (elbow - shoulder) if place <= 1 else elbow + (place - 1) * (wrist - elbow)
        color = fabric.color if place < sleeve else identity.body.skin
        assert same_hue(color_at(image, *point), color), place


def test_an_arm_before_the_body_casts_a_shadow_on_it():
    canvas = np.full((40, 60, 3), 200, np.uint8)
    wall = canvas[:, :1].copy()
    canvas[:, :40] = 120
    brush = Brush(canvas, unit=100.0)
    brush.shadow(Shape(discs=[(np.array([40.0, 20.0]), 8.0)]), wall, reach=0.05, dark=0.5)
    # All of it below the arm, half at the edge, nothing beyond; the wall is not reached.
    np.testing.assert_allclose(canvas[20, 36], 60, atol=2)
    assert 80 < canvas[20, 32, 0] < 100
    assert (canvas[:, :20] == 120).all()
    assert (canvas[:, 40:] == 200).all()
    brush.shadow(Shape(discs=[(np.array([400.0, 20.0]), 8.0)]), wall)


def test_stripes_turn_with_the_arm():
    """Along a striped sleeve both colours alternate, whichever way the arm points."""
    identity = dressed(0, kind="top", sleeve=1.95)
    fabric = replace(
        identity.clothes.upper, color=(230, 30, 30), accent=(20, 40, 230), pattern="horizontal", period=0.06
    )
    identity = replace(identity, clothes=replace(identity.clothes, upper=fabric))
    for offset in ((0.33, 0.0, 0.0), (0.23, 0.23, 0.0)):
        arm = ArmPose("shoulder", offset, (0.0, 1.0, -1.0))
        image, keypoints = draw_figure(identity, standing(right_arm=arm, left_arm=arm), (256, 176))
        line = [keypoints.xy[2] + t * (keypoints.xy[3] - keypoints.xy[2]) for t in np.linspace(0.4, 1.0, 40)]
        accent = [same_hue(color_at(image, *point), fabric.accent, 0.4) for point in line]
        assert 1 <= sum(first != second for first, second in itertools.pairwise(accent)) <= 5
        assert 0.2 < np.mean(accent) < 0.8


# Folders ------------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_same_images_and_keypoints(tmp_path):
    figures = DrawnFigures(2, 3, (64, 44), seed=2, first_identity=5)
    figures.write_folder(tmp_path / "new" / "folder")
    pairs = load_pairs(tmp_path / "new" / "folder")
    assert len(pairs) == len(figures)
    for pair, figure in zip(pairs, figures, strict=True):
        for side in ("source", "target"):
            assert (np.asarray(PIL.Image.open(getattr(pair, side))) == figure[f"{side}_image"]).all()
            assert getattr(pair, f"{side}_keypoints") == figure[f"{side}_keypoints"]
    with pytest.raises(FileExistsError):
        figures.write_folder(tmp_path / "new" / "folder")


def test_the_librarys_stored_figures_are_drawn_as_ever():
    folder = Path(__file__).parents[3] / "tests" / "data" / "figures"
    pairs = load_pairs(folder)
    for pair, figure in zip(pairs, DrawnFigures(6, 2, (128, 96), first_identity=6000), strict=True):
        difference = np.asarray(PIL.Image.open(pair.source)).astype(int) - figure["source_image"]
        assert np.abs(difference).max() <= 1  # another build of OpenCV may round otherwise
        assert pair.source_keypoints == figure["source_keypoints"]
