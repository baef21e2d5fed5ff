"""DeepFashion from an archive in miniature: names, checks, counts, and going on after an interruption."""

import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from example_scripts import load_example
from miniature_sets import save_picture, write_lists

from diffusers_cfld.data import load_pairs

module = load_example("prepare_deepfashion")
main, prepare_deepfashion = module.main, module.prepare_deepfashion

# As in the archive, and as in the lists.
PICTURES = {
    "WOMEN/Dresses/id_00000002/02_1_front.jpg": "fashionWOMENDressesid0000000202_1front.jpg",
    "WOMEN/Dresses/id_00000002/02_2_side.jpg": "fashionWOMENDressesid0000000202_2side.jpg",
    "MEN/Shirts_Polos/id_00000030/01_7_additional.jpg": "fashionMENShirts_Polosid0000003001_7additional.jpg",
    "WOMEN/Blouses_Shirts/id_00000004/03_4_full.jpg": "fashionWOMENBlouses_Shirtsid0000000403_4full.jpg",
}
TRAIN, TEST = list(PICTURES.values())[:2], list(PICTURES.values())[2:]


@pytest.fixture
def archive(tmp_path):
    """The unpacked archive, with small pictures besides those of high resolution, and one that no list names."""
    root = tmp_path / "In-shop"
    for seed, name in enumerate([*PICTURES, "WOMEN/Dresses/id_00000002/02_3_back.jpg"]):
        save_picture(root / "Img" / "img_highres" / name, seed, (530, 20))
        save_picture(root / "Img" / "img" / name, seed, (24, 16))
    (root / "README.txt").write_text("")
    return root


@pytest.fixture
def lists(tmp_path):
    write_lists(tmp_path / "lists", TRAIN, split="train")
    write_lists(tmp_path / "lists", TEST, split="test", prefix="fashion-resize")
    return tmp_path / "lists"


