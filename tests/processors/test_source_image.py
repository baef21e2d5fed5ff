"""Source images of every kind become the same encoder input."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor

from diffusers_cfld import SourceImageProcessor
from diffusers_cfld.image_utils import to_rgb


@pytest.fixture
def processor():
    return SourceImageProcessor(height=64, width=64)


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (11, 8, 3), dtype=np.uint8))
    return coarse.resize((88, 128), PIL.Image.Resampling.BICUBIC)


def test_pil_images_are_squashed_bicubically_to_the_encoders_size(processor, photo):
    pixels = processor.preprocess(photo)
    expected = np.asarray(photo.resize((64, 64), PIL.Image.Resampling.BICUBIC), dtype=np.float32)
    assert pixels.shape == (1, 3, 64, 64)
    torch.testing.assert_close(pixels[0], torch.from_numpy(expected).permute(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)


def test_all_values_are_those_of_diffusers_image_processor_and_nothing_is_copied(processor):
    image = PIL.Image.fromarray(np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3).astype(np.uint8))
    expected = VaeImageProcessor(vae_scale_factor=1).preprocess(image)
    assert torch.equal(processor.preprocess(image), expected)
    assert to_rgb(image) is image


def test_pil_array_and_tensor_forms_agree(processor, photo):
    array = np.asarray(photo)
    pixels = processor.preprocess(photo)
    floats = array.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    torch.testing.assert_close(processor.preprocess(array), pixels, rtol=0, atol=0)
    for form in (floats, floats[None], tensor, tensor[None], tensor.double(), [tensor], (photo,)):
        # PIL rounds to 8 bits after each of the resize's two passes: at most one and a half steps of 2/255.
        torch.testing.assert_close(processor.preprocess(form), pixels, rtol=0, atol=3 / 255)


def test_lists_make_a_batch_of_images_of_any_size(processor, photo):
    pixels = processor.preprocess([photo, photo.resize((31, 45)), np.asarray(photo)])
    assert pixels.shape == (3, 3, 64, 64)
    torch.testing.assert_close(pixels[0], pixels[2], rtol=0, atol=0)


def test_an_array_of_images_equals_the_list_of_them(processor, photo):
    array = np.stack([np.asarray(photo), np.asarray(photo)[::-1]]).astype(np.uint16) * 257
    for form in (array, (array / 65535).astype(np.float32)):
        torch.testing.assert_close(processor.preprocess(form), processor.preprocess(list(form)), rtol=0, atol=0)


def test_paths_and_urls_are_opened(processor, photo, tmp_path, monkeypatch):
    photo.putalpha(PIL.Image.linear_gradient("L").resize(photo.size))
    photo.save(tmp_path / "photo.png")

    def answer(url, **options):
        if "nowhere" in url:
            raise requests.ConnectionError("HTTPSConnectionPool(host='nowhere')")
        return SimpleNamespace(raw=io.BytesIO(b"<html>" if "page" in url else (tmp_path / "photo.png").read_bytes()))

    monkeypatch.setattr(requests, "get", answer)
    url = "https://example.org/photo?size=large"
    pixels = processor.preprocess([photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), url])
    assert all(torch.equal(one, pixels[0]) for one in pixels)
    assert torch.equal(processor.preprocess(url)[0], pixels[0])
    for url, reason in (("https://nowhere/a.png", "ConnectionError"), ("http://page/", "UnidentifiedImageError")):
        with pytest.raises(OSError, match=rf"'{url}' does not answer with an image \({reason}\)"):
            processor.preprocess(url)


def test_inputs_are_not_modified(processor, photo):
    array = np.asarray(photo).astype(np.float32) / 255
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    before, array_before = tensor.clone(), array.copy()
    processor.preprocess(tensor)
    processor.preprocess(array)
    assert torch.equal(tensor, before)
    assert np.array_equal(array, array_before)


def test_exif_rotation_is_applied(processor, photo):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 270 degrees
    file = io.BytesIO()
    photo.rotate(90, expand=True).save(file, format="PNG", exif=exif)
    rotated = PIL.Image.open(file)
    assert rotated.size == (128, 88)
    torch.testing.assert_close(processor.preprocess(rotated), processor.preprocess(photo), rtol=0, atol=0)


def test_transparency_is_laid_over_the_background(photo):
    transparent = photo.convert("RGBA")
    transparent.putalpha(0)
    assert SourceImageProcessor(64, 64).preprocess(transparent).min() == 1.0
    assert SourceImageProcessor(64, 64, background=0.0).preprocess(transparent).max() == -1.0
    opaque = photo.convert("RGBA")
    torch.testing.assert_close(
        SourceImageProcessor(64, 64).preprocess(opaque), SourceImageProcessor(64, 64).preprocess(photo)
    )
    array = np.concatenate([np.asarray(photo) / 255.0, np.zeros((128, 88, 1))], axis=-1)
    assert SourceImageProcessor(64, 64).preprocess(array).min() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "YCbCr", "1"])
def test_every_pil_mode_is_converted(processor, photo, mode):
    pixels = processor.preprocess(photo.convert(mode))
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.isfinite().all()
    if mode in ("L", "LA"):
        grey = processor.preprocess(photo.convert("L").convert("RGB"))
        torch.testing.assert_close(pixels, grey, rtol=0, atol=0)


def test_16_bit_images_keep_their_brightness(processor, photo):
    grey = np.asarray(photo.convert("L"))
    expected = processor.preprocess(photo.convert("L"))
    wide = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    torch.testing.assert_close(processor.preprocess(wide), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(processor.preprocess(wide.convert("I")), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(processor.preprocess(grey.astype(np.uint16) * 257), expected, rtol=0, atol=3 / 255)
    torch.testing.assert_close(
        processor.preprocess(PIL.Image.fromarray(grey.astype(np.float32) / 255)), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([], ValueError, "`image` is an empty list"),
        ("person.jpg", FileNotFoundError, "No such file or directory: 'person.jpg'"),
        ([Path(__file__)], OSError, "test_source_image.py' cannot be read as an image"),
        ([None], TypeError, "a path or URL, a numpy array, a tensor or a list of these, got NoneType"),
        (np.zeros(5, np.float32), ValueError, r"of shape \(5,\)"),
        (np.zeros((8, 8, 2), np.float32), ValueError, "1, 3 or 4 channels"),
        (np.zeros((8, 8, 3), np.int64), ValueError, r"uint8 or uint16\).* got int64 of shape \(8, 8, 3\)"),
        (torch.zeros(2, 8, 8), ValueError, "1, 3 or 4 channels"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"floats in \[0, 1\].* got torch.uint8"),
        (torch.full((3, 8, 8), 255.0), ValueError, r"values in \[0, 1\], got 255 to 255"),
        (torch.full((3, 8, 8), float("nan")), ValueError, "got nan"),
        (PIL.Image.fromarray(np.full((8, 8), 7.0, np.float32)), ValueError, "PIL mode 'F'"),
    ],
)
def test_bad_images_are_refused_in_one_sentence(processor, image, error, message):
    with pytest.raises(error, match=message) as caught:
        processor.preprocess(image)
    assert "\n" not in str(caught.value)


def test_a_truncated_image_is_not_taken_for_damaged_exif_data():
    content = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(content, "PNG")
    with pytest.raises(OSError, match="truncated"):
        to_rgb(PIL.Image.open(io.BytesIO(content.getvalue()[:2000])))
