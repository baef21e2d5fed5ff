"""Pairs made of folders of images: poses estimated or read, crops, resuming, and what is left out."""

import json
import shutil

import numpy as np
import pytest
from example_scripts import load_example
from miniature_sets import save_image
from PIL import Image
from testing_utils import FIGURES

from diffusers_cfld import fit_photo
from diffusers_cfld.data import PosePairDataset, load_pairs, read_image
from diffusers_cfld.io_utils import lock_folder

script = load_example("make_pairs")
KNOWN = {
    pair.source_name.removeprefix("images/"): (read_image(pair.source), pair.source_keypoints)
    for pair in load_pairs(FIGURES)
}
NAMES = ["anna/006000_00.png", "anna/summer/006000_01.png", "ben/006001_00.png", "ben/006001_01.png"]


class Estimator:
    """Knows the people in the drawn figures, and counts."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, image):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        pixels = np.asarray(image)
        return [pose for figure, pose in KNOWN.values() if np.array_equal(pixels, np.asarray(figure))]


@pytest.fixture
def people(tmp_path):
    """Two people in two images each, in folders."""
    for name in NAMES:
        file = tmp_path / "people" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIGURES / "images" / file.name, file)
    return tmp_path / "people"


def test_people_are_found_cropped_and_paired_with_themselves(people, tmp_path):
    report = script.make_pairs(people, tmp_path / "out", Estimator())
    assert report == {"people": 2, "images": 4, "pairs": 4, "left_out": {}}
    pairs = load_pairs(tmp_path / "out")
    images = [f"images/{name}.jpg" for name in NAMES]
    assert [(pair.source_name, pair.target_name) for pair in pairs] == [
        (images[0], images[1]),
        (images[1], images[0]),
        (images[2], images[3]),
        (images[3], images[2]),
    ]
    figure, pose = KNOWN["006000_00.png"]
    fitted = fit_photo(figure, pose)
    assert pairs[0].source_keypoints.size == fitted.keypoints.size
    np.testing.assert_allclose(pairs[0].source_keypoints.xy, fitted.keypoints.xy)
    difference = np.asarray(read_image(pairs[0].source), float) - np.asarray(fitted.image, float)
    assert np.abs(difference).mean() < 3  # JPEG's
    assert PosePairDataset(pairs, 32, 32, 32)[0]["skipped"] == []
    with Image.open(tmp_path / "out" / "found.jpg") as sheet:
        assert sheet.size == (2 * (176 + 8) + 8, 2 * (256 + 20 + 8) + 8)
    assert not (tmp_path / "out" / "left_out.jpg").exists()


def test_what_cannot_be_used_is_left_out_and_shown(people, tmp_path):
    save_image(people / "carl" / "empty.png", 0)
    shutil.copy(FIGURES / "images" / "006002_00.png", people / "carl" / "alone.png")
    shutil.copy(FIGURES / "images" / "006002_00.png", people / "nobodys.png")
    (people / "anna" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(people / NAMES[0], people / "anna" / "blurred.png")
    blurred = KNOWN["006000_00.png"][1].to_openpose()
    blurred["people"][0]["pose_keypoints_2d"][9:] = [0] * 45
    (people / "anna" / "blurred.json").write_text(json.dumps(blurred))
    (people / "anna" / "006000_00_keypoints.json").write_text('{"people": []}')
    report = script.make_pairs(people, tmp_path / "out", Estimator())
    assert report["left_out"] == {
        "anna/broken.jpg": "is not an image in a known format",
        "anna/blurred.png": "shows only 3 joints",
        "anna/006000_00.png": report["left_out"]["anna/006000_00.png"],
        "anna/summer/006000_01.png": "is the only usable one of its person",
        "carl/alone.png": "is the only usable one of its person",
        "carl/empty.png": "shows nobody",
        "nobodys.png": "is in no person's folder",
    }
    assert (report["people"], report["pairs"]) == (1, 2)
    assert json.loads((tmp_path / "out" / "make_pairs.json").read_text()) == report
    with Image.open(tmp_path / "out" / "left_out.jpg") as sheet:
        assert sheet.size == (7 * (176 + 8) + 8, 256 + 20 + 8 + 8)


def test_an_interrupted_run_goes_on(people, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        script.make_pairs(people, tmp_path / "out", Estimator(fail_at=3))
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    estimator = Estimator()
    report = script.make_pairs(people, tmp_path / "out", estimator)
    assert (estimator.calls, report["pairs"]) == (2, 4)
    whole = script.make_pairs(people, tmp_path / "whole", Estimator())
    assert whole == report
    assert (tmp_path / "out" / "pairs.jsonl").read_text() == (tmp_path / "whole" / "pairs.jsonl").read_text()
    with lock_folder(tmp_path / "out"), pytest.raises(OSError, match="Another process is working in"):
        script.make_pairs(people, tmp_path / "out", estimator)


def test_keypoint_files_serve_instead_of_an_estimator(people, tmp_path, capsys):
    arguments = ["--images", str(people), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"make_pairs.py: error: '.*people' must have two usable images of a person"):
        script.main(script.parse_args(arguments))
    for number, name in enumerate(NAMES):
        pose = KNOWN[name.rpartition("/")[2]][1]
        if number == 0:  # without a size of its own: in pixels of the image
            np.save((people / name).with_suffix(".npy"), pose.to_array())
        else:  # measured at another scale
            content = pose.rescale((256, 192)).to_openpose()
            (people / name).with_suffix(".json").write_text(json.dumps(content))
    script.main(script.parse_args([*arguments, "--max_pairs_per_person", "1"]))
    assert "2 pairs of 4 images of 2 people are in" in capsys.readouterr().out
    estimated = script.make_pairs(people, tmp_path / "estimated", Estimator())
    assert estimated["pairs"] == 4
    one, other = (load_pairs(tmp_path / name) for name in ("out", "estimated"))
    for pair in one:
        (same,) = (
            each for each in other if (each.source_name, each.target_name) == (pair.source_name, pair.target_name)
        )
        np.testing.assert_allclose(pair.source_keypoints.xy, same.source_keypoints.xy, atol=1e-3)
