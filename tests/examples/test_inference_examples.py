"""The short examples: each runs as it is on the bundled model and writes its image."""

import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from testing_utils import load_each_folder_once

from diffusers_cfld.pipelines import pipeline_cfld, pipeline_cfld_inpaint
from diffusers_cfld.small_model import SMALL_MODEL

EXAMPLES = Path(__file__).parents[2] / "examples" / "inference"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def one_step(monkeypatch):
    """A single denoising step, whatever a script asks for: enough for an image that is not of one colour."""
    for module in (pipeline_cfld, pipeline_cfld_inpaint):

        def retrieve_one(scheduler, steps, *args, all_of=module.retrieve_timesteps):
            return all_of(scheduler, 1, *args)

        monkeypatch.setattr(module, "retrieve_timesteps", retrieve_one)


def test_every_example_is_short():
    assert len(NAMES) >= 9
    for name in NAMES:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 30, name


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_its_image(name, tmp_path, monkeypatch, request):
    if name != "guidance":  # which shows the steps 0, 5, 10 and 19
        request.getfixturevalue("one_step")
    load_each_folder_once(monkeypatch, SMALL_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    with PIL.Image.open(tmp_path / f"{name}.png") as image:
        assert min(image.size) >= 88
        assert np.asarray(image.convert("RGB")).std() > 20
