"""Swin weights of timm's and the original layout load exactly, at any window size."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffusers_cfld.models.source_encoder import SwinImageEncoder, shift_downsample

NAME = "swin_tiny_patch4_window7_224"
TINY = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": 4, "image_size": 64}


def make_encoder(**config):
    torch.manual_seed(0)
    return SwinImageEncoder(NAME, **{**TINY, **config})


def state_dict(encoder, layout):
    state = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    if layout == "timm":
        return state
    state = {shift_downsample(key, -1): value for key, value in state.items()}
    state["norm.weight"], state["norm.bias"] = torch.zeros(64), torch.zeros(64)
    state["head.weight"], state["head.bias"] = torch.zeros(10, 64), torch.zeros(10)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    return state


def load(path, **config):
    return SwinImageEncoder.from_timm(NAME, checkpoint_path=str(path), **{**TINY, **config})


@pytest.mark.parametrize("layout", ["timm", "original"])
@pytest.mark.parametrize("form", ["safetensors", "pickle", "model", "state_dict"])
def test_both_layouts_load_from_every_kind_of_file(tmp_path, layout, form):
    source = make_encoder()
    state = state_dict(source, layout)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if form == "pickle" else {form: state}, path)
    encoder = load(path)
    assert not encoder.training
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(image).sample, source(image).sample)


@pytest.mark.parametrize("layout", ["timm", "original"])
def test_position_tables_are_resized_bicubically(tmp_path, layout):
    source = make_encoder(window_size=2)
    torch.save(state_dict(source, layout), tmp_path / "weights.pth")
    check_resized(source, load(tmp_path / "weights.pth"))


def test_timms_weights_come_with_resized_tables(monkeypatch):
    source = make_encoder(window_size=2)
    create_model = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *args, **options: source.backbone if options["pretrained"] else create_model(*args, **options),
    )
    check_resized(source, SwinImageEncoder.from_timm(NAME, **TINY))


def check_resized(source, encoder):
    state = source.backbone.state_dict()
    for stage, size in ((0, 7), (1, 7), (2, 7), (3, 3)):  # the last stage is smaller than the window
        key = f"layers.{stage}.blocks.1.attn.relative_position_bias_table"
        grid = state[key].T.reshape(1, -1, 3, 3)
        expected = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False).flatten(2)[0].T
        torch.testing.assert_close(encoder.backbone.state_dict()[key], expected)
    for key, value in encoder.backbone.state_dict().items():
        if not key.endswith("relative_position_bias_table"):
            assert torch.equal(value, state[key])


def test_all_keys_that_do_not_fit_are_named(tmp_path):
    state = state_dict(make_encoder(), "original")
    del state["patch_embed.proj.bias"]
    state["layers.1.blocks.0.norm1.weight"] = torch.zeros(3)
    state["layers.2.blocks.0.attn.relative_position_bias_table"] = torch.zeros(49, 3)
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' do not fit this encoder") as info:
        load(tmp_path / "weights.pth")
    message = str(info.value)
    assert 'Missing key(s) in state_dict: "patch_embed.proj.bias"' in message
    assert 'Unexpected key(s) in state_dict: "extra"' in message
    assert "size mismatch for layers.1.blocks.0.norm1.weight" in message
    assert "size mismatch for layers.2.blocks.0.attn.relative_position_bias_table" in message


def test_weights_of_a_deeper_encoder_do_not_fit(tmp_path):
    torch.save(state_dict(make_encoder(depths=(2, 2, 4, 2)), "timm"), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' do not fit this encoder"):
        load(tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a file of Swin weights, got '.*nothing\.pth'"):
        load(tmp_path / "nothing.pth")


def test_patch_merging_is_renumbered_as_a_whole_name_only():
    assert shift_downsample("backbone.layers.0.downsample.norm.bias", 1) == "backbone.layers.1.downsample.norm.bias"
    assert shift_downsample("layers.10.downsample.norm.bias", -1) == "layers.9.downsample.norm.bias"
    assert shift_downsample("sublayers.0.downsample.norm.bias", 1) == "sublayers.0.downsample.norm.bias"
