"""The study of quality: what it changes in the U-Net is undone, and a stopped run goes on."""

import importlib
import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from testing_utils import tiny_image, tiny_pipeline, tiny_pose


@pytest.fixture(scope="module")
def quality():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks", "examples/small_model"):
            patch.syspath_prepend(Path(__file__).parents[2] / folder)
        yield importlib.import_module("quality")


@pytest.fixture(scope="module")
def run():
    pipe = tiny_pipeline()
    conditions = {"appearance": pipe.encode_appearance(tiny_image()), "pose": pipe.encode_pose(tiny_pose())}

    def run(change=None):
        options = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.manual_seed(0)}
        options["guidance_scale"] = 1.0
        if change is None:
            return pipe(**conditions, **options).images
        with change(pipe):
            return pipe(**conditions, **options).images

    return run


def test_changes_of_the_unet_do_what_they_say_and_are_undone(quality, run):
    @contextmanager
    def nothing(pipe):
        with quality.reuse_deep_features(pipe, 1), quality.merge_tokens(pipe, 0.0):
            yield

    expected = run()
    torch.testing.assert_close(run(nothing), expected, rtol=1e-4, atol=1e-4)
    for change in (partial(quality.reuse_deep_features, every=2), partial(quality.merge_tokens, share=0.5)):
        assert not torch.allclose(run(change), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(run(), expected)


def test_what_is_there_is_not_measured_again(quality, tmp_path, monkeypatch):
    settings = [quality.Setting(name, "DDIMScheduler", 1) for name in (quality.PUBLISHED, "fails", "other")]
    made = []

    def generate(_pipe, setting, _pairs, _autocast):
        made.append(setting.name)
        if setting.name == "fails":
            raise RuntimeError("it does not fit")
        return np.full((2, 4, 4, 3), len(made), dtype=np.uint8), 6.0

    row = {"psnr": [20.0, 21.0], "ssim": 0.5, "feature_distance": 0.1, "recognised": 0.5}
    for name, value in {
        "generate": generate,
        "prepare": lambda *_: None,
        "judge_images": lambda *_: dict(row),
    }.items():
        monkeypatch.setattr(quality, name, value)
    monkeypatch.setattr(quality, "load", lambda _folder: None)
    quality.measure(None, settings[:1], tmp_path, 2, False)
    results = quality.measure(None, settings, tmp_path, 2, False)
    assert made == ["", quality.PUBLISHED, "fails", "other"]  # the first counts the operations of an evaluation
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["fails"] == {"error": "RuntimeError: it does not fit"}
    assert results["settings"]["other"]["evaluations"] == 1
    assert results["settings"]["other"]["to_published"] == pytest.approx(20 * np.log10(255 / 2))
    with pytest.raises(SystemExit, match="has results for other --pairs or --bfloat16"):
        quality.measure(None, settings, tmp_path, 3, False)


def test_settings_have_names_of_their_own(quality):
    names = [setting.name for setting in quality.list_settings()]
    assert len(set(names)) == len(names)
    assert {quality.PUBLISHED, quality.SLOW} <= set(names)
