"""The trainer's config.yaml has the sizes of a published checkpoint; without one, they are the published ones."""

import inspect
from pathlib import Path

import pytest
import yaml
from testing_utils_reference import REFERENCE

from diffusers_cfld.conversion.published_config import read_config, write_config
from diffusers_cfld.models.appearance_encoder import AppearanceEncoder
from diffusers_cfld.models.pose_adapter import PoseAdapter
from diffusers_cfld.models.prompt_decoder import PerceptionRefinedDecoder


def with_setting(folder: Path, name: str, value: object) -> Path:
    """The tiny checkpoint's config.yaml with another value of one setting."""
    config = yaml.safe_load((REFERENCE / "tiny_config.yaml").read_text())
    part, section, setting = name.split(".")
    config[part][section][setting] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_published_sizes_are_the_constructors_defaults(tmp_path):
    arguments = read_config(tmp_path / "config.yaml", 8)
    assert arguments == read_config(REFERENCE / "full_config.yaml", 8)
    for model, name in (
        (PerceptionRefinedDecoder, "prompt_decoder"),
        (AppearanceEncoder, "appearance_encoder"),
        (PoseAdapter, "pose_adapter"),
    ):
        defaults = {key: value.default for key, value in inspect.signature(model.__init__).parameters.items()}
        assert arguments[name] == {key: defaults[key] for key in arguments[name]}
    assert arguments["source_encoder"] == {
        "image_size": 256,
        "window_size": 16,
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "patch_size": 4,
        "drop_path_rate": 0.2,
    }
    assert arguments["unet"] == {"sample_size": 64}


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_the_written_config_is_the_trainers(size, tmp_path):
    arguments = read_config(REFERENCE / f"{size}_config.yaml", 8)
    write_config(tmp_path / "config.yaml", arguments, 8)
    assert read_config(tmp_path / "config.yaml", 8) == arguments
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config = yaml.safe_load((REFERENCE / f"{size}_config.yaml").read_text())
    for section, values in written["MODEL"].items():
        assert values.items() <= config["MODEL"][section].items()
    for section in ("COND", "GT", "POSE"):
        assert written["INPUT"][section]["IMG_SIZE"] == config["INPUT"][section]["IMG_SIZE"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.HEADS", [1, 2, 4] * 3),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.ATTN_RESIDUAL_BLOCK_IDX", [3, 4, 5]),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.CONVIN_KERNEL_SIZE", [3] * 9),
        ("MODEL.POSE_GUIDANCE_CONFIG.IN_CHANNELS", 64),
        ("INPUT.GT.IMG_SIZE", [100, 128]),
        ("INPUT.POSE.IMG_SIZE", [256, 256]),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.TO_SELF_ATTN", True),
        ("MODEL.COND_STAGE_CONFIG.LAST_NORM", True),
    ],
)
def test_settings_that_do_not_fit_together_and_ablations_are_refused(tmp_path, name, value):
    path = with_setting(tmp_path, name, value)
    with pytest.raises(ValueError, match=rf"`{name}` in '{path}' must be .* got .*Ablations"):
        read_config(path, 8)


def test_settings_that_are_absent_or_null_are_the_published_ones(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {DECODER_CONFIG: {DEPTH: 2, HEADS: null}}")
    arguments = read_config(path, 8)["prompt_decoder"]
    assert (arguments["num_layers"], arguments["num_attention_heads"], arguments["dim"]) == (2, 24, 768)


def test_source_images_need_not_be_square(tmp_path):
    arguments = read_config(with_setting(tmp_path, "INPUT.COND.IMG_SIZE", [64, 32]), 8)
    assert arguments["source_encoder"]["image_size"] == (64, 32)
    assert arguments["prompt_decoder"]["feature_size"] == (2, 1)


@pytest.mark.parametrize("content", ["- a", "a: [", ""])
def test_a_config_without_settings_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="must hold the published trainer's settings in YAML"):
        read_config(path, 8)
