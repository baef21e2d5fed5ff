"""Pose sequences: read, made a few frames at a time, resumed, and written as animations."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler
from testing_utils import lora_state_dict, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import Keypoints, small_model
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
    assert "5 of 7 frames have no person" in caplog.text
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
    (tmp_path / "poses.jsonl").write_text("\n".join(map(json.dumps, [two, zeros, first.to_openpose()])))
    for person in (1, None):  # the one without joints counts, but need not be chosen against
        read = load_pose_sequence(tmp_path / "poses.jsonl", person=person)
        assert_poses(read, [last, last.lerp(first, 0.5), first])


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
    assert_poses(load_pose_sequence(tmp_path / "poses.jsonl", size=(256, 176)), [poses[0]] * 3)


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


def people_in_json(*people):
    """OpenPose's JSON of a frame of 720x1280 with people whose joints begin at these x."""
    numbers = [[value for n in range(18) for value in (left + 3 * n, 60 + 30 * n, 0.8)] for left in people]
    return {"people": [{"pose_keypoints_2d": person} for person in numbers]}


def left_ends(*arguments, **options):
    return [float(pose.xy[0, 0]) for pose in load_pose_sequence(*arguments, **options)]


def test_one_person_is_followed_when_the_order_of_people_changes(tmp_path, caplog):
    for number in range(6):
        people = (100 + number, 800 - number)
        content = people_in_json(*(people[::-1] if number % 2 else people))
        (tmp_path / f"two_{number:012d}_keypoints.json").write_text(json.dumps(content))
    assert left_ends(tmp_path, (720, 1280), person=0) == [100, 101, 102, 103, 104, 105]
    assert left_ends(tmp_path, (720, 1280), person=1) == [800, 799, 798, 797, 796, 795]
    # Somebody who is alone at first need not be chosen.
    (tmp_path / "two_000000000000_keypoints.json").write_text(json.dumps(people_in_json(800)))
    assert left_ends(tmp_path, (720, 1280)) == [800, 799, 798, 797, 796, 795]
    assert not caplog.records


def test_two_people_cross(tmp_path):
    ways = [(100 + 20 * number, 310 - 20 * number) for number in range(11)]
    frames = [people_in_json(*(way[::-1] if number % 3 else way)) for number, way in enumerate(ways)]
    (tmp_path / "poses.json").write_text(json.dumps(frames))
    for person in (0, 1):
        assert left_ends(tmp_path / "poses.json", (720, 1280), person=person) == [way[person] for way in ways]


def test_a_folder_of_labels(poses, tmp_path):
    joints = (poses[0].xy[:17] / (176, 256)).ravel()
    for number in (1, 2, 10):
        (tmp_path / f"video_{number}.txt").write_text(" ".join(map(str, [0, 0.5, 0.5, 1, 1, *joints + number / 100])))
    (tmp_path / "video_3.txt").write_text("")
    ends = left_ends(tmp_path, (256, 176))
    assert len(ends) == 4
    assert ends == sorted(ends)


def test_a_jump_is_warned_of(tmp_path, caplog):
    def warnings(*frames):
        caplog.clear()
        (tmp_path / "poses.json").write_text(json.dumps([people_in_json(*people) for people in frames]))
        load_pose_sequence(tmp_path / "poses.json", (720, 1280), person=0)
        return [record.getMessage() for record in caplog.records if "jumps" in record.getMessage()]

    # The person is 510 pixels tall.
    assert warnings([100], [350], [600]) == []
    (message,) = warnings([100, 800], [800], [801], [100])
    assert "jumps by more than half of its height or width at frames 1, 3 (counted from 0)" in message
    assert warnings([100], [], [600]) == []  # as long a way in twice the time
    assert len(warnings([100], [], [620])) == 1
    (message,) = warnings(*([100 + 600 * (n % 2)] for n in range(20)))
    assert "at frames 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 9 others" in message


@pytest.mark.parametrize("person", [None, 0])
def test_frames_in_one_json_file(poses, tmp_path, person):
    first, last = poses[0], poses[4]
    between = [first, first.lerp(last, 0.5), last]
    nobody = {"people": [], "canvas_height": 256, "canvas_width": 176}
    y, x = zip(*(pose.to_deepfashion() for pose in poses[::4]), strict=True)
    columns = [{"keypoints_y": y[n], "keypoints_x": x[n]} for n in (0, 1)]
    arrays = [pose.to_array().tolist() for pose in (first, last)]
    animals = {"version": "ap10k", "animals": [[1.0] * 51], "canvas_height": 256, "canvas_width": 176}
    for frames in (
        [first.to_openpose(), nobody, last.to_openpose()],
        [first.to_openpose(), animals, last.to_openpose()],
        [first.to_openpose(), None, last.to_openpose()],
        [arrays[0], None, arrays[1]],
        [arrays[:1], [], arrays[1:]],
        [[value for row in arrays[0] for value in row], [], [value for row in arrays[1] for value in row]],
        {"instance_info": [{"frame_id": n, "instances": people} for n, people in enumerate(
            [[{"keypoints": arrays[0]}], [], [{"keypoints": arrays[1]}]]
        )]},
        {"images": [{"id": n, "height": 256, "width": 176} for n in range(3)],
         "annotations": [{"image_id": 2 * n, "keypoints": array} for n, array in enumerate(arrays)]},
    ):  # fmt: skip
        (tmp_path / "poses.json").write_text(json.dumps(frames))
        assert_poses(load_pose_sequence(tmp_path / "poses.json", (256, 176), person), between)
    (tmp_path / "poses.json").write_text(json.dumps(columns))
    assert len(load_pose_sequence(tmp_path / "poses.json", None, person)) == 2
    (tmp_path / "poses.json").write_text(json.dumps(first.to_openpose()))
    assert_poses(load_pose_sequence(tmp_path / "poses.json", None, person), [first])


