"""The short examples: each runs as it is on the bundled model and writes its image."""

import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from diffusers_cfld.pipelines import pipeline_cfld, pipeline_cfld_inpaint

EXAMPLES = Path(__file__).parents[2] / "examples" / "inference"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def few_steps(monkeypatch):
    """At most two denoising steps, whatever a script asks for: enough for an image that is no noise."""
    for module in (pipeline_cfld, pipeline_cfld_inpaint):

        def retrieve_few(scheduler, steps, *args, all_of=module.retrieve_timesteps):
            return all_of(scheduler, min(steps, 2), *args)

        monkeypatch.setattr(module, "retrieve_timesteps", retrieve_few)


def test_every_example_is_short():
    assert len(NAMES) >= 9
    for name in NAMES:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 30, name


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_its_image(name, tmp_path, monkeypatch, request):
    if name != "guidance":  # which shows the steps 0, 5, 10 and 19
        request.getfixturevalue("few_steps")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    with PIL.Image.open(tmp_path / f"{name}.png") as image:
        assert min(image.size) >= 88
        assert np.asarray(image.convert("RGB")).std() > 20
