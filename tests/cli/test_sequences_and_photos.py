"""`animate`, `interpolate`, and what `generate` does with photos and poses of any kind."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from testing_utils import tiny_pipeline

from diffusers_cfld import Keypoints, align_pose, fit_keypoints, fit_photo
from diffusers_cfld.cli import main
from diffusers_cfld.cli.inputs import _size_unless_said as size_unless_said
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_poses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, photos of the field's shape and of another, poses, a sequence, and an estimator of random weights."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    folder = tmp_path_factory.mktemp("photos")
    tiny_pipeline().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name, size in (("a", (64, 44)), ("b", (64, 44)), ("wide", (90, 150))):
        PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    first, second = example_poses()[0], example_poses()[3]
    (folder / "pose.json").write_text(json.dumps(first.to_openpose()))
    body = Keypoints(second.xy * 0.3 + [60, 5], second.visible, None, (90, 150))
    (folder / "body.json").write_text(json.dumps(body.to_openpose()))
    np.save(folder / "body.npy", body.to_array())
    frames = [first.lerp(second, part).to_openpose() for part in (0.0, 0.5, 1.0)]
    (folder / "walk.jsonl").write_text("\n".join(map(json.dumps, frames)))
    wide = [Keypoints(first.xy * 0.3 + [shift, 5], first.visible, None, (90, 150)).to_openpose() for shift in (9, 60)]
    (folder / "wide.jsonl").write_text("\n".join(map(json.dumps, wide)))

    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
    model.head.conv.bias.data.fill_(5.0)  # so that all joints are taken for found
    model.save_pretrained(folder / "estimator")
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder / "estimator")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    from diffusers_cfld import CFLDPipeline

    pipe = CFLDPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(folder, command, *arguments):
    names = [str(folder / name) if (folder / str(name)).exists() else str(name) for name in arguments]
    return main([command, "--model", str(folder / "model"), "--steps", "2", "--device", "cpu", *names])


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "diffusers-cfld: error:" in line]


def pixels(path):
    return np.asarray(PIL.Image.open(path))


def expected(pipe, image, pose, seed=3):
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(seed)}
    return np.asarray(pipe(image=image, pose=pose, **options).images[0])


# generate ------------------------------------------------------------------------------------------------------------


def test_a_photo_of_odd_size_and_a_pose_from_another_photo(folder, pipe, tmp_path, capsys):
    """The estimator finds the person in both pictures."""
    from diffusers_cfld.pose_estimation import ViTPoseEstimator

    weights = ["--pose-estimator", "vitpose", "--pose-weights", "estimator"]
    target = tmp_path / "out.png"
    options = ["--image", "wide.png", "--pose", "b.png", "--output", target, "--seed", 3, *weights]
    assert run(folder, "generate", *options) == 0
    estimator = ViTPoseEstimator.from_pretrained(folder / "estimator")
    wide, other = PIL.Image.open(folder / "wide.png"), PIL.Image.open(folder / "b.png")
    source = fit_photo(wide, estimator(wide)[0])
    assert not source.frame.is_whole_image
    pose = fit_keypoints(estimator(other)[0])[0]
    assert np.array_equal(pixels(target), expected(pipe, source.image, pose))

    # Random weights find no two neighbouring joints in both.
    options = ["--image", "wide.png", "--pose", "b.png", "--output", target, "--align", *weights]
    assert run(folder, "generate", *options) == 1
    assert "have no bone in common" in errors(capsys)[0]


@pytest.mark.parametrize("name", ["body.json", "body.npy"])
def test_the_sources_pose_crops_it_and_aligns_the_target(folder, pipe, tmp_path, name):
    body = Keypoints.load(folder / "body.json")
    source = fit_photo(PIL.Image.open(folder / "wide.png"), body)
    pose = Keypoints.load(folder / "pose.json")
    options = ["--image", "wide.png", "--pose", "pose.json", "--seed", 3, "--source-pose", name]
    assert run(folder, "generate", *options, "--output", tmp_path / "out.png") == 0
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, source.image, pose))
    assert run(folder, "generate", *options, "--align", "--output", tmp_path / "aligned.png") == 0
    aligned = align_pose(pose, source.keypoints)
    assert np.array_equal(pixels(tmp_path / "aligned.png"), expected(pipe, source.image, aligned))


def test_the_sources_pose_of_a_csv_row_is_of_the_fields_frame(folder, pipe, tmp_path, capsys):
    photo = PIL.Image.open(folder / "a.png")  # 64x44
    body = Keypoints.load(folder / "pose.json")
    y, x = (json.dumps(np.rint(side).astype(int).tolist()) for side in (body.xy[:, 1], body.xy[:, 0]))
    (tmp_path / "body.csv").write_text(f"a.png: {y}: {x}\n")
    options = ["--image", "a.png", "--pose", "pose.json", "--seed", 3, "--output", tmp_path / "out.png"]
    options += ["--source-pose", tmp_path / "body.csv"]
    assert run(folder, "generate", *options) == 0
    source = fit_photo(photo, Keypoints.load(tmp_path / "body.csv").rescale((64, 44)))
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, source.image, body))
    assert run(folder, "generate", *options, "--source-frame", 300, 300) == 1
    assert "was measured on an image of 300x300" in errors(capsys)[0]


def test_files_without_a_size_are_of_the_sources_image(folder, tmp_path):
    body = Keypoints.load(folder / "body.json")
    np.savetxt(tmp_path / "table.txt", body.xy)
    (tmp_path / "openpose.json").write_text(json.dumps({"people": body.to_openpose()["people"]}))
    for file in (tmp_path / "table.txt", tmp_path / "openpose.json", folder / "body.npy"):
        assert size_unless_said(str(file), (90, 150)) == (90, 150)
    assert size_unless_said(str(folder / "body.json"), (9, 9)) is None


def test_a_pose_on_a_wide_picture_is_brought_into_the_frame(folder, pipe, tmp_path):
    photo, body = PIL.Image.open(folder / "a.png"), Keypoints.load(folder / "body.json")
    options = ["--image", "a.png", "--seed", 3, "--output", tmp_path / "out.png"]
    assert run(folder, "generate", *options, "--pose", "body.json") == 0
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, photo, fit_keypoints(body)[0]))


def test_one_of_several_people_in_the_sources_pose(folder, pipe, tmp_path, capsys):
    body = Keypoints.load(folder / "body.json")
    other = Keypoints(body.xy * 0.5, body.visible, None, (90, 150)).to_openpose()
    both = {**other, "people": [*other["people"], *body.to_openpose()["people"]]}
    (tmp_path / "both.json").write_text(json.dumps(both))
    options = ["--image", "wide.png", "--pose", "pose.json", "--seed", 3, "--output", tmp_path / "out.png"]
    options += ["--source-pose", tmp_path / "both.json"]
    assert run(folder, "generate", *options) == 1
    (error,) = errors(capsys)
    assert "has 2 people" in error
    assert "(See --source-frame, --source-person and --source-row.)" in error
    assert run(folder, "generate", *options, "--source-person", 1) == 0
    source = fit_photo(PIL.Image.open(folder / "wide.png"), body)
    pose = Keypoints.load(folder / "pose.json")
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, source.image, pose))


@pytest.mark.parametrize("frame", [(128, 64), (None, None)], ids=str)
def test_a_model_of_another_frame(folder, pipe, tmp_path, frame):
    """What has the shape of its training photos, or of any if it has none, is not padded to the field's."""
    from diffusers_cfld import CFLDPipeline

    own = CFLDPipeline.from_pipe(pipe, frame_height=frame[0], frame_width=frame[1])
    own.set_progress_bar_config(disable=True)
    own.save_pretrained(tmp_path / "own")
    photo = PIL.Image.open(folder / "b.png").resize((64, 128))
    photo.save(tmp_path / "photo.png")
    pose = Keypoints.load(folder / "pose.json").rescale((128, 64))
    (tmp_path / "pose.json").write_text(json.dumps(pose.to_openpose()))
    options = ["--image", tmp_path / "photo.png", "--pose", tmp_path / "pose.json", "--seed", 3]
    options += ["--output", tmp_path / "out.png", "--model", tmp_path / "own"]
    assert run(folder, "generate", *options) == 0
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(own, photo, pose))
    own.pose_estimator = lambda image: [pose]
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(own, photo, photo if frame[0] is None else pose))