def test_the_packaged_poses():
    folder = Path(small_model.__file__).parent / "examples"
    assert_poses(load_pose_sequence(folder / "poses.json"), example_poses())


def test_a_sequence_with_exchanged_sides_is_warned_of_once(tmp_path, caplog):
    (tmp_path / "poses.json").write_text(json.dumps([people_in_json(900)] * 3))
    load_pose_sequence(tmp_path / "poses.json", (720, 1280))
    assert not caplog.records
    load_pose_sequence(tmp_path / "poses.json", (1280, 720))
    assert [record.args[:4] for record in caplog.records] == [(54, 54, 1280, 720)]


def test_what_is_no_sequence_is_named(poses, tmp_path):
    for name in ("nowhere.jsonl", "nowhere"):
        with pytest.raises(FileNotFoundError, match=name):
            load_pose_sequence(tmp_path / name)
    with pytest.raises(ValueError, match=r"has neither images nor keypoint files"):
        load_pose_sequence(tmp_path)
    cases = {
        "poses.csv": ("", r"poses.csv': it must be a folder, or a file that ends in .json, .jsonl or .npy"),
        "broken.jsonl": (json.dumps(poses[0].to_openpose()) + "\n{broken", r"broken.jsonl', line 2: .*valid JSON"),
        "empty.jsonl": ("null\n", "at least one of its 1 frames, but has none"),
        "broken.npy": ("no array", r"Cannot read poses from .*broken.npy'"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_pose_sequence(tmp_path / name)
    np.save(tmp_path / "flat.npy", poses[0].to_array())
    with pytest.raises(ValueError, match=r"flat.npy', frame 0: A pose must be"):
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
def test_frames_of_something_else_are_refused(pipe, poses, tmp_path, change):
    render(pipe, poses, tmp_path / "frames")
    change = dict(change)
    some = poses[: change.pop("poses", 5)]
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
        render(pipe, some, tmp_path / "frames", **change)


def test_frames_of_another_model_or_scheduler_are_refused(poses, tmp_path):
    pipe = tiny_pipeline()
    render(pipe, poses[:1], tmp_path)
    note = json.loads((tmp_path / "sequence.json").read_text())
    assert set(note) == {"model", "options", "sha256"}
    assert note["options"] == {
        "num_inference_steps": 2,
        "scheduler": "DDPMScheduler",
        "seed": 0,
        "shared_noise": True,
    }
    scheduler = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config)
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
        render(pipe, poses[:1], tmp_path)
    pipe.scheduler = type(scheduler).from_config(scheduler.config, beta_end=0.02)
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
        render(pipe, poses[:1], tmp_path)
    pipe.scheduler = scheduler
    pipe.load_lora_weights(lora_state_dict(0), adapter_name="style")
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
        render(pipe, poses[:1], tmp_path)
    pipe.unload_lora_weights()
    assert len(render(pipe, poses[:1], tmp_path)) == 1
    pipe.register_to_config(_name_or_path=Path("another"))  # as `from_pretrained` notes what it was given
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
        render(pipe, poses[:1], tmp_path)


def test_an_interrupted_call_leaves_no_unfinished_frame(pipe, poses, tmp_path):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    def go_on(pipe, step, timestep, tensors):
        return {}

    assert render(pipe, poses, tmp_path, callback_on_step_end=stop) == []
    assert not list(tmp_path.glob("*.png"))
    assert len(render(pipe, poses, tmp_path / "whole", callback_on_step_end=go_on)) == len(poses)


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


def test_a_call_that_fails_blocks_no_folder(pipe, poses, tmp_path):
    with pytest.raises(ValueError, match="`height`"):
        render(pipe, poses[:1], tmp_path / "frames", height=100)
    assert len(render(pipe, poses[:1], tmp_path / "frames")) == 1


def test_files_that_hide_or_are_no_text(poses, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(poses[0].to_openpose()))
    (tmp_path / "._one.json").write_bytes(b"\xff\xfe\0")
    assert len(load_pose_sequence(tmp_path)) == 1
    (tmp_path / "two.jsonl").write_bytes("null".encode("utf-16"))
    with pytest.raises(ValueError, match=r"Cannot read poses from .*two\.jsonl': 'utf-8' codec"):
        load_pose_sequence(tmp_path / "two.jsonl")


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
    with pytest.raises(ValueError, match="exactly one of `image` and `appearance`"):
        render(pipe, poses, tmp_path / "frames", image=None)
    with pytest.raises(ValueError, match="shows one person, got 2 sources"):
        render(pipe, poses, tmp_path / "frames", image=tiny_image(0, 2))
    PIL.Image.new("RGB", (5, 5)).save(tmp_path / "holiday.png")
    with pytest.raises(ValueError, match="does not say that it was made with this model"):
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
    with pytest.raises(ValueError, match=r"needs frames of one size .* got no frames"):
        write_animation([], tmp_path / "out.gif")
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4"):
        write_animation(frames, tmp_path / "out.avi")
    with pytest.raises(ValueError, match="`frames_per_second` must be above 0, got 0"):
        write_animation(frames, tmp_path / "out.gif", 0)
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
    with PIL.Image.open(tmp_path / "out.gif") as animation:
        assert animation.size == (33, 47)
