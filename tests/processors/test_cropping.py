"""Images of any shape in the model's: proportions, places and pixels are kept."""

import numpy as np
import PIL.Image
import pytest

from diffusers_cfld import Keypoints, SourceImageProcessor
from diffusers_cfld.processors.cropping import choose_crop, fit_keypoints, fit_photo, has_shape


def image_of(height, width, color=(200, 150, 100)):
    """A gradient in both directions within edges of one colour."""
    pixels = np.full((height, width, 3), color, dtype=np.uint8)
    edge = max(1, round(0.03 * min(height, width)))
    inside = slice(edge, -edge)
    pixels[inside, inside, 0] = np.linspace(0, 255, height - 2 * edge).astype(np.uint8)[:, None]
    pixels[inside, inside, 1] = np.linspace(0, 255, width - 2 * edge).astype(np.uint8)[None, :]
    return PIL.Image.fromarray(pixels)


def standing(size, top=0.2, bottom=0.9, center=0.5, width=0.1):
    """A person from head to feet, as fractions of an image."""
    height, image_width = size
    y = lambda part: (top + part * (bottom - top)) * height  # noqa: E731
    x = lambda side: center * image_width + side * width * image_width  # noqa: E731
    rows = [(0, 0.05), (0, 0.15), (-1, 0.16), (-1.2, 0.33), (-1.2, 0.48), (1, 0.16), (1.2, 0.33), (1.2, 0.48)]
    rows += [(-0.6, 0.5), (-0.6, 0.72), (-0.6, 1.0), (0.6, 0.5), (0.6, 0.72), (0.6, 1.0)]
    rows += [(-0.2, 0.03), (0.2, 0.03), (-0.4, 0.04), (0.4, 0.04)]
    return Keypoints.from_array([(x(side), y(part)) for side, part in rows], size)


def test_an_image_of_the_trained_shape_is_left_as_it_is():
    for size in ((256, 176), (1101, 750), (512, 352)):
        image = image_of(*size)
        fitted = fit_photo(image)
        assert fitted.frame.is_whole_image
        assert np.array_equal(np.asarray(fitted.image), np.asarray(image))


@pytest.mark.parametrize("size", [(400, 900), (900, 300), (300, 300), (31, 7)])
def test_an_image_of_another_shape_is_padded_and_loses_nothing(size):
    image = image_of(*size)
    fitted = fit_photo(image)
    frame = fitted.frame
    assert has_shape(fitted.image.size[::-1], (256, 176))
    inner = np.asarray(fitted.image)[-frame.top or None :, -frame.left or None :][: size[0], : size[1]]
    assert np.array_equal(inner, np.asarray(image))
    # The edges are plain, and so is what was added.
    assert np.asarray(fitted.image)[0, 0].tolist() == [200, 150, 100]


def test_the_person_is_in_the_crop_with_head_and_feet_and_the_keypoints_move_along():
    size = (400, 900)
    pose = standing(size, center=0.7)
    fitted = fit_photo(image_of(*size), pose)
    height, width = fitted.keypoints.size
    assert (fitted.image.height, fitted.image.width) == (height, width)
    assert has_shape((height, width), (256, 176))
    xy = fitted.keypoints.xy
    assert (xy >= 0).all()
    assert (xy <= (width, height)).all()
    # Above the eyes and below the ankles there is room for what no joint shows.
    assert xy[:, 1].min() > 0.05 * height
    assert height - xy[:, 1].max() > 0.03 * height
    np.testing.assert_allclose(xy[:, 0].mean(), width / 2, atol=0.02 * width)
    # No joint has moved against the others.
    np.testing.assert_allclose(xy - xy[0], pose.xy - pose.xy[0])
    back = fitted.frame.move_back(fitted.keypoints)
    assert back.size == pose.size
    np.testing.assert_allclose(back.xy, pose.xy)


@pytest.mark.parametrize("missing", [[0], [0, 14, 15], [0, 14, 15, 16]])
def test_the_head_is_in_the_crop_from_behind_too(missing):
    pose = standing((400, 900), center=0.7)
    rows = pose.to_array()
    rows[missing] = 0
    behind = Keypoints.from_array(rows, pose.size)
    tops = [fit_photo(image_of(400, 900), one).frame.top for one in (pose, behind)]
    assert tops[1] <= tops[0]


def test_what_is_under_a_joint_stays_under_it():
    size = (301, 517)
    pose = standing(size, center=0.3)
    image = image_of(*size)
    fitted = fit_photo(image, pose)
    before, after = np.asarray(image), np.asarray(fitted.image)
    for (x, y), (moved_x, moved_y) in zip(pose.xy.astype(int), fitted.keypoints.xy.astype(int), strict=True):
        assert before[y, x].tolist() == after[moved_y, moved_x].tolist()


def test_a_body_cut_by_the_image_is_cut_by_the_crop():
    size = (300, 600)
    pose = standing((600, 600), top=0.15, bottom=1.0)
    fitted = fit_photo(image_of(*size), Keypoints(pose.xy, pose.xy[:, 1] < 300, None, size))
    assert fitted.frame.top + fitted.frame.height <= 300


def test_in_height_the_image_is_used_before_it_is_padded():
    frame = choose_crop((1000, 1000), box=(300, 0, 700, 200), margin=0)
    assert (frame.top, frame.height) == (0, round(400 * 256 / 176))
    frame = choose_crop((1000, 1000), box=(300, 800, 700, 1000), margin=0)
    assert frame.top + frame.height == 1000


