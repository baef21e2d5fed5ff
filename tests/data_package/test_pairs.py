"""Lists of pairs: CSV files in both spellings, folders with a `pairs.jsonl`, and what can be wrong with them."""

import json
import logging
import shutil

import numpy as np
import pytest
from miniature_sets import HEADER, NAMES, columns, save_image, write_lists
from testing_utils import FIGURES

from diffusers_cfld.data import (
    SkipReport,
    load_deepfashion_pairs,
    load_folder_pairs,
    load_market1501_pairs,
    load_pairs,
    unique_images,
)
from diffusers_cfld.data.pairs import read_poses
from diffusers_cfld.pose.keypoints import Keypoints


def write_pairs(folder, *lines):
    folder.mkdir(exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "pairs.jsonl").write_text(text + "\n")
    return folder


def line(source="a.png", target="b.png", **changes):
    y, x = columns(0)
    pose = {"keypoints_y": y, "keypoints_x": x}
    return {"source": source, "target": target, "source_keypoints": pose, "target_keypoints": pose, **changes}


@pytest.mark.parametrize("prefix", ["fasion-resize", "fashion-resize"])
@pytest.mark.parametrize(("split", "images"), [("train", "train_highres"), ("test", "test_highres"), ("test", "test")])
def test_deepfashion_in_both_spellings(tmp_path, prefix, split, images):
    listed = write_lists(tmp_path, prefix=prefix, split=split)
    save_image(tmp_path / images / NAMES[0], 0)
    pairs = load_deepfashion_pairs(tmp_path, split)
    assert [(pair.source_name, pair.target_name) for pair in pairs] == listed
    assert pairs[0].source == str(tmp_path / images / NAMES[0])
    assert pairs[1].target_keypoints == Keypoints.from_deepfashion(*columns(2))
    assert pairs[1].target_keypoints.size == (256, 176)
    assert load_pairs(tmp_path, split=split) == load_pairs(tmp_path, default_split=split) == pairs


def test_a_missing_joint_stays_missing_and_a_picture_has_one_pose(deepfashion):
    pairs = load_deepfashion_pairs(deepfashion)
    assert np.flatnonzero(~pairs[0].source_keypoints.visible).tolist() == [3, 17]
    assert pairs[0].target_keypoints is pairs[1].source_keypoints
    assert len(unique_images(pairs)) == 6


def test_pictures_are_not_opened(deepfashion):
    for name in NAMES:
        (deepfashion / "train_highres" / name).write_bytes(b"")
    assert len(load_pairs(deepfashion)) == 6


def test_market1501_has_its_own_frame(tmp_path):
    names = ["0002_c1s1_000451_03.jpg", "0002_c1s1_000551_01.jpg"]
    write_lists(tmp_path, names, prefix="market", frame=(128, 64))
    save_image(tmp_path / "bounding_box_train" / names[0], 0)
    pairs = load_market1501_pairs(tmp_path)
    assert pairs == load_pairs(tmp_path) == load_pairs(tmp_path, "market1501", "train")
    assert pairs[0].source_keypoints == Keypoints.from_deepfashion(*columns(0, (128, 64)), (128, 64))
    assert pairs[0].source == str(tmp_path / "bounding_box_train" / names[0])


def test_unusable_keypoints_are_named(tmp_path):
    y, x = columns(1)
    rows = {
        "plain": (y, x),
        "fractions of pixels": ([value + 0.5 for value in y], x),
        "half missing": ([-1, *y[1:]], x),
        "not a list": (1, x),
        "too few": (y[:17], x),
        "all missing": ([-1] * 18, [-1] * 18),
        "words": (["a", *y[1:]], x),
    }
    file = tmp_path / "rows.csv"
    file.write_text(
        HEADER + "".join(f"{name}: {json.dumps(row[0])}: {json.dumps(row[1])}\n" for name, row in rows.items())
    )
    poses, problems = read_poses(file, (256, 176))
    assert {name: poses[name] for name in list(rows)[:3]} == poses
    assert poses["plain"] == Keypoints.from_deepfashion(y, x)
    assert set(problems) == {"not a list", "too few", "all missing", "words"}
    assert problems["too few"].startswith("has unusable keypoints in 'rows.csv' (`y` and `x` must have 18 or 25 ")


def test_pairs_without_keypoints_are_left_out_and_named(deepfashion, caplog):
    file = deepfashion / "fasion-resize-annotation-train.csv"
    lines = file.read_text().splitlines(keepends=True)
    lines[2] = f"{NAMES[1]}: [1, 2: [3]\n"
    file.write_text("".join(lines[:-1]))
    report = SkipReport()
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        pairs = load_pairs(deepfashion, report=report)
    assert [pair.source_name for pair in pairs] == NAMES[2:4]
    broken, missing = (str(deepfashion / "train_highres" / name) for name in (NAMES[1], NAMES[5]))
    assert "has unusable keypoints" in report.files[broken]["reason"]
    # Each is in two pairs.
    assert report.files[missing] == {"reason": "has no line in 'fasion-resize-annotation-train.csv'", "times": 2}
    assert "4 of the 6 pairs" in caplog.text
    assert missing in caplog.text


