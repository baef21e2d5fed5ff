"""The training example as its users run it: real data on disk, real files out, tiny models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from diffusers import StableDiffusionPipeline
from example_scripts import EXAMPLES, load_example
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from miniature_sets import NAMES, columns, save_picture, write_lists
from PIL import Image
from safetensors.torch import load_file
from testing_utils import SOURCE_ENCODER_CONFIG, fill, relative_error, tiny_components, tiny_image, tiny_pose

from diffusers_cfld import CFLDInpaintPipeline, CFLDPipeline, PoseAdapter, SwinImageEncoder
from diffusers_cfld.data import (
    ImageDataset,
    PosePairDataset,
    UnreadableImageError,
    collate_pose_pairs,
    load_pairs,
    unique_images,
)
from diffusers_cfld.training import CFLDTrainingModule, encode_moments, scaled_learning_rate

SCRIPT = EXAMPLES / "pose_transfer" / "train_cfld.py"


@pytest.fixture(scope="module")
def script():
    return load_example("train_cfld")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A pipeline to start from."""
    folder = tmp_path_factory.mktemp("start")
    CFLDPipeline(**tiny_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def steady_start(tmp_path_factory):
    """Likewise, without stochastic depth, whose numbers are a process's and not a pair's."""
    folder = tmp_path_factory.mktemp("steady")
    components = tiny_components()
    components["source_encoder"] = fill(
        SwinImageEncoder(**SOURCE_ENCODER_CONFIG, drop_path_rate=0.0), "source_encoder"
    )
    CFLDPipeline(**components).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pairs in DeepFashion's form."""
    folder = tmp_path_factory.mktemp("deepfashion")
    write_lists(folder, NAMES[:2])
    for seed, name in enumerate(NAMES[:2]):
        save_picture(folder / "train_highres" / name, seed)
    return folder


@pytest.fixture(scope="module")
def more_data(tmp_path_factory):
    """Six pairs."""
    folder = tmp_path_factory.mktemp("deepfashion")
    write_lists(folder)
    for seed, name in enumerate(NAMES):
        save_picture(folder / "train_highres" / name, seed)
    return folder


def arguments(start, data, output, *others, batch=2, steps=1):
    options = {
        "pretrained_model_name_or_path": start,
        "train_data_dir": data,
        "output_dir": output,
        "train_batch_size": batch,
        "max_train_steps": steps,
        "lr_warmup_steps": 0,
        "learning_rate": 1e-3,
        "dataloader_num_workers": 0,
        "report_to": "none",
    }
    return [*(f"--{name}={value}" for name, value in options.items()), *map(str, others)]


def train(script, *args, **kwargs):
    script.main(script.parse_args(arguments(*args, **kwargs)))


def trained_weights(checkpoint):
    return load_file(checkpoint / "trained.safetensors")


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# Adam's step has the size of the rate however small the gradient; where that is zero it shows the sign of a rounding
# error. So large an epsilon makes the step as large as the gradient.
GRADIENT_SIZED_STEPS = ["--adam_epsilon=1e4", "--learning_rate=1e4"]


def assert_moved_alike(start, one, other, tolerance=1e-4):
    """Both runs moved each part's weights by the same, relative to what moved most in that part."""
    before = CFLDPipeline.from_pretrained(start)
    ends = [trained_weights(script_output) for script_output in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    moves = [{}, {}]
    for name in ends[0]:
        part, _, rest = name.partition(".")
        old = getattr(before, part).get_parameter(rest)
        for move, end in zip(moves, ends, strict=True):
            move.setdefault(part, []).append((end[name] - old).flatten())
    for part in moves[0]:
        first, second = (torch.cat(move[part]) for move in moves)
        assert first.abs().max() > 1e-3, part
        assert relative_error(second, first) < tolerance, part


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        image=tiny_image(), pose=tiny_pose(), num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt"
    ).images


def test_two_pairs_end_to_end(script, start, data, tmp_path):
    output = tmp_path / "out"
    options = ["--use_ema", "--ema_decay=0.5", "--checkpointing_steps=1", "--checkpoints_total_limit=2"]
    options += ["--validation_steps=3", "--num_validation_pairs=2", "--validation_inference_steps=2"]
    options += ["--report_to=tensorboard", "--hub_token=hf_secret"]
    train(script, start, data, output, *options, steps=3)

    logs = [path for path in (output / "logs").rglob("*") if path.is_file()]
    assert any(path.name.startswith("events") and path.stat().st_size > 10_000 for path in logs)
    assert not any(b"hf_secret" in path.read_bytes() for path in logs)
    assert [path.name for path in script.list_checkpoints(output)] == ["checkpoint-2", "checkpoint-3"]
    with Image.open(output / "validation" / "step-0000003.png") as grid:
        assert grid.size == (4 * 128, 2 * 128)
    card = (output / "README.md").read_text()
    assert "3 steps of 2 pairs" in card
    assert "library_name: diffusers" in card

    before, after = CFLDPipeline.from_pretrained(start), CFLDPipeline.from_pretrained(output)
    # What the pictures of the training were like, which the pipeline then pads others to.
    with Image.open(data / "train_highres" / NAMES[0]) as picture:
        assert (after.config.frame_width, after.config.frame_height) == picture.size
    raw = trained_weights(output / "checkpoint-3")
    averages = load_file(output / "checkpoint-3" / "ema.safetensors")
    assert raw.keys() == averages.keys()
    biased = tuple(before.appearance_encoder.layer_names)
    for part in (*script.PARTS, "vae"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        for name, weight in new.items():
            key = f"{part}.{name}"
            is_kv = part == "unet" and name.startswith(biased) and (".to_k." in name or ".to_v." in name)
            assert (key in raw) == (is_kv or (part not in ("unet", "vae") and weight.is_floating_point())), key
            if key in raw:
                # What is saved is the average.
                assert torch.equal(weight, averages[key]), key
            else:
                assert torch.equal(weight, old[name]), key
    moved = [name for name in raw if not torch.equal(raw[name], averages[name])]
    assert len(moved) > 0.9 * len(raw)
    assert not torch.equal(sample(before), sample(after))


def test_the_defaults_are_the_papers(script, data, tmp_path):
    args = script.parse_args(["--train_data_dir", str(data), "--output_dir", str(tmp_path)])
    assert args.learning_rate * 224 == pytest.approx(scaled_learning_rate(224))
    expected = {
        "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "source_encoder_name_or_path": "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
        "scale_lr": True,
        "train_unet": "kv",
        "unet_lora_rank": None,
        "condition_dropout_prob": 0.2,
        "dropped_conditions": "all",
        "timestep_sampling": "cubic",
        "num_train_epochs": 100,
        "lr_scheduler": "cfld",
        "lr_warmup_steps": 1000,
        "lr_decay_epochs": [50],
        "lr_decay_factor": 0.1,
        "adam_weight_decay": 0.0,
        "max_grad_norm": None,
        "snr_gamma": None,
        "use_ema": False,
        "prediction_type": None,
    }
    assert {name: getattr(args, name) for name in expected} == expected


def test_it_starts_from_a_stable_diffusion_folder(script, data, tmp_path, monkeypatch):
    parts = tiny_components()
    parts = {name: parts[name] for name in ("vae", "unet", "scheduler")}
    others = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    StableDiffusionPipeline(**parts, **others, requires_safety_checker=False).save_pretrained(tmp_path / "sd")
    # The one thing replaced: timm's name of the weights, which are on the Hub.
    monkeypatch.setattr(
        SwinImageEncoder, "from_timm", classmethod(lambda cls, *args, **kwargs: cls(**SOURCE_ENCODER_CONFIG))
    )
    train(script, tmp_path / "sd", data, tmp_path / "out")
    assert sample(CFLDPipeline.from_pretrained(tmp_path / "out")).shape == (1, 3, 128, 128)


def test_killed_and_resumed_is_bit_equal(script, start, more_data, tmp_path):
    options = ["--checkpointing_steps=2", "--use_ema", "--lr_scheduler=cosine", "--max_grad_norm=1"]
    train(script, start, more_data, tmp_path / "whole", *options, steps=6)

    command = [sys.executable, str(SCRIPT)]
    command += arguments(start, more_data, tmp_path / "killed", *options, "--resume_from_checkpoint=latest", steps=6)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not (tmp_path / "killed" / "checkpoint-2").exists():
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "model_index.json").exists()
    AcceleratorState._reset_state(True)
    train(script, start, more_data, tmp_path / "killed", *options, "--resume_from_checkpoint=latest", steps=6)

    for name in ("trained.safetensors", "ema.safetensors"):
        one, other = (load_file(tmp_path / run / "checkpoint-6" / name) for run in ("whole", "killed"))
        assert_bit_equal(one, other)
    assert not (tmp_path / "killed" / "checkpoint.part").exists()


def test_accumulation_2x1_equals_1x2(script, steady_start, data, tmp_path):
    options = [*GRADIENT_SIZED_STEPS, "--condition_dropout_prob=0.5"]
    train(script, steady_start, data, tmp_path / "1x2", *options, batch=2, steps=2)
    AcceleratorState._reset_state(True)
    options.append("--gradient_accumulation_steps=2")
    train(script, steady_start, data, tmp_path / "2x1", *options, batch=1, steps=2)
    assert_moved_alike(steady_start, tmp_path / "1x2" / "checkpoint-2", tmp_path / "2x1" / "checkpoint-2")


def test_two_processes_equal_one_with_the_same_global_batch(script, steady_start, more_data, tmp_path):
    options = GRADIENT_SIZED_STEPS
    train(script, steady_start, more_data, tmp_path / "one", *options, batch=2, steps=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*command, str(SCRIPT)]
    command += arguments(steady_start, more_data, tmp_path / "two", *options, batch=1, steps=2)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert_moved_alike(steady_start, tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")
    assert CFLDPipeline.from_pretrained(tmp_path / "two").components.keys() == tiny_components().keys()


def test_lora_instead_of_keys_and_values(script, start, data, tmp_path):
    output = tmp_path / "out"
    train(script, start, data, output, "--unet_lora_rank=2", "--unet_lora_alpha=6", "--learning_rate=0.1", steps=2)
    weights = trained_weights(output / "checkpoint-2")
    lora = {name for name in weights if "lora" in name}
    assert len(lora) == 9 * 2 * 2
    assert all(name in lora for name in weights if name.startswith("unet."))

    pipe = CFLDPipeline.from_pretrained(output)
    unet = CFLDPipeline.from_pretrained(start).unet
    assert_bit_equal(pipe.unet.state_dict(), unet.state_dict())
    without = sample(pipe)
    pipe.load_lora_weights(output)
    loaded = {name: weight for name, weight in pipe.unet.named_parameters() if "lora" in name}
    assert len(loaded) == len(lora)
    for name, weight in loaded.items():
        assert torch.equal(weight, weights[f"unet.{name.replace('default_0', 'default')}"])
    scalings = {
        scaling for layer in pipe.unet.modules() if hasattr(layer, "lora_A") for scaling in layer.scaling.values()
    }
    assert scalings == {3.0}
    with_lora = sample(pipe)
    assert not torch.equal(with_lora, without)
    assert 'pipe.load_lora_weights("out")' in (output / "README.md").read_text()

    # Another run begins from what this one has learned, all of it.
    started = script.load_components(script.parse_args(arguments(output, data, tmp_path / "next")))
    again = sample(CFLDPipeline(**{**pipe.components, **started}))
    torch.testing.assert_close(again, with_lora, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in started["unet"].named_parameters())

    # A pipeline that needs none is not left beside it.
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    AcceleratorState._reset_state(True)
    train(script, start, data, output)
    assert not (output / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("is_there", [True, False, None])
def test_a_lora_on_the_hub_belongs_to_its_pipeline(script, monkeypatch, tmp_path, caplog, is_there):
    """None: the Hub cannot be asked."""
    loaded = []

    class Pipeline:
        def load_lora_weights(self, folder, weight_name):
            loaded.append((folder, weight_name))

        def fuse_lora(self):
            loaded.append("fused")

        def unload_lora_weights(self):
            loaded.append("unloaded")

    def download(name, file, revision):
        if not is_there:
            error = LocalEntryNotFoundError if is_there is None else EntryNotFoundError
            raise error(f"{file} of {name}")
        (tmp_path / file).touch()
        return str(tmp_path / file)

    PartialState()  # the logger asks for it
    monkeypatch.setattr(script, "hf_hub_download", download)
    script.fuse_lora(Pipeline(), "me/mine", None)
    assert loaded == ([(str(tmp_path), script.LORA_FILE), "fused", "unloaded"] if is_there else [])
    assert ("cannot be asked whether" in caplog.text) == (is_there is None)


def test_bfloat16_trains_float32_weights(script, start, data, tmp_path):
    train(script, start, data, tmp_path / "out", "--mixed_precision=bf16", "--gradient_checkpointing")
    weights = trained_weights(tmp_path / "out" / "checkpoint-1")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    pipe = CFLDPipeline.from_pretrained(tmp_path / "out", dtype="auto")
    assert pipe.unet.dtype == torch.float32
    assert_bit_equal(pipe.vae.state_dict(), CFLDPipeline.from_pretrained(start).vae.state_dict())


def test_models_in_half_precision_get_what_they_take(script, start, data, tmp_path):
    """As DeepSpeed has them."""
    args = script.parse_args(arguments(start, data, tmp_path / "out"))
    components = script.load_components(args)
    module = script.make_module(args, components).bfloat16()
    pose = CFLDPipeline(**components).pose_processor.config
    sizes = {"source_size": module.source_encoder.image_size, "image_size": 64, "pose_size": (pose.height, pose.width)}
    dataset = PosePairDataset(load_pairs(data), **sizes)
    batch = collate_pose_pairs([dataset[0], dataset[1]])
    moments = encode_moments(
        components["vae"], torch.cat([batch["source_pixel_values"], batch["target_pixel_values"]])
    )
    with module.training_attention():
        loss = script.training_loss(args, module, components["vae"], components["scheduler"], batch, moments, 0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_cached_latents_change_nothing(script, start, data, tmp_path):
    options = GRADIENT_SIZED_STEPS
    train(script, start, data, tmp_path / "live", *options, steps=2)
    AcceleratorState._reset_state(True)
    train(script, start, data, tmp_path / "cached", *options, "--cache_latents", "--channels_last", steps=2)
    assert_moved_alike(start, tmp_path / "live" / "checkpoint-2", tmp_path / "cached" / "checkpoint-2")
    state = json.loads((tmp_path / "cached" / "latents" / "moments.json").read_text())
    assert state["num_encoded"] == 2


def test_shards_are_streamed_and_resumed(script, start, more_data, tmp_path):
    load_example("write_shards").write_shards(load_pairs(more_data), tmp_path / "shards", pairs_per_shard=2)
    options = ["--checkpointing_steps=1"]
    train(script, start, tmp_path / "shards", tmp_path / "whole", *options, steps=4)
    for steps in (2, 4):
        AcceleratorState._reset_state(True)
        again = [*options, "--resume_from_checkpoint=latest"]
        train(script, start, tmp_path / "shards", tmp_path / "parts", *again, steps=steps)
    whole, parts = (trained_weights(tmp_path / run / "checkpoint-4") for run in ("whole", "parts"))
    assert_bit_equal(whole, parts)


def test_options_of_the_objective(script, start, data, tmp_path):
    """Each of them changes what is learned."""
    images = unique_images(load_pairs(data))
    write_maps(tmp_path / "maps", np.random.default_rng(0).uniform(0, 4, (len(images), 1, 16, 16)), images, data)
    runs = {
        "default": [],
        "uniform": ["--timestep_sampling=uniform"],
        "velocity": ["--prediction_type=v_prediction"],
        "min-snr": ["--snr_gamma=0.01"],
        "transfer": ["--reconstruction_loss_weight=0"],
        "muon": ["--optimizer=muon"],
        "pixel-metric": ["--loss_metric=pixel"],
        "cell-weights": [f"--loss_weight_maps={tmp_path / 'maps'}"],
        "slower": ["--learning_rate_multiplier", "pose_adapter=0.1"],
        "frozen": ["--freeze", "pose_adapter"],
        "published-drop": ["--condition_dropout_prob=1", "--dropped_conditions=prompt"],
    }
    weights = {}
    for name, options in runs.items():
        AcceleratorState._reset_state(True)
        train(script, start, data, tmp_path / name, *GRADIENT_SIZED_STEPS, *options)
        weights[name] = PoseAdapter.from_pretrained(tmp_path / name / "pose_adapter").conv_in.weight
    names = list(runs)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.equal(weights[one], weights[other]), (one, other)
    assert torch.equal(weights["frozen"], PoseAdapter.from_pretrained(start / "pose_adapter").conv_in.weight)
    with pytest.raises(ValueError, match=r"`cell_weights` must have shape"):
        write_maps(tmp_path / "small", np.ones((len(images), 1, 2, 2)), images, data)
        train(script, start, data, tmp_path / "none", f"--loss_weight_maps={tmp_path / 'small'}")
    scheduler = CFLDPipeline.from_pretrained(tmp_path / "velocity").scheduler
    assert scheduler.config.prediction_type == "v_prediction"


def write_maps(folder, maps, names, data):
    folder.mkdir()
    np.save(folder / "maps.npy", maps.astype(np.float16))
    (folder / "names.json").write_text(json.dumps([os.path.relpath(name, data) for name in names]))


def test_features_are_aligned_with_maps(script, start, more_data, tmp_path):
    names = unique_images(load_pairs(more_data))
    maps = tmp_path / "maps"
    write_maps(maps, np.random.default_rng(0).normal(size=(len(names), 3, 16, 16)), names, more_data)
    aligned = ["--alignment_maps", *[str(maps)] * 2, "--use_ema"]
    aligned += ["--alignment_layer", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
    runs = {"without": ["--use_ema"], "whole": aligned, "no-weight": [*aligned, "--alignment_weight=0"]}
    for name, options in runs.items():
        AcceleratorState._reset_state(True)
        train(script, start, more_data, tmp_path / name, *options, steps=3)
    for steps in (2, 3):
        AcceleratorState._reset_state(True)
        options = [*aligned, "--resume_from_checkpoint=latest"]
        train(script, start, more_data, tmp_path / "resumed", *options, steps=steps)
    without, whole, unweighted, resumed = (
        trained_weights(tmp_path / name / "checkpoint-3") for name in (*runs, "resumed")
    )
    assert_bit_equal(whole, resumed)
    heads = {name for name in whole if name not in without}
    assert heads == {f"alignment_heads.{number}.{name}" for number in (0, 1) for name in ("weight", "bias")}
    assert all(whole[name].any() for name in heads)
    name = "pose_adapter.conv_in.weight"
    assert torch.equal(unweighted[name], without[name])
    assert not torch.equal(whole[name], without[name])
    assert "alignment_heads" not in CFLDPipeline.from_pretrained(tmp_path / "whole").components
    with pytest.raises(FileNotFoundError, match=r"has no maps\.npy"):
        train(script, start, more_data, tmp_path / "none", f"--alignment_maps={tmp_path}")
    with pytest.raises(SystemExit):
        train(script, start, more_data, tmp_path / "none", "--alignment_maps", *[str(maps)] * 2)


def test_what_weighs_nothing_is_not_predicted(script, steady_start, data, tmp_path, monkeypatch):
    forward, sizes = CFLDTrainingModule.forward, []

    def counted(module, source_image, pose_map, *args):
        sizes.append((source_image.shape[0], pose_map.shape[0]))
        return forward(module, source_image, pose_map, *args)

    monkeypatch.setattr(CFLDTrainingModule, "forward", counted)
    runs = {
        "nearly-all": ["--reconstruction_loss_weight=1e-9"],
        "transfer": ["--reconstruction_loss_weight=0"],
        "reconstruction": ["--transfer_loss_weight=0"],
    }
    for name, options in runs.items():
        AcceleratorState._reset_state(True)
        train(script, steady_start, data, tmp_path / name, *GRADIENT_SIZED_STEPS, *options)
    assert sizes == [(2, 4), (2, 2), (2, 2)]
    nearly_all, transfer, reconstruction = (tmp_path / name / "checkpoint-1" for name in runs)
    assert_moved_alike(steady_start, nearly_all, transfer)
    assert not torch.equal(
        trained_weights(transfer)["pose_adapter.conv_in.weight"],
        trained_weights(reconstruction)["pose_adapter.conv_in.weight"],
    )
    with pytest.raises(SystemExit):
        train(script, steady_start, data, tmp_path / "none", *runs["transfer"], *runs["reconstruction"])


@pytest.fixture(scope="module")
def data_of_few_sources(tmp_path_factory):
    """Two sources of two targets each, not in their order, as a folder of pairs."""
    folder = tmp_path_factory.mktemp("folder")
    names = [f"{number}.png" for number in range(4)]
    for seed, name in enumerate(names):
        save_picture(folder / name, seed)
    poses = [dict(zip(("keypoints_y", "keypoints_x"), columns(seed), strict=True)) for seed in range(4)]
    lines = [
        {
            "source": names[source],
            "target": names[target],
            "source_keypoints": {**poses[source], "size": [256, 176]},
            "target_keypoints": {**poses[target], "size": [256, 176]},
        }
        for source, target in ((0, 1), (2, 3), (0, 2), (2, 1))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "options", [[], ["--reconstruction_loss_weight=0", "--cache_latents"]], ids=["both", "transfer"]
)
def test_shared_sources_are_encoded_once(script, steady_start, data_of_few_sources, tmp_path, monkeypatch, options):
    forward, sizes = CFLDTrainingModule.forward, []

    def counted(module, source_image, *args):
        sizes.append(len(source_image))
        return forward(module, source_image, *args)

    monkeypatch.setattr(CFLDTrainingModule, "forward", counted)
    options = [*GRADIENT_SIZED_STEPS, *options]
    train(script, steady_start, data_of_few_sources, tmp_path / "one", *options, batch=4, steps=2)
    AcceleratorState._reset_state(True)
    options.append("--targets_per_source=2")
    train(script, steady_start, data_of_few_sources, tmp_path / "two", *options, batch=4, steps=2)
    assert sizes == [4, 4, 2, 2]
    assert_moved_alike(steady_start, *(tmp_path / run / "checkpoint-2" for run in ("one", "two")))


def test_groups_of_a_source(script, data_of_few_sources):
    pairs = load_pairs(data_of_few_sources)
    assert script.group_by_source(pairs, 1) == [[0], [1], [2], [3]]
    assert script.group_by_source(pairs, 2) == [[0, 2], [1, 3]]
    assert script.group_by_source(pairs, 3) == [[0, 2, 0], [1, 3, 1]]
    assert script.group_by_source([*pairs, pairs[0]], 2) == [[0, 2], [4, 0], [1, 3]]
    # The first pair of the second group was broken and the one after it was read, which has another source.
    batch = {"index": torch.tensor([0, 2, 2, 3]), "source_image": torch.arange(4), "target": torch.arange(4)}
    shared = script.share_sources(batch, pairs, 2)
    assert shared["source_image"].tolist() == [0, 2]
    assert shared["target"].tolist() == [0, 2, 1, 2]
    sampler = script.ResumableSampler(script.group_by_source(pairs, 2), 1, 0, 0)
    whole = list(sampler)
    assert sorted(whole) == [0, 1, 2, 3]
    assert len(sampler) == 4
    sampler.resume(0, 2)
    assert list(sampler) == whole[2:]


def test_a_loss_that_is_not_finite_stops_the_run(script, start, data, tmp_path):
    options = ["--learning_rate=1e15", "--checkpointing_steps=100"]
    with pytest.raises(SystemExit, match=r"The loss is (nan|inf) after \d steps; .* in .*checkpoint-\d\.") as error:
        train(script, start, data, tmp_path / "out", *options, steps=8)
    assert "\n" not in str(error.value)
    (checkpoint,) = script.list_checkpoints(tmp_path / "out")
    assert str(checkpoint) in str(error.value)
    assert all(torch.isfinite(weight).all() for weight in trained_weights(checkpoint).values())


def test_weights_that_are_not_finite_are_not_saved(script, start, data, tmp_path):
    pipe = CFLDPipeline.from_pretrained(start)
    with torch.no_grad():
        pipe.pose_adapter.conv_in.weight[0, 0] = torch.nan
    pipe.save_pretrained(tmp_path / "broken")
    with pytest.raises(SystemExit, match=r"The loss is nan after 0 steps, .* there is no checkpoint yet"):
        train(script, tmp_path / "broken", data, tmp_path / "out")
    assert not script.list_checkpoints(tmp_path / "out")


def test_weights_that_break_are_not_saved(script, start, data, tmp_path, monkeypatch):
    def breaking_loss(args, model, *others, **kwargs):
        loss = training_loss(args, model, *others, **kwargs)
        # 0, with a gradient that is no number.
        nothing = (0 * model.pose_adapter.conv_in.weight.sum()).sqrt()
        losses.append(loss)
        return loss + nothing if len(losses) == 2 else loss

    losses, training_loss = [], script.training_loss
    monkeypatch.setattr(script, "training_loss", breaking_loss)
    with pytest.raises(SystemExit, match=r"The weights are not finite after 2 steps; the last good .*checkpoint-1\."):
        train(script, start, data, tmp_path / "out", "--checkpointing_steps=1", steps=3)
    assert [folder.name for folder in script.list_checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_broken_pictures_are_named_and_survive_a_resume(script, start, more_data, tmp_path, caplog):
    folder = tmp_path / "data"
    write_lists(folder)
    for seed, name in enumerate(NAMES[:-1]):
        save_picture(folder / "train_highres" / name, seed)
    (folder / "train_highres" / NAMES[-1]).write_bytes(b"no picture")
    options = ["--checkpointing_steps=1", "--resume_from_checkpoint=latest"]
    train(script, start, folder, tmp_path / "out", *options, steps=3)
    AcceleratorState._reset_state(True)
    caplog.clear()
    train(script, start, folder, tmp_path / "out", *options, steps=3)
    assert "1 file was skipped" in caplog.text
    assert NAMES[-1] in caplog.text
    for output in ("cached", "cached-2"):  # also when the cache was made by an earlier run
        AcceleratorState._reset_state(True)
        caplog.clear()
        options = ["--cache_latents", f"--latent_cache_dir={tmp_path / 'latents'}"]
        train(script, start, folder, tmp_path / output, *options)
        assert "1 file was skipped" in caplog.text
        assert NAMES[-1] in caplog.text


def test_pictures_that_are_back_are_encoded(script, start, more_data, tmp_path, monkeypatch, caplog):
    options = ["--cache_latents", f"--latent_cache_dir={tmp_path / 'latents'}"]
    read, broken = ImageDataset._read, []

    def fail_once(dataset, index):
        if not broken:
            broken.append(dataset.images[index])
            raise UnreadableImageError(broken[0], "cannot be read (Stale file handle)")
        return read(dataset, index)

    monkeypatch.setattr(ImageDataset, "_read", fail_once)
    train(script, start, more_data, tmp_path / "out", *options)
    assert len(broken) == 1
    assert "skipped" not in caplog.text
    state = json.loads((tmp_path / "latents" / "moments.json").read_text())
    assert state["unreadable"] == {}
    moments = np.load(tmp_path / "latents" / "moments.npy")
    assert not np.array_equal(moments[0], moments[1])


def test_an_interrupted_accumulation_begins_anew(script, steady_start, more_data, tmp_path, monkeypatch):
    options = [*GRADIENT_SIZED_STEPS, "--gradient_accumulation_steps=2", "--checkpointing_steps=1"]
    train(script, steady_start, more_data, tmp_path / "whole", *options, batch=1, steps=2)

    losses = []

    def breaking_loss(*args, **kwargs):
        losses.append(training_loss(*args, **kwargs))
        return losses[-1] * (float("nan") if len(losses) == 3 else 1)

    training_loss = script.training_loss
    AcceleratorState._reset_state(True)
    with monkeypatch.context() as patch:
        patch.setattr(script, "training_loss", breaking_loss)
        with pytest.raises(SystemExit, match="The loss is nan after 1 steps"):
            train(script, steady_start, more_data, tmp_path / "broken", *options, batch=1, steps=2)
    AcceleratorState._reset_state(True)
    options.append("--resume_from_checkpoint=latest")
    train(script, steady_start, more_data, tmp_path / "broken", *options, batch=1, steps=2)
    assert_bit_equal(*(trained_weights(tmp_path / run / "checkpoint-2") for run in ("whole", "broken")))


def test_what_a_resumed_run_changes_is_told(script, start, more_data, tmp_path, caplog):
    train(script, start, more_data, tmp_path / "out", "--checkpointing_steps=4", steps=4)
    AcceleratorState._reset_state(True)
    with pytest.raises(SystemExit, match="has checkpoints of another run: go on from them"):
        train(script, start, more_data, tmp_path / "out")
    AcceleratorState._reset_state(True)
    options = ["--resume_from_checkpoint=latest", "--use_ema"]
    train(script, start, more_data, tmp_path / "out", *options, batch=1, steps=4)
    assert "has no averages: --use_ema begins them anew" in caplog.text
    assert "other pairs come next" in caplog.text
    assert "It is now of epoch 0, not 1." in caplog.text
    saved, trained = CFLDPipeline.from_pretrained(tmp_path / "out"), trained_weights(tmp_path / "out" / "checkpoint-4")
    name = "pose_adapter.conv_in.weight"
    assert torch.equal(saved.pose_adapter.conv_in.weight, trained[name])
    assert not torch.equal(trained[name], CFLDPipeline.from_pretrained(start).pose_adapter.conv_in.weight)


def test_a_resumed_runs_own_rate_holds(script, start, more_data, tmp_path):
    options = [
        "--checkpointing_steps=1",
        "--resume_from_checkpoint=latest",
        "--lr_scheduler=constant",
        "--no-scale_lr",
    ]
    for steps, rate in ((1, "1e-3"), (2, "1e-5")):
        AcceleratorState._reset_state(True)
        more = [f"--learning_rate={rate}", f"--adam_weight_decay={rate}", "--learning_rate_multiplier", "unet=0.5"]
        train(script, start, more_data, tmp_path / "out", *options, *more, steps=steps)
        state = torch.load(tmp_path / "out" / f"checkpoint-{steps}" / "optimizer.bin", weights_only=True)
        rates = {group["lr"] for group in state["param_groups"]}
        assert rates == {float(rate), 0.5 * float(rate)}
        assert {group["weight_decay"] for group in state["param_groups"]} == {float(rate)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer=muon"], r"was made with --optimizer adamw, this run has muon"),
        (["--freeze", "pose_adapter"], r"other weights trained than in this one, 'pose_adapter\..* give the same"),
        (["--train_unet=all"], r"other weights trained than in this one, 'unet\."),
        (["--prediction_type=v_prediction"], r"made with --prediction_type epsilon, this run has v_prediction"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(script, start, first_checkpoint, options, message):
    with pytest.raises(SystemExit, match=message):
        train(script, start, *first_checkpoint, "--resume_from_checkpoint=latest", *options, steps=2)


@pytest.fixture(scope="module")
def first_checkpoint(script, start, more_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    train(script, start, more_data, folder, "--checkpointing_steps=1")
    AcceleratorState._reset_state(True)
    return more_data, folder


def test_what_is_frozen_has_to_stay(script, start, first_checkpoint, tmp_path):
    pipe = CFLDPipeline.from_pretrained(start)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="made with --pretrained_model_name_or_path frozen weights"):
        train(script, tmp_path / "other", *first_checkpoint, "--resume_from_checkpoint=latest", steps=2)


def test_a_checkpoint_without_a_gradient_scaler_is_not_gone_on_from_in_half_precision(
    script, start, first_checkpoint, monkeypatch
):
    """A GPU's fp16 needs the scaler; here it is put on by hand."""
    real = script.Accelerator

    def scaled(*arguments, **options):
        accelerator = real(*arguments, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
        return accelerator

    monkeypatch.setattr(script, "Accelerator", scaled)
    with pytest.raises(SystemExit, match="has no gradient scaler, since it was not made with --mixed_precision fp16"):
        train(script, start, *first_checkpoint, "--resume_from_checkpoint=latest", steps=2)


def test_maps_that_lack_a_picture_end_the_run_before_it_begins(script, start, data, tmp_path):
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "maps.npy", np.ones((1, 1, 4, 4), np.float32))
    (tmp_path / "maps" / "names.json").write_text(json.dumps(["elsewhere.png"]))
    with pytest.raises(ValueError, match=r"names\.json' does not name the picture"):
        train(script, start, data, tmp_path / "out", "--loss_weight_maps", str(tmp_path / "maps"))
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_later_checkpoints_are_in_the_way_of_going_back(script, start, more_data, tmp_path):
    train(script, start, more_data, tmp_path / "out", "--checkpointing_steps=1", steps=2)
    AcceleratorState._reset_state(True)
    back = f"--resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-1'}"
    with pytest.raises(SystemExit, match=r"has checkpoints of later steps than 1, at which .*: move them elsewhere"):
        train(script, start, more_data, tmp_path / "out", back, steps=2)


def test_every_machine_has_to_see_the_checkpoint(script, start, first_checkpoint, monkeypatch):
    monkeypatch.setattr(script, "gather_object", lambda objects: [*objects, False])
    with pytest.raises(SystemExit, match=r"1 of 2 processes do not see .*checkpoint-1': put it and --output_dir"):
        train(script, start, *first_checkpoint, "--resume_from_checkpoint=latest", steps=2)


def test_a_folder_of_the_inpaint_pipeline_is_one_of_cfld(script, start, data, tmp_path):
    CFLDInpaintPipeline.from_pretrained(start).save_pretrained(tmp_path / "start")
    args = script.parse_args(arguments(tmp_path / "start", data, tmp_path / "out"))
    weights = script.load_components(args)["pose_adapter"].state_dict()
    assert_bit_equal(weights, CFLDPipeline.from_pretrained(start).pose_adapter.state_dict())


def test_the_frame_is_that_of_the_upright_photos(script, start, data, tmp_path):
    picture = Image.new("RGB", (128, 88))
    picture.getexif()[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "photo.png", exif=picture.getexif())
    args = script.parse_args(arguments(start, data, tmp_path / "out"))
    pair = replace(load_pairs(data)[0], source=str(tmp_path / "photo.png"))
    assert script.make_pipeline(args, script.load_components(args), [pair]).image_shape == (128, 88)


def test_the_frame_of_shards_is_that_of_the_model(script, start, data, tmp_path):
    CFLDPipeline.from_pretrained(start, frame_height=None, frame_width=None).save_pretrained(tmp_path / "start")
    args = script.parse_args(arguments(tmp_path / "start", data, tmp_path / "out"))
    assert script.make_pipeline(args, script.load_components(args), []).image_shape is None


def test_the_polynomial_schedule_ends_at_its_rate(script, start, data, tmp_path):
    options = ["--lr_scheduler=polynomial", "--lr_warmup_steps=0", "--learning_rate=1e-4", "--no-scale_lr"]
    args = script.parse_args(arguments(start, data, tmp_path / "out", *options))
    optimizer = script.make_optimizer(args, script.make_module(args, script.load_components(args)), 2, 1)
    scheduler = script.make_lr_scheduler(args, optimizer, 1, 2)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(1e-7)


def test_frozen_parts_are_evaluated(script, start, data, tmp_path):
    args = script.parse_args(arguments(start, data, tmp_path / "out", "--freeze", "source_encoder"))
    module = script.make_module(args, script.load_components(args))
    assert not module.source_encoder.training
    assert module.prompt_decoder.training


def test_broken_pictures_are_left_out_of_the_validation(script, start, data, tmp_path, caplog):
    validation = tmp_path / "data"
    write_lists(validation)
    write_lists(validation, split="test")
    for seed, name in enumerate(NAMES[:-1]):
        save_picture(validation / "test_highres" / name, seed)
    (validation / "test_highres" / NAMES[-1]).write_bytes(b"no picture")
    options = ["--validation_steps=1", "--num_validation_pairs=100", "--validation_inference_steps=1"]
    train(script, start, data, tmp_path / "out", f"--validation_data_dir={validation}", *options)
    assert "Not among the validation pairs" in caplog.text
    with Image.open(tmp_path / "out" / "validation" / "step-0000001.png") as grid:
        height = grid.height
    assert 0 < height < 6 * 128

    for path in (validation / "test_highres").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="No validation pair can be read: give others by --validation_data_dir"):
        train(script, start, data, tmp_path / "again", f"--validation_data_dir={validation}", *options)


def test_push_to_hub_uploads_the_pipeline_and_no_checkpoint(script, start, data, tmp_path, monkeypatch):
    calls = []

    def create_repo(repo_id, **kwargs):
        return type("RepoUrl", (), {"repo_id": f"me/{repo_id}"})

    monkeypatch.setattr(script, "create_repo", create_repo)
    monkeypatch.setattr(script, "upload_folder", lambda **kwargs: calls.append(kwargs))
    options = ["--push_to_hub", "--hub_model_id=my-model", "--hub_token=hf_x"]
    train(script, start, data, tmp_path / "out", *options)
    (call,) = calls
    assert (call["repo_id"], Path(call["folder_path"]), call["token"]) == ("me/my-model", tmp_path / "out", "hf_x")
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    uploaded = set(filter_repo_objects(files, allow_patterns=call["allow_patterns"]))
    kept = {name for name in files if name.startswith("checkpoint-1/")}
    assert kept
    assert uploaded == set(files) - kept
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= uploaded
    card = (tmp_path / "out" / "README.md").read_text()
    assert "hf_x" not in card
    assert 'from_pretrained("me/my-model")' in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unet_lora_rank=2", "--train_unet=all"], "leave out --train_unet all"),
        (["--train_batch_size=3"], "3 pairs make a batch of all processes, but there are 2"),
        (["--resume_from_checkpoint=nowhere"], "must be latest or a checkpoint's folder, got 'nowhere'"),
        (["--learning_rate_multiplier=unet"], "takes PART=FACTOR, got 'unet'"),
        (["--learning_rate_multiplier=sky=2"], "sky"),
        (["--train_data_dir=nowhere"], "must be the folder of a data set, got nothing"),
        (["--num_validation_pairs=0"], "must be at least 1, got 0"),
        (["--unet_lora_rank=0"], "--unet_lora_rank must be at least 1, got 0"),
        (["--max_train_steps=0"], "--max_train_steps must be at least 1, got 0"),
        (["--condition_dropout_prob=20"], "--condition_dropout_prob must be from 0 to 1, got 20.0"),
        (["--max_grad_norm=0"], "--max_grad_norm must be above 0, got 0.0"),
        (["--use_8bit_adam"], "pip install bitsandbytes"),
        (["--use_8bit_adam", "--optimizer=muon"], "exclude each other"),
        (["--transfer_loss_weight=-1"], "--transfer_loss_weight must be 0 or more, got -1.0"),
        (["--snr_gamma=0"], "--snr_gamma must be above 0, got 0.0"),
        (["--lr_decay_epochs", "5", "3"], "--lr_decay_epochs must be 0 or more and ascend, got [5, 3]"),
        (["--latent_cache_dir=latents"], "--latent_cache_dir is for --cache_latents"),
        (["--validation_split=test"], "--validation_split is for --validation_data_dir"),
        (["--validation_data_dir=other"], "--validation_data_dir is for --validation_steps"),
        (["--photo_shape", "0", "4"], "--photo_shape must be two numbers of at least 1, got [0, 4]"),
        (["--lr_scheduler=polynomial", "--lr_warmup_steps=1"], "must be less than the 1 steps of the run"),
        (["--lr_scheduler=piecewise_constant"], "invalid choice: 'piecewise_constant'"),
        (["--unet_lora_alpha=32"], "--unet_lora_alpha is for --unet_lora_rank"),
        (["--ema_decay=0.9"], "--ema_decay is for --use_ema"),
        (["--alignment_weight=0.9"], "--alignment_weight is for --alignment_maps"),
        (["--hub_model_id=me/mine"], "--hub_model_id is for --push_to_hub"),
        (["--source_encoder_checkpoint=s.pth"], "is a CFLD pipeline, which has its source encoder: leave it out"),
    ],
)
def test_errors_are_one_sentence(script, start, data, tmp_path, capsys, options, message):
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        train(script, start, data, tmp_path / "out", *options)
    text = str(error.value) if str(error.value) != "2" else capsys.readouterr().err
    assert message in text
    assert "\n" not in text.strip().splitlines()[-1]


def test_wholly_wrong_data_ends_with_one_sentence(script, start, data, tmp_path):
    folder = tmp_path / "data"
    write_lists(folder)
    for name in NAMES:
        (folder / "train_highres").mkdir(exist_ok=True)
        (folder / "train_highres" / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="Expected readable pictures, but 6 in a row cannot be read"):
        train(script, start, folder, tmp_path / "out")
