"""Skeletons that OpenPose, ControlNet, DWPose and their copies drew, read back."""

import io

import cv2
import numpy as np
import pytest
from drawn_by_tools import FIGURE, SIZE, add_hands_and_face, draw_controlnet, draw_openpose
from PIL import Image

from diffusers_cfld import Keypoints
from diffusers_cfld.pose.drawings import read_drawing
from diffusers_cfld.pose.formats import NobodyError
from diffusers_cfld.small_model import example_poses, example_sources

ALL = np.ones(18, dtype=bool)
STYLES = {
    "controlnet": draw_controlnet,
    "coco": draw_openpose,
    "coco, blended": lambda people, **options: draw_openpose(people, blended=True, **options),
    "body_25": lambda people, **options: draw_openpose(people, body_25=True, **options),
    "body_25, blended": lambda people, **options: draw_openpose(people, body_25=True, blended=True, **options),
}


def read(canvas, person=None):
    return Keypoints.from_skeleton(Image.fromarray(np.ascontiguousarray(canvas)), person)


def without(*joints):
    return ~np.isin(np.arange(18), joints)


def is_close(pose, xy, visible=ALL, tolerance=6):
    return np.array_equal(pose.visible, visible) and np.abs(pose.xy - xy)[visible].max() <= tolerance


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_each_tools_colours_are_read_also_with_red_and_blue_swapped(style, is_swapped):
    canvas = STYLES[style]([(FIGURE, ALL)])
    assert is_close(read(canvas[..., ::-1] if is_swapped else canvas), FIGURE)


@pytest.mark.parametrize("thickness", [0.5, 2])
@pytest.mark.parametrize("style", ["controlnet", "coco"])
def test_thin_and_thick_lines(style, thickness):
    assert is_close(read(STYLES[style]([(FIGURE, ALL)], thickness=thickness)), FIGURE)


@pytest.mark.parametrize("thickness", [1, 2])
@pytest.mark.parametrize("style", [*STYLES, "hands and face", "dimmed"])
def test_natural_poses_are_read_joint_by_joint(style, thickness):
    rng, size = np.random.default_rng(0), (768, 512)
    for pose in example_poses():
        low, high = pose.xy[pose.visible].min(axis=0), pose.xy[pose.visible].max(axis=0)
        middle = np.array([size[1], size[0]]) / 2
        xy = (pose.xy - (low + high) / 2) * (1.8 * middle / (high - low)).min()
        xy = np.rint(xy + middle + rng.normal(0, 3, (18, 2)))
        people = [(xy, pose.visible)]
        if style == "dimmed":
            canvas = draw_controlnet(people, size, thickness, confidence=rng.uniform(0.5, 1, 18))
        elif style == "hands and face":
            canvas = add_hands_and_face(draw_controlnet(people, size, thickness), xy, rng)
        else:
            canvas = STYLES[style](people, size=size, thickness=thickness)
        found = read(canvas)
        # The disc of a wrist may be hidden under a hand's first point, which has a radius of 4 pixels.
        is_hidden = (style == "hands and face") & np.isin(np.arange(18), (4, 7))
        assert np.array_equal(found.visible, pose.visible)
        assert (np.abs(found.xy - xy).max(axis=1) <= np.where(is_hidden, 10, 6))[pose.visible].all()


def test_ankles_are_told_from_toes_and_heels_of_their_colour():
    size, figure = (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2), FIGURE * 1.5
    pose = read(draw_openpose([(figure, ALL)], size=size, body_25=True, thickness=2.5))
    assert is_close(pose, figure)


@pytest.mark.parametrize("thickness", [0.5, 2, 3])
def test_our_own_drawings_of_any_thickness(thickness):
    drawn = Keypoints.from_array(FIGURE, size=SIZE).draw(thickness=thickness)
    assert is_close(Keypoints.from_skeleton(drawn), FIGURE)


@pytest.mark.parametrize("is_swapped", [False, True])
def test_hands_and_face_are_no_joints(is_swapped):
    canvas = add_hands_and_face(draw_controlnet([(FIGURE, ALL)]), FIGURE, np.random.default_rng(0))
    # The hands' first points cover the wrists.
    assert is_close(read(canvas[..., ::-1] if is_swapped else canvas), FIGURE, tolerance=12)


def test_hands_are_no_joints_of_legs_that_are_missing():
    visible = without(9, 10, 12, 13)
    canvas = add_hands_and_face(draw_controlnet([(FIGURE, visible)]), FIGURE, np.random.default_rng(0))
    assert is_close(read(canvas), FIGURE, visible, tolerance=12)