def test_a_box_and_a_background(folder, pipe, tmp_path, capsys):
    options = ["--image", "wide.png", "--pose", "pose.json", "--seed", 3, "--output", tmp_path / "out.png"]
    assert run(folder, "generate", *options, "--source-box", 100, 5, 149, 80, "--background", "red") == 0
    fitted = fit_photo(PIL.Image.open(folder / "wide.png"), box=(100, 5, 149, 80), background="red")
    pose = Keypoints.load(folder / "pose.json")
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, fitted.image, pose))
    assert "is padded" not in capsys.readouterr().err
    assert run(folder, "generate", *options) == 0
    assert "wide.png is padded to 256:176" in capsys.readouterr().err
    whole = fit_photo(PIL.Image.open(folder / "wide.png")).image
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, whole, pose))


def test_a_background_behind_a_cut_out_person_in_the_frame(folder, pipe, tmp_path):
    cut_out = PIL.Image.open(folder / "b.png").convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (0, 0, cut_out.width // 2, cut_out.height))
    cut_out.save(tmp_path / "cut_out.png")
    options = ["--image", tmp_path / "cut_out.png", "--pose", "pose.json", "--seed", 3, "--background", "red"]
    assert run(folder, "generate", *options, "--output", tmp_path / "out.png") == 0
    behind = PIL.Image.new("RGBA", cut_out.size, "red")
    behind.alpha_composite(cut_out)
    pose = Keypoints.load(folder / "pose.json")
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, behind.convert("RGB"), pose))


