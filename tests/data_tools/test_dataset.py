"""Items, batches, broken files, and randomness that workers have no part in."""

import errno
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from miniature_sets import NAMES, save_picture
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from diffusers_cfld.data import (
    PictureDataset,
    PosePair,
    PosePairDataset,
    SkipReport,
    UnreadableDataError,
    collate_pose_pairs,
    init_worker,
    load_pairs,
    unique_images,
)
from diffusers_cfld.data.pair_transform import UnreadableImageError
from diffusers_cfld.processors.pose_map import render_pose_map
from diffusers_cfld.processors.source_image import SourceImageProcessor

SIZES = {"source_size": (16, 12), "image_size": (20, 14), "pose_size": (16, 12)}


def loader(dataset, num_workers=0, **changes):
    arguments = {"batch_size": 2, "collate_fn": collate_pose_pairs, "worker_init_fn": init_worker, **changes}
    return DataLoader(dataset, num_workers=num_workers, **arguments)


def break_pictures(paths):
    """Truncated, empty, text, missing: one way after the other."""
    for number, path in enumerate(map(Path, paths)):
        content = path.read_bytes()
        if number % 4 == 3:
            path.unlink()
        else:
            path.write_bytes([content[:-30], b"", b"no picture"][number % 4])


def assert_equal(item, other):
    assert item.keys() == other.keys()
    for key, value in item.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_an_item_is_what_the_pipeline_makes_of_the_files(deepfashion):
    pairs = load_pairs(deepfashion)
    item = PosePairDataset(pairs, **SIZES)[1]
    source, target = (PIL.Image.open(path) for path in (pairs[1].source, pairs[1].target))
    expected = {
        "source_image": SourceImageProcessor(16, 12).preprocess(source)[0],
        "source_pixel_values": SourceImageProcessor(20, 14).preprocess(source)[0],
        "target_pixel_values": SourceImageProcessor(20, 14).preprocess(target)[0],
        "source_pose_map": torch.from_numpy(render_pose_map(pairs[1].source_keypoints, (16, 12))),
        "target_pose_map": torch.from_numpy(render_pose_map(pairs[1].target_keypoints, (16, 12))),
        "index": 1,
        "skipped": [],
    }
    assert_equal(item, expected)
    assert {value.dtype for value in item.values() if isinstance(value, torch.Tensor)} == {torch.float32}
    assert item["source_pose_map"].shape == (21, 16, 12)
    assert item["source_pose_map"][3 + 3].max() == 0  # the missing joint
    assert -1 <= item["target_pixel_values"].min() < item["target_pixel_values"].max() <= 1


def test_negative_and_impossible_indices(deepfashion):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)
    assert dataset[-1]["index"] == 5
    assert len(list(dataset)) == 6
    with pytest.raises(IndexError, match="There are 6 items, got index -7"):
        dataset[-7]


def test_every_picture_is_decoded_once(deepfashion, monkeypatch):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)
    opened = []
    really_open = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file: opened.append(file) or really_open(file))
    dataset[0]
    assert len(opened) == 2


def test_a_source_is_decoded_once_for_the_targets_that_follow(deepfashion, monkeypatch):
    pair = load_pairs(deepfashion)[0]
    dataset = PosePairDataset([pair, replace(pair, target=pair.source)], **SIZES)
    opened = []
    really_open = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file: opened.append(file) or really_open(file))
    first = dataset[0]
    expected = {key: first[key].clone() for key in ("source_image", "source_pixel_values")}
    first["source_image"].zero_()
    second = dataset[1]
    assert len(opened) == 3
    assert_equal({key: second[key] for key in expected}, expected)


def test_without_pixel_values_targets_are_not_opened(deepfashion):
    pairs = load_pairs(deepfashion)
    Path(pairs[0].target).unlink()
    item = PosePairDataset(pairs, **SIZES, load_pixel_values=False)[0]
    assert set(item) == {"source_image", "source_pose_map", "target_pose_map", "index", "skipped"}
    assert (item["index"], item["skipped"]) == (0, [])


