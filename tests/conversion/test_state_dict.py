from __future__ import annotations

import pytest
import torch
from testing_utils_reference import published_state_dict, read_manifest

from diffusers_cfld.conversion.state_dict import (
    describe_mismatch,
    from_published_key,
    is_swin_buffer,
    relative_position_index,
    shift_downsample,
    shifted_window_mask,
    sort_published_keys,
    swin_buffers,
    to_published_key,
)


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


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_order_is_the_published_one(size: str) -> None:
    keys = list(read_manifest(size)["model"])
    # Buffers come last and patch merging the other way round in our own order.
    own = sorted(keys, key=lambda key: (is_swin_buffer(key), "downsample.reduction" in key))
    assert own != keys
    assert sort_published_keys(own) == keys


def test_downsample_is_shifted_as_a_whole_name_only() -> None:
    assert shift_downsample("backbone.layers.0.downsample.norm.bias", 1) == "backbone.layers.1.downsample.norm.bias"
    assert shift_downsample("layers.10.downsample.norm.bias", -1) == "layers.9.downsample.norm.bias"
    assert shift_downsample("sublayers.0.downsample.norm.bias", 1) == "sublayers.0.downsample.norm.bias"


@pytest.mark.parametrize(
    ("size", "arguments"),
    [("tiny", ((64, 64), 4, 4, (2, 2, 2, 2))), ("full", ((256, 256), 4, 16, (2, 2, 18, 2)))],
)
def test_swin_buffers_are_those_of_the_original(size: str, arguments: tuple) -> None:
    shapes = {key: tuple(shape) for key, shape in read_manifest(size)["model"].items() if is_swin_buffer(key)}
    buffers = swin_buffers(*arguments)
    assert {key: tuple(value.shape) for key, value in buffers.items()} == shapes
    if size == "tiny":
        published = published_state_dict("tiny", "model")
        for key, value in buffers.items():
            assert value.dtype == published[key].dtype
            assert torch.equal(value, published[key]), key


def test_swin_buffers_agree_with_timm() -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(8, (8, 12), num_heads=1, window_size=4, shift_size=2)
    assert torch.equal(block.attn_mask, shifted_window_mask(8, 12, 4))
    assert torch.equal(block.attn.relative_position_index, relative_position_index(4))


def test_windows_must_tile() -> None:
    with pytest.raises(ValueError, match="windows that tile"):
        swin_buffers((256, 256), 4, 12, (2, 2, 2, 2))


def test_mismatch_lists_counts_and_twenty_keys_of_each() -> None:
    expected = {f"key{i:02}": (i,) for i in range(30)}
    assert describe_mismatch("it", expected, expected) is None
    message = describe_mismatch("it", expected, {"key29": (1,), "other": ()})
    assert message is not None
    assert "29 missing: key00, key01" in message
    assert "key19 and 9 more" in message
    assert "key20" not in message
    assert "1 unexpected: other" in message
    assert "1 mis-shaped: key29 (expected (29,), got (1,))" in message
