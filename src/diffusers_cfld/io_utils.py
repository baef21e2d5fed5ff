"""Write files completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name and rename it, so that an interruption never leaves half a file.

    Args:
        path: The file; replaced if it exists.
        keep_suffix: Whether the temporary file has the same suffix, for writers that choose the format by it.

    Yields:
        The temporary path to write to. If no file is there at the end of the block, nothing is renamed.

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
    """Write a file completely or not at all.

    Args:
        path: The file; replaced if it exists.
        content: What it will hold.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
