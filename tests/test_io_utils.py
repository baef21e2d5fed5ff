"""Files that appear whole or not at all, and folders with one writer."""

import os
import signal

import pytest

from diffusers_cfld.io_utils import lock_folder, replacing, write_file


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


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    with lock_folder(folder):
        with pytest.raises(OSError, match=r"is working in '.*folder': wait until it ends, or"), lock_folder(folder):
            raise AssertionError
        with lock_folder(tmp_path):
            pass
    with lock_folder(folder):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_lock_ends_with_a_process_that_is_killed(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_folder(tmp_path):
            os.write(writing, b"locked")
            signal.pause()
    os.read(reading, 6)
    with pytest.raises(OSError, match="Another process"), lock_folder(tmp_path):
        raise AssertionError
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock_folder(tmp_path):
        pass
