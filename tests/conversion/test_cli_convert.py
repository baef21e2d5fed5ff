from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from diffusers_cfld.cli.convert import add_convert_parser, run


def convert(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_convert_parser(parser.add_subparsers())
    args = parser.parse_args(["convert", *map(str, arguments)])
    assert args.run is run
    return run(args)


def test_there_and_back(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, original = tmp_path / "pipeline", tmp_path / "original"
    options = ("--dtype", "float16", "--variant", "fp16")
    assert convert("--checkpoint", tiny_checkpoint, "--base", tiny_base, "--output", pipeline, *options) == 0
    assert f"Wrote {pipeline}" in capsys.readouterr().out
    assert (pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert convert("--to-original", "--model", pipeline, "--variant", "fp16", "--output", original) == 0
    state = torch.load(original / "pytorch_model_1.bin")
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_swin(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    torch.save(swin.state_dict(), tmp_path / "swin.pth")
    options = ("--swin-model", "swin_tiny_patch4_window7_224", "--image-size", 128, "--window-size", 8)
    assert convert("--swin", tmp_path / "swin.pth", "--output", tmp_path / "encoder", *options) == 0

    from diffusers_cfld.models.source_encoder import SwinImageEncoder

    encoder = SwinImageEncoder.from_pretrained(tmp_path / "encoder")
    key = "layers.2.blocks.3.mlp.fc1.weight"
    assert torch.equal(encoder.backbone.state_dict()[key], swin.state_dict()[key])
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["image_size"], config["window_size"]) == (128, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "a"], "also needs --base, --output"),
        (["--checkpoint", "a", "--base", "b"], "needs --output"),
        (["--to-original", "--output", "o"], "needs --model"),
        (["--swin", "a"], "needs --output"),
        (["--checkpoint", "a", "--base", "b", "--output", "o", "--model", "m"], "does not take --model"),
        (["--to-original", "--model", "m", "--output", "o", "--dtype", "float16"], "does not take --dtype"),
        (["--swin", "a", "--output", "o", "--base", "b", "--token", "t"], "does not take --base, --token"),
        (["--checkpoint", "a", "--base", "b", "--output", "o", "--image-size", "0"], "does not take --image-size"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --checkpoint --to-original --swin is required"),
        (["--checkpoint", "a", "--swin", "b"], "--swin: not allowed with argument --checkpoint"),
    ],
)
def test_one_conversion_at_a_time(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert(*arguments)
    assert message in capsys.readouterr().err
