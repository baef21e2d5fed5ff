"""Files that are there completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ResumableArrays", "replacing", "write_file"]


@contextmanager
def replacing(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """Write a file beside its place and move it there, so that an interruption leaves no half of it.

    One process at a time may write a file: what a killed one left is taken over by the next, under the same name.

    Args:
        path: The file; replaced if it exists.
        keep_suffix: For writers that tell the format from the name. Otherwise nothing takes a file for whole that a
            killed process left.

    Yields:
        Where to write it. If nothing is there at the end of the block, nothing is moved.

    Raises:
        OSError: It cannot be moved.
    """
    partial = path.with_name(f".{path.stem}.part{path.suffix}" if keep_suffix else f".{path.name}.part")
    try:
        yield partial
        if partial.exists():
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; replaced if it exists.
        content: What it is to hold.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


class ResumableArrays:
    """Arrays in `.npy` files that are filled row by row and go on after an interruption.

    Until [`finish`] they have the suffix `.begun`, and `.progress` beside the first tells how many rows are done.

    Args:
        files: Where they shall be.
        shapes: (N, ...) of each, N rows in all of them.
        dtype: Of all.
        settings: What the rows depend on, as JSON can hold it. What was begun with other settings is begun anew.

    Attributes:
        num_done: How many rows there are already.
    """

    def __init__(
        self, files: Sequence[Path], shapes: Sequence[tuple[int, ...]], dtype: npt.DTypeLike, settings: Any
    ) -> None:
        self._files = list(files)
        self._begun = [file.with_suffix(".begun") for file in self._files]
        self._progress = self._files[0].with_suffix(".progress")
        self._settings = json.loads(json.dumps([settings, shapes, np.dtype(dtype).name]))
        self.num_done = self._count_done()
        self._num_noted = self.num_done
        mode = "r+" if self.num_done else "w+"
        if not self.num_done:
            # What it tells is of the rows that are overwritten now.
            self._progress.unlink(missing_ok=True)
        self._arrays = [
            np.lib.format.open_memmap(begun, mode, dtype, shape)
            for begun, shape in zip(self._begun, shapes, strict=True)
        ]

    def append(self, *rows: npt.ArrayLike, note_every: int = 256) -> None:
        """Add the next row of each array.

        Args:
            *rows: One for each array, of its shape without N.
            note_every: After how many rows they are brought to disk and counted as done.

        Raises:
            IndexError: All N rows are there.
            ValueError: There are not as many rows as arrays, or one has another shape.
        """
        for array, row in zip(self._arrays, rows, strict=True):
            if np.shape(row) != array.shape[1:]:
                raise ValueError(f"A row of {array.shape[1:]} was expected, got one of {np.shape(row)}.")
        for array, row in zip(self._arrays, rows, strict=True):
            array[self.num_done] = row
        self.num_done += 1
        if self.num_done - self._num_noted >= note_every:
            for array in self._arrays:
                array.flush()
            write_file(self._progress, json.dumps({"settings": self._settings, "rows": self.num_done}).encode())
            self._num_noted = self.num_done

    def finish(self) -> None:
        """Bring the filled arrays to their places.

        Raises:
            ValueError: Rows are missing.
        """
        if self.num_done < len(self._arrays[0]):
            raise ValueError(f"{self._files[0]} must get {len(self._arrays[0])} rows, got {self.num_done}.")
        for array, begun, file in zip(self._arrays, self._begun, self._files, strict=True):
            array.flush()
            os.replace(begun, file)
        self._progress.unlink(missing_ok=True)

    def _count_done(self) -> int:
        if not all(file.exists() for file in (self._progress, *self._begun)):
            return 0
        noted = json.loads(self._progress.read_text(encoding="utf-8"))
        return int(noted["rows"]) if noted["settings"] == self._settings else 0
