"""Items, batches, broken files, and randomness that workers have no part in."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from miniature_sets import NAMES, save_image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from diffusers_cfld.data import (
    ImageDataset,
    PosePair,
    PosePairDataset,
    SkipReport,
    UnreadableDataError,
    UnreadableImageError,
    collate_pose_pairs,
    init_worker,
    load_pairs,
    read_image_size,
    unique_images,
)
from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.processors.cropping import choose_crop
from diffusers_cfld.processors.pose_map import PoseProcessor, render_pose_map
from diffusers_cfld.processors.source_image import SourceImageProcessor

SIZES = {"source_size": (16, 12), "image_size": (20, 14), "pose_size": (16, 12)}


def loader(dataset, num_workers=0, **changes):
    arguments = {"batch_size": 2, "collate_fn": collate_pose_pairs, "worker_init_fn": init_worker, **changes}
    return DataLoader(dataset, num_workers=num_workers, **arguments)


def break_images(paths):
    """Truncated, empty, text, missing: one way after the other."""
    for number, path in enumerate(map(Path, paths)):
        content = path.read_bytes()
        if number % 4 == 3:
            path.unlink()
        else:
            path.write_bytes([content[:-30], b"", b"no image"][number % 4])


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
    with pytest.raises(IndexError):
        dataset[-7]


def test_every_image_is_decoded_once(deepfashion, monkeypatch):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)
    opened = []
    really_open = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file: opened.append(file) or really_open(file))
    dataset[0]
    assert len(opened) == 2


def test_without_pixel_values_only_the_headers_of_targets_are_read(deepfashion):
    pairs = load_pairs(deepfashion)
    target = Path(pairs[0].target)
    target.write_bytes(target.read_bytes()[:-100])
    item = PosePairDataset(pairs, **SIZES, load_pixel_values=False)[0]
    assert set(item) == {"source_image", "source_pose_map", "target_pose_map", "index", "skipped"}
    assert (item["index"], item["skipped"]) == (0, [])


def test_images_may_be_bytes(deepfashion):
    (pair, *_) = pairs = load_pairs(deepfashion)
    source, target = (Path(path).read_bytes() for path in (pair.source, pair.target))
    held = PosePair(source, target, pair.source_keypoints, pair.target_keypoints, "s.jpg", "t.jpg")
    assert_equal(PosePairDataset([held], **SIZES)[0], PosePairDataset(pairs, **SIZES)[0])
    broken = replace(held, source=source[:200])
    assert PosePairDataset([broken, held], **SIZES)[0]["skipped"][0][0] == "s.jpg"


# Shapes ---------------------------------------------------------------------------------------------------------

POSE = Keypoints.from_deepfashion([40 + 10 * joint for joint in range(18)], [88] * 18)


def pair_of(tmp_path, source_size, target_size, source_measured=None, target_measured=None):
    """A pair whose images have these sizes, with keypoints measured on others."""
    images = [
        save_image(tmp_path / f"{number}.png", number, size) for number, size in enumerate((source_size, target_size))
    ]
    poses = POSE.rescale(source_measured or source_size), POSE.rescale(target_measured or target_size)
    return PosePair(*map(str, images), *poses)


@pytest.mark.parametrize("shape", [(256, 176), (128, 64)])
@pytest.mark.parametrize("size", [(64, 64), (40, 80), (64, 44), (90, 40)])
def test_images_of_any_shape_are_padded_with_their_poses_as_in_the_pipeline(tmp_path, size, shape):
    pair = pair_of(tmp_path, size, (88, 44))
    item = PosePairDataset([pair], **SIZES, image_shape=shape)[0]
    for role, opened in (("source", PIL.Image.open(pair.source)), ("target", PIL.Image.open(pair.target))):
        expected = SourceImageProcessor(20, 14, image_shape=shape).preprocess(opened)[0]
        assert torch.equal(item[f"{role}_pixel_values"], expected), role
        pose = getattr(pair, f"{role}_keypoints")
        assert torch.equal(item[f"{role}_pose_map"], PoseProcessor(16, 12, image_shape=shape).preprocess(pose)[0])
    source = SourceImageProcessor(16, 12, image_shape=shape).preprocess(PIL.Image.open(pair.source))[0]
    assert torch.equal(item["source_image"], source)
    # Latents that are cached see the same part of the image, and the target's shape is read without them.
    single = ImageDataset([pair.source], (20, 14), image_shape=shape)[0]["pixel_values"]
    assert torch.equal(single, item["source_pixel_values"])
    cached = PosePairDataset([pair], **SIZES, image_shape=shape, load_pixel_values=False)[0]
    assert torch.equal(cached["target_pose_map"], item["target_pose_map"])


def test_an_image_of_the_encoders_size_is_padded_too(tmp_path):
    pair = pair_of(tmp_path, (16, 16), (16, 16))
    item = PosePairDataset([pair], 16, 16, 16)[0]
    window = choose_crop((16, 16))
    assert torch.equal(item["source_image"], item["source_pixel_values"])
    assert torch.equal(
        item["source_image"], SourceImageProcessor(16, 16).preprocess(window.crop(PIL.Image.open(pair.source)))[0]
    )
    assert torch.equal(
        item["source_pose_map"], torch.from_numpy(render_pose_map(window.move(pair.source_keypoints), (16, 16)))
    )


def test_without_a_shape_images_are_squashed(tmp_path):
    pair = pair_of(tmp_path, (64, 64), (40, 80))
    item = PosePairDataset([pair], **SIZES, image_shape=None)[0]
    expected = SourceImageProcessor(20, 14).preprocess(PIL.Image.open(pair.target))[0]
    assert torch.equal(item["target_pixel_values"], expected)


def test_keypoints_are_rescaled_if_the_aspect_ratio_agrees(tmp_path):
    one, other = pair_of(tmp_path, (64, 44), (80, 80), (256, 176), (640, 640)), pair_of(tmp_path, (64, 44), (80, 80))
    assert_equal(PosePairDataset([one], **SIZES)[0], PosePairDataset([other], **SIZES)[0])


@pytest.mark.parametrize("load_pixel_values", [True, False])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((64, 64), (64, 44), (256, 176)), r"0.png', which is 64x64 .* measured on an image of 256x176, another"),
        (((64, 44), (44, 64), None, (64, 44)), r"1.png', which is 44x64 .* measured on an image of 64x44, another"),
        (((64, 44), (1000, 704), None, (64, 64)), r"1.png', which is 1000x704 .* names that size as `source_size`"),
    ],
)
def test_keypoints_of_another_aspect_ratio_are_refused(tmp_path, sizes, message, load_pixel_values):
    wrong = pair_of(tmp_path, *sizes)
    with pytest.raises(UnreadableDataError, match=message):
        PosePairDataset([wrong], **SIZES, load_pixel_values=load_pixel_values)[0]


def test_the_size_of_an_upright_image_is_read_from_the_header(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (64, 44)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "header.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-20])
    for name in ("a.jpg", "header.jpg"):
        assert read_image_size(str(tmp_path / name)) == (64, 44)
    assert read_image_size((tmp_path / "a.jpg").read_bytes()) == (64, 44)
    with pytest.raises(UnreadableImageError, match=r"'b.jpg' is not an image"):
        read_image_size(b"no image", "b.jpg")


# Broken files ---------------------------------------------------------------------------------------------------


def test_broken_images_are_replaced_by_the_next_pair_and_named(deepfashion):
    pairs = load_pairs(deepfashion)
    broken = [pairs[index].source for index in (2, 3, 4, 5)]
    break_images(broken)
    dataset = PosePairDataset(pairs, **SIZES)
    item = dataset[1]  # its target is the source of pair 2
    assert item["index"] == 0
    paths, reasons = zip(*item["skipped"], strict=True)
    assert paths == (broken[0], broken[0], *broken[1:])
    assert "truncated" in reasons[0].lower()
    assert reasons[2:] == ("is not an image in a known format", "is not an image in a known format", "does not exist")
    assert_equal({**item, "skipped": []}, dataset[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_stay_whole_and_carry_what_was_skipped(deepfashion, num_workers):
    pairs = load_pairs(deepfashion)
    break_images([pairs[3].source])
    report = SkipReport()
    batches = list(loader(PosePairDataset(pairs, **SIZES), num_workers))
    for batch in batches:
        report.update(batch["skipped"])
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [4, 4], [4, 5]]
    assert batches[0]["source_image"].shape == (2, 3, 16, 12)
    assert batches[0]["index"].dtype == torch.int64
    assert {path: entry["times"] for path, entry in report.files.items()} == {pairs[3].source: 3}


def test_wholly_wrong_data_is_one_sentence_out_of_a_worker_too(deepfashion):
    dataset = PosePairDataset(load_pairs(deepfashion), **SIZES)
    for name in NAMES:
        (deepfashion / "train_highres" / name).unlink()
    with pytest.raises(UnreadableDataError, match=r"6 files in a row cannot be used; .* does not exist") as error:
        dataset[0]
    assert "\n" not in str(error.value)
    # What a loader does with the error of a worker; with a real one it waits five seconds for it.
    with pytest.raises(UnreadableDataError) as from_worker:
        ExceptionWrapper(error._excinfo, where="in DataLoader worker process 0").reraise()
    assert str(from_worker.value) == str(error.value)


def test_tries_are_bounded(deepfashion):
    pair = load_pairs(deepfashion)[0]
    missing = [replace(pair, source=f"missing-{number}.jpg") for number in range(40)]
    with pytest.raises(UnreadableDataError, match="32 files in a row"):
        PosePairDataset([*missing, pair], **SIZES)[0]
    assert len(PosePairDataset([*missing, pair], **SIZES)[9]["skipped"]) == 31


def test_one_broken_source_of_many_pairs_ends_nothing(deepfashion):
    pair = load_pairs(deepfashion)[0]
    dataset = PosePairDataset([replace(pair, source="missing.jpg")] * 100 + [pair], **SIZES)
    assert dataset[0]["index"] == 100
    assert dataset[0]["skipped"] == [("missing.jpg", "does not exist")] * 100


def test_a_damaged_image_is_named_whatever_is_wrong_with_it(deepfashion):
    (pair, *others) = load_pairs(deepfashion)
    PIL.Image.new("RGB", (12, 16)).save(deepfashion / "exif.png", exif=b"no EXIF at all")
    PIL.Image.fromarray(np.full((4, 4), 7.5, dtype=np.float32)).save(deepfashion / "float.tiff")
    (deepfashion / "folder.png").mkdir()
    names = ["exif.png", "float.tiff", "folder.png", "a\0b.jpg"]
    odd = [replace(pair, source=str(deepfashion / name)) for name in names]
    reasons = [reason for _, reason in PosePairDataset([*odd, *others], **SIZES)[0]["skipped"]]
    for reason, part in zip(reasons, ["EXIF data", "values in [0, 1]", "Is a directory", "null byte"], strict=True):
        assert part in reason


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
    assert first == [np.random.default_rng([1, 0, 0, index]).random() < 0.5 for index in range(24)]
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


def test_workers_keep_opencv_to_one_thread():
    before = cv2.getNumThreads()
    try:
        init_worker(0)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


# Single images -------------------------------------------------------------------------------------------------


def test_distinct_images_once_each_and_broken_ones_replaced(deepfashion):
    pairs = load_pairs(deepfashion)
    images = unique_images(pairs)
    assert images == [str(deepfashion / "train_highres" / name) for name in NAMES]
    break_images([images[1]])
    batches = list(loader(ImageDataset(images, (20, 14)), batch_size=3))
    assert [batch["index"].tolist() for batch in batches] == [[0, 2, 2], [3, 4, 5]]
    assert [path for path, _ in batches[0]["skipped"]] == [images[1]]
    expected = SourceImageProcessor(20, 14).preprocess(PIL.Image.open(images[0]))[0]
    assert torch.equal(batches[0]["pixel_values"][0], expected)


def test_wrong_arguments(deepfashion):
    with pytest.raises(ValueError, match="`pairs` must have at least one pair"):
        PosePairDataset([])
    with pytest.raises(ValueError, match="`images` must have at least one path"):
        ImageDataset([])
    with pytest.raises(ValueError, match=r"`flip_source_prob` must be in \[0, 1\], got 1.5"):
        PosePairDataset(load_pairs(deepfashion), flip_source_prob=1.5)
