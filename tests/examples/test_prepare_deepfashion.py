"""DeepFashion from an archive in miniature: names, checks, counts, and running again after an interruption."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from example_scripts import load_example
from miniature_sets import save_image, write_lists

from diffusers_cfld.data import load_pairs

script = load_example("prepare_deepfashion")
prepare_deepfashion = script.prepare_deepfashion

# As in the archive, and as in the lists.
IMAGES = {
    "WOMEN/Dresses/id_00000002/02_1_front.jpg": "fashionWOMENDressesid0000000202_1front.jpg",
    "WOMEN/Dresses/id_00000002/02_2_side.jpg": "fashionWOMENDressesid0000000202_2side.jpg",
    "MEN/Shirts_Polos/id_00000030/01_7_additional.jpg": "fashionMENShirts_Polosid0000003001_7additional.jpg",
    "WOMEN/Blouses_Shirts/id_00000004/03_4_full.jpg": "fashionWOMENBlouses_Shirtsid0000000403_4full.jpg",
}
TRAIN, TEST = list(IMAGES.values())[:2], list(IMAGES.values())[2:]


@pytest.fixture
def archive(tmp_path):
    """The unpacked archive, with small images besides those of high resolution, and one that no list names."""
    root = tmp_path / "In-shop"
    for seed, name in enumerate([*IMAGES, "WOMEN/Dresses/id_00000002/02_3_back.jpg"]):
        save_image(root / "Img" / "img_highres" / name, seed, (530, 20))
        save_image(root / "Img" / "img" / name, seed, (24, 16))
    (root / "README.txt").write_text("")
    return root


@pytest.fixture
def lists(tmp_path):
    write_lists(tmp_path / "lists", TRAIN, split="train")
    write_lists(tmp_path / "lists", TEST, split="test", prefix="fashion-resize")
    return tmp_path / "lists"


def run(*arguments):
    names = ["--archive", "--output", "--annotations"]
    script.main(script.parse_args([text for pair in zip(names, map(str, arguments), strict=False) for text in pair]))


def check(output, archive):
    expected = {}
    for name, flat in IMAGES.items():
        split = "train" if flat in TRAIN else "test"
        expected[f"{split}_highres/{flat}"] = (archive / "Img" / "img_highres" / name).read_bytes()
    assert {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.jpg")} == expected


@pytest.mark.parametrize("where", ["", "Img", "Img/img_highres"])
def test_the_archive_becomes_what_the_reader_reads(archive, lists, tmp_path, where):
    report = prepare_deepfashion(archive / where, tmp_path / "out", lists)
    check(tmp_path / "out", archive)
    counts = {"images": 2, "pairs": 2, "usable_pairs": 2}
    assert report == {"train": counts, "test": counts, "skipped": {"files": {}}}
    assert json.loads((tmp_path / "out" / "prepare_deepfashion.json").read_text()) == report
    for split, names in (("train", TRAIN), ("test", TEST)):
        assert [pair.source_name for pair in load_pairs(tmp_path / "out", split=split)] == names


def test_lists_in_the_output_folder_and_lists_of_images(archive, lists, tmp_path):
    (lists / "train.lst").write_text(f"{TRAIN[0]}\nfashionWOMENDressesid0000000202_3back.jpg\n")
    report = prepare_deepfashion(archive, lists)
    assert report["train"]["images"] == 3
    assert (lists / "train_highres" / "fashionWOMENDressesid0000000202_3back.jpg").exists()
    assert prepare_deepfashion(archive, tmp_path / "out", lists) == report
    assert (tmp_path / "out" / "train.lst").exists()


def test_hard_links_take_no_space(archive, lists, tmp_path):
    prepare_deepfashion(archive, tmp_path / "out", lists, link=True)
    check(tmp_path / "out", archive)
    source = archive / "Img" / "img_highres" / next(iter(IMAGES))
    assert os.path.samefile(source, tmp_path / "out" / "train_highres" / TRAIN[0])


def test_missing_and_damaged_images_are_named_and_left_out(archive, lists, tmp_path, capsys):
    first, _, third, _ = (archive / "Img" / "img_highres" / name for name in IMAGES)
    first.write_bytes(first.read_bytes()[:-50])
    third.unlink()
    run(archive, tmp_path / "out", lists)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 1 images (expected 48674), 0 of 2 pairs usable (expected 101966)."
    assert lines[1] == "test: 1 images (expected 4038), 0 of 2 pairs usable (expected 8570)."
    assert lines[2].startswith(f"2 files were skipped: 'train_highres/{TRAIN[0]}' (cannot be read (")
    assert f"'test_highres/{TEST[0]}' (is not in the archive)" in lines[2]
    assert not (tmp_path / "out" / "train_highres" / TRAIN[0]).exists()


def test_a_second_run_touches_only_what_is_missing(archive, lists, tmp_path):
    output = tmp_path / "out"
    prepare_deepfashion(archive, output, lists)
    kept, half, missing = (output / "train_highres" / TRAIN[0], *(output / "test_highres" / name for name in TEST))
    half.write_bytes(b"half")
    missing.unlink()
    before = kept.stat().st_mtime_ns
    prepare_deepfashion(archive, output, lists)
    check(output, archive)
    assert kept.stat().st_mtime_ns == before
    assert not list(output.rglob(".*"))


def test_one_split_is_enough(archive, lists, tmp_path, caplog):
    (lists / "fasion-resize-pairs-train.csv").unlink()
    with caplog.at_level(logging.WARNING):
        report = prepare_deepfashion(archive, tmp_path / "out", lists)
    assert "train" not in report
    assert report["test"]["images"] == 2
    assert "Only the test split is prepared" in caplog.text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda archive, lists: shutil.rmtree(archive), "must have images at 'img_highres/WOMEN/...'"),
        (lambda archive, lists: shutil.rmtree(archive / "Img" / "img_highres"), "pass the folder of the unpacked"),
        (lambda archive, lists: [file.unlink() for file in lists.iterdir()], "'fasion-resize-.*' is missing in"),
        (lambda archive, lists: lists.rename(lists.with_name("gone")), "'fasion-resize-.*' is missing in"),
        (lambda archive, lists: write_lists(lists, ["a.jpg", "b.jpg"]), "must have the images listed for 'train'"),
        (lambda archive, lists: write_lists(lists, ["../a.jpg", "b.jpg"]), "must have the images listed for 'train'"),
    ],
)
def test_wholly_wrong_input_is_one_sentence(archive, lists, tmp_path, break_it, message):
    break_it(archive, lists)
    with pytest.raises(SystemExit, match=message) as error:
        run(archive, tmp_path / "out", lists)
    assert "\n" not in str(error.value)
    assert not list(Path(tmp_path / "out").rglob("*.jpg"))
