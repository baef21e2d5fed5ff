"""The converter: bit for bit there and back, strict, complete or not at all, with little memory."""

from __future__ import annotations

import hashlib
import json
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
from hub_standin import HubStandIn
from safetensors.torch import load_file, save_file
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
    original = convert_to_original(tiny_pipeline, tmp_path / "original")
    for name in (MODEL_FILE, UNET_FILE):
        back, published = torch.load(original / name), torch.load(tiny_checkpoint / name)
        assert_same_tensors(back, published)
        assert (original / name).stat().st_size < 1.1 * (tiny_checkpoint / name).stat().st_size
    # The sizes that were written are enough to convert again.
    again = convert_checkpoint(original, tiny_pipeline, tmp_path / "again")
    for config in tiny_pipeline.rglob("*.json"):
        assert (again / config.relative_to(tiny_pipeline)).read_bytes() == config.read_bytes()


def test_round_trip_of_a_pipeline_that_diffusers_saved(
    tiny_pipeline: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import diffusers_cfld

    pipeline = diffusers_cfld.CFLDPipeline.from_pretrained(tiny_pipeline)
    pipeline.save_pretrained(tmp_path / "saved", variant="own", max_shard_size="1MB")
    assert list((tmp_path / "saved" / "unet").glob("*.index.own.json"))
    original = convert_to_original(tmp_path / "saved", tmp_path / "original", variant="own")
    for name in (MODEL_FILE, UNET_FILE):
        assert_same_tensors(torch.load(original / name), torch.load(tiny_checkpoint / name))


def test_dtype_and_variant(tiny_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    half = convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "half", dtype=torch.float16, variant="fp16")
    for name in (*COMPONENTS, "vae"):
        weights = load_file(half / name / "diffusion_pytorch_model.fp16.safetensors")
        full = load_file(tiny_pipeline / name / "diffusion_pytorch_model.safetensors")
        assert weights.keys() == full.keys()
        assert all(torch.equal(weights[key], full[key].half()) for key in full)
    assert 'variant="fp16"' in (half / "README.md").read_text()


def test_pickles_of_the_old_format(own_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    torch.save(state, own_checkpoint / MODEL_FILE, _use_new_zipfile_serialization=False)
    output = convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")
    name = "prompt_decoder/diffusion_pytorch_model.safetensors"
    assert (output / name).read_bytes() == (tiny_pipeline / name).read_bytes()


def test_tensors_that_share_memory(own_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    state = torch.load(own_checkpoint / MODEL_FILE)
    keys = ["decoder.query_feat", "decoder.pos_embed"]
    both = torch.stack([state[key] for key in keys])
    state.update(zip(keys, both, strict=True))
    torch.save(state, own_checkpoint / MODEL_FILE)
    output = convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")
    name = "prompt_decoder/diffusion_pytorch_model.safetensors"
    assert (output / name).read_bytes() == (tiny_pipeline / name).read_bytes()


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        (MODEL_FILE, "learnable_vector", 'Missing key.*"null_prompt_embeds"'),
        (MODEL_FILE, "backbone.layers.1.blocks.0.norm1.bias", 'Missing key.*"backbone.layers.1.blocks.0.norm1.bias"'),
        (
            MODEL_FILE,
            "backbone.layers.0.blocks.1.attn_mask",
            "unexpected or of the wrong shape: .*0.blocks.1.attn_mask",
        ),
        (MODEL_FILE, "pose_encoder.resnets.0.conv2.weight", 'Missing key.*"resnets.0.conv2.weight"'),
        (UNET_FILE, "model.conv_in.bias", 'Missing key.*"conv_in.bias"'),
    ],
)
def test_missing_keys_are_named(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, file: str, key: str, message: str
) -> None:
    state = torch.load(own_checkpoint / file)
    del state[key]
    assert_refused(own_checkpoint, tiny_base, tmp_path, file, state, message)


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        (MODEL_FILE, "decoder.extra", "unexpected or of the wrong shape: decoder.extra"),
        (
            MODEL_FILE,
            "backbone.layers.0.blocks.7.norm1.weight",
            "unexpected or of the wrong shape: backbone.layers.0.blocks.7",
        ),
        (
            MODEL_FILE,
            "backbone.layers.2.blocks.1.attn_mask",
            "unexpected or of the wrong shape: .*2.blocks.1.attn_mask",
        ),
        (UNET_FILE, "conv_in.bias", "unexpected or of the wrong shape: conv_in.bias"),
        (UNET_FILE, "model.extra", "unexpected or of the wrong shape: model.extra"),
    ],
)
def test_unexpected_keys_are_named(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, file: str, key: str, message: str
) -> None:
    state = torch.load(own_checkpoint / file)
    state[key] = torch.zeros(1)
    assert_refused(own_checkpoint, tiny_base, tmp_path, file, state, message)


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        (MODEL_FILE, "decoder.query_feat", "size mismatch for query_embeds"),
        (MODEL_FILE, "appearance_encoder.zero_conv_outs.8.bias", "size mismatch for encoders.0.proj_out.bias"),
        (MODEL_FILE, "backbone.layers.1.blocks.0.attn.relative_position_index", "1.blocks.0.attn.relative_position"),
        (MODEL_FILE, "backbone.layers.3.blocks.0.attn.relative_position_bias_table", "size mismatch for backbone"),
        (UNET_FILE, "model.conv_out.bias", "size mismatch for conv_out.bias"),
    ],
)
def test_mis_shaped_keys_are_named(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, file: str, key: str, message: str
) -> None:
    state = torch.load(own_checkpoint / file)
    state[key] = state[key][:-1]
    assert_refused(own_checkpoint, tiny_base, tmp_path, file, state, message)


