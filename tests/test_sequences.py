"""Pose sequences: read, made a few frames at a time, resumed, and written as animations."""

import itertools
import json
import time
from functools import partial

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from testing_utils import image_embeds, load_ip_adapter, lora_state_dict, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import Keypoints
from diffusers_cfld.processors.pose_map import read_pose_sequence
from diffusers_cfld.sequences import load_pose_sequence, render_sequence, write_animation
from diffusers_cfld.small_model import example_poses


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def poses():
    first, second = example_poses()[:2]
    return [first.lerp(second, number / 4) for number in range(5)]


def pixels(path):
    return np.asarray(PIL.Image.open(path))


def assert_poses(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert np.array_equal(one.visible, other.visible)
        np.testing.assert_allclose(one.xy, other.xy, atol=1e-6)
        assert one.size == other.size


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_openpose_files_in_the_order_of_their_numbers(poses, tmp_path):
    for number, pose in zip((1, 2, 9, 10, 11), poses, strict=True):
        (tmp_path / f"frame_{number}_keypoints.json").write_text(json.dumps(pose.to_openpose()))
    (tmp_path / "notes.txt").write_text("not a frame")
    assert_poses(load_pose_sequence(tmp_path), poses)


def test_json_lines_and_arrays(poses, tmp_path):
    lines = [json.dumps(pose.to_openpose()) for pose in poses]
    y, x = poses[0].to_deepfashion()
    lines.append(json.dumps({"keypoints_y": y, "keypoints_x": x}))
    (tmp_path / "poses.jsonl").write_text("\n".join(lines) + "\n\n")
    read = load_pose_sequence(tmp_path / "poses.jsonl")
    assert_poses(read[:5], poses)
    assert len(read) == 6
    np.save(tmp_path / "poses.npy", np.stack([pose.to_array() for pose in poses]))
    assert_poses(load_pose_sequence(tmp_path / "poses.npy", size=(256, 176)), poses)


def test_frames_without_anybody_are_filled_in(poses, tmp_path, caplog):
    first, last = poses[0], poses[4]
    nobody = {"people": [], "canvas_height": 256, "canvas_width": 176}
    frames = [None, first.to_openpose(), None, nobody, None, last.to_openpose(), nobody]
    (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, frames)))
    read = load_pose_sequence(tmp_path / "poses.jsonl")
    assert_poses(read, [first, first, *(first.lerp(last, part) for part in (0.25, 0.5, 0.75)), last, last])
    assert "5 of 7 frames have nobody" in caplog.text
    array = np.stack([first.to_array(), np.full((18, 3), -1.0), last.to_array()])
    array[1, :, 2] = 0
    np.save(tmp_path / "poses.npy", array)
    assert_poses(load_pose_sequence(tmp_path / "poses.npy"), [first, first.lerp(last, 0.5), last])


def test_frames_in_which_no_joint_was_found_have_nobody(poses, tmp_path):
    first, last = poses[0], poses[4]
    zeros = {"people": [{"pose_keypoints_2d": [0.0] * 54}], "canvas_height": 256, "canvas_width": 176}
    frames = [first.to_openpose(), zeros, last.to_openpose()]
    (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, frames)))
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl"), [first, first.lerp(last, 0.5), last])
    np.save(tmp_path / "poses.npy", np.stack([first.to_array(), np.zeros((18, 3)), last.to_array()]))
    assert_poses(load_pose_sequence(tmp_path / "poses.npy"), [first, first.lerp(last, 0.5), last])
    two = {**zeros, "people": [*zeros["people"], *last.to_openpose()["people"]]}
    (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, [two, first.to_openpose()])))
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl", person=1), [last, last])


def test_every_form_of_nobody(poses, tmp_path):
    first, last = poses[0].to_openpose(), poses[4].to_openpose()
    y, x = [-1] * 18, [-1] * 18
    for nobody in ([], [{**first, "people": []}], [[-1, -1]] * 18, {"keypoints_y": y, "keypoints_x": x}):
        (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, [first, nobody, [last]])))
        read = load_pose_sequence(tmp_path / "poses.jsonl")
        assert_poses(read, [poses[0], poses[0].lerp(poses[4], 0.5), poses[4]])