def zipped(archive, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(archive / "Img" / "img_highres.zip", "w", compression) as file:
        for name in PICTURES:
            file.write(archive / "Img" / "img_highres" / name, f"img_highres/{name}")
    return archive / "Img" / "img_highres.zip"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def check(output, archive):
    expected = {}
    for name, flat in PICTURES.items():
        split = "train" if flat in TRAIN else "test"
        expected[f"{split}_highres/{flat}"] = (archive / "Img" / "img_highres" / name).read_bytes()
    assert contents(output) == expected


@pytest.mark.parametrize("where", ["", "Img", "Img/img_highres"])
def test_a_folder_becomes_what_the_reader_reads(archive, lists, tmp_path, where, monkeypatch):
    monkeypatch.setattr(
        module, "EXPECTED_COUNTS", {"train": {"pictures": 2, "pairs": 2}, "test": {"pictures": 2, "pairs": 3}}
    )
    report = prepare_deepfashion(archive / where, tmp_path / "out", lists)
    check(tmp_path / "out", archive)
    expected = {"pictures": 2, "pairs": 2, "usable_pairs": 2}
    assert report["train"] == {**expected, "expected": {"pictures": 2, "pairs": 2}, "as_expected": True}
    assert report["test"] == {**expected, "expected": {"pictures": 2, "pairs": 3}, "as_expected": False}
    assert report["skipped"] == {"files": {}}
    assert json.loads((tmp_path / "out" / "prepare_deepfashion.json").read_text()) == report
    for split, names in (("train", TRAIN), ("test", TEST)):
        assert [pair.source_name for pair in load_pairs(tmp_path / "out", split=split)] == names


def test_a_zip_file_too_wherever_it_is(archive, lists, tmp_path):
    file = zipped(archive)
    prepare_deepfashion(file, tmp_path / "out", lists)
    check(tmp_path / "out", archive)
    alone = tmp_path / "alone"
    alone.mkdir()
    file.rename(alone / file.name)
    prepare_deepfashion(alone, tmp_path / "again", lists)
    check(tmp_path / "again", archive)


def test_lists_in_the_output_folder_and_lists_of_pictures(archive, lists, tmp_path):
    (lists / "train.lst").write_text(f"{TRAIN[0]}\nfashionWOMENDressesid0000000202_3back.jpg\n")
    report = prepare_deepfashion(archive, lists)
    assert report["train"]["pictures"] == 3
    assert (lists / "train_highres" / "fashionWOMENDressesid0000000202_3back.jpg").exists()
    copied = prepare_deepfashion(archive, tmp_path / "out", lists)
    assert {**copied, "archive": ""} == {**report, "archive": ""}
    assert (tmp_path / "out" / "train.lst").exists()


def test_hard_links_take_no_space(archive, lists, tmp_path):
    prepare_deepfashion(archive, tmp_path / "out", lists, link=True)
    check(tmp_path / "out", archive)
    source = archive / "Img" / "img_highres" / "WOMEN/Dresses/id_00000002/02_1_front.jpg"
    assert os.path.samefile(source, tmp_path / "out" / "train_highres" / TRAIN[0])


def test_links_in_the_archive_are_followed(archive, lists, tmp_path):
    """As git-annex keeps pictures."""
    source = archive / "Img" / "img_highres" / next(iter(PICTURES))
    source.rename(archive / "content.jpg")
    source.symlink_to("../../../../../content.jpg")
    prepare_deepfashion(archive, tmp_path / "out", lists, link=True)
    check(tmp_path / "out", archive)


def test_the_zip_file_of_high_resolution_is_preferred_to_small_pictures(archive, lists, tmp_path):
    zipped(archive)
    expected = archive.with_name("expected")
    shutil.copytree(archive, expected)
    shutil.rmtree(archive / "Img" / "img_highres")
    save_picture(archive / "Img" / "preview.jpg", 0, (20, 20))
    prepare_deepfashion(archive, tmp_path / "out", lists)
    check(tmp_path / "out", expected)
    # What the command made itself is no archive.
    (archive / "Img" / "img_highres.zip").rename(tmp_path / "out" / "img_highres.zip")
    for _ in range(2):
        prepare_deepfashion(tmp_path / "out", tmp_path / "out", lists)
        check(tmp_path / "out", expected)


def test_pictures_of_an_earlier_archive_do_not_stay_in_the_place_of_missing_ones(archive, lists, tmp_path):
    prepare_deepfashion(archive, tmp_path / "out", lists)
    (archive / "Img" / "img_highres" / next(iter(PICTURES))).unlink()
    report = prepare_deepfashion(archive, tmp_path / "out", lists)
    (entry,) = report["skipped"]["files"].values()
    assert entry["reason"] == f"is not in the archive; that of an earlier call is now '{TRAIN[0]}.old'"
    assert not (tmp_path / "out" / "train_highres" / TRAIN[0]).exists()
    assert report["train"]["usable_pairs"] == 0


def test_a_refused_archive_leaves_what_is_there(archive, lists, tmp_path):
    prepare_deepfashion(archive, tmp_path / "out", lists)
    save_picture(tmp_path / "wrong" / "img_highres" / "WOMEN" / "Dresses" / "id_1" / "a.jpg", 0)
    with pytest.raises(ValueError, match="None of the 2 pictures listed for 'train'"):
        prepare_deepfashion(tmp_path / "wrong", tmp_path / "out", lists)
    check(tmp_path / "out", archive)


def test_missing_and_damaged_pictures_are_named_and_left_out(archive, lists, tmp_path):
    first, second, third, _ = (archive / "Img" / "img_highres" / name for name in PICTURES)
    first.write_bytes(first.read_bytes()[:-50])
    second.rename(second.with_name("02_9_other.jpg"))
    with pytest.raises(ValueError, match="None of the 2 pictures listed for 'train'"):
        prepare_deepfashion(archive, tmp_path / "out", lists)
    second.with_name("02_9_other.jpg").rename(second)
    third.unlink()
    report = prepare_deepfashion(archive, tmp_path / "out", lists)
    reasons = {name: entry["reason"] for name, entry in report["skipped"]["files"].items()}
    assert set(reasons) == {f"train_highres/{TRAIN[0]}", f"test_highres/{TEST[0]}"}
    assert "truncated" in reasons[f"train_highres/{TRAIN[0]}"].lower()
    assert reasons[f"test_highres/{TEST[0]}"] == "is not in the archive"
    assert report["train"]["pictures"] == report["test"]["pictures"] == 1
    assert report["train"]["usable_pairs"] == 0
    assert not (tmp_path / "out" / "train_highres" / TRAIN[0]).exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_damaged_zip_member_is_named(archive, lists, tmp_path, compression):
    file = zipped(archive, compression)
    content = file.read_bytes()
    start = content.index(b".jpg") + 104
    file.write_bytes(content[:start] + bytes(50) + content[start + 50 :])
    report = prepare_deepfashion(file, tmp_path / "out", lists)
    (entry,) = report["skipped"]["files"].values()
    assert "is damaged in the archive" in entry["reason"]


def test_going_on_after_an_interruption_touches_only_what_is_missing(archive, lists, tmp_path, monkeypatch):
    output = tmp_path / "out"
    really_write, written = module.write_file, []

    def write_twice(path, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        really_write(path, content)
        written.append(path)

    monkeypatch.setattr(module, "write_file", write_twice)
    assert main(["--archive", str(archive), "--output", str(output), "--annotations", str(lists)]) == 130
    monkeypatch.setattr(module, "write_file", really_write)
    before = {path: path.stat().st_mtime_ns for path in written}
    assert not (output / "prepare_deepfashion.json").exists()
    (output / "test_highres").mkdir(exist_ok=True)
    (output / "test_highres" / TEST[0]).write_bytes(b"half")
    prepare_deepfashion(archive, output, lists)
    check(output, archive)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert not list(output.rglob(".*"))


def test_one_split_is_enough(archive, lists, tmp_path, caplog):
    (lists / "fasion-resize-pairs-train.csv").unlink()
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        report = prepare_deepfashion(archive, tmp_path / "out", lists)
    assert "train" not in report
    assert report["test"]["pictures"] == 2
    assert "Only test is prepared" in caplog.text


def test_small_pictures_are_remarked_on(archive, lists, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        prepare_deepfashion(archive / "Img" / "img", tmp_path / "out", lists)
    assert "is only 24 pixels high" in caplog.text


def encrypt(file):
    """Set the flag by which zip files say that they are encrypted."""
    content = bytearray(file.read_bytes())
    start = -1
    while (start := content.find(b"PK\x01\x02", start + 1)) >= 0:
        content[start + 8] |= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda archive, lists: encrypt(archive), "is encrypted (4 of 4 files): unpack it with the password"),
        (lambda archive, lists: archive.write_bytes(b"no zip"), "is no readable zip file"),
        (lambda archive, lists: archive.unlink(), "There is no archive at"),
        (lambda archive, lists: (archive.unlink(), archive.mkdir()), "got 0 other files"),
        (lambda archive, lists: [file.unlink() for file in lists.iterdir()], "must have 'fasion-resize-"),
        (lambda archive, lists: lists.rename(lists.with_name("gone")), "must be the folder of the lists"),
        (lambda archive, lists: write_lists(lists, ["a.jpg", "b.jpg"]), "None of the 2 pictures listed for 'train'"),
        (lambda archive, lists: write_lists(lists, ["../a.jpg", "b.jpg"]), "must name files without folders"),
    ],
)
def test_wholly_wrong_input_is_one_sentence(archive, lists, tmp_path, capsys, break_it, message):
    file = zipped(archive).rename(tmp_path / "img_highres.zip")
    break_it(file, lists)
    assert main(["--archive", str(file), "--output", str(tmp_path / "out"), "--annotations", str(lists)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_says_what_it_counted(archive, lists, tmp_path, capsys):
    (archive / "Img" / "img_highres" / Path(*next(iter(PICTURES)).split("/"))).unlink()
    assert main(["--archive", str(archive), "--output", str(tmp_path / "out"), "--annotations", str(lists)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 1 pictures, 0 of 2 pairs usable (expected are 48674 pictures and 101966 pairs")
    assert lines[1].startswith("test: 2 pictures, 2 of 2 pairs usable")
    assert "1 file was skipped" in lines[2]
    assert "is not in the archive" in lines[2]
    assert lines[3].endswith("prepare_deepfashion.json'.")
