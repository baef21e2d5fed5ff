"""The sizes of a published checkpoint come from its tensors, the rest from the trainer's config.yaml."""

import inspect

import pytest
from testing_utils_reference import REFERENCE, read_manifest

from diffusers_cfld.conversion.published_config import (
    check_config,
    make_config,
    read_arguments,
    read_config,
    read_sample_size,
)
from diffusers_cfld.models.appearance_encoder import AppearanceEncoder
from diffusers_cfld.models.pose_adapter import PoseAdapter
from diffusers_cfld.models.prompt_decoder import PerceptionRefinedDecoder


@pytest.fixture
def tiny():
    return read_manifest("tiny")["model"], read_config(REFERENCE / "tiny_config.yaml")


def with_setting(config, name, value):
    *sections, last = name.split(".")
    target = config
    for section in sections:
        target = target.setdefault(section, {})
    target[last] = value
    return config


def test_published_sizes_are_the_constructors_defaults():
    shapes = read_manifest("full")["model"]
    arguments = read_arguments(shapes, {})
    assert arguments == read_arguments(shapes, read_config(REFERENCE / "full_config.yaml"))
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


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_the_written_config_is_the_trainers(size):
    shapes, config = read_manifest(size)["model"], read_config(REFERENCE / f"{size}_config.yaml")
    arguments = read_arguments(shapes, config)
    written = make_config(arguments, read_sample_size(config, 8), 8)
    check_config(config, written)
    assert read_arguments(shapes, written) == arguments
    for section, values in written["MODEL"].items():
        assert values.items() <= config["MODEL"][section].items()
    for section in ("COND", "GT", "POSE"):
        assert written["INPUT"][section]["IMG_SIZE"] == config["INPUT"][section]["IMG_SIZE"]


def test_head_counts_of_other_widths_need_the_config(tiny):
    with pytest.raises(
        ValueError,
        match=r"cannot be read from weights of width 48.*config\.yaml, which has it as `MODEL.DECODER_CONFIG.HEADS`",
    ):
        read_arguments(tiny[0], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL.DECODER_CONFIG.CTX_DIM", 768),
        ("MODEL.COND_STAGE_CONFIG.DEPTHS", [2, 2, 18, 2]),
        ("MODEL.COND_STAGE_CONFIG.WINDOW_SIZE", 8),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.HEADS", [1, 2, 4] * 3),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.ATTN_RESIDUAL_BLOCK_IDX", [3, 4, 5]),
        ("MODEL.POSE_GUIDANCE_CONFIG.POSE_CHANNELS", 20),
        ("INPUT.GT.IMG_SIZE", [100, 128]),
        ("INPUT.POSE.IMG_SIZE", [256, 256]),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.TO_SELF_ATTN", True),
        ("MODEL.COND_STAGE_CONFIG.LAST_NORM", True),
    ],
)
def test_settings_of_another_checkpoint_and_ablations_are_refused(tiny, name, value):
    shapes, config = tiny[0], with_setting(tiny[1], name, value)
    expected = make_config(read_arguments(shapes, config), read_sample_size(config, 8), 8)
    with pytest.raises(ValueError, match=rf"`{name}` in config\.yaml must be .* got .*Ablations"):
        check_config(config, expected)


def test_absent_settings_fall_back(tiny):
    shapes, config = tiny
    heads = with_setting({}, "MODEL.DECODER_CONFIG.HEADS", config["MODEL"]["DECODER_CONFIG"]["HEADS"])
    name = "MODEL.APPEARANCE_GUIDANCE_CONFIG.HEADS"
    heads = with_setting(heads, name, config["MODEL"]["APPEARANCE_GUIDANCE_CONFIG"]["HEADS"])
    arguments = read_arguments(shapes, heads)
    assert arguments == read_arguments(shapes, config)
    assert read_sample_size(heads, 8) is None
    check_config(heads, make_config(arguments, 16, 8))


def test_source_images_of_other_proportions_need_the_config(tiny):
    shapes, config = {**tiny[0], "decoder.kv_pos_embed": [1, 2, 128]}, tiny[1]
    del config["INPUT"]
    with pytest.raises(ValueError, match=r"got 44x44 pixels: put a config\.yaml .* as `INPUT.COND.IMG_SIZE`"):
        read_arguments(shapes, config)
    arguments = read_arguments(shapes, with_setting(config, "INPUT.COND.IMG_SIZE", [64, 32]))
    assert arguments["source_encoder"]["image_size"] == (64, 32)
    assert arguments["prompt_decoder"]["feature_size"] == (2, 1)


@pytest.mark.parametrize("shapes", [{}, {"model.conv_in.weight": [320, 4, 3, 3]}])
def test_another_state_dict_is_refused(shapes):
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must be the published trainer's state dict.*no such"):
        read_arguments(shapes, {})


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [", "\x00"])
def test_a_config_without_settings_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml' must hold the published trainer's settings"):
        read_config(path)
