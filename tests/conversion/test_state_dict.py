from __future__ import annotations

import pytest
from testing_utils_reference import read_manifest

from diffusers_cfld.conversion.state_dict import from_published_key, is_swin_buffer, to_published_key


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_key_map_is_a_bijection(size: str) -> None:
    manifest = read_manifest(size)
    keys = [key for part in manifest.values() for key in part if not is_swin_buffer(key)]
    mapped = [from_published_key(key) for key in keys]
    assert len(set(mapped)) == len(keys)
    assert [to_published_key(*pair) for pair in mapped] == keys


def test_encoders_are_listed_from_the_last_layer_to_the_first() -> None:
    assert from_published_key("appearance_encoder.blocks.0.1.norm1.bias") == (
        "appearance_encoder",
        "encoders.8.blocks.1.norm1.bias",
    )
    assert from_published_key("appearance_encoder.zero_conv_outs.8.weight") == (
        "appearance_encoder",
        "encoders.0.proj_out.weight",
    )
    assert from_published_key("appearance_encoder.zero_conv_ins.2.bias", 3)[1] == "encoders.0.proj_in.bias"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "model",
        "decoder.other",
        "backbone.layers.0.blocks.1.attn_mask",
        "backbone.layers.0.blocks.0.attn.relative_position_index",
        "appearance_encoder.blocks.9.0.norm1.weight",
        "appearance_encoder.blocks.x.0.norm1.weight",
        "appearance_encoder.others.0.weight",
        "scheduler.x",
    ],
)
def test_unknown_published_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not a key of a published CFLD checkpoint"):
        from_published_key(key)


@pytest.mark.parametrize(
    ("component", "key"),
    [
        ("vae", "x"),
        ("source_encoder", "backbone.layers.0.downsample.norm.weight"),
        ("prompt_decoder", "other"),
        ("appearance_encoder", "encoders.9.proj_in.weight"),
    ],
)
def test_unknown_own_keys_are_refused(component: str, key: str) -> None:
    with pytest.raises(ValueError, match="no counterpart"):
        to_published_key(component, key)
