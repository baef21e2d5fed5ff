"""Files that appear whole or not at all."""

import pytest

from diffusers_cfld.io_utils import replacing, write_file


def test_an_interrupted_file_leaves_the_former_one(tmp_path):
    file = tmp_path / "a.png"
    write_file(file, b"former")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"former"
    write_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_writers_that_choose_the_format_by_the_name_see_the_suffix(tmp_path):
    with replacing(tmp_path / "a.png", keep_suffix=True) as partial:
        assert partial.suffix == ".png"
        assert partial.parent == tmp_path
    assert not list(tmp_path.iterdir())