@pytest.mark.parametrize("nobody", [[0] * 54, [0] * 75, [[-1] * 18, [-1] * 18]])
def test_nobody_in_flat_lists_and_columns(poses, tmp_path, nobody):
    lines = [poses[0].to_openpose(), nobody, poses[0].to_openpose()]
    (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl"), [poses[0]] * 3)


def test_one_of_several_people(poses, tmp_path):
    one, other = poses[0].to_openpose(), poses[4].to_openpose()
    frame = {**one, "people": [*one["people"], *other["people"]]}
    (tmp_path / "poses.jsonl").write_text(json.dumps(frame))
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl", person=1), [poses[4]])
    with pytest.raises(ValueError, match=r"poses.jsonl', line 1: .* has 2 people: choose one"):
        load_pose_sequence(tmp_path / "poses.jsonl")
    # The people alone.
    (tmp_path / "poses.jsonl").write_text(json.dumps(frame["people"]))
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl", (256, 176), person=1), [poses[4]])
    np.save(tmp_path / "poses.npy", poses[0].to_array()[None])
    with pytest.raises(ValueError, match="`person=1` is for OpenPose data with a list of people"):
        load_pose_sequence(tmp_path / "poses.npy", person=1)


def test_what_is_no_sequence_is_named(poses, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no pose sequence at"):
        load_pose_sequence(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"has no .json files"):
        load_pose_sequence(tmp_path)
    cases = {
        "poses.csv": ("", r"must be a folder, or end in .jsonl or .npy"),
        "broken.jsonl": (json.dumps(poses[0].to_openpose()) + "\n{broken", r"broken.jsonl', line 2: .*valid JSON"),
        "empty.jsonl": ("null\n", "has nobody in any of its 1 frames"),
        "broken.npy": ("no array", "cannot be read as an array"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_pose_sequence(tmp_path / name)
    np.save(tmp_path / "flat.npy", poses[0].to_array())
    with pytest.raises(ValueError, match=r"an array \(T, 18, 2 or 3\), got shape \(18, 3\)"):
        load_pose_sequence(tmp_path / "flat.npy")


# Making --------------------------------------------------------------------------------------------------------------


def render(pipe, poses, folder, **options):
    return list(render_sequence(pipe, poses, folder, **{"image": tiny_image(), "num_inference_steps": 2, **options}))


def test_frames_are_the_pipelines_pictures(pipe, poses, tmp_path):
    paths = render(pipe, poses, tmp_path / "frames", seed=3, micro_batch_size=2)
    assert [path.name for path in paths] == [f"{number:06d}.png" for number in range(5)]
    for number, path in enumerate(paths):
        expected = pipe(
            image=tiny_image(), pose=poses[number], num_inference_steps=2, generator=torch.manual_seed(3)
        ).images[0]
        assert np.abs(pixels(path).astype(int) - np.asarray(expected)).max() <= 1
    own = render(pipe, poses, tmp_path / "own", seed=3, shared_noise=False)
    expected = pipe(image=tiny_image(), pose=poses[1], num_inference_steps=2, generator=torch.manual_seed(4)).images[0]
    assert np.abs(pixels(own[1]).astype(int) - np.asarray(expected)).max() <= 1


def test_maps_and_encoded_sources(pipe, tmp_path):
    maps = tiny_pose(0, 3)
    first = render(pipe, maps, tmp_path / "one", image=None, appearance=pipe.encode_appearance(tiny_image()))
    second = render(pipe, list(maps), tmp_path / "two")
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(pixels(one), pixels(other))


def test_frames_come_as_they_are_made_and_a_killed_run_goes_on(pipe, poses, tmp_path, monkeypatch):
    folder = tmp_path / "frames"
    options = {"image": tiny_image(), "num_inference_steps": 2, "micro_batch_size": 2}
    for number, path in enumerate(render_sequence(pipe, poses, folder, **options)):
        assert path.is_file()
        if number == 1:
            break  # as a kill would
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000001.png"]
    (folder / "000001.png").unlink()
    before = (folder / "000000.png").stat().st_mtime_ns
    made = []
    call = type(pipe).__call__
    monkeypatch.setattr(type(pipe), "__call__", lambda self, **kw: made.append(len(kw["pose"])) or call(self, **kw))
    paths = list(render_sequence(pipe, poses, folder, **options))
    assert made == [1, 2, 1]
    assert (folder / "000000.png").stat().st_mtime_ns == before
    monkeypatch.undo()
    whole = render(pipe, poses, tmp_path / "whole", micro_batch_size=5)
    for one, other in zip(paths, whole, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 1
    # Another number of frames at once is the same sequence.
    assert list(render_sequence(pipe, poses, folder, **{**options, "micro_batch_size": 5})) == paths


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"num_inference_steps": 3}, {"image": tiny_image(1)}, {"shared_noise": False}, {"poses": 4}],
    ids=str,
)
def test_frames_of_something_else_are_not_taken(pipe, poses, tmp_path, change):
    render(pipe, poses, tmp_path / "frames")
    change = dict(change)
    some = poses[: change.pop("poses", 5)]
    with pytest.raises(ValueError, match="holds frames of another sequence, source, model or setting"):
        render(pipe, some, tmp_path / "frames", **change)


@pytest.mark.parametrize("part", ["prompt_decoder", "pose_adapter", "unet", "vae"])
def test_frames_of_another_model_are_not_taken(poses, tmp_path, part):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    render(pipe, poses[:1], tmp_path / "frames")
    with torch.no_grad():
        for name, weight in getattr(pipe, part).named_parameters():
            if part != "unet" or name.endswith("attn2.to_k.weight"):
                weight.mul_(1.01)
    with pytest.raises(ValueError, match="another sequence, source, model"):
        render(pipe, poses[:1], tmp_path / "frames")


def test_an_interrupted_call_leaves_no_unfinished_frame(pipe, poses, tmp_path):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    def go_on(pipe, step, timestep, tensors):
        return {}

    assert render(pipe, poses, tmp_path, callback_on_step_end=stop) == []
    assert not list(tmp_path.glob("*.png"))
    assert len(render(pipe, poses, tmp_path / "whole", callback_on_step_end=go_on)) == len(poses)
    with pytest.raises(ValueError, match="holds frames of another sequence"):
        render(pipe, poses, tmp_path / "whole", callback_on_step_end=stop)


def test_frames_of_another_callback_are_not_taken(pipe, poses, tmp_path):
    def make(scale):
        def change(pipe, step, timestep, tensors):
            return {"latents": scale * tensors["latents"]}

        return change

    assert len(render(pipe, poses, tmp_path / "one", callback_on_step_end=make(1))) == len(poses)
    assert len(render(pipe, poses, tmp_path / "one", callback_on_step_end=make(1))) == len(poses)
    with pytest.raises(ValueError, match="holds frames of another sequence"):
        render(pipe, poses, tmp_path / "one", callback_on_step_end=make(2))
    by_constant = []
    for constant in (1, 2):
        names = {}
        exec(
            f"def change(pipe, step, timestep, tensors):\n return {{'latents': {constant} * tensors['latents']}}",
            names,
        )
        by_constant.append(names["change"])
    render(pipe, poses, tmp_path / "two", callback_on_step_end=by_constant[0])
    with pytest.raises(ValueError, match="holds frames of another sequence"):
        render(pipe, poses, tmp_path / "two", callback_on_step_end=by_constant[1])


class Damp:
    def __init__(self, scale):
        self.scale = scale
        self.seen = []  # what a callback gathers is no setting of it

    def __call__(self, pipe, step, timestep, tensors):
        self.seen.append(step)
        return {"latents": self.scale * tensors["latents"]}

    def damp(self, pipe, step, timestep, tensors):
        return self(pipe, step, timestep, tensors)


class Fade:
    def __init__(self, scale):
        self.scale = scale
        self._started = time.monotonic()

    def fade(self, pipe, step, timestep, tensors):
        return {"latents": self.scale * tensors["latents"]}


def recording(scale):
    class Recording:
        def __init__(self):
            self.scale, self.steps = scale, []

        def __call__(self, pipe, step, timestep, tensors):
            recorder.steps.append(step)  # its own method holds it
            return {"latents": self.scale * tensors["latents"]}

    recorder = Recording()
    return recorder


class Cutoff(PipelineCallback):
    tensor_inputs = ["latents"]

    def callback_fn(self, pipe, step, timestep, tensors):
        return {} if step < self.config.cutoff_step_ratio else {"latents": 0.9 * tensors["latents"]}


@pytest.mark.parametrize(
    "make",
    [
        Damp,
        recording,
        lambda scale: Damp(scale).damp,
        lambda scale: Fade(scale).fade,
        lambda scale: partial(Damp.damp, Damp(scale)),
        lambda scale: Cutoff(cutoff_step_ratio=scale),
        lambda scale: MultiPipelineCallbacks([Cutoff(cutoff_step_ratio=scale)]),
    ],
)
def test_frames_of_a_callback_with_another_setting_are_not_taken(pipe, poses, tmp_path, make):
    callback = make(0.5)
    for again in (callback, callback, make(0.5)):
        assert len(render(pipe, poses[:1], tmp_path, callback_on_step_end=again)) == 1
    with pytest.raises(ValueError, match="holds frames of another sequence"):
        render(pipe, poses[:1], tmp_path, callback_on_step_end=make(0.25))


def test_people_in_pictures_of_one_size_share_a_window(poses, tmp_path):
    """Somebody walks through a film, at first with the arms down."""
    where = itertools.cycle([0, 300])

    def estimate(picture):
        return [poses[0].__class__(poses[0].xy + [next(where), 100], poses[0].visible, None, (500, 800))]

    pictures = [PIL.Image.new("RGB", (800, 500)) for _ in range(2)]
    first, second = read_pose_sequence(pictures, estimate, shape=(256, 176))
    np.testing.assert_allclose(np.ptp(first.xy, axis=0), np.ptp(second.xy, axis=0), atol=1e-6)
    assert (second.xy - first.xy)[0, 0] > 50
    pipe = tiny_pipeline()
    expected = render(pipe, [first, second], tmp_path / "keypoints")
    pipe.pose_estimator = estimate
    made = render(pipe, pictures, tmp_path / "pictures")
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(other))


def test_frames_of_another_adapter_are_not_taken(poses, tmp_path):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    load_ip_adapter(pipe)
    options = {"ip_adapter_image_embeds": image_embeds()}
    pipe.load_lora_weights(lora_state_dict(0), adapter_name="one")
    render(pipe, poses[:1], tmp_path / "frames", **options)
    render(pipe, poses[:1], tmp_path / "frames", **options)
    message = "another sequence, source, model or setting"
    with pytest.raises(ValueError, match=message):
        render(pipe, poses[:1], tmp_path / "frames", ip_adapter_image_embeds=[-image_embeds()[0]])
    for change in (
        lambda: pipe.set_adapters("one", 0.2),
        pipe.disable_lora,
        lambda: pipe.set_ip_adapter_scale(0.2),
        lambda: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
    ):
        change()
        with pytest.raises(ValueError, match=message):
            render(pipe, poses[:1], tmp_path / "frames", **options)
        pipe.enable_lora()
        pipe.set_adapters("one", 1.0)


def test_a_call_that_fails_blocks_no_folder(pipe, poses, tmp_path):
    with pytest.raises(ValueError, match="`height`"):
        render(pipe, poses[:1], tmp_path / "frames", height=100)
    assert len(render(pipe, poses[:1], tmp_path / "frames")) == 1


def test_files_that_hide_or_are_no_text(poses, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(poses[0].to_openpose()))
    (tmp_path / "._one.json").write_bytes(b"\xff\xfe\0")
    assert len(load_pose_sequence(tmp_path)) == 1
    (tmp_path / "two.jsonl").write_bytes("null".encode("utf-16"))
    with pytest.raises(ValueError, match=r"two\.jsonl' must be text in UTF-8"):
        load_pose_sequence(tmp_path / "two.jsonl")


def test_frames_of_a_model_compiled_since_are_taken(poses, tmp_path):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    (path,) = render(pipe, poses[:1], tmp_path / "frames")
    before = path.stat().st_mtime_ns
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert render(pipe, poses[:1], tmp_path / "frames") == [path]
    assert path.stat().st_mtime_ns == before


def test_frames_of_other_numpy_settings_are_not_taken(pipe, poses, tmp_path):
    render(pipe, poses[:1], tmp_path / "frames", guidance_scale=np.float32(2))
    render(pipe, poses[:1], tmp_path / "frames", guidance_scale=2.0)
    with pytest.raises(ValueError, match="another sequence, source, model or setting"):
        render(pipe, poses[:1], tmp_path / "frames", guidance_scale=np.float32(3))


def test_pictures_as_poses_are_resumed(pipe, poses, tmp_path):
    poses[0].draw().save(tmp_path / "pose.png")
    pipe.pose_estimator = lambda image: [Keypoints.from_skeleton(image)]
    try:
        first = render(pipe, [PIL.Image.open(tmp_path / "pose.png")], tmp_path / "frames")
        before = first[0].stat().st_mtime_ns
        assert render(pipe, [PIL.Image.open(tmp_path / "pose.png")], tmp_path / "frames") == first
        assert first[0].stat().st_mtime_ns == before
    finally:
        pipe.pose_estimator = None


def test_offloaded_one_after_another(poses, tmp_path):
    from accelerate import cpu_offload

    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, torch.device("cpu"), offload_buffers=True)
    assert len(render(pipe, poses[:2], tmp_path / "frames")) == 2