def test_a_video_frame_with_hands():
    canvas = add_hands_and_face(draw_controlnet([(FIGURE, ALL)]), FIGURE, np.random.default_rng(0))
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "JPEG", quality=75)
    pose = Keypoints.from_skeleton(Image.open(file))
    assert np.abs(pose.xy - FIGURE)[:14].max() <= 12


def test_joints_dimmed_by_confidence():
    confidence = np.random.default_rng(0).uniform(0.5, 1, 18)
    assert is_close(read(draw_controlnet([(FIGURE, ALL)], confidence=confidence)), FIGURE)


@pytest.mark.parametrize("missing", [(0, 14, 15, 16, 17), (2, 3, 4, 9, 10)])
@pytest.mark.parametrize("style", ["controlnet", "coco"])
def test_missing_joints_stay_missing(style, missing):
    visible = without(*missing)
    assert is_close(read(STYLES[style]([(FIGURE, visible)])), FIGURE, visible)


@pytest.mark.parametrize(("ear", "thickness", "quality"), [(16, 2, 75), (17, 1, 40)])
def test_fringes_of_compression_beside_an_eye_are_no_ear(ear, thickness, quality):
    xy = FIGURE.copy()
    xy[14:] = [(232, 76), (250, 78), (222, 82), (270, 86)]
    file = io.BytesIO()
    canvas = draw_controlnet([(xy, without(ear))], thickness=thickness)
    Image.fromarray(canvas).save(file, "JPEG", quality=quality)
    assert not Keypoints.from_skeleton(Image.open(file)).visible[ear]


def test_a_joint_under_another_is_at_the_end_of_its_limb():
    xy = FIGURE.copy()
    xy[4] = xy[7] = (240, 330)  # clasped hands
    pose = read(draw_controlnet([(xy, ALL)]))
    assert np.abs(pose.xy[4] - xy[4]).max() <= 8
    assert np.abs(pose.xy - xy)[without(4)].max() <= 6


@pytest.mark.parametrize("height", [256, 1024])
def test_scaled_drawings(height):
    factor = height / SIZE[0]
    canvas = cv2.resize(draw_openpose([(FIGURE, ALL)]), None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    assert is_close(read(canvas), FIGURE * factor)


def test_people_are_counted_from_left_to_right():
    left, right = FIGURE * 0.8 + [20, 30], FIGURE * 0.7 + [430, 90]
    canvas = draw_openpose([(right, ALL), (left, ALL)], size=(720, 900))
    assert is_close(read(canvas, person=0), left)
    assert is_close(read(canvas, person=1), right)
    with pytest.raises(ValueError, match=r"From left to right, .* 2 people: choose one with `person=0` to `person=1`"):
        read(canvas)
    for person in (2, -1):
        with pytest.raises(NobodyError, match=f"shows 2 people, counted from 0, so there is no `person={person}`"):
            read(canvas, person=person)


@pytest.mark.parametrize("value", [255, 90])
def test_other_backgrounds(value):
    canvas = np.full((*SIZE, 3), value, np.uint8)
    assert is_close(read(draw_controlnet([(FIGURE, ALL)], canvas=canvas)), FIGURE)


def test_images_of_any_mode():
    drawn = Image.fromarray(draw_controlnet([(FIGURE, ALL)]))
    clear = drawn.copy()
    clear.putalpha(Image.fromarray(np.uint8(255 * np.asarray(drawn).any(axis=2))))
    for image in (clear, drawn.quantize(64)):
        assert is_close(Keypoints.from_skeleton(image), FIGURE)
    with pytest.raises(ValueError, match="shows no skeleton"):
        Keypoints.from_skeleton(drawn.convert("L"))


def _rainbow():
    hue = np.tile(np.linspace(0, 359, 300, dtype=np.float32), (200, 1))
    hsv = np.stack([hue, np.ones_like(hue), np.ones_like(hue)], axis=-1)
    return np.uint8(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


@pytest.mark.parametrize(
    "pixels",
    [
        np.asarray(example_sources()[0]),
        np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8),
        cv2.resize(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8), (320, 480)),
        cv2.applyColorMap(np.tile(np.arange(256, dtype=np.uint8), (200, 1)), cv2.COLORMAP_JET),  # a depth map
        _rainbow(),
        np.zeros((1, 1, 3), np.uint8),
    ],
    ids=["photo", "noise", "patches", "depth", "rainbow", "pixel"],
)
def test_what_is_no_skeleton_is_refused(pixels):
    assert read_drawing(Image.fromarray(pixels)) == []


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="must have pixels, got one of 0x0"):
        Keypoints.from_skeleton(Image.new("RGB", (0, 0)))