def assert_refused(
    checkpoint: Path, base: Path, tmp_path: Path, file: str, state: dict[str, torch.Tensor], message: str
) -> None:
    torch.save(state, checkpoint / file)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert_checkpoint(checkpoint, base, tmp_path / "output")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_other_sizes_needs_its_config(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (own_checkpoint / "config.yaml").unlink()
    message = r"checkpoint', which has no config\.yaml and was therefore read with the published sizes, do not fit: "
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")


def test_base_of_another_unet_is_refused(tiny_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    path = own_base / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cross_attention_dim": 64}))
    with pytest.raises(ValueError, match=r"do not fit: .*UNet2DConditionModel"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output")


class Forbidden:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("/tmp/must-never-exist-diffusers-cfld",)


@pytest.mark.parametrize("name", [MODEL_FILE, UNET_FILE])
@pytest.mark.parametrize("damage", ["half", "end", "text", "empty", "list", "nested", "forbidden"])
def test_damaged_pickles_are_refused(
    own_checkpoint: Path, tiny_base: Path, tmp_path: Path, name: str, damage: str
) -> None:
    path = own_checkpoint / name
    content = path.read_bytes()
    if damage in ("list", "nested", "forbidden"):
        x = torch.zeros(1)
        torch.save({"list": [x], "nested": {"model": {"x": x}}, "forbidden": {"x": Forbidden()}}[damage], path)
    else:
        size = {"half": len(content) // 2, "end": len(content) - 100, "empty": 0}.get(damage, 0)
        path.write_bytes(b"this is no pickle" if damage == "text" else content[:size])
    with pytest.raises(ValueError, match=rf"{name}' must be a state dict written by `torch\.save`"):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    assert not Path("/tmp/must-never-exist-diffusers-cfld").exists()


def test_missing_files_are_named(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (own_checkpoint / UNET_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=UNET_FILE):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")
    with pytest.raises(FileNotFoundError, match="nothing"):
        convert_checkpoint(tmp_path / "nothing", tiny_base, tmp_path / "output")


@pytest.mark.parametrize(
    "part",
    [
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_base_without_a_part_is_refused(tiny_checkpoint: Path, own_base: Path, tmp_path: Path, part: str) -> None:
    (own_base / part).unlink()
    with pytest.raises(OSError, match=r"base' must be Stable Diffusion 1\.5, as a local folder or"):
        convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output")
    assert not (tmp_path / "output").exists()


# Of diffusers, whenever it asks the Hub for a configuration.
ignore_symlinks_warning = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")


@ignore_symlinks_warning
@pytest.mark.parametrize("base", ["./nothing", "/no/such/folder", "a/b/c", "nothing", "no-such-owner/no-such-name"])
def test_a_base_that_is_nowhere_is_refused(tiny_checkpoint: Path, tmp_path: Path, base: str) -> None:
    with pytest.raises(
        OSError, match=rf"The base '{base}' must be Stable Diffusion 1\.5, as a local folder or a Hub id"
    ):
        convert_checkpoint(tiny_checkpoint, base, tmp_path / "output")


@ignore_symlinks_warning
def test_a_base_from_the_hub(
    hub: HubStandIn, tiny_checkpoint: Path, tiny_base: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/base", tiny_base)
    output = convert_checkpoint(tiny_checkpoint, "org/base", tmp_path / "output")
    for name in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json", "scheduler/scheduler_config.json"):
        assert (output / name).read_bytes() == (tiny_pipeline / name).read_bytes()
    assert "base_model: org/base" in (output / "README.md").read_text()


def test_only_former_results_are_replaced(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    convert_checkpoint(tiny_checkpoint, tiny_base, output)  # an empty folder is fine
    with pytest.raises(ValueError, match="is not empty: choose another folder, or replace it"):
        convert_checkpoint(tiny_checkpoint, tiny_base, output)
    (output / "README.md").write_text("old")
    (output / ".git").mkdir()
    (output / ".git" / "HEAD").write_text("ref: refs/heads/main")
    convert_checkpoint(tiny_checkpoint, tiny_base, output, overwrite=True)
    assert (output / "README.md").read_text() != "old"
    assert (output / ".git" / "HEAD").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    for name, content in (("image.png", ""), ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}')):
        other = tmp_path / name / name
        other.parent.mkdir()
        other.write_text(content)
        with pytest.raises(
            ValueError, match=r"is not replaced, because its '.*' does not show that an earlier conversion wrote it"
        ):
            convert_checkpoint(tiny_checkpoint, tiny_base, other.parent, overwrite=True)
        assert other.read_text() == content


def test_an_output_behind_a_link_stays_behind_it(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "output").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "output", target_is_directory=True)
    convert_checkpoint(tiny_checkpoint, tiny_base, link)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "output" / "model_index.json").is_file()


def test_the_size_is_the_checkpoints_and_not_the_bases(tiny_checkpoint: Path, own_base: Path, tmp_path: Path) -> None:
    file = own_base / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "sample_size": 2 * config["sample_size"]}))
    output = convert_checkpoint(tiny_checkpoint, own_base, tmp_path / "output")
    assert json.loads((output / "unet" / "config.json").read_text())["sample_size"] == config["sample_size"]


def test_ablations_are_refused(own_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    file = own_checkpoint / "config.yaml"
    file.write_text(file.read_text().replace("TO_SELF_ATTN: false", "TO_SELF_ATTN: true"))
    with pytest.raises(ValueError, match=r"TO_SELF_ATTN` in '.*config\.yaml' must be False .* Ablations"):
        convert_checkpoint(own_checkpoint, tiny_base, tmp_path / "output")


def test_an_interrupted_run_leaves_nothing(
    tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CFLDPipeline, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tiny_checkpoint, tiny_base, tmp_path / "output")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "`prediction_type` = epsilon, got v_pr",
        ),
        ("pose_adapter/config.json", {"norm_num_groups": 8}, "`norm_num_groups` = 32, got 8"),
        (
            "appearance_encoder/config.json",
            {"feature_stages": [2, 1, 3]},
            r"`feature_stages` = \(1, 2, 3\), got \(2, 1",
        ),
    ],
)
def test_to_original_refuses_what_the_published_layout_cannot_hold(
    tiny_pipeline: Path, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    config = json.loads((model / part).read_text())
    (model / part).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        convert_to_original(model, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_to_original_takes_other_spellings_of_the_same_sizes(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    for part, changes in (
        ("prompt_decoder", {"feature_size": [2, 2]}),
        ("appearance_encoder", {"feature_stages": [1, 2, 3]}),
        ("source_encoder", {"image_size": [64, 64]}),
        ("unet", {"sample_size": [16, 16]}),
    ):
        path = model / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    expected = convert_to_original(tiny_pipeline, tmp_path / "expected")
    output = convert_to_original(model, tmp_path / "output")
    assert (output / "config.yaml").read_text() == (expected / "config.yaml").read_text()


def test_to_original_needs_a_whole_pipeline(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be the local folder of a saved CFLDPipeline"):
        convert_to_original(tmp_path / "nothing", tmp_path / "output")
    with pytest.raises(
        FileNotFoundError, match=r"must have 'diffusion_pytorch_model.own.safetensors' or its shards, but has neither"
    ):
        convert_to_original(tiny_pipeline, tmp_path / "output", variant="own")
    broken = Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))
    weights = broken / "pose_adapter" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor for key, tensor in tensors.items() if key != "conv_in.bias"}, weights)
    with pytest.raises(ValueError, match=r'pose_adapter\' do not fit: (?s:.)*Missing key.*"conv_in.bias"'):
        convert_to_original(broken, tmp_path / "output")
    shutil.rmtree(broken / "pose_adapter")
    with pytest.raises(FileNotFoundError, match="pose_adapter' must have"):
        convert_to_original(broken, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_the_card_names_files_and_sizes(tiny_pipeline: Path, tiny_checkpoint: Path) -> None:
    card = (tiny_pipeline / "README.md").read_text()
    for name in (MODEL_FILE, UNET_FILE, "config.yaml"):
        assert f"| `{name}` | `{hashlib.sha256((tiny_checkpoint / name).read_bytes()).hexdigest()}` |" in card
    assert "resized to 64x64" in card
    assert "128x128" in card


MEASURE = """
    import re, sys, torch
    from diffusers_cfld.conversion.convert import convert_checkpoint
    checkpoint, base, output, dtype = sys.argv[1:]
    convert_checkpoint(checkpoint, base, output, dtype=getattr(torch, dtype))
    # Not getrusage: its maximum begins with that of the process that started this one.
    sys.stdout.write(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def measure_peak(*arguments: object) -> int:
    """Convert in a process of its own; its peak in bytes, pages of mapped files included."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, arguments)]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_memory_and_round_trip_at_the_published_size(tmp_path: Path) -> None:
    """Needs 16 GB on disk."""
    checkpoint, base = write_checkpoint(tmp_path / "checkpoint", "full"), write_base(tmp_path / "base", "full")
    size = sum(path.stat().st_size for path in checkpoint.glob("*.bin"))
    assert measure_peak(checkpoint, base, tmp_path / "half", "float16") <= 1.5 * size
    assert measure_peak(checkpoint, base, tmp_path / "pipeline", "float32") <= 1.5 * size

    original = convert_to_original(tmp_path / "pipeline", tmp_path / "original")
    for part, name in (("model", MODEL_FILE), ("unet", UNET_FILE)):
        assert_same_tensors(torch.load(original / name, mmap=True), published_state_dict("full", part))
