"""Files that appear whole, and arrays that go on after an interruption."""

import numpy as np
import pytest

from diffusers_cfld.io_utils import ResumableArrays


@pytest.fixture
def files(tmp_path):
    return [tmp_path / "a.npy", tmp_path / "b.npy"]


def begin(files, *, settings="x", num_rows=7):
    return ResumableArrays(files, [(num_rows, 2), (num_rows,)], np.int32, settings)


def test_arrays_go_on_behind_the_last_noted_row(files):
    arrays = begin(files)
    for row in range(5):
        arrays.append([row, -row], row, note_every=2)
    del arrays  # as a killed process leaves it
    assert not any(file.exists() for file in files)
    arrays = begin(files)
    assert arrays.num_done == 4
    with pytest.raises(ValueError, match="must get 7 rows, got 4"):
        arrays.finish()
    for row in range(4, 7):
        arrays.append([10 * row, 0], 10 * row)
    arrays.finish()
    first, second = (np.load(file) for file in files)
    assert first.tolist() == [[0, 0], [1, -1], [2, -2], [3, -3], [40, 0], [50, 0], [60, 0]]
    assert second.tolist() == [0, 1, 2, 3, 40, 50, 60]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("options", [{"settings": "y"}, {"num_rows": 8}, "file lost"], ids=str)
def test_what_was_begun_otherwise_begins_anew(files, options):
    arrays = begin(files)
    for row in range(4):
        arrays.append([row, row], row, note_every=1)
    del arrays
    if options == "file lost":
        files[1].with_suffix(".begun").unlink()
        options = {}
    arrays = begin(files, **options)
    assert arrays.num_done == 0
    for row in range(options.get("num_rows", 7)):
        arrays.append([row, 7], 7)
    arrays.finish()
    assert (np.load(files[1]) == 7).all()


def test_what_was_overwritten_does_not_count_as_done(files):
    arrays = begin(files)
    for row in range(4):
        arrays.append([row, row], row, note_every=1)
    del arrays
    begin(files, settings="y").append([8, 8], 8)  # killed before it noted any row
    assert begin(files).num_done == 0


def test_rows_that_do_not_fit_are_refused(files):
    arrays = begin(files, num_rows=1)
    with pytest.raises(ValueError, match="shorter"):
        arrays.append([2, 2])
    for row in ([1, 2, 3], [1], 1):
        with pytest.raises(ValueError, match=r"A row of \(2,\) was expected"):
            arrays.append(row, 2)
    arrays.append([1, 1], 1)
    with pytest.raises(IndexError):
        arrays.append([2, 2], 2)
