"""Files of a conversion: read weights mapped into memory, and write folders completely or not at all."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..io_utils import lock_folder


def read_pickle(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict written by `torch.save`; a file with code in it is refused, and the code is never run.

    The tensors are mapped from the file: they take up memory only once they are read, until the last one is deleted.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU by key.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged or holds anything but tensors by key.
    """
    try:
        # Only torch's current zip format can be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise TypeError("Some values are no tensors.")
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise any error
        raise ValueError(
            f"'{path}' must be a state dict written by `torch.save`, but it is damaged or holds more than tensors."
        ) from error
    return content


def read_safetensors(folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    """Read the weights of a component as `save_pretrained` writes them, in one file or in shards.

    Args:
        folder: The component's folder.
        variant: Variant in the files' names.

    Returns:
        State dict on the CPU.

    Raises:
        OSError: The folder has no such files.
    """
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    files = [*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")]
    if not files:
        raise FileNotFoundError(
            f"'{folder}' must have '{stem}.safetensors' or its shards, but has neither: check folder and variant."
        )
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


@contextmanager
def staged_folder(output: Path, *, overwrite: bool, marker: str, made_by: str = "") -> Iterator[Path]:
    """Write a folder under a temporary name and rename it at the end, so that it is written completely or not at all.

    The temporary name is that of `output`, hidden and with `.part`; what a run that was killed left there is removed.

    Args:
        output: The folder to write; its parents are created.
        overwrite: Replace `output` if it is an earlier result. Hidden entries, such as `.git`, are kept.
        marker: Name of a file that every result has.
        made_by: Text that this file contains.

    Yields:
        The folder to fill; it is deleted if the body raises.

    Raises:
        OSError: A folder cannot be created or renamed, or another process is writing the same output.
        ValueError: `output` is not empty and may not be replaced.
    """
    output = output.resolve()  # for a link, its target is replaced
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise ValueError(
                f"The output '{output}' is not empty: choose another folder, or replace it with `overwrite`."
            )
        if not (output / marker).is_file() or made_by.encode() not in (output / marker).read_bytes():
            raise ValueError(
                f"The output '{output}' is not replaced, because its '{marker}' does not show that an earlier "
                "conversion wrote it: choose another folder."
            )
    temporary = output.with_name(f".{output.name}.part")
    staged, former = temporary / "new", temporary / "former"
    with lock_folder(temporary):
        try:
            for left in (staged, former):
                shutil.rmtree(left, ignore_errors=True)
            staged.mkdir()
            yield staged
            if output.exists():
                output.rename(former)
                for entry in former.glob(".*"):
                    entry.rename(staged / entry.name)
            staged.rename(output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):  # Windows keeps the folder while the lock in it is open
        temporary.rmdir()