def test_what_makes_no_sequence_is_named(pipe, poses, tmp_path):
    with pytest.raises(ValueError, match="`poses` is empty"):
        render(pipe, [], tmp_path / "frames")
    with pytest.raises(ValueError, match="either `image` or `appearance`"):
        render(pipe, poses, tmp_path / "frames", image=None)
    with pytest.raises(TypeError, match="got `PoseFeatures`"):
        render(pipe, pipe.encode_pose(poses), tmp_path / "frames")
    with pytest.raises(ValueError, match="shows one person, got 2 sources"):
        render(pipe, poses, tmp_path / "frames", image=tiny_image(0, 2))
    with pytest.raises(ValueError, match="`micro_batch_size` must be at least 1"):
        render(pipe, poses, tmp_path / "frames", micro_batch_size=0)
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        render(pipe, poses, tmp_path / "frames", seed=-1)
    with pytest.raises(ValueError, match="`render_sequence` does not take output_type"):
        render(pipe, poses, tmp_path / "frames", output_type="np")
    PIL.Image.new("RGB", (5, 5)).save(tmp_path / "holiday.png")
    with pytest.raises(ValueError, match="pictures that are no frames"):
        render(pipe, poses, tmp_path)


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        PIL.Image.new("RGB", (33, 47), (60 * number, 100, 255 - 60 * number)).save(paths[-1])
    return paths


