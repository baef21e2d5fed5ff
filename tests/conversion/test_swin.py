from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffusers_cfld.conversion.state_dict import shift_downsample
from diffusers_cfld.conversion.swin import load_swin_state_dict, load_swin_weights
from diffusers_cfld.models.source_encoder import SwinImageEncoder

TINY = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": 4, "image_size": 64}


def make_encoder(seed: int = 0, **config: object) -> SwinImageEncoder:
    torch.manual_seed(seed)
    return SwinImageEncoder(**{**TINY, **config}).eval()


def timm_layout(encoder: SwinImageEncoder) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in encoder.backbone.state_dict().items()}


def original_layout(encoder: SwinImageEncoder) -> dict[str, torch.Tensor]:
    state = {shift_downsample(key, -1): value for key, value in timm_layout(encoder).items()}
    state["norm.weight"] = state["norm.bias"] = torch.zeros(64)
    state["head.weight"], state["head.bias"] = torch.zeros(10, 64), torch.zeros(10)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    return state


@pytest.mark.parametrize("layout", ["timm", "original"])
@pytest.mark.parametrize("form", ["safetensors", "pickle", "model", "state_dict"])
def test_both_layouts_in_every_form(tmp_path: Path, layout: str, form: str) -> None:
    source = make_encoder()
    state = timm_layout(source) if layout == "timm" else original_layout(source)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        torch.save(state if form == "pickle" else {form: state}, path)
    encoder = make_encoder(1)
    load_swin_weights(encoder, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(image).sample, source(image).sample)


@pytest.mark.parametrize("layout", ["timm", "original"])
def test_tables_are_resized_bicubically(layout: str) -> None:
    source, encoder = make_encoder(window_size=2), make_encoder(1)
    state = timm_layout(source) if layout == "timm" else original_layout(source)
    load_swin_state_dict(encoder, state, "test")
    for stage, size in ((0, 7), (1, 7), (2, 7), (3, 3)):  # the last stage is smaller than the window
        key = f"layers.{stage}.blocks.1.attn.relative_position_bias_table"
        table = source.backbone.state_dict()[key]
        grid = table.T.reshape(1, -1, 3, 3)
        expected = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False).flatten(2)[0].T
        torch.testing.assert_close(encoder.backbone.state_dict()[key], expected)
    for key, value in encoder.backbone.state_dict().items():
        if not key.endswith("relative_position_bias_table"):
            assert torch.equal(value, source.backbone.state_dict()[key])


def test_all_bad_keys_are_listed() -> None:
    encoder = make_encoder()
    before = timm_layout(encoder)
    state = original_layout(make_encoder(1))
    del state["patch_embed.proj.bias"]
    state["layers.1.blocks.0.norm1.weight"] = torch.zeros(3)
    state["layers.1.blocks.0.attn.relative_position_bias_table"] = torch.zeros(50, 1)
    state["layers.2.blocks.0.attn.relative_position_bias_table"] = torch.zeros(49, 3)
    state["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"'somewhere'.*does not fit|The Swin weights of 'somewhere'") as info:
        load_swin_state_dict(encoder, state, "somewhere")
    message = str(info.value)
    assert "1 missing: patch_embed.proj.bias" in message
    assert "1 unexpected: extra" in message
    assert "3 mis-shaped: layers.1.blocks.0.attn.relative_position_bias_table" in message
    assert all(torch.equal(value, before[key]) for key, value in timm_layout(encoder).items())


def test_missing_patch_merging_does_not_confuse_the_layouts() -> None:
    state = timm_layout(make_encoder())
    for key in [key for key in state if key.startswith("layers.1.downsample")]:
        del state[key]
    with pytest.raises(ValueError, match=r"3 missing: layers.1.downsample.norm.bias, [^;]*\.$"):
        load_swin_state_dict(make_encoder(), state, "test")


def test_from_timm_reads_a_file(tmp_path: Path) -> None:
    source = make_encoder()
    torch.save({"model": original_layout(source)}, tmp_path / "swin.pth")
    options = {key: value for key, value in TINY.items() if key != "window_size"}
    encoder = SwinImageEncoder.from_timm(
        "swin_tiny_patch4_window7_224", checkpoint_path=str(tmp_path / "swin.pth"), window_size=4, **options
    )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(image).sample, source(image).sample)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_swin_weights(make_encoder(), path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="truncated or not a"):
        load_swin_weights(make_encoder(), path)
