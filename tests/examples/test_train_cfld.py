"""The training example as its users run it: real data on disk, real files out, tiny models."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, PartialState
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from example_scripts import load_example
from huggingface_hub.utils import filter_repo_objects
from miniature_sets import NAMES, save_image, write_lists
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from testing_utils import (
    SOURCE_ENCODER_CONFIG,
    UNET_CONFIG,
    fill,
    load_each_folder_once,
    relative_error,
    tiny_components,
    tiny_image,
    tiny_pose,
)

from diffusers_cfld import CFLDInpaintPipeline, CFLDPipeline, PoseAdapter, SwinImageEncoder
from diffusers_cfld.data import load_pairs
from diffusers_cfld.io_utils import lock_folder
from diffusers_cfld.training import CFLDTrainingModule, scaled_learning_rate

# Other processes begin with all that this one has imported.
needs_fork = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="CUDA does not survive a fork"
)


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


@pytest.fixture(autouse=True)
def load_once(monkeypatch, start, steady_start):
    load_each_folder_once(monkeypatch, start, steady_start)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pairs in DeepFashion's form."""
    folder = tmp_path_factory.mktemp("deepfashion")
    write_lists(folder, NAMES[:2])
    for seed, name in enumerate(NAMES[:2]):
        save_image(folder / "train_highres" / name, seed)
    return folder


@pytest.fixture(scope="module")
def more_data(tmp_path_factory):
    """Six pairs."""
    folder = tmp_path_factory.mktemp("deepfashion")
    write_lists(folder)
    for seed, name in enumerate(NAMES):
        save_image(folder / "train_highres" / name, seed)
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