def test_a_background_leaves_a_photo_of_the_encoders_own_size_as_it_is(folder, pipe, tmp_path):
    """Such a photo is taken to be squashed already: nothing is padded, and nothing of the background is seen."""
    side = pipe.source_encoder.config.image_size
    PIL.Image.open(folder / "b.png").resize((side, side)).save(tmp_path / "square.png")
    options = ["--image", tmp_path / "square.png", "--pose", "pose.json", "--seed", 3, "--background", "red"]
    assert run(folder, "generate", *options, "--output", tmp_path / "out.png") == 0
    photo = PIL.Image.open(tmp_path / "square.png")
    pose = Keypoints.load(folder / "pose.json")
    assert np.array_equal(pixels(tmp_path / "out.png"), expected(pipe, photo, pose))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pose", "b.png"], "b.png: The image"),
        (
            ["--pose", "pose.json", "--pose-weights", "estimator"],
            "--pose-estimator and --pose-weights must be given together",
        ),
        (
            ["--pose", "pose.json", "--pose-estimator", "vitpose"],
            "--pose-estimator and --pose-weights must be given together",
        ),
        (
            ["--pose", "b.png", "--pose-estimator", "vitpose", "--pose-weights", "./nowhere", "--local-files-only"],
            "--pose-weights, --detector-weights: ",
        ),
        (["--pose", "pose.json", "--align"], "--align needs the pose of the person in --image"),
        (["--pose", "pose.json", "--source-pose", "body.json", "body.json"], "one file per --image, got 2 for 1"),
        (["--pose", "pose.json", "--source-pose", "nowhere.json"], "nowhere.json"),
        (["--pose", "pose.json", "--source-pose", "pose.json"], "an image of 256x176 (height x width), but --image"),
        (["--pose", "pose.json", "--align", "--source-box", 0, 0, 9, 9], "--align needs the pose"),
        (["--pose", "pose.json", "--source-box", 500, 0, 600, 10], "overlap the image of 90x150"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(folder, tmp_path, capsys, options, message):
    assert run(folder, "generate", "--image", "wide.png", "--output", tmp_path / "out.png", *options) == 1
    (error,) = errors(capsys)
    assert message in error


# animate -------------------------------------------------------------------------------------------------------------


def test_animate_writes_a_gif_and_its_frames(folder, pipe, tmp_path, capsys):
    output = tmp_path / "walk.gif"
    options = ["--image", "a.png", "--poses", "walk.jsonl", "--output", output, "--seed", 5, "--batch-size", 2]
    assert run(folder, "animate", *options, "--fps", 10) == 0
    with PIL.Image.open(output) as animation:
        assert animation.n_frames == 3
        assert animation.info["duration"] == 100
    frames = sorted((tmp_path / "walk-frames").glob("*.png"))
    assert len(frames) == 3
    poses = [Keypoints.from_any(json.loads(line)) for line in (folder / "walk.jsonl").read_text().splitlines()]
    picture = expected(pipe, PIL.Image.open(folder / "a.png"), poses[1], seed=5)
    assert np.abs(pixels(frames[1]).astype(int) - picture).max() <= 1
    assert "3/3" in capsys.readouterr().err
    # Again: the frames are there.
    before = [path.stat().st_mtime_ns for path in frames]
    output.unlink()
    assert run(folder, "animate", *options, "--fps", 10) == 0
    assert output.is_file()
    assert [path.stat().st_mtime_ns for path in frames] == before
    # Another scheduler, another sequence: it is refused, or replaces the first, but nothing else.
    (frames[0].parent / "holiday.png").touch()
    changed = [*options, "--scheduler", "dpm++"]
    assert run(folder, "animate", *changed) == 1
    assert "`animate --overwrite` does" in errors(capsys)[0]
    (frames[0].parent / "holiday.png").unlink()
    assert run(folder, "animate", *changed, "--overwrite") == 0
    assert [path.stat().st_mtime_ns for path in frames] != before


def test_animate_writes_mp4_and_frames_alone(folder, tmp_path):
    assert run(folder, "animate", "--image", "a.png", "--poses", "walk.jsonl", "--output", tmp_path / "walk.mp4") == 0
    assert (tmp_path / "walk.mp4").stat().st_size > 1000
    folder_of_frames = tmp_path / "frames"
    assert run(folder, "animate", "--image", "a.png", "--poses", "walk.jsonl", "--output", folder_of_frames) == 0
    assert len(list(folder_of_frames.glob("*.png"))) == 3


def test_animate_brings_a_wide_sequence_into_one_window(folder, pipe, tmp_path):
    options = ["--image", "a.png", "--poses", "wide.jsonl", "--seed", 5]
    assert run(folder, "animate", *options, "--output", tmp_path / "frames") == 0
    poses = [Keypoints.from_any(json.loads(line)) for line in (folder / "wide.jsonl").read_text().splitlines()]
    photo = PIL.Image.open(folder / "a.png")
    picture = expected(pipe, photo, fit_keypoints(poses)[1], seed=5)
    assert np.abs(pixels(tmp_path / "frames" / "000001.png").astype(int) - picture).max() <= 1

    options[1] = "wide.png"
    aligned = ["--align", "--source-pose", "body.json", "--output", tmp_path / "aligned"]
    assert run(folder, "animate", *options, *aligned) == 0
    source = fit_photo(PIL.Image.open(folder / "wide.png"), Keypoints.load(folder / "body.json"))
    picture = expected(pipe, source.image, align_pose(poses, source.keypoints)[1], seed=5)
    assert np.abs(pixels(tmp_path / "aligned" / "000001.png").astype(int) - picture).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--poses", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--poses", "walk.jsonl", "--image", "nowhere.png"], "No such file or directory"),
    ],
    ids=str,
)
def test_animate_names_what_is_wrong(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert run(folder, "animate", "--image", "a.png", *options) == 1
    (error,) = errors(capsys)
    assert message in error


# interpolate ---------------------------------------------------------------------------------------------------------


def test_interpolate_goes_from_the_one_to_the_other(folder, pipe, tmp_path):
    options = ["--image", "a.png", "b.png", "--pose", "pose.json", "--seed", 3, "--output-size", 64, 44]
    assert run(folder, "interpolate", *options, "--num-images", 3, "--output", tmp_path / "strip.png") == 0
    strip = pixels(tmp_path / "strip.png")
    assert strip.shape[:2] == (64 + 20 + 16, 8 + 5 * 52)
    cells = [strip[28:92, 8 + 52 * number : 52 + 52 * number] for number in range(5)]
    pictures = [PIL.Image.open(folder / name) for name in ("a.png", "b.png")]
    assert np.array_equal(cells[0], np.asarray(pictures[0]))
    assert np.array_equal(cells[4], np.asarray(pictures[1]))
    pose = Keypoints.load(folder / "pose.json")
    for cell, photo in ((cells[1], pictures[0]), (cells[3], pictures[1])):
        (picture,) = pipe(
            image=photo, pose=pose, num_inference_steps=2, generator=torch.manual_seed(3), output_size=(64, 44)
        ).images
        assert np.abs(cell.astype(int) - np.asarray(picture)).max() <= 1
    for only in ("prompt", "biases"):
        other = tmp_path / f"{only}.png"
        assert run(folder, "interpolate", *options, "--num-images", 3, "--only", only, "--output", other) == 0
        assert (pixels(other) != strip).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pose", "b.png"], "there is no pose estimator: set `pipe.pose_estimator` (`--pose-estimator`"),
        (["--pose", "pose.json", "--pose-row", "first"], "`row` must be the name of one of 1 images"),
    ],
    ids=str,
)
def test_interpolate_names_what_is_wrong(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert run(folder, "interpolate", "--image", "a.png", "b.png", "--pose", "pose.json", *options) == 1
    (error,) = errors(capsys)
    assert message in error


def test_without_a_model_it_is_the_small_one_as_suits_it(folder, tmp_path):
    command = ["generate", "--image", str(folder / "a.png"), "--pose", str(folder / "pose.json"), "--seed", "0"]
    steps, scale = SAMPLING_OPTIONS["num_inference_steps"], SAMPLING_OPTIONS["guidance_scale"]
    same = ("--steps", str(steps), "--guidance-scale", str(scale))
    given = [(), same, ("--steps", str(steps - 1)), ("--guidance-scale", str(scale + 1))]
    pictures = []
    for number, options in enumerate(given):
        path = tmp_path / f"{number}.png"
        assert main([*command, *options, "--device", "cpu", "--output", str(path)]) == 0
        pictures.append(PIL.Image.open(path))
    assert pictures[0].size == (88, 128)
    assert pictures[0] == pictures[1]
    assert pictures[2] != pictures[0] != pictures[3]
