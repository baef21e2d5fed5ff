"""The demo and the small model it runs: the real one that ships with the package."""

import json
import socket

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from testing_utils import FIGURES

from diffusers_cfld import CFLDInpaintPipeline
from diffusers_cfld.cli import main
from diffusers_cfld.data import load_folder_pairs
from diffusers_cfld.small_model import SMALL_MODEL, example_poses, example_sources, load_small_model


@pytest.fixture(scope="module")
def pipe():
    pipe = load_small_model()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_grid_is_written_and_named(tmp_path, caplog, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the demo went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    path = tmp_path / "new" / "grid.png"
    assert main(["demo", "--steps", "1", "--output", str(path), "--device", "cpu"]) == 0
    assert str(path) in caplog.text
    with Image.open(path) as grid:
        # Four poses and three sources, each with their margin and heading.
        assert grid.size == (8 + 5 * (176 + 8), 8 + 4 * (256 + 20 + 8))
        pixels = np.asarray(grid.convert("RGB")).astype(int)
    source = np.asarray(example_sources()[0]).astype(int)
    first_row = 8 + 284 + 20
    assert np.array_equal(pixels[first_row : first_row + 256, 8 : 8 + 176], source)
    assert [path.name for path in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (
            ["--output", "grid.xyz"],
            "argument --output: must end in .png, .jpg or another suffix of images, got 'grid.xyz'",
        ),
    ],
)
def test_errors_come_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *arguments])
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["demo", "--device", "nonsense", "--output", str(tmp_path / "grid.png")]) == 1
    assert "--device nonsense cannot be used here" in capsys.readouterr().err


def test_the_results_follow_photo_and_pose(pipe):
    """What makes it a model: the right photo and pose come closer to the truth than wrong ones."""
    pairs = load_folder_pairs(FIGURES)[::2]
    poses = [pair.target_keypoints for pair in pairs]
    photos = [Image.open(pair.source) for pair in pairs]
    truth = np.stack([np.asarray(Image.open(pair.target)) for pair in pairs]) / 255

    def psnr(images, poses):
        generators = [torch.Generator().manual_seed(number) for number in range(len(pairs))]
        options = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np", "height": 128, "width": 96}
        results = pipe(image=images, pose=poses, generator=generators, **options).images
        return float(np.mean(-10 * np.log10(((results - truth) ** 2).mean(axis=(1, 2, 3)))))

    right = psnr(photos, poses)
    assert right > psnr(photos[1:] + photos[:1], poses) + 2
    assert right > psnr(photos, poses[1:] + poses[:1]) + 2
    copied = np.stack([np.asarray(photo) for photo in photos]) / 255
    assert right > float(np.mean(-10 * np.log10(((copied - truth) ** 2).mean(axis=(1, 2, 3))))) + 4


def test_a_photo_is_warned_of_and_drawn_people_are_not(pipe, caplog):
    pipe.encode_appearance(example_sources())
    assert not caplog.text
    photo = Image.fromarray(skimage.data.astronaut())
    edit = CFLDInpaintPipeline.from_pipe(pipe)
    for warned in (pipe, edit):
        caplog.clear()
        warned.encode_appearance(photo)
        assert "looks like a photo" in caplog.text
        assert "`CFLDPipeline.from_pretrained(...)`, or `--model` on the command line" in caplog.text


def test_what_is_bundled(pipe):
    assert pipe.target_size == (128, 96)
    assert len(example_sources()) == 3
    assert {source.size for source in example_sources()} == {(176, 256)}
    assert len(example_poses()) == 4
    assert {pose.size for pose in example_poses()} == {(256, 176)}
    assert load_small_model(dtype=torch.float16).unet.dtype == torch.float16
    assert pipe.unet.dtype == torch.float32
    assert sum(path.stat().st_size for path in SMALL_MODEL.rglob("*")) < 25e6
    for file in SMALL_MODEL.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())
    assert "drawn" in (SMALL_MODEL / "README.md").read_text()
