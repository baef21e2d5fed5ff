"""Files that are there completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that an interruption leaves no half of it.

    Args:
        path: The file; replaced if it exists.
        content: What it is to hold.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
