"""The short examples: each runs as it is on the bundled model and writes its picture."""

import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "inference"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_every_example_is_short():
    assert len(NAMES) >= 9
    for name in NAMES:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 30, name


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_its_picture(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    with PIL.Image.open(tmp_path / f"{name}.png") as picture:
        assert min(picture.size) > 90
        assert np.asarray(picture.convert("RGB")).std() > 20
