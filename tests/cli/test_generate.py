"""`diffusers-cfld generate` as a script calls it."""

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import save_file
from testing_utils import lora_state_dict, scheduler_config, tiny_pipeline

import diffusers_cfld
from diffusers_cfld import CFLDPipeline, Keypoints
from diffusers_cfld.cli import build_parser, inputs, main
from diffusers_cfld.cli.generate import _ahead
from diffusers_cfld.cli.inputs import open_image
from diffusers_cfld.cli.options import SCHEDULERS, choose_scheduler, lora
from diffusers_cfld.small_model import SMALL_MODEL, example_poses, example_sources

POINTS = [[88, 30], [88, 60], [66, 60], [60, 95], [58, 125], [110, 60], [116, 95], [118, 125], [74, 125]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two photos and two poses."""
    folder = tmp_path_factory.mktemp("generate")
    tiny_pipeline().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        PIL.Image.fromarray(rng.integers(0, 256, (64, 44, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    pose = Keypoints.from_array(POINTS + [[-1, -1]] * 9)
    (folder / "a.json").write_text(json.dumps(pose.to_openpose()))
    (folder / "b.json").write_text(json.dumps(pose.mirror().to_openpose()))
    np.save(folder / "a.npy", np.array(POINTS + [[-1, -1]] * 9))
    return folder


def generate(folder, *arguments, images=("a.png",), poses=("a.json",), output="out.png"):
    command = ["generate", "--model", str(folder / "model"), "--steps", "2", "--device", "cpu", "--seed", "3"]
    command += ["--image", *(name if "://" in str(name) else str(folder / name) for name in images)]
    command += ["--pose", *(str(folder / name) for name in poses), "--output", str(output), *arguments]
    return main(command)


def pixels(path):
    return np.asarray(PIL.Image.open(path))


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """The image of a command without further options."""
    path = tmp_path_factory.mktemp("plain") / "out.png"
    assert generate(folder, output=path) == 0
    return pixels(path)


def test_one_picture_equals_the_pipelines(folder, tmp_path, capsys):
    assert generate(folder, output=tmp_path / "new" / "out.png") == 0
    pipe = CFLDPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        image=PIL.Image.open(folder / "a.png"),
        pose=Keypoints.load(folder / "a.json"),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert np.array_equal(pixels(tmp_path / "new" / "out.png"), np.asarray(expected))
    captured = capsys.readouterr()
    assert "2/2" in captured.err  # progress
    assert str(tmp_path / "new" / "out.png") in captured.err
    assert sorted(os.listdir(tmp_path / "new")) == ["out.png"]


def test_many_pairs_broadcast_and_pair_up(folder, tmp_path):
    poses = ("a.json", "b.json")
    assert generate(folder, poses=poses, output=tmp_path / "poses.png") == 0
    assert generate(folder, "--batch-size", "2", poses=poses, output=tmp_path / "batch.png") == 0
    for i in range(2):
        single, batch = pixels(tmp_path / f"poses-{i}.png"), pixels(tmp_path / f"batch-{i}.png")
        assert np.abs(single.astype(int) - batch).max() <= 1
    assert not np.array_equal(pixels(tmp_path / "poses-0.png"), pixels(tmp_path / "poses-1.png"))
    pairs = {"images": ("a.png", "b.png"), "poses": poses}
    assert generate(folder, "--num-images", "2", **pairs, output=tmp_path / "pair.jpg") == 0
    assert len(list(tmp_path.glob("pair-?.jpg"))) == 4


def test_resume_skips_what_is_there_and_was_made_alike(folder, tmp_path, capsys, monkeypatch):
    arguments = {"poses": ("a.json", "b.json"), "output": tmp_path / "out.png"}
    assert generate(folder, **arguments) == 0
    first, second = tmp_path / "out-0.png", tmp_path / "out-1.png"
    expected = pixels(second)
    first.write_bytes(b"kept")
    second.unlink()
    assert generate(folder, "--resume", **arguments) == 0
    assert first.read_bytes() == b"kept"
    assert np.array_equal(pixels(second), expected)
    second.unlink()
    for changed in ({"options": ("--guidance-scale", "1.5")}, {"poses": ("b.json", "a.json")}):
        options = changed.pop("options", ())
        assert generate(folder, "--resume", *options, **{**arguments, **changed}) == 1
        assert "does not say that it was made with this model" in capsys.readouterr().err
    assert not second.exists()
    # A call without it that was interrupted has begun a series of its own.
    changed = ("--guidance-scale", "1.5")
    with monkeypatch.context() as patch:
        patch.setattr("diffusers_cfld.cli.generate.load_pipeline", interrupt)
        assert generate(folder, *changed, **arguments) == 130
    assert generate(folder, "--resume", *changed, **arguments) == 1
    assert first.read_bytes() == b"kept"
    assert generate(folder, *changed, **arguments) == 0
    first.write_bytes(b"new")
    assert generate(folder, "--resume", *changed, **arguments) == 0
    assert first.read_bytes() == b"new"


def test_a_call_that_fails_before_the_first_picture_leaves_the_record(folder, tmp_path):
    arguments = {"poses": ("a.json", "b.json"), "output": tmp_path / "out.png"}
    assert generate(folder, **arguments) == 0
    first, second = tmp_path / "out-0.png", tmp_path / "out-1.png"
    first.write_bytes(b"kept")
    second.unlink()
    assert generate(folder, "--model", str(tmp_path / "nowhere"), **arguments) == 1
    assert generate(folder, "--height", "100", **arguments) == 1
    assert generate(folder, "--resume", **arguments) == 0
    assert first.read_bytes() == b"kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Pillow leaves the pipe open
def test_a_photo_may_come_through_a_pipe(folder, plain, tmp_path):
    """As `--image <(curl ...)` of shells, which can be read once."""
    os.mkfifo(tmp_path / "photo.png")
    writer = threading.Thread(target=(tmp_path / "photo.png").write_bytes, args=((folder / "a.png").read_bytes(),))
    writer.start()
    assert generate(folder, images=(tmp_path / "photo.png",), output=tmp_path / "pipe.png") == 0
    writer.join()
    assert np.array_equal(pixels(tmp_path / "pipe.png"), plain)


def test_the_sample_person_with_a_lora_and_a_scheduler_by_its_short_name(folder, tmp_path):
    save_file(lora_state_dict(0), tmp_path / "style.safetensors")
    options = ["--lora", f"{tmp_path / 'style.safetensors'}:0.5", "--scheduler", "dpm++-karras", "--output"]
    command = ["--steps", "2", "--seed", "3", "--image", "sample", "--pose", "sample", *options]
    assert main(["generate", "--model", str(folder / "model"), *command, str(tmp_path / "out.png")]) == 0
    pipe = CFLDPipeline.from_pretrained(folder / "model")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    pipe.set_adapters("style", 0.5)
    options = {"num_inference_steps": 2, "generator": torch.manual_seed(3)}
    expected = pipe(image=example_sources()[0], pose=example_poses()[3], **options).images[0]
    assert np.abs(pixels(tmp_path / "out.png").astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("name", [*SCHEDULERS, "Euler_A", "DDIMScheduler"])
def test_schedulers_have_short_names(name):
    scheduler, options = choose_scheduler(name)
    made = scheduler.from_config(scheduler_config(), **options)
    made.set_timesteps(4)
    assert len(made.timesteps) >= 4


def test_the_weight_of_a_lora_follows_the_last_colon():
    texts = ["a.safetensors", "a.safetensors:0.5", "org/name:-1", r"C:\loras\a.safetensors", "folder:name"]
    expected = [(texts[0], 1.0), (texts[0], 0.5), ("org/name", -1.0), (texts[3], 1.0), (texts[4], 1.0)]
    assert [lora(text) for text in texts] == expected


def test_folders_of_drawn_skeletons_are_poses(folder, tmp_path):
    (tmp_path / "poses").mkdir()
    for number, pose in enumerate(example_poses()[:2]):
        pose.draw().save(tmp_path / "poses" / f"{number}.png")
    options = ["generate", "--image", "sample", "--pose", str(tmp_path / "poses"), str(folder / "a.json"), "sample"]
    arguments = build_parser().parse_args(options)
    read = inputs.Inputs(arguments).read_poses(arguments.pose)
    assert [target.is_estimated for target in read] == [False] * 4
    for target, pose in zip(read, example_poses()[:2], strict=False):
        assert np.abs(target.keypoints.xy - pose.xy)[pose.visible].max() < 2
    assert read[3].keypoints == example_poses()[3]


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scheduler", "DDIMScheduler"],
        ["--guidance-scale", "1"],
        ["--pose-guidance-scale", "3"],
        ["--appearance-guidance-scale", "0"],
        ["--guidance-interval", "0", "0.5"],
        ["--dtype", "bfloat16"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_options_change_the_picture(folder, plain, tmp_path, arguments):
    assert generate(folder, *arguments, output=tmp_path / "changed.png") == 0
    assert not np.array_equal(pixels(tmp_path / "changed.png"), plain)


def test_sizes(folder, tmp_path):
    size = ["--height", "64", "--width", "96", "--output-size", "50", "60"]
    assert generate(folder, *size, output=tmp_path / "out.png") == 0
    assert pixels(tmp_path / "out.png").shape == (50, 60, 3)
    assert generate(folder, *size[:4], output=tmp_path / "out.png") == 0
    assert pixels(tmp_path / "out.png").shape == (64, 96, 3)


def test_pose_frame_scales_poses_that_have_none(folder, plain, tmp_path):
    frame = ["--pose-frame", "256", "176"]
    assert generate(folder, *frame, poses=("a.npy",), output=tmp_path / "array.png") == 0
    assert np.array_equal(pixels(tmp_path / "array.png"), plain)


def test_a_row_of_the_fields_csv_and_a_person_can_be_chosen(folder, plain, tmp_path):
    pose = Keypoints.load(folder / "a.json")
    y, x = pose.to_deepfashion()
    (folder / "rows.csv").write_text(f"name:keypoints_y:keypoints_x\nfirst:{y[::-1]}:{x}\nsecond:{y}:{x}\n")
    people = {**pose.to_openpose(), "people": [{"pose_keypoints_2d": [1.0] * 54}, *pose.to_openpose()["people"]]}
    (folder / "people.json").write_text(json.dumps(people))
    assert generate(folder, "--pose-row", "second", poses=("rows.csv",), output=tmp_path / "row.png") == 0
    assert generate(folder, "--pose-person", "1", poses=("people.json",), output=tmp_path / "person.png") == 0
    assert np.array_equal(pixels(tmp_path / "row.png"), plain)
    assert np.array_equal(pixels(tmp_path / "person.png"), plain)


def test_an_unexpected_failure_is_one_line_too(folder, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(CFLDPipeline, "encode_pose", fail)
    assert generate(folder, output=tmp_path / "out.png") == 1
    assert "diffusers-cfld: error: unexpected RuntimeError: out of memory (set" in capsys.readouterr().err
    monkeypatch.setenv("DIFFUSERS_CFLD_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="memory"):
        generate(folder, output=tmp_path / "out.png")


def bad_pose(folder, content):
    path = folder / "bad.json"
    path.write_text(content)
    return path.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": ("missing.png",)}, "No such file or directory"),
        ({"images": ("a.json",)}, "a.json' cannot be read as an image"),
        ({"poses": ("missing.json",)}, "missing.json"),
        ({"poses": ("a.png",)}, "a.png"),
        ({"images": ("a.png",) * 2, "poses": ("a.json",) * 3}, "got 2 and 3"),
        ({"arguments": ["--scheduler", "Nothing"]}, "must name a scheduler class of diffusers"),
        ({"arguments": ["--scheduler", "UNet2DModel"]}, "must name a scheduler class of diffusers"),
        ({"arguments": ["--guidance-scale", "-1"]}, "must be a finite number >= 0, got -1"),
        ({"arguments": ["--height", "100"]}, "multiples of 8"),
        ({"arguments": ["--scheduler", "FlowMatchEulerDiscreteScheduler"]}, "got FlowMatchEulerDiscreteScheduler"),
        ({"arguments": ["--lora", "nowhere.safetensors:2"]}, "--lora nowhere.safetensors: there is no such file"),
        ({"arguments": ["--lora", str(SMALL_MODEL / "model_index.json")]}, "model_index.json: "),
        ({"images": ("https://127.0.0.1:9/a.png",)}, "does not answer with an image"),
        ({"arguments": ["--offload"]}, "--offload needs a GPU"),
        ({"arguments": ["--device", "cuda:9"]}, "--device cuda:9 cannot be used here"),
        ({"arguments": ["--device", "nonsense"]}, "--device nonsense cannot be used here"),
    ],
    ids=str,
)
def test_bad_input_ends_in_one_sentence_and_exit_code_1(folder, tmp_path, capsys, options, message):
    arguments = options.pop("arguments", [])
    assert generate(folder, *arguments, **{"output": tmp_path / "out.png", **options}) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "diffusers-cfld: error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        (json.dumps({"people": []}), "people"),
    ],
)
def test_bad_pose_files_are_named(folder, tmp_path, capsys, content, message):
    assert generate(folder, poses=(bad_pose(folder, content),), output=tmp_path / "out.png") == 1
    error = capsys.readouterr().err
    assert "bad.json" in error
    assert message in error


@pytest.mark.parametrize("model", ["nothing-here", "photos"])
def test_a_model_that_is_none_is_named(folder, tmp_path, capsys, model):
    (folder / "photos").mkdir(exist_ok=True)
    command = ["generate", "--model", str(folder / model), "--image", str(folder / "a.png")]
    assert main([*command, "--pose", str(folder / "a.json"), "--output", str(tmp_path / "out.png")]) == 1
    error = capsys.readouterr().err
    assert "diffusers-cfld: error:" in error
    assert model in error


def test_a_model_in_a_variant_only_names_the_option(folder, tmp_path, capsys):
    command = ["generate", "--model", str(SMALL_MODEL), "--image", str(folder / "a.png")]
    assert main([*command, "--pose", str(folder / "a.json"), "--output", str(tmp_path / "out.png")]) == 1
    assert "it only has variants of the weights: pass --variant fp16." in capsys.readouterr().err


def test_photos_are_not_kept_while_others_are_made(folder, tmp_path, monkeypatch):
    """However many there are, few of them are in memory."""
    opened, most = [], []

    def open_one(path):
        picture = open_image(path)
        opened.append(weakref.ref(picture))
        most.append(sum(one() is not None for one in opened))
        return picture

    monkeypatch.setattr(inputs, "open_image", open_one)
    images = [tmp_path / f"{number}.png" for number in range(10)]
    for image in images:
        image.write_bytes((folder / "a.png").read_bytes())
    assert generate(folder, "--batch-size", "2", images=images, output=tmp_path / "out.png") == 0
    assert max(most) <= 6  # a batch and the next one, and the two opened last


def test_processes_share_the_pairs_and_make_the_images_of_one(folder, tmp_path, monkeypatch):
    pairs = {"images": ("a.png", "b.png", "a.png"), "poses": ("a.json", "b.json", "b.json")}
    assert generate(folder, **pairs, output=tmp_path / "one" / "out.png") == 0
    monkeypatch.setenv("LOCAL_RANK", "0")  # as launchers do
    written = []
    for rank, options in ((0, ()), (1, ()), (1, ("--resume",))):
        (tmp_path / "two" / "out-1.png").unlink(missing_ok=True)
        process = SimpleNamespace(
            process_index=rank, num_processes=2, device="cpu", wait_for_everyone=lambda: written.append("waits")
        )
        monkeypatch.setattr("accelerate.PartialState", lambda cpu, process=process: process)
        assert generate(folder, *options, **pairs, output=tmp_path / "two" / "out.png") == 0
        written.append(sorted(os.listdir(tmp_path / "two")))
    note, *images = sorted(os.listdir(tmp_path / "one"))
    assert written == ["waits", [note, images[0], images[2]], "waits", [note, *images], "waits", [note, *images]]
    for name in (note, *images):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_files_are_read_and_written_in_a_thread_one_batch_ahead():
    begun = []

    def work(item):
        begun.append(item)
        if item == 2:
            raise OSError("no space left")
        return threading.get_ident()

    results = _ahead(work, iter(range(9)))
    assert next(results) != threading.get_ident()
    assert next(results)
    assert begun in ([0, 1], [0, 1, 2])
    with pytest.raises(OSError, match="no space left"):
        next(results)
    assert begun == [0, 1, 2, 3]


def test_truncated_weights_are_named(folder, tmp_path, capsys):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "pose_adapter" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    command = ["generate", "--model", str(tmp_path / "model"), "--image", str(folder / "a.png")]
    assert main([*command, "--pose", str(folder / "a.json"), "--output", str(tmp_path / "out.png")]) == 1
    assert "diffusers-cfld: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["generate"], "the following arguments are required: --image, --pose"),
        (["generate", "--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["generate", "--batch-size", "many"], "argument --batch-size: invalid positive_int value: 'many'"),
        (
            ["generate", "--output", "out.txt"],
            "argument --output: must end in .png, .jpg or another suffix of images, got",
        ),
        (["generate", "--background", "purpel"], "argument --background: invalid color value: 'purpel'"),
        (["animate", "--output", "out.avi"], "argument --output: must end in .gif or .mp4, or be a folder for frames"),
        (["animate", "--fps", "0"], "argument --fps: must be above 0, got 0"),
        (
            ["generate", "--source-pose", "a.json", "--source-box", "0", "0", "9", "9"],
            "argument --source-box: not allowed with argument --source-pose",
        ),
        (["interpolate", "--num-images", "0"], "argument --num-images: must be at least 1, got 0"),
    ],
)
def test_wrong_usage_names_the_option_and_exits_with_2(capsys, command, message):
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert message in capsys.readouterr().err


def test_module_and_console_script_show_help_and_version():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for arguments, expected in ((["--version"], diffusers_cfld.__version__), (["generate", "--help"], "--pose")):
        command = [sys.executable, "-m", "diffusers_cfld", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert expected in result.stdout
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="diffusers-cfld")
    assert script.load() is main
