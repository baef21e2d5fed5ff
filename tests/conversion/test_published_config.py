from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from testing_utils_reference import REFERENCE, read_manifest

from diffusers_cfld.conversion.published_config import geometry_to_config, read_config, read_geometry
from diffusers_cfld.models.appearance_encoder import AppearanceEncoder
from diffusers_cfld.models.pose_adapter import PoseAdapter
from diffusers_cfld.models.prompt_decoder import PerceptionRefinedDecoder


@pytest.fixture
def tiny() -> tuple[dict, dict]:
    return read_manifest("tiny")["model"], read_config(REFERENCE / "tiny_config.yaml")


def test_published_sizes_are_the_constructors_defaults() -> None:
    import inspect

    with_config = read_geometry(read_manifest("full")["model"], read_config(REFERENCE / "full_config.yaml"))
    geometry = read_geometry(read_manifest("full")["model"])
    assert geometry == with_config
    for model, read in (
        (PerceptionRefinedDecoder, geometry.prompt_decoder),
        (AppearanceEncoder, geometry.appearance_encoder),
        (PoseAdapter, geometry.pose_adapter),
    ):
        defaults = {name: value.default for name, value in inspect.signature(model.__init__).parameters.items()}
        assert read == {name: defaults[name] for name in read}
    assert geometry.source_encoder == {
        "image_size": 256,
        "window_size": 16,
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "patch_size": 4,
        "drop_path_rate": 0.2,
    }


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_config_round_trip(size: str) -> None:
    shapes, config = read_manifest(size)["model"], read_config(REFERENCE / f"{size}_config.yaml")
    geometry = read_geometry(shapes, config)
    side = config["INPUT"]["GT"]["IMG_SIZE"][0] // 8
    written = geometry_to_config(geometry, (side, side), 8)
    assert read_geometry(shapes, written) == geometry
    for section, values in written["MODEL"].items():
        assert values.items() <= config["MODEL"][section].items()
    for section in ("COND", "GT", "POSE"):
        assert written["INPUT"][section]["IMG_SIZE"] == config["INPUT"][section]["IMG_SIZE"]


def test_other_widths_need_the_config(tiny: tuple[dict, dict]) -> None:
    with pytest.raises(ValueError, match=r"decoder's head count .* width 48 .*config.yaml.*DECODER_CONFIG.HEADS"):
        read_geometry(tiny[0])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("MODEL.DECODER_CONFIG.CTX_DIM", 768, "take the config.yaml that was written beside this checkpoint"),
        ("MODEL.DECODER_CONFIG.HEADS", 5, "must divide the decoder's width 48, got 5"),
        ("MODEL.DECODER_CONFIG.HEADS", "three", "positive whole numbers"),
        ("MODEL.COND_STAGE_CONFIG.DEPTHS", [2, 2, 18, 2], "DEPTHS"),
        ("MODEL.COND_STAGE_CONFIG.DROP_PATH_RATE", 2, "DROP_PATH_RATE"),
        ("MODEL.COND_STAGE_CONFIG.WINDOW_SIZE", 8, "WINDOW_SIZE"),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.HEADS", [1, 2, 4] * 3, "one number per encoder"),
        ("MODEL.APPEARANCE_GUIDANCE_CONFIG.ATTN_RESIDUAL_BLOCK_IDX", [3, 4, 5], "ATTN_RESIDUAL_BLOCK_IDX"),
        ("INPUT.COND.IMG_SIZE", [256, 256], "256 patches of 4x4"),
    ],
)
def test_contradictions_are_named(tiny: tuple[dict, dict], setting: str, value: object, message: str) -> None:
    shapes, config = tiny[0], copy.copy(yaml.safe_load(yaml.safe_dump(tiny[1])))
    *sections, name = setting.split(".")
    target = config
    for section in sections:
        target = target[section]
    target[name] = value
    with pytest.raises(ValueError, match=message):
        read_geometry(shapes, config)


def test_pose_maps_of_other_channels_need_the_config(tiny: tuple[dict, dict]) -> None:
    shapes, config = tiny[0] | {"pose_encoder.conv_in.weight": [32, 20 * 16, 1, 1]}, tiny[1]
    section = config["MODEL"]["POSE_GUIDANCE_CONFIG"]
    del section["POSE_CHANNELS"], section["DOWNSCALE_FACTOR"]
    with pytest.raises(ValueError, match="not 21 times a square"):
        read_geometry(shapes, config)
    section["POSE_CHANNELS"] = 20
    adapter = read_geometry(shapes, config).pose_adapter
    assert (adapter["pose_channels"], adapter["unshuffle_factor"]) == (20, 4)


def test_settings_that_are_absent_fall_back(tiny: tuple[dict, dict]) -> None:
    shapes, config = tiny
    sparse = {
        "MODEL": {
            "DECODER_CONFIG": {"HEADS": config["MODEL"]["DECODER_CONFIG"]["HEADS"]},
            "APPEARANCE_GUIDANCE_CONFIG": {"HEADS": config["MODEL"]["APPEARANCE_GUIDANCE_CONFIG"]["HEADS"]},
        }
    }
    assert read_geometry(shapes, sparse) == read_geometry(shapes, config)


def test_image_of_other_proportions_needs_the_config(tiny: tuple[dict, dict]) -> None:
    shapes = {key: shape for key, shape in tiny[0].items() if not key.endswith("attn_mask")}
    shapes["decoder.kv_pos_embed"] = [1, 2, 128]
    del tiny[1]["INPUT"]
    with pytest.raises(ValueError, match="no square"):
        read_geometry(shapes, tiny[1])
    tiny[1]["INPUT"] = {"COND": {"IMG_SIZE": [64, 32]}}
    geometry = read_geometry(shapes, tiny[1])
    assert geometry.source_encoder["image_size"] == (64, 32)
    assert geometry.prompt_decoder["feature_size"] == (2, 1)


@pytest.mark.parametrize("shapes", [{}, {"model.conv_in.weight": [320, 4, 3, 3]}])
def test_another_state_dict_is_refused(shapes: dict) -> None:
    with pytest.raises(ValueError, match=r"pytorch_model.bin must be the published trainer's state dict"):
        read_geometry(shapes)


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "a: [", "\x00"])
def test_config_that_is_no_settings(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config.yaml.*published trainer's"):
        read_config(path)
