from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from testing_utils_reference import (
    MODEL_FILE,
    UNET_FILE,
    assert_same_tensors,
    published_state_dict,
    write_base,
    write_checkpoint,
)

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
)
from diffusers_cfld.conversion.convert import convert_checkpoint, convert_to_original
from diffusers_cfld.conversion.weights_io import staged_folder

DATA = Path(__file__).parents[1] / "data"
COMPONENTS = {
    "source_encoder": SwinImageEncoder,
    "prompt_decoder": PerceptionRefinedDecoder,
    "appearance_encoder": AppearanceEncoder,
    "pose_adapter": PoseAdapter,
    "unet": UNet2DConditionModel,
}


def test_scheduler_is_the_published_one(tiny_pipeline: Path) -> None:
    golden = load_file(DATA / "reference" / "tiny.safetensors")
    scheduler = DDPMScheduler.from_pretrained(tiny_pipeline, subfolder="scheduler")
    scheduler.set_timesteps(50)
    assert torch.equal(scheduler.timesteps, golden["ddpm50.timesteps"])
    config = json.loads((tiny_pipeline / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "DDPMScheduler"
    assert (config["clip_sample"], config["prediction_type"]) == (False, "epsilon")
    assert (config["beta_start"], config["beta_end"], config["beta_schedule"]) == (0.00085, 0.012, "scaled_linear")


def test_layout(tiny_pipeline: Path) -> None:
    index = json.loads((tiny_pipeline / "model_index.json").read_text())
    assert index["_class_name"] == "CFLDPipeline"
    assert index["source_encoder"] == ["diffusers_cfld", "SwinImageEncoder"]
    assert index["prompt_decoder"] == ["diffusers_cfld", "PerceptionRefinedDecoder"]
    assert index["appearance_encoder"] == ["diffusers_cfld", "AppearanceEncoder"]
    assert index["pose_adapter"] == ["diffusers_cfld", "PoseAdapter"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["feature_extractor"] == index["image_encoder"] == [None, None]
    for name, model in (*COMPONENTS.items(), ("vae", AutoencoderKL)):
        config = json.loads((tiny_pipeline / name / "config.json").read_text())
        assert config["_class_name"] == model.__name__
        assert "_name_or_path" not in config
        assert (tiny_pipeline / name / "diffusion_pytorch_model.safetensors").is_file()
    assert {path.name for path in tiny_pipeline.iterdir()} == {
        *(name for name in index if not name.startswith("_")),
        "model_index.json",
        "README.md",
    } - {"feature_extractor", "image_encoder", "frame_height", "frame_width"}


def test_pipeline_loads(tiny_pipeline: Path) -> None:
    import diffusers_cfld

    pipeline = diffusers_cfld.CFLDPipeline.from_pretrained(tiny_pipeline)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert pipeline.unet.config.cross_attention_dim == pipeline.prompt_decoder.config.dim


def test_index_is_what_the_pipeline_saves(tiny_pipeline: Path, tmp_path: Path) -> None:
    import diffusers_cfld

    diffusers_cfld.CFLDPipeline.from_pretrained(tiny_pipeline).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "model_index.json").read_text())
    written = json.loads((tiny_pipeline / "model_index.json").read_text())
    assert {k: v for k, v in saved.items() if k != "_name_or_path"} == written


def test_vae_is_the_bases(tiny_pipeline: Path, tiny_base: Path) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    ours, base = load_file(tiny_pipeline / name), load_file(tiny_base / name)
    assert ours.keys() == base.keys()
    assert all(torch.equal(ours[key], base[key]) for key in base)


def test_round_trip_is_bit_exact(tiny_pipeline: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    original = convert_to_original(tiny_pipeline, tmp_path / "original", progress=False)
    for name in (MODEL_FILE, UNET_FILE):
        back, published = torch.load(original / name), torch.load(tiny_checkpoint / name)
        assert type(back) is dict
        assert_same_tensors(back, published)
        assert (original / name).stat().st_size < 1.1 * (tiny_checkpoint / name).stat().st_size
    # The sizes that were written are enough to convert again.
    again = convert_checkpoint(original, tiny_pipeline, tmp_path / "again", progress=False)
    for config in tiny_pipeline.rglob("*.json"):
        assert (again / config.relative_to(tiny_pipeline)).read_bytes() == config.read_bytes()


def test_round_trip_of_a_pipeline_that_diffusers_saved(
    tiny_pipeline: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import diffusers_cfld

    pipeline = diffusers_cfld.CFLDPipeline.from_pretrained(tiny_pipeline)
    pipeline.save_pretrained(tmp_path / "saved", variant="own", max_shard_size="1MB")
    assert list((tmp_path / "saved" / "unet").glob("*.index.own.json"))
    original = convert_to_original(tmp_path / "saved", tmp_path / "original", variant="own", progress=False)
    for name in (MODEL_FILE, UNET_FILE):
        assert_same_tensors(torch.load(original / name), torch.load(tiny_checkpoint / name))


def test_dtype_and_variant(tiny_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    half = convert_checkpoint(
        tiny_checkpoint, tiny_base, tmp_path / "half", dtype=torch.float16, variant="fp16", progress=False
    )
    for name in (*COMPONENTS, "vae"):
        weights = load_file(half / name / "diffusion_pytorch_model.fp16.safetensors")
        full = load_file(tiny_pipeline / name / "diffusion_pytorch_model.safetensors")
        assert weights.keys() == full.keys()
        assert all(torch.equal(weights[key], full[key].half()) for key in full)
    assert 'variant="fp16"' in (half / "README.md").read_text()


def test_pickles_of_the_old_format(own_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    torch.save(state, own_checkpoint / MODEL_FILE, _use_new_zipfile_serialization=False)
    output = convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    name = "prompt_decoder/diffusion_pytorch_model.safetensors"
    assert (output / name).read_bytes() == (tiny_pipeline / name).read_bytes()


def test_tensors_that_share_memory(own_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    keys = ["decoder.query_feat", "decoder.pos_embed"]
    both = torch.stack([state[key] for key in keys])
    state.update(zip(keys, both, strict=True))
    torch.save(state, own_checkpoint / MODEL_FILE)
    output = convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    name = "prompt_decoder/diffusion_pytorch_model.safetensors"
    assert (output / name).read_bytes() == (tiny_pipeline / name).read_bytes()


def test_all_bad_keys_are_listed(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    missing = [
        "learnable_vector",
        "decoder.kv_pos_embed",
        "backbone.layers.0.blocks.1.attn_mask",
        "backbone.patch_embed.proj.weight",
        "pose_encoder.resnets.0.conv1.weight",
    ]
    for key in missing:
        del state[key]
    misshaped = [
        "decoder.query_feat",
        "backbone.layers.1.blocks.0.attn.relative_position_index",
        "appearance_encoder.zero_conv_outs.8.bias",
        "pose_encoder.conv_in.weight",
        "backbone.layers.3.blocks.0.attn.relative_position_bias_table",
    ]
    for key in misshaped:
        state[key] = state[key][..., :-1, :-1] if state[key].ndim == 4 else state[key][:-1]
    unexpected = ["decoder.extra", "backbone.layers.0.blocks.7.norm1.weight", "backbone.layers.2.blocks.1.attn_mask"]
    state.update(dict.fromkeys(unexpected, torch.zeros(1)))
    torch.save(state, own_checkpoint / MODEL_FILE)
    unet = torch.load(own_checkpoint / UNET_FILE)
    del unet["model.conv_in.bias"]
    torch.save(unet, own_checkpoint / UNET_FILE)
    with pytest.raises(ValueError, match="does not fit") as info:
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    message = str(info.value)
    for key in (*missing, *misshaped, *unexpected):
        assert key in message
    assert f"{len(missing)} missing" in message
    assert f"{len(misshaped)} mis-shaped" in message
    assert f"{len(unexpected)} unexpected" in message
    assert MODEL_FILE in message
    assert "1 missing: model.conv_in.bias" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_bad_keys_of_the_unet_are_listed(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / UNET_FILE)
    del state["model.conv_in.bias"]
    state["model.conv_out.bias"] = torch.zeros(5)
    state["conv_out.bias"] = torch.zeros(4)
    torch.save(state, own_checkpoint / UNET_FILE)
    with pytest.raises(ValueError, match=r"1 missing: model.conv_in.bias; 1 unexpected: conv_out.bias; 1 mis-shaped"):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_base_of_another_unet_is_refused(tiny_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    path = own_base / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cross_attention_dim": 64}))
    with pytest.raises(ValueError, match=r"does not fit the U-Net of the base: prompt width 48 for 64"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output", progress=False)


def test_other_swin_buffers_are_warned_about(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    state["backbone.layers.0.blocks.1.attn_mask"].zero_()
    torch.save(state, own_checkpoint / MODEL_FILE)
    with caplog.at_level(logging.WARNING, logger="diffusers_cfld"):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    messages = [record.message for record in caplog.records if record.name.startswith("diffusers_cfld.conversion")]
    assert len(messages) == 1
    assert "1 Swin buffers" in messages[0]


def test_no_warnings_without_reason(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "output", progress=False)
    assert not [record for record in caplog.records if record.name.startswith("diffusers_cfld")]


class Forbidden:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("/tmp/must-never-exist-diffusers-cfld",)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((MODEL_FILE, damage) for damage in ("half", "end", "text", "empty", "lfs", "legacy")),
        *((MODEL_FILE, damage) for damage in ("list", "nested", "forbidden")),
        *((UNET_FILE, damage) for damage in ("half", "forbidden")),
    ],
)
def test_damaged_pickles(own_checkpoint: Path, tiny_base: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = own_checkpoint / name
    content = path.read_bytes()
    expected = "truncated or not a file written by `torch.save`"
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "end":
        path.write_bytes(content[:-100])
    elif damage == "text":
        path.write_bytes(b"hello, this is no pickle")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "lfs":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
        expected = "git lfs pull"
    elif damage == "legacy":
        torch.save({"x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
        expected = "must hold a dict of tensors, got list"
    elif damage == "nested":
        torch.save({"model": {"x": torch.zeros(1)}}, path)
        expected = "must hold a dict of tensors, got dict under 'model'"
    else:
        torch.save({"x": Forbidden()}, path)
        expected = r"was refused: it needs 'posix.mkdir'"
    with pytest.raises((ValueError, OSError), match=expected) as info:
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    assert str(path) in str(info.value)
    assert "\n" not in str(info.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint"]
    assert not Path("/tmp/must-never-exist-diffusers-cfld").exists()


def test_missing_files(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (own_checkpoint / UNET_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks '{UNET_FILE}'"):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        convert_checkpoint(tmp_path / "nothing", tiny_base, tmp_path / "output", progress=False)


@pytest.mark.parametrize(
    "part",
    [
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_parts_of_the_base(tiny_checkpoint: Path, own_base: Path, tmp_path: Path, part: str) -> None:
    (own_base / part).unlink()
    with pytest.raises(ValueError, match=f"lacks {part}"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output", progress=False)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("base", ["./nothing", "/no/such/folder", "a/b/c", "nothing"])
def test_base_that_is_no_folder(tiny_checkpoint: Path, tmp_path: Path, base: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected Stable Diffusion 1.5, a local folder or a Hub id"):
        convert_checkpoint(tiny_checkpoint, base, tmp_path / "output", progress=False)


def test_base_that_cannot_be_fetched(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="could not be fetched from the Hub"):
        convert_checkpoint(tiny_checkpoint, "no-such-owner/no-such-name", tmp_path / "output", progress=False)


def test_damaged_base(tiny_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    (own_base / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold `beta_start`"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output", progress=False)
    (own_base / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output", progress=False)


def test_existing_output(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    convert_checkpoint(tiny_checkpoint, tiny_base, output, progress=False)  # an empty folder is fine
    (output / "mine.txt").write_text("old")
    with pytest.raises(ValueError, match="exists and is not empty"):
        convert_checkpoint(tiny_checkpoint, tiny_base, output, progress=False)
    with pytest.raises(ValueError, match=r"holds 'mine\.txt', which no former result has"):
        convert_checkpoint(tiny_checkpoint, tiny_base, output, overwrite=True, progress=False)
    assert (output / "mine.txt").exists()
    (output / "mine.txt").unlink()
    (output / "README.md").write_text("old")
    (output / ".git").mkdir()
    (output / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (output / ".gitattributes").write_text("*.safetensors filter=lfs")
    convert_checkpoint(tiny_checkpoint, tiny_base, output, overwrite=True, progress=False)
    assert (output / ".git" / "HEAD").exists()
    assert (output / ".gitattributes").read_text() == "*.safetensors filter=lfs"
    assert (output / "README.md").read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output"]


def test_only_former_results_are_overwritten(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.png").write_text("precious")
    with pytest.raises(ValueError, match="not a former result"):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "photos", overwrite=True, progress=False)
    assert (tmp_path / "photos" / "photo.png").exists()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="must be a folder"):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "file", overwrite=True, progress=False)


def test_outputs_that_cannot_be_moved(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    monkeypatch.chdir(output)
    with pytest.raises(ValueError, match="got the current folder or one where a disk is mounted"):
        convert_checkpoint(tiny_checkpoint, tiny_base, ".", progress=False)
    with pytest.raises(ValueError, match="got the current folder or one where a disk is mounted"):
        convert_checkpoint(tiny_checkpoint, tiny_base, "/", overwrite=True, progress=False)
    assert output.is_dir()


def test_output_behind_a_link(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "output").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "output", target_is_directory=True)
    convert_checkpoint(tiny_checkpoint, tiny_base, link, progress=False)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "output" / "model_index.json").is_file()


def test_the_size_is_the_checkpoints_and_not_the_bases(own_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    file = own_base / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "sample_size": 2 * config["sample_size"]}))
    convert_checkpoint(own_checkpoint, own_base, tmp_path / "output", progress=False)
    assert CFLDPipeline.from_pretrained(tmp_path / "output").target_size == (128, 128)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TO_SELF_ATTN: false", "TO_SELF_ATTN: true", r"TO_SELF_ATTN` in config\.yaml is True, an ablation"),
        ("LAST_NORM: false", "LAST_NORM: true", r"LAST_NORM` in config\.yaml is True, an ablation"),
        (
            "    - 128\n    - 128\n  NUM",
            "    - 100\n    - 128\n  NUM",
            r"GT\.IMG_SIZE.* got \[100, 128\] and \[64, 64\]",
        ),
    ],
)
def test_other_settings_are_refused(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = own_checkpoint / "config.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output", progress=False)


def test_inputs_are_never_overwritten(own_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    for folder in (own_checkpoint, own_base, tmp_path):
        (folder / "model_index.json").write_text("{}")
        with pytest.raises(ValueError, match="must not be or contain the input"):
            convert_checkpoint(own_checkpoint, own_base, folder, overwrite=True, progress=False)
    assert (own_base / "vae" / "config.json").exists()


def test_interrupted_run_leaves_nothing(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        assert any(path.name.endswith(".incomplete") for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusers_cfld.conversion.convert._convert_vae", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "output", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_run_leaves_no_output(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        import diffusers_cfld.conversion.convert as convert
        convert._convert_vae = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        convert.convert_checkpoint(*sys.argv[1:], progress=False)
    """
    arguments = [str(tiny_checkpoint), str(tiny_base), str(tmp_path / "output")]
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program), *arguments], check=False)
    assert result.returncode == -9
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("variant", ["", "../up", "a b", "a.b"])
def test_bad_variant(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, variant: str) -> None:
    with pytest.raises(ValueError, match="`variant` must be"):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "output", variant=variant, progress=False)


def test_progress_is_shown(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "output")
    captured = capsys.readouterr()
    assert "Converting: 100%" in captured.err
    assert captured.out == ""


def test_to_original_cannot_say_which_stages_are_read(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    path = model / "appearance_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "feature_stages": [2, 1, 3]}))
    with pytest.raises(ValueError, match=r"from the finest on, got `feature_stages` \(2, 1, 3\)"):
        convert_to_original(model, tmp_path / "output", progress=False)
    path.write_text(json.dumps({**config, "feature_stages": [1, 2, 3]}))
    convert_to_original(model, tmp_path / "output", progress=False)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "predict the noise"),
        ("pose_adapter/config.json", {"norm_num_groups": 8}, "its `norm_num_groups` must be 32, got 8"),
    ],
)
def test_to_original_refuses_what_would_come_back_otherwise(
    tiny_pipeline: Path, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline, model)
    config = json.loads((model / part).read_text())
    (model / part).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        convert_to_original(model, tmp_path / "output", progress=False)
    assert not (tmp_path / "output").exists()


def test_to_original_takes_a_square_as_two_numbers(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    path = model / "prompt_decoder" / "config.json"
    config = json.loads(path.read_text())
    assert isinstance(config["feature_size"], int)
    path.write_text(json.dumps({**config, "feature_size": 2 * [config["feature_size"]]}))
    convert_to_original(model, tmp_path / "output", progress=False)


def test_nothing_is_lost_when_a_clone_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    (output / ".git").mkdir(parents=True)
    (output / "model_index.json").write_text("old")
    (output / ".gitattributes").write_text("old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == ".gitattributes" and path.parent.name == "former":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    entries = ("model_index.json", ".git", ".gitattributes")
    with (
        pytest.raises(PermissionError),
        staged_folder(output, overwrite=True, marker="model_index.json", entries=entries) as folder,
    ):
        (folder / "model_index.json").write_text("new")
    assert sorted(path.name for path in output.iterdir()) == [".git", ".gitattributes", "model_index.json"]
    assert (output / "model_index.json").read_text() == "old"


def test_to_original_tells_that_the_frame_is_not_kept(
    tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline, model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "frame_height": None, "frame_width": None}))
    convert_to_original(model, tmp_path / "output", progress=False)
    assert "frame of photos, (None, None), is not kept" in caplog.text


def test_to_original_needs_a_whole_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a local pipeline folder"):
        convert_to_original(tmp_path / "nothing", tmp_path / "output", progress=False)
    with pytest.raises(FileNotFoundError, match=r"expected 'diffusion_pytorch_model.own.safetensors'"):
        convert_to_original(tiny_pipeline, tmp_path / "output", variant="own", progress=False)
    broken = Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))
    weights = broken / "pose_adapter" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        convert_to_original(broken, tmp_path / "output", progress=False)
    shutil.rmtree(broken / "pose_adapter")
    with pytest.raises(ValueError, match=r"lacks pose_adapter/config.json"):
        convert_to_original(broken, tmp_path / "output", progress=False)
    assert not (tmp_path / "output").exists()


def test_card(tiny_pipeline: Path, tiny_checkpoint: Path) -> None:
    card = (tiny_pipeline / "README.md").read_text()
    for name in (MODEL_FILE, UNET_FILE, "config.yaml"):
        content = (tiny_checkpoint / name).read_bytes()
        assert f"| `{name}` | `{hashlib.sha256(content).hexdigest()}` |" in card
    assert "resized to 64x64" in card
    assert "128x128" in card


MEASURE = """
    import re, sys
    from diffusers_cfld.conversion.convert import convert_checkpoint
    convert_checkpoint(*sys.argv[1:], progress=False)
    # Not getrusage: its maximum begins with that of the process that started this one.
    sys.stdout.write(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def measure_peak(*arguments: Path) -> int:
    """Convert in a process of its own; its peak in bytes, pages of mapped files included."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, arguments)]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_memory_and_round_trip_at_the_published_size(tmp_path: Path) -> None:
    """Needs 14 GB on disk."""
    checkpoint, base = write_checkpoint(tmp_path / "checkpoint", "full"), write_base(tmp_path / "base", "full")
    peak = measure_peak(checkpoint, base, tmp_path / "pipeline")
    assert peak <= 1.5 * sum(path.stat().st_size for path in checkpoint.glob("*.bin"))

    original = convert_to_original(tmp_path / "pipeline", tmp_path / "original", progress=False)
    for part, name in (("model", MODEL_FILE), ("unet", UNET_FILE)):
        assert_same_tensors(torch.load(original / name, mmap=True), published_state_dict("full", part))
