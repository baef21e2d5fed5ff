"""A miniature data set that most tests begin with."""

import pytest
from miniature_sets import NAMES, save_picture, write_lists


@pytest.fixture
def deepfashion(tmp_path):
    """Six pictures in six pairs, as `load_deepfashion_pairs` reads them."""
    folder = tmp_path / "deepfashion"
    write_lists(folder)
    for seed, name in enumerate(NAMES):
        save_picture(folder / "train_highres" / name, seed)
    return folder