def test_pictures_may_be_bytes(deepfashion):
    (pair, *_) = pairs = load_pairs(deepfashion)
    source, target = (Path(path).read_bytes() for path in (pair.source, pair.target))
    held = PosePair(source, target, pair.source_keypoints, pair.target_keypoints, "s.jpg", "t.jpg")
    assert_equal(PosePairDataset([held], **SIZES)[0], PosePairDataset(pairs, **SIZES)[0])
    with pytest.raises(ValueError, match="`source_name` is missing"):
        PosePair(source, target, pair.source_keypoints, pair.target_keypoints)
    with pytest.raises(TypeError, match=r"got the encoded picture 's.jpg'"):
        unique_images([held])
    broken = PosePair(source[:200], target, pair.source_keypoints, pair.target_keypoints, "s.jpg", "t.jpg")
    with pytest.raises(UnreadableDataError, match=r"'s.jpg' cannot be decoded"):
        PosePairDataset([broken], **SIZES)[0]


# Broken files ---------------------------------------------------------------------------------------------------


def test_broken_pictures_are_replaced_by_the_next_pair_and_named(deepfashion):
    pairs = load_pairs(deepfashion)
    broken = [pairs[index].source for index in (2, 3, 4, 5)]
    break_pictures(broken)
    dataset = PosePairDataset(pairs, **SIZES)
    item = dataset[1]  # its target is the source of pair 2
    assert item["index"] == 0
    paths, reasons = zip(*item["skipped"], strict=True)
    assert paths == (broken[0], broken[0], *broken[1:])
    assert "truncated" in reasons[0].lower()
    assert reasons[2:] == ("is empty", "is no picture of a known format", "does not exist")
    assert_equal({**item, "skipped": []}, dataset[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_stay_whole_and_carry_what_was_skipped(deepfashion, num_workers):
    pairs = load_pairs(deepfashion)
    break_pictures([pairs[3].source])
    report = SkipReport(max_logged=0)
    batches = list(loader(PosePairDataset(pairs, **SIZES), num_workers))
    for batch in batches:
        report.update(batch["skipped"])
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [4, 4], [4, 5]]
    assert batches[0]["source_image"].shape == (2, 3, 16, 12)
    assert batches[0]["index"].dtype == torch.int64
    assert list(report) == [pairs[3].source]
    assert report.num_times == 3


def test_wholly_wrong_data_is_one_sentence_out_of_a_worker_too(deepfashion):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)
    for name in NAMES:
        (deepfashion / "train_highres" / name).unlink()
    with pytest.raises(UnreadableDataError, match=r"6 in a row cannot be read .* does not exist") as error:
        dataset[0]
    assert "\n" not in str(error.value)
    # What a loader does with the error of a worker; with a real one it waits five seconds for it.
    with pytest.raises(UnreadableDataError) as from_worker:
        ExceptionWrapper(error._excinfo, where="in DataLoader worker process 0").reraise()
    assert str(from_worker.value) == str(error.value)


def test_tries_are_bounded(deepfashion):
    pair = load_pairs(deepfashion)[0]
    missing = [replace(pair, source=f"missing-{number}.jpg") for number in range(40)]
    with pytest.raises(UnreadableDataError, match="32 in a row"):
        PosePairDataset([*missing, pair], **SIZES)[0]
    assert len(PosePairDataset([*missing, pair], **SIZES)[9]["skipped"]) == 31


def test_one_broken_source_of_many_pairs_ends_nothing(deepfashion):
    pair = load_pairs(deepfashion)[0]
    dataset = PosePairDataset([replace(pair, source="missing.jpg")] * 100 + [pair], **SIZES)
    assert dataset[0]["index"] == 100
    assert dataset[0]["skipped"] == [("missing.jpg", "does not exist")] * 100


def test_damaged_exif_data_are_named(deepfashion):
    (pair, *others) = load_pairs(deepfashion)
    photo = PIL.Image.new("RGB", (12, 16))
    photo.save(deepfashion / "photo.png", exif=b"no EXIF at all")
    dataset = PosePairDataset([replace(pair, source=str(deepfashion / "photo.png")), *others], **SIZES)
    ((path, reason),) = dataset[0]["skipped"]
    assert path == str(deepfashion / "photo.png")
    assert "must have EXIF data that can be read, or none" in reason


def test_a_process_at_its_limits_is_not_taken_for_a_broken_file(deepfashion, monkeypatch):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)

    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Too many open files"):
        dataset[0]


def test_a_folder_in_place_of_a_picture_is_named(deepfashion):
    pairs = load_pairs(deepfashion)
    Path(pairs[0].source).unlink()
    Path(pairs[0].source).mkdir()
    assert PosePairDataset(pairs, **SIZES)[0]["skipped"][0] == (pairs[0].source, "cannot be read (Is a directory)")