def test_a_given_box_and_margin():
    wide = choose_crop((400, 900), box=(600, 50, 700, 350), margin=0)
    assert (wide.top, wide.height) == (50, 300)
    assert wide.width == round(300 * 176 / 256)
    assert wide.left + wide.width / 2 == pytest.approx(650, abs=1)
    larger = choose_crop((400, 900), box=(600, 50, 700, 350), margin=0.1)
    assert (larger.top, larger.height) == (20, 360)
    # A part outside of the image is cut off.
    assert choose_crop((400, 900), box=(-50, 0, 100, 400), margin=0).height == 400


def test_exif_rotation_is_applied():
    image = image_of(256, 176)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    import io

    file = io.BytesIO()
    image.rotate(90, expand=True).save(file, "PNG", exif=exif)
    fitted = fit_photo(PIL.Image.open(file))
    assert np.array_equal(np.asarray(fitted.image), np.asarray(image))


def test_estimators_see_upright_images(tmp_path):
    from diffusers_cfld.pose_estimation import estimate_pose

    image = image_of(256, 176)
    turned = image.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    sizes = []
    pose = estimate_pose(turned, lambda image: sizes.append(image.size) or [standing((256, 176))])
    assert sizes == [(176, 256)]
    assert fit_photo(turned, pose).keypoints is not None


def test_transparency_and_background():
    image = image_of(100, 200).convert("RGBA")
    image.putalpha(0)
    assert np.asarray(fit_photo(image).image).min() == 255
    red = np.asarray(fit_photo(image, background="red").image)
    assert (red == (255, 0, 0)).all()
    assert np.asarray(fit_photo(image_of(100, 200), background=(1, 2, 3)).image)[0, 0].tolist() == [1, 2, 3]


def test_paste_puts_a_result_back():
    size = (400, 900)
    image = image_of(*size)
    fitted = fit_photo(image, standing(size, center=0.05))  # partly beyond the left edge
    mask = PIL.Image.new("L", image.size)
    mask.paste(255, (20, 100, 60, 200))
    black = PIL.Image.new("RGB", (64, 64))
    result = np.asarray(fitted.frame.paste(black, image, mask))
    assert result.shape == (*size, 3)
    assert not result[100:200, 20:60].any()
    outside = np.asarray(mask) == 0
    assert np.array_equal(result[outside], np.asarray(image)[outside])


def test_poses_of_a_sequence_share_a_window():
    size = (480, 854)
    poses = [standing(size, center=center) for center in (0.3, 0.4, 0.5)]
    moved = fit_keypoints(poses)
    assert {pose.size for pose in moved} == {moved[0].size}
    assert has_shape(moved[0].size, (256, 176))
    np.testing.assert_allclose(moved[2].xy - moved[0].xy, poses[2].xy - poses[0].xy)
    assert len(fit_keypoints(poses[0])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keypoints": standing((400, 900)), "box": (0, 0, 1, 1)}, "either `keypoints` or `box`"),
        ({"keypoints": standing((500, 900))}, "on an image of 500x900 .* but this one is 400x900"),
        ({"box": (950, 0, 1000, 10)}, "overlap the image of 400x900"),
        ({"box": (10, 10, 5, 20)}, "with left <= right and top <= bottom"),
    ],
)
def test_values_that_make_no_crop(options, message):
    with pytest.raises(ValueError, match=message):
        choose_crop((400, 900), **options)


def test_unknown_colours_and_other_images_are_refused():
    with pytest.raises(ValueError, match="`background` must be a colour"):
        fit_photo(image_of(10, 30), background="no colour")
    with pytest.raises(ValueError, match=r"made for an image of 256x176 .* got one of 10x30"):
        choose_crop((256, 176)).crop(image_of(10, 30))


# What the pipeline's processors do with it ---------------------------------------------------------------------------


def test_the_source_processor_squashes_the_trained_shape_and_pads_others():
    plain, padding = SourceImageProcessor(64, 64), SourceImageProcessor(64, 64, image_shape=(256, 176))
    for size in ((256, 176), (1101, 750), (64, 64)):
        image = image_of(*size)
        assert np.array_equal(padding.preprocess(image), plain.preprocess(image))
    wide = image_of(200, 500)
    assert np.array_equal(padding.preprocess(wide), plain.preprocess(fit_photo(wide).image))
    assert not np.array_equal(padding.preprocess(wide), plain.preprocess(wide))


@pytest.mark.parametrize("size", [(200, 500), (500, 200)])
def test_all_forms_of_an_image_are_padded_alike(size):
    import torch

    processor = SourceImageProcessor(64, 64, image_shape=(256, 176))
    image = image_of(*size)
    expected = processor.preprocess(image)
    array = np.asarray(image)
    assert torch.equal(processor.preprocess(array), expected)
    tensor = torch.from_numpy(array / 255.0).float().permute(2, 0, 1)
    # Pillow rounds to 8 bits between its two passes, too.
    np.testing.assert_allclose(processor.preprocess(tensor), expected, atol=4 / 127.5)
    np.testing.assert_allclose(
        processor.preprocess(torch.stack([tensor, tensor])).numpy()[1], expected[0], atol=4 / 127.5
    )


def test_poses_on_images_of_another_shape_keep_their_proportions():
    from diffusers_cfld import PoseProcessor, render_pose_map

    processor = PoseProcessor(64, 64, image_shape=(256, 176))
    for size in ((256, 176), (64, 64)):
        pose = standing(size)
        assert np.array_equal(processor.preprocess(pose)[0], render_pose_map(pose, (64, 64)))
    wide = standing((200, 500))
    frame = choose_crop((200, 500))
    assert np.array_equal(processor.preprocess(wide)[0], render_pose_map(frame.move(wide), (64, 64)))
    assert np.array_equal(PoseProcessor(64, 64).preprocess(wide)[0], render_pose_map(wide, (64, 64)))