def test_no_annotation_at_all_is_one_sentence(deepfashion):
    (deepfashion / "fasion-resize-annotation-train.csv").write_text(HEADER)
    with pytest.raises(ValueError, match=r"must have usable pairs, got none among 6\. .*has no line in") as error:
        load_pairs(deepfashion)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            shutil.rmtree,
            "must have 'pairs.jsonl', 'fasion-resize-pairs-train.csv' or 'market-pairs-train.csv', but has none",
        ),
        (lambda root: [file.unlink() for file in root.glob("*pairs*")], "must have 'pairs.jsonl'"),
        (lambda root: (root / "fasion-resize-annotation-train.csv").unlink(), "'fasion-resize-annotation-train.csv'"),
        (lambda root: (root / "fasion-resize-pairs-train.csv").write_text("a;b\n"), "columns `from` and `to`"),
        (lambda root: (root / "fasion-resize-pairs-train.csv").write_text("from,to\n"), "got none among 0"),
        (lambda root: shutil.rmtree(root / "train_highres"), "must have a folder 'train_highres' with the images"),
    ],
)
def test_a_wholly_wrong_folder_is_one_sentence(deepfashion, break_it, message):
    break_it(deepfashion)
    with pytest.raises((ValueError, OSError), match=message) as error:
        load_pairs(deepfashion)
    assert "\n" not in str(error.value)


def test_wrong_arguments(deepfashion):
    with pytest.raises(FileNotFoundError, match=r"'fasion-resize-pairs-val.csv' is missing in"):
        load_deepfashion_pairs(deepfashion, "val")
    with pytest.raises(ValueError, match=r"`format` must be 'auto', 'deepfashion', .* got 'coco'"):
        load_pairs(deepfashion, "coco")
    with pytest.raises(FileNotFoundError, match=r"'market-pairs-train.csv' is missing in"):
        load_pairs(deepfashion, "market1501")
    with pytest.raises(FileNotFoundError, match=r"pairs.jsonl"):
        load_pairs(deepfashion, "folder")


def test_a_folder_of_pairs_is_read(tmp_path):
    shutil.copytree(FIGURES, tmp_path / "set" / "test")
    pairs = load_pairs(tmp_path / "set", split="test")
    assert pairs == load_folder_pairs(tmp_path / "set" / "test") == load_pairs(tmp_path / "set" / "test")
    lines = [json.loads(text) for text in (FIGURES / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == len(lines) == 12
    for pair, entry in zip(pairs, lines, strict=True):
        assert (pair.source_name, pair.target_name) == (entry["source"], entry["target"])
        assert pair.source_keypoints == Keypoints.from_any(entry["source_keypoints"])
        assert pair.target_keypoints == Keypoints.from_any(entry["target_keypoints"])
    assert pairs[0].source_name == "images/006000_00.png"
    assert pairs[0].source_keypoints is pairs[1].target_keypoints


def test_keypoints_in_any_form_with_the_frame_they_need(tmp_path):
    save_image(tmp_path / "a.png", 0, (64, 44))
    pose = Keypoints.from_deepfashion(*columns(0)).rescale((64, 48))
    rows = pose.xy.tolist()
    write_pairs(
        tmp_path,
        line(source_keypoints=rows, target_keypoints=pose.to_openpose(), size=[64, 48]),
        "",
        line(source_keypoints=pose.to_openpose(), size=[512, 512]),
        line(),
        line(source_keypoints=[pose.to_openpose()], target_keypoints=json.dumps(pose.to_openpose()), size=[512, 512]),
    )
    first, second, third, fourth = load_pairs(tmp_path)
    assert fourth.source_keypoints == fourth.target_keypoints == pose
    assert first.source_keypoints == first.target_keypoints == second.source_keypoints == pose
    assert second.target_keypoints.size == (512, 512)
    assert third.source_keypoints.size == (256, 176)


def test_source_and_target_have_sizes_of_their_own(tmp_path):
    rows = Keypoints.from_deepfashion(*columns(0)).rescale((64, 48)).xy.tolist()
    poses = {"source_keypoints": rows, "target_keypoints": rows}
    write_pairs(
        tmp_path,
        line(**poses, source_size=[64, 48], target_size=[96, 64]),
        line(**poses, size=[64, 64], target_size=[96, 64]),
        line(**poses, source_size=[64, 64]),
    )
    sizes = [(pair.source_keypoints.size, pair.target_keypoints.size) for pair in load_pairs(tmp_path)]
    assert sizes == [((64, 48), (96, 64)), ((64, 64), (96, 64)), ((64, 64), (256, 176))]


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png"])
def test_images_outside_the_folder_are_refused(tmp_path, name):
    save_image(tmp_path / "data" / "a.png", 0, (128, 88))
    report = SkipReport()
    load_pairs(write_pairs(tmp_path / "data", line("a.png", "x/../a.png"), line(name)), report=report)
    (entry,) = report.files.values()
    assert "`source` must be a path within the folder" in entry["reason"]


def test_unusable_lines_are_named_with_their_number(tmp_path):
    save_image(tmp_path / "a.png", 0, (64, 44))
    wrong = ["{", "[]", line(source=3), line(target_keypoints=None), line(source_keypoints=[1, 2]), line(size=5)]
    write_pairs(tmp_path, line(), *wrong)
    report = SkipReport()
    assert len(load_pairs(tmp_path, report=report)) == 1
    assert list(report.files) == [f"{tmp_path / 'pairs.jsonl'}:{number}" for number in range(2, 8)]
    reason = report.files[f"{tmp_path / 'pairs.jsonl'}:5"]["reason"]
    assert reason.startswith("is not a usable pair (it must be a JSON object with source, target, source_keypoints")
    assert "(`size` must be (height, width)" in report.files[f"{tmp_path / 'pairs.jsonl'}:7"]["reason"]
    write_pairs(tmp_path, *wrong)
    with pytest.raises(ValueError, match=r"must have usable pairs, got none among 6"):
        load_pairs(tmp_path)
