from __future__ import annotations

from diffusers_cfld.conversion.state_dict import to_published_key


def test_encoders_are_listed_from_the_last_layer_to_the_first() -> None:
    part = "appearance_encoder"
    assert to_published_key(part, "encoders.8.blocks.1.norm1.bias") == "appearance_encoder.blocks.0.1.norm1.bias"
    assert to_published_key(part, "encoders.0.proj_out.weight") == "appearance_encoder.zero_conv_outs.8.weight"
    assert to_published_key(part, "encoders.0.proj_in.bias", 3) == "appearance_encoder.zero_conv_ins.2.bias"


def test_patch_merging_ends_a_stage() -> None:
    key = "backbone.layers.1.downsample.norm.weight"
    assert to_published_key("source_encoder", key) == "backbone.layers.0.downsample.norm.weight"
