"""Folders that appear whole or not at all."""

from pathlib import Path

import pytest

from diffusers_cfld.conversion.weights_io import staged_folder


def write(output: Path) -> None:
    with staged_folder(output, overwrite=True, marker="marker") as folder:
        (folder / "marker").touch()


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    for left in ("new", "former"):
        (tmp_path / ".output.part" / left).mkdir(parents=True)
        (tmp_path / ".output.part" / left / "gigabytes").touch()
    (tmp_path / ".other.part").mkdir()  # another output's
    write(tmp_path / "output")
    write(tmp_path / "output")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        ".other.part",
        "output",
        "output/marker",
    ]


def test_two_runs_with_one_output_do_not_meet(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "output", overwrite=False, marker="marker") as folder:
        (folder / "first").touch()
        with pytest.raises(OSError, match=r"Another process is working in '.*\.output\.part'"):
            write(tmp_path / "output")
        write(tmp_path / "other")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["first"]
