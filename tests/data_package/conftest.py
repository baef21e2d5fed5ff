"""A miniature data set that most tests begin with."""

import pytest
from miniature_sets import write_deepfashion


@pytest.fixture
def deepfashion(tmp_path):
    return write_deepfashion(tmp_path / "deepfashion")
