"""Poses in images, folders and videos."""

import json

import numpy as np
import PIL.Image
import pytest

from diffusers_cfld import Keypoints
from diffusers_cfld.pose.images import expand_series, find_people, find_person, is_series, list_files, read_video
from diffusers_cfld.processors.pose_map import read_pose_sequence, read_poses
from diffusers_cfld.sequences import load_pose_sequence, write_animation
from diffusers_cfld.small_model import example_poses, example_sources


def distance(pose, other):
    """The largest one between joints, in parts of the image's height."""
    return np.abs(pose.rescale(other.size).xy - other.xy)[other.visible].max() / other.size[0]


@pytest.fixture(scope="module")
def poses():
    keys = example_poses()
    return [keys[3].lerp(keys[0], part) for part in (0.0, 0.5, 1.0)]


@pytest.fixture(scope="module")
def folder(poses, tmp_path_factory):
    """Drawn skeletons, named as OpenPose's and ffmpeg's files are, with one hidden file; and a video of them."""
    folder = tmp_path_factory.mktemp("images") / "walk"
    folder.mkdir()
    for number, pose in zip((1, 2, 10), poses, strict=True):
        pose.draw().save(folder / f"walk_{number}.png")
    (folder / "._walk_1.png").write_bytes(b"")
    for suffix in (".mp4", ".gif"):
        write_animation(list_files(folder), folder.with_suffix(suffix))
    return folder


def test_a_drawn_skeleton_is_read_without_an_estimator_and_a_photo_with_one(poses):
    drawing, photo = poses[0].draw(), example_sources()[0]
    for estimator in (None, lambda image: poses[1:]):
        found, is_estimated = find_person(drawing, estimator)
        assert not is_estimated
        assert distance(found, poses[0]) < 0.01
    noise = PIL.Image.effect_noise((64, 64), 90).convert("RGB")
    for other in (photo, noise):
        assert find_person(other, lambda image: poses[1:]) == (poses[1], True)
    assert find_person(photo, lambda image: poses[1:], person=1) == (poses[2], True)
    with pytest.raises(ValueError, match=r"no skeleton.*; there is no pose estimator: set `pipe.pose_estimator`"):
        find_people(photo, None)
    with pytest.raises(ValueError, match="shows 1 person, counted from 0, so there is no `person=1`"):
        find_person(drawing, None, person=1)
    for estimator in (None, lambda image: []):
        assert find_people(PIL.Image.new("RGB", (9, 9)), estimator)[0] == []


def test_a_folder_or_a_video_is_a_list_of_poses(folder, poses):
    for path in (folder, f"{folder}.mp4", folder.with_suffix(".gif")):
        assert is_series(path)
        for read in (read_poses(path, None), read_pose_sequence([path], None), load_pose_sequence(path)):
            assert [distance(one, other) < 0.02 for one, other in zip(read, poses, strict=True)] == [True] * 3
    assert not is_series("https://example.org/walk.gif")
    mixed = read_poses([poses[2], folder], None)
    assert len(mixed) == 4
    assert mixed[0] is poses[2]
    assert [file.name for file in list_files(folder)] == ["walk_1.png", "walk_2.png", "walk_10.png"]


def test_keypoint_files_come_before_images(poses, tmp_path):
    poses[0].draw().save(tmp_path / "1_rendered.png")
    (tmp_path / "1_keypoints.json").write_text(json.dumps(poses[0].to_openpose()))
    assert [file.name for file in expand_series(tmp_path)] == ["1_keypoints.json"]
    assert len(load_pose_sequence(tmp_path)) == 1


def test_a_skeleton_of_the_models_shape_stays_in_its_place_and_others_are_cropped(poses):
    small = Keypoints(poses[0].xy / 2 + 20, poses[0].visible, None, (256, 176))
    assert read_poses(small.draw(), None).size == (256, 176)
    wide = Keypoints(small.xy + [100, 0], small.visible, None, (256, 400))
    for cropped in (read_poses(wide.draw(), None), *read_pose_sequence([wide.draw()] * 2, None)):
        assert abs(cropped.size[0] / cropped.size[1] - 256 / 176) < 0.02
        assert cropped.size[0] < 200


def test_a_sequence_of_images_follows_the_nearest_person(poses, tmp_path):
    """Of two people whom an estimator finds in changing order; in one frame it finds nobody."""
    other = Keypoints(poses[0].xy + [0, 30], poses[0].visible, None, (256, 176))
    frames = iter([[poses[0], other], [other, poses[0]], [], [other, poses[0]]])
    for number in range(4):
        example_sources()[0].save(tmp_path / f"{number}.png")
    read = load_pose_sequence(tmp_path, estimator=lambda image: next(frames))
    assert all(distance(one, poses[0]) < 0.01 for one in read)
    assert len(read) == 4


def test_what_is_no_series_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match=r"broken.mp4' cannot be read as a video"):
        list(read_video(tmp_path / "broken.mp4"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4"):
        read_poses(tmp_path / "nowhere.mp4", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' has neither images nor keypoint files"):
        read_poses(tmp_path / "empty", None)
    example_sources()[0].save(tmp_path / "empty" / "photo.png")
    with pytest.raises(ValueError, match=r"Cannot read poses from '.*empty', photo.png: .*no pose estimator"):
        load_pose_sequence(tmp_path / "empty")
