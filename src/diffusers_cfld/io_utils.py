"""Files and folders: written completely or not at all, and by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout  # required by huggingface_hub and torch

if TYPE_CHECKING:
    from torch import nn


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


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, by a file `.lock` in it that the operating system locks.

    The lock ends with its process, even if that is killed. So whoever has the lock may remove what an earlier process
    left unfinished.

    Args:
        folder: The folder; created if it does not exist.

    Yields:
        Nothing.

    Raises:
        OSError: Another process has the lock, or the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(
            f"Another process is working in '{folder}': wait until it ends, or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def prepare_saving(
    model: nn.Module,
    folder: Path,
    *,
    variant: str | None = None,
    safe_serialization: bool = True,
    max_shard_size: int | str | None = None,
) -> None:
    """Prepare a folder for diffusers to save a model over an earlier one, so that what is saved can be loaded.

    Args:
        model: The model. Weights that may be mapped from files of the folder are copied into memory, since Windows
            cannot replace a mapped file.
        folder: The model's own folder. Indexes of shards and other files that loading would prefer to those to be
            saved are removed, and what a save that was killed has left.
        variant: As in the save.
        safe_serialization: As in the save.
        max_shard_size: As in the save; None if weights will be in a single file.
    """
    if not folder.is_dir():
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    suffix = f".{variant}" if variant else ""
    former = [f"*model.*.index{suffix}.json", ".tmp*"]
    if max_shard_size is not None or not safe_serialization:
        former += [f"*model{suffix}.safetensors", f"*model{suffix}-*-of-*.safetensors"]
    for pattern in former:
        for file in folder.glob(pattern):
            file.unlink()