def test_a_gif(frames, tmp_path):
    write_animation(frames, tmp_path / "new" / "out.gif", 10)
    with PIL.Image.open(tmp_path / "new" / "out.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size == (33, 47)
        assert animation.info["duration"] == 100
        assert animation.info["loop"] == 0
        animation.seek(2)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - pixels(frames[2])).max() < 8
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.gif"]


def test_an_mp4_of_odd_size(frames, tmp_path):
    write_animation(frames, tmp_path / "out.mp4", 25)
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 25
    pictures = []
    while (frame := capture.read())[0]:
        pictures.append(frame[1][..., ::-1])
    assert len(pictures) == 4
    assert pictures[0].shape == (48, 34, 3)
    assert np.abs(pictures[2].astype(int).mean(axis=(0, 1)) - pixels(frames[2]).mean(axis=(0, 1))).max() < 8


def test_what_cannot_be_written_is_named(frames, tmp_path):
    with pytest.raises(ValueError, match="`frames` is empty"):
        write_animation([], tmp_path / "out.gif")
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4"):
        write_animation(frames, tmp_path / "out.avi")
    for speed, suffix in ((0, "gif"), (51, "gif"), (-1, "mp4")):
        with pytest.raises(ValueError, match=r"`frames_per_second` must be from 0.01"):
            write_animation(frames, tmp_path / f"out.{suffix}", speed)
    PIL.Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"one size \(width, height\), got \[\(5, 5\), \(33, 47\)\]"):
        write_animation([*frames, tmp_path / "small.png"], tmp_path / "out.mp4")
    with pytest.raises(FileNotFoundError):
        write_animation([*frames, tmp_path / "missing.png"], tmp_path / "out.gif")
    assert not list(tmp_path.glob("*out*"))


def test_a_pose_is_a_sequence_of_one(pipe, poses, tmp_path):
    (path,) = render(pipe, poses[:1], tmp_path / "frames", output_size=(47, 33))
    write_animation([path], tmp_path / "out.gif")
    assert isinstance(poses[0], Keypoints)
    assert PIL.Image.open(tmp_path / "out.gif").size == (33, 47)