def test_a_name_that_no_file_can_have_is_named(deepfashion):
    (pair, *others) = load_pairs(deepfashion)
    odd = PosePair("a\0b.jpg", pair.target, pair.source_keypoints, pair.target_keypoints)
    assert "null byte" in PosePairDataset([odd, *others], **SIZES)[0]["skipped"][0][1]


def test_a_picture_without_a_range_is_named(tmp_path, deepfashion):
    PIL.Image.fromarray(np.full((4, 4), 7.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    save_picture(tmp_path / "good.png", 0)
    dataset = PictureDataset([str(tmp_path / "float.tiff"), str(tmp_path / "good.png")], 8)
    assert "must hold values in [0, 1]" in dataset[0]["skipped"][0][1]


def test_the_error_of_one_picture_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.jpg", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "is empty", "'a.jpg' is empty.")


# Randomness -----------------------------------------------------------------------------------------------------


def flips(dataset, plain):
    """Which source images are mirrored; everything else must not be."""
    found = []
    for item, original in zip(dataset, plain, strict=True):
        is_flipped = not torch.equal(item["source_image"], original["source_image"])
        expected = original["source_image"].flip(-1) if is_flipped else original["source_image"]
        assert_equal(item, {**original, "source_image": expected})
        found.append(is_flipped)
    return found


def test_only_the_source_image_is_flipped_by_seed_epoch_and_index(deepfashion):
    pairs = load_pairs(deepfashion) * 4
    plain = list(PosePairDataset(pairs, **SIZES))
    dataset = PosePairDataset(pairs, **SIZES, flip_source_prob=0.5)
    first = flips(dataset, plain)
    assert 4 < sum(first) < 20
    assert flips(dataset, plain) == first
    dataset.set_epoch(1)
    assert flips(dataset, plain) != first
    dataset.set_epoch(0)
    assert flips([dataset[index] for index in reversed(range(24))], plain[::-1]) == first[::-1]
    assert flips(PosePairDataset(pairs, **SIZES, flip_source_prob=0.5, seed=1), plain) != first
    assert all(flips(PosePairDataset(pairs, **SIZES, flip_source_prob=1.0), plain))


def test_workers_change_nothing_even_when_they_outlive_the_epoch(deepfashion):
    pairs = load_pairs(deepfashion) * 2
    dataset = PosePairDataset(pairs, **SIZES, flip_source_prob=0.5)
    with_workers = loader(dataset, 2, persistent_workers=True)
    epochs = []
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        expected = list(loader(dataset))
        for batch, other in zip(with_workers, expected, strict=True):
            assert_equal(batch, other)
        epochs.append(torch.cat([batch["source_image"] for batch in expected]))
    assert not torch.equal(*epochs)


def test_a_data_set_survives_pickling(deepfashion):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES, flip_source_prob=0.5)
    dataset.set_epoch(2)
    assert_equal(pickle.loads(pickle.dumps(dataset))[3], dataset[3])


def test_workers_keep_opencv_to_one_thread():
    before = cv2.getNumThreads()
    try:
        init_worker(0)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


# Single pictures ------------------------------------------------------------------------------------------------


def test_distinct_pictures_once_each_and_broken_ones_replaced(deepfashion):
    pairs = load_pairs(deepfashion)
    images = unique_images(pairs)
    assert images == [str(deepfashion / "train_highres" / name) for name in NAMES]
    break_pictures([images[1]])
    batches = list(loader(PictureDataset(images, (20, 14)), batch_size=3))
    assert [batch["index"].tolist() for batch in batches] == [[0, 2, 2], [3, 4, 5]]
    assert [path for path, _ in batches[0]["skipped"]] == [images[1]]
    expected = SourceImageProcessor(20, 14).preprocess(PIL.Image.open(images[0]))[0]
    assert torch.equal(batches[0]["pixel_values"][0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "`pairs` is empty"),
        ({"source_size": 0}, "`source_size` must be positive pixels, got 0"),
        ({"image_size": (64, -1)}, "`image_size` must be positive"),
        ({"pose_size": (1, 2, 3)}, r"`pose_size` must be one number or \(height, width\)"),
        ({"flip_source_prob": 1.5}, "`flip_source_prob` must be a probability"),
        ({"seed": -1}, "`seed` must be a whole number >= 0"),
    ],
)
def test_wrong_arguments(deepfashion, arguments, message):
    with pytest.raises(ValueError, match=message):
        PosePairDataset(**{"pairs": load_pairs(deepfashion), **arguments})


def test_no_pictures_at_all():
    with pytest.raises(ValueError, match="`images` is empty"):
        PictureDataset([])
