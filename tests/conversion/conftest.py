from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from testing_utils_reference import write_base, write_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published layout at tiny size; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion folder for the tiny checkpoint; not to be changed."""
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, converted; not to be changed."""
    from diffusers_cfld.conversion.convert import convert_checkpoint

    output = tmp_path_factory.mktemp("tiny") / "pipeline"
    return convert_checkpoint(tiny_checkpoint, tiny_base, output)


@pytest.fixture
def own_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def own_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))