def weights_of(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# Adam's step has the size of the rate however small the gradient; where that is zero it shows the sign of a rounding
# error. So large an epsilon makes the step as large as the gradient.
GRADIENT_SIZED_STEPS = ["--adam_epsilon=1e4", "--learning_rate=1e4"]


def assert_moved_alike(start, one, other, tolerance=1e-4):
    """Both runs moved each part's weights by the same, relative to what moved most in that part."""
    before = CFLDPipeline.from_pretrained(start)
    ends = [weights_of(checkpoint) for checkpoint in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    moves, olds = [{}, {}], {}
    for name in ends[0]:
        part, _, rest = name.partition(".")
        if part not in olds:
            olds[part] = getattr(before, part).state_dict()
        old = olds[part][rest]
        for move, end in zip(moves, ends, strict=True):
            move.setdefault(part, []).append((end[name] - old).flatten().float())
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
    events = EventAccumulator(str(output / "logs" / "cfld")).Reload()
    names = {"loss", "reconstruction_loss", "transfer_loss", "grad_norm", "samples_per_second", "lr"}
    logged = {name: [event.value for event in events.Scalars(name)] for name in names}
    assert all(len(values) == 3 and min(values) > 0 for values in logged.values())
    for loss, *terms in zip(*(logged[name] for name in ("loss", "reconstruction_loss", "transfer_loss")), strict=True):
        assert loss == pytest.approx(sum(terms) / 2)
    with Image.open(output / "validation" / "step-0000003.png") as grid:
        # Images of 128x88, the shape of the training images, with margins and labels.
        assert grid.size == (4 * (88 + 8) + 8, 2 * (128 + 20 + 8) + 8)
    card = (output / "README.md").read_text()
    assert "3 steps of 2 pairs" in card
    assert "library_name: diffusers" in card

    before, after = CFLDPipeline.from_pretrained(start), CFLDPipeline.from_pretrained(output)
    # The size of the training images, whose aspect ratio the pipeline then pads others to.
    with Image.open(data / "train_highres" / NAMES[0]) as image:
        assert (after.config.frame_width, after.config.frame_height) == image.size
    raw = weights_of(output / "checkpoint-3")
    averages = load_file(output / "checkpoint-3" / "ema.safetensors")
    biased = tuple(before.appearance_encoder.layer_names)
    for part in (*script.PARTS, "vae"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        for name, weight in new.items():
            key = f"{part}.{name}"
            is_kv = part == "unet" and name.startswith(biased) and (".to_k." in name or ".to_v." in name)
            assert (key in averages) == (is_kv or (part not in ("unet", "vae") and weight.is_floating_point())), key
            # What is saved is the average of what trained.
            assert torch.equal(weight, averages[key] if key in averages else old[name]), key
    moved = [name for name in averages if not torch.equal(raw[name], averages[name])]
    assert len(moved) > 0.9 * len(averages)
    assert not torch.equal(sample(before), sample(after))

    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="has checkpoints of an earlier run: resume it with"):
        train(script, start, data, output)
    with lock_folder(output), pytest.raises(OSError, match=r"Another process is working in '.*out'"):
        train(script, start, data, output, "--resume_from_checkpoint=latest")

    # A checkpoint becomes a pipeline.
    exported, chosen = tmp_path / "exported", f"--resume_from_checkpoint={output / 'checkpoint-2'}"
    train(script, start, data, exported, *options, "--export", chosen)
    averages = load_file(output / "checkpoint-2" / "ema.safetensors")
    weights = CFLDPipeline.from_pretrained(exported).pose_adapter.state_dict()
    assert all(torch.equal(weight, averages[f"pose_adapter.{name}"]) for name, weight in weights.items())
    assert not script.list_checkpoints(exported)
    with pytest.raises(ValueError, match="has no checkpoint to export: name one with --resume_from_checkpoint"):
        train(script, start, data, exported, *options, "--export")


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
    parts = {name: parts[name] for name in ("vae", "scheduler")}
    parts["unet"] = fill(UNet2DConditionModel(**{**UNET_CONFIG, "layers_per_block": 2}))  # as in Stable Diffusion
    others = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    StableDiffusionPipeline(**parts, **others, requires_safety_checker=False).save_pretrained(tmp_path / "sd")

    # timm's weights are on the Hub: without them, nothing else is loaded.
    def offline(*args, **kwargs):
        raise OSError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(SwinImageEncoder, "from_timm", offline)
        patch.setattr(UNet2DConditionModel, "from_pretrained", None)
        with pytest.raises(
            OSError, match=r"Swin weights 'swin_base.*' cannot be loaded: .* --source_encoder_checkpoint"
        ):
            script.load_pipeline(script.parse_args(arguments(tmp_path / "sd", data, tmp_path / "out")))

    monkeypatch.setattr(
        SwinImageEncoder, "from_timm", classmethod(lambda cls, *args, **kwargs: cls(**SOURCE_ENCODER_CONFIG))
    )
    train(script, tmp_path / "sd", data, tmp_path / "out", "--resolution=64")
    pipe = CFLDPipeline.from_pretrained(tmp_path / "out")
    assert pipe.target_size == (64, 64)
    assert sample(pipe).shape == (1, 3, 64, 44)


def test_it_starts_from_a_folder_of_the_inpaint_pipeline(script, start, data, tmp_path):
    CFLDInpaintPipeline.from_pretrained(start).save_pretrained(tmp_path / "start")
    args = script.parse_args(arguments(tmp_path / "start", data, tmp_path / "out"))
    PartialState()  # the logger asks for it
    weights = script.load_pipeline(args).pose_adapter.state_dict()
    assert_bit_equal(weights, CFLDPipeline.from_pretrained(start).pose_adapter.state_dict())


@needs_fork
def test_killed_and_resumed_is_bit_equal(script, start, more_data, tmp_path, monkeypatch):
    options = ["--checkpointing_steps=2", "--use_ema", "--lr_scheduler=cosine", "--max_grad_norm=1"]
    # 3 batches an epoch, so an accumulation crosses its end.
    options += ["--gradient_accumulation_steps=2", "--max_train_samples=3", "--train_batch_size=1"]
    train(script, start, more_data, tmp_path / "whole", *options, steps=3)

    AcceleratorState._reset_state(True)
    options.append("--resume_from_checkpoint=latest")
    killed = (script, start, more_data, tmp_path / "killed", *options)
    with monkeypatch.context() as patch:
        batches, cfld_loss = itertools.count(1), script.cfld_loss

        def loss_until_killed(*args, **kwargs):
            if next(batches) == 6:  # in the middle of the third step
                os.kill(os.getpid(), signal.SIGKILL)
            return cfld_loss(*args, **kwargs)

        patch.setattr(script, "cfld_loss", loss_until_killed)
        process = multiprocessing.get_context("fork").Process(target=train, args=killed, kwargs={"steps": 3})
        process.start()
        process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert [folder.name for folder in script.list_checkpoints(tmp_path / "killed")] == ["checkpoint-2"]
    assert not (tmp_path / "killed" / "model_index.json").exists()
    train(*killed, steps=3)

    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(tmp_path / run / "checkpoint-3" / name) for run in ("whole", "killed"))
        assert_bit_equal(one, other)
    assert not (tmp_path / "killed" / "checkpoint.part").exists()

    # Once more there is nothing left to do.
    AcceleratorState._reset_state(True)
    train(*killed, steps=3)
    assert script.list_checkpoints(tmp_path / "killed")[-1].name == "checkpoint-3"


def test_accumulation_2x1_equals_1x2(script, steady_start, data, tmp_path):
    options = [*GRADIENT_SIZED_STEPS, "--condition_dropout_prob=0.5"]
    train(script, steady_start, data, tmp_path / "1x2", *options, batch=2, steps=2)
    AcceleratorState._reset_state(True)
    options.append("--gradient_accumulation_steps=2")
    train(script, steady_start, data, tmp_path / "2x1", *options, batch=1, steps=2)
    assert_moved_alike(steady_start, tmp_path / "1x2" / "checkpoint-2", tmp_path / "2x1" / "checkpoint-2")


@needs_fork
def test_two_processes_equal_one_with_the_same_global_batch(script, steady_start, more_data, tmp_path):
    options = GRADIENT_SIZED_STEPS
    train(script, steady_start, more_data, tmp_path / "one", *options, batch=2, steps=2)
    AcceleratorState._reset_state(True)
    args = script.parse_args(arguments(steady_start, more_data, tmp_path / "two", *options, batch=1, steps=2))
    debug_launcher(script.main, (args,), num_processes=2)
    assert_moved_alike(steady_start, tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")
    assert (
        CFLDPipeline.from_pretrained(tmp_path / "two").components.keys()
        == CFLDPipeline(**tiny_components()).components.keys()
    )


def test_lora_instead_of_keys_and_values(script, start, data, tmp_path):
    output = tmp_path / "out"
    train(script, start, data, output, "--unet_lora_rank=2", "--learning_rate=0.1")
    lora = {name: weight for name, weight in weights_of(output / "checkpoint-1").items() if "lora" in name}
    assert len(lora) == 6 * 2 * 2

    pipe = CFLDPipeline.from_pretrained(output)
    assert_bit_equal(pipe.unet.state_dict(), CFLDPipeline.from_pretrained(start).unet.state_dict())
    without = sample(pipe)
    pipe.load_lora_weights(output)
    loaded = {name: weight for name, weight in pipe.unet.named_parameters() if "lora" in name}
    assert len(loaded) == len(lora)
    for name, weight in loaded.items():
        assert torch.equal(weight, lora[f"unet.{name.replace('default_0', 'default')}"])
    with_lora = sample(pipe)
    assert not torch.equal(with_lora, without)
    assert 'pipe.load_lora_weights("out")' in (output / "README.md").read_text()

    # Another run begins with all that this one has learned.
    started = script.load_pipeline(script.parse_args(arguments(output, data, tmp_path / "next")))
    assert not any("lora" in name for name, _ in started.unet.named_parameters())
    again = sample(CFLDPipeline(**{**started.components, "scheduler": pipe.scheduler}))
    torch.testing.assert_close(again, with_lora, atol=1e-4, rtol=1e-4)

    # A LoRA is not left beside a pipeline that it does not belong to.
    for checkpoint in script.list_checkpoints(output):
        shutil.rmtree(checkpoint)
    AcceleratorState._reset_state(True)
    train(script, start, data, output)
    assert not (output / script.LORA_FILE).exists()


def test_bfloat16_trains_float32_weights(script, start, data, tmp_path):
    train(script, start, data, tmp_path / "out", "--mixed_precision=bf16", "--gradient_checkpointing")
    weights = [
        weight for weight in weights_of(tmp_path / "out" / "checkpoint-1").values() if weight.is_floating_point()
    ]
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert all(weight.isfinite().all() for weight in weights)
    pipe = CFLDPipeline.from_pretrained(tmp_path / "out", dtype="auto")
    assert pipe.unet.dtype == torch.float32
    assert_bit_equal(pipe.vae.state_dict(), CFLDPipeline.from_pretrained(start).vae.state_dict())


def test_models_in_half_precision_get_what_they_take(script, start, data, tmp_path, monkeypatch):
    """DeepSpeed casts the models, but not what they are given."""
    prepare = script.Accelerator.prepare
    monkeypatch.setattr(
        script.Accelerator, "prepare", lambda self, module, *others: prepare(self, module.bfloat16(), *others)
    )
    train(script, start, data, tmp_path / "out")
    weights = weights_of(tmp_path / "out" / "checkpoint-1")
    assert weights["pose_adapter.conv_in.weight"].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def plain_run(script, start, data, tmp_path_factory):
    """The folder of a run of one step without other options."""
    output = tmp_path_factory.mktemp("plain") / "out"
    train(script, start, data, output, *GRADIENT_SIZED_STEPS)
    AcceleratorState._reset_state(True)
    return output


def test_cached_latents_change_nothing(script, start, data, plain_run, tmp_path):
    train(script, start, data, tmp_path / "cached", *GRADIENT_SIZED_STEPS, "--cache_latents")
    assert_moved_alike(start, plain_run / "checkpoint-1", tmp_path / "cached" / "checkpoint-1")
    state = json.loads((tmp_path / "cached" / "latents" / "moments.json").read_text())
    assert state["num_encoded"] == 2


def test_shards_are_streamed_and_resumed(script, start, more_data, tmp_path):
    load_example("write_shards").write_shards(load_pairs(more_data), tmp_path / "shards", pairs_per_shard=2)
    options = ["--checkpointing_steps=2"]
    train(script, start, tmp_path / "shards", tmp_path / "whole", *options, steps=4)
    AcceleratorState._reset_state(True)
    options.append(f"--resume_from_checkpoint={tmp_path / 'whole' / 'checkpoint-2'}")
    train(script, start, tmp_path / "shards", tmp_path / "resumed", *options, steps=4)
    assert_bit_equal(*(weights_of(tmp_path / run / "checkpoint-4") for run in ("whole", "resumed")))
    # Shards do not tell the size of their images.
    frames = [CFLDPipeline.from_pretrained(folder).config.frame_height for folder in (start, tmp_path / "whole")]
    assert frames[0] == frames[1]


def test_options_of_the_objective(script, start, data, plain_run, tmp_path):
    """Each of them changes what is learned."""
    runs = {
        "uniform": ["--timestep_sampling=uniform"],
        "velocity": ["--prediction_type=v_prediction"],
        "min-snr": ["--snr_gamma=0.01"],
        "frozen": ["--freeze", "pose_adapter"],
        "published-drop": ["--condition_dropout_prob=1", "--dropped_conditions=prompt"],
    }
    weights = {"default": PoseAdapter.from_pretrained(plain_run / "pose_adapter").conv_in.weight}
    for name, options in runs.items():
        AcceleratorState._reset_state(True)
        train(script, start, data, tmp_path / name, *GRADIENT_SIZED_STEPS, *options)
        weights[name] = PoseAdapter.from_pretrained(tmp_path / name / "pose_adapter").conv_in.weight
    names = list(weights)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.equal(weights[one], weights[other]), (one, other)
    assert torch.equal(weights["frozen"], PoseAdapter.from_pretrained(start / "pose_adapter").conv_in.weight)
    scheduler = CFLDPipeline.from_pretrained(tmp_path / "velocity").scheduler
    assert scheduler.config.prediction_type == "v_prediction"


def test_reconstructions_without_weight_are_left_out(script, steady_start, data, tmp_path, monkeypatch):
    forward, sizes = CFLDTrainingModule.forward, []

    def counted(module, source_image, pose_map, *args):
        sizes.append((source_image.shape[0], pose_map.shape[0]))
        return forward(module, source_image, pose_map, *args)

    monkeypatch.setattr(CFLDTrainingModule, "forward", counted)
    for weight in ("1e-9", "0"):
        AcceleratorState._reset_state(True)
        options = [*GRADIENT_SIZED_STEPS, f"--reconstruction_loss_weight={weight}"]
        train(script, steady_start, data, tmp_path / weight, *options)
    assert sizes == [(2, 4), (2, 2)]
    assert_moved_alike(steady_start, *(tmp_path / weight / "checkpoint-1" for weight in ("1e-9", "0")))


def test_a_loss_that_is_not_finite_stops_the_run(script, start, data, tmp_path, monkeypatch):
    losses = []

    def breaking_loss(noise_pred, target, **kwargs):
        losses.append(cfld_loss(noise_pred, target, **kwargs))
        return losses[-1] * float("nan") if len(losses) == 3 else losses[-1]

    cfld_loss = script.cfld_loss
    monkeypatch.setattr(script, "cfld_loss", breaking_loss)
    with pytest.raises(SystemExit, match=r"The loss is nan after 2 steps; last good checkpoint: .*checkpoint-2\.$"):
        train(script, start, data, tmp_path / "out", "--checkpointing_steps=2", steps=4)
    assert [folder.name for folder in script.list_checkpoints(tmp_path / "out")] == ["checkpoint-2"]


def test_weights_that_break_are_not_saved(script, start, data, tmp_path, monkeypatch):
    def breaking_loss(noise_pred, target, **kwargs):
        # 0, with a gradient that is no number.
        return cfld_loss(noise_pred, target, **kwargs) + (0 * noise_pred.sum()).sqrt()

    cfld_loss = script.cfld_loss
    monkeypatch.setattr(script, "cfld_loss", breaking_loss)
    with pytest.raises(SystemExit, match=r"Some weights are not finite after 1 steps; last good checkpoint: none\."):
        train(script, start, data, tmp_path / "out", "--checkpointing_steps=1", steps=3)
    assert not script.list_checkpoints(tmp_path / "out")


def test_broken_images_are_named_and_left_out(script, start, tmp_path, caplog):
    folder = tmp_path / "data"
    write_lists(folder, NAMES[:4])
    for seed, name in enumerate(NAMES[:3]):
        save_image(folder / "train_highres" / name, seed)
    (folder / "train_highres" / NAMES[3]).write_bytes(b"no image")
    cached = ["--cache_latents", f"--latent_cache_dir={tmp_path / 'latents'}"]
    # The second of the runs with cached latents finds them there.
    for output, options in (("live", []), ("first", cached), ("second", cached)):
        AcceleratorState._reset_state(True)
        caplog.clear()
        train(script, start, folder, tmp_path / output, *options, steps=2 if output == "live" else 1)
        assert "1 file was skipped" in caplog.text, output
        assert NAMES[3] in caplog.text, output


def test_wholly_wrong_data_ends_the_run_before_weights_are_fetched(script, start, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "load_pipeline", None)
    folder = tmp_path / "data"
    write_lists(folder)
    for name in NAMES:
        (folder / "train_highres").mkdir(exist_ok=True)
        (folder / "train_highres" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be used"):
        train(script, start, folder, tmp_path / "out")


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
    kept = {name for name in files if name.startswith("checkpoint-1/") or name == ".lock"}
    assert kept
    assert uploaded == set(files) - kept
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= uploaded
    card = (tmp_path / "out" / "README.md").read_text()
    assert "hf_x" not in card
    assert 'from_pretrained("me/my-model")' in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unet_lora_rank=2", "--train_unet=all"], "--unet_lora_rank and --train_unet all cannot be used together"),
        (["--condition_dropout_prob=20"], "argument --condition_dropout_prob: must be from 0 to 1, got 20"),
        (["--hub_token=hf_x", "--report_to=wandb"], "log in with `hf auth login` instead"),
        (
            ["--dataset_format=shards", "--cache_latents"],
            "--cache_latents and --max_train_samples cannot be used with shards",
        ),
        (["--dataset_format=shards", "--validation_steps=1"], "--validation_steps needs --validation_data_dir"),
        (["--resolution=100"], "--resolution must be a multiple of 8, got 100"),
        (["--lr_scheduler=piecewise_constant"], "invalid choice: 'piecewise_constant'"),
    ],
)
def test_options_that_do_not_fit(script, start, data, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        script.parse_args(arguments(start, data, tmp_path / "out", *options))
    assert message in capsys.readouterr().err


def test_a_batch_that_the_pairs_do_not_fill(script, start, data, tmp_path):
    with pytest.raises(ValueError, match="2 pairs are too few for one batch per process"):
        train(script, start, data, tmp_path / "out", batch=3)
