"""Files of a conversion: weights read and written without a second copy in memory, and folders that appear whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_HASH_CHUNK = 16 * 2**20
_ZIP_MAGIC = b"PK\x03\x04"
_LFS_MAGIC = b"version https://git-lfs"
# Of a clone, whose history nobody else may have.
KEPT_ENTRIES = (".git", ".gitattributes", ".cache")


@dataclass(frozen=True)
class SourceFile:
    """A file that a conversion read.

    Args:
        name: File name without its folder.
        size: Bytes.
        sha256: Hexadecimal digest of the content.
    """

    name: str
    size: int
    sha256: str


def describe_file(path: str | Path, advance: Callable[[int], object] | None = None) -> SourceFile:
    """Measure and hash a file.

    Args:
        path: The file.
        advance: Called with the number of bytes after each piece that was read.

    Returns:
        Its name, size and sha256.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if advance is not None:
                advance(len(chunk))
    return SourceFile(name=Path(path).name, size=size, sha256=digest.hexdigest())


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of tensors; code in it is refused, never run.

    Tensors of today's zip format are mapped from the file: memory is used as they are read, and given back when the
    last of them is deleted.

    Args:
        path: A file written by `torch.save`.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is truncated, not a pickle of PyTorch, or holds something other than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: expected a file written by `torch.save`.")
    with open(path, "rb") as file:
        start = file.read(len(_LFS_MAGIC))
    if start == _LFS_MAGIC:
        raise ValueError(f"'{path}' is a pointer of git-lfs, not the weights: run `git lfs pull` in its repository.")
    try:
        mmap = True if start.startswith(_ZIP_MAGIC) else None
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())
        forbidden = re.search(r"GLOBAL ([\w.]+)", reason)
        if forbidden:
            raise ValueError(
                f"'{path}' was refused: it needs {forbidden[1]!r}, and only tensors and plain data are read from a "
                "pickle. Save a plain dict of tensors with `torch.save`."
            ) from error
        raise ValueError(
            f"'{path}' is truncated or not a file written by `torch.save` ({type(error).__name__}: "
            f"{shorten(reason, 120)}): download or save it again."
        ) from error


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors on the CPU.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is truncated or not in the safetensors format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{path}' does not exist: expected a safetensors file.")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is truncated or not a safetensors file ({error}): download or save it again."
        ) from error


def require_tensors(content: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Check that the content of a file is a flat state dict.

    Args:
        content: What was read.
        path: Where, for the message.

    Returns:
        The same content as a plain dict.

    Raises:
        ValueError: It is anything else.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' must hold a dict of tensors, got {type(content).__name__}.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"'{path}' must hold a dict of tensors, got {type(value).__name__} under {key!r}.")
    return dict(content)


def with_variant(name: str, variant: str | None) -> str:
    """Put a variant into a weights file's name, as diffusers spells it.

    Args:
        name: `"diffusion_pytorch_model.safetensors"` or alike.
        variant: `"fp16"` gives `"diffusion_pytorch_model.fp16.safetensors"`; `None` gives `name`.
    """
    if variant is None:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def write_weights(
    folder: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, variant: str | None
) -> None:
    """Write a component's weights as diffusers names them.

    Args:
        folder: The component's folder; its `config.json` is there already.
        tensors: State dict; emptied on the way, so that its memory is not held by the caller.
        dtype: Of the floating tensors in the file; `None` keeps theirs.
        variant: See [`with_variant`].

    Raises:
        OSError: The file cannot be written.
    """
    ready: dict[str, torch.Tensor] = {}
    for key in list(tensors):
        tensor = tensors.pop(key)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        ready[key] = tensor.contiguous()
    path = folder / with_variant(SAFETENSORS_WEIGHTS_NAME, variant)
    save_file(ready, path, metadata={"format": "pt"})
    # safetensors makes its files readable by their owner alone.
    shutil.copymode(folder / "config.json", path)


def read_weights(folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    """Read a component's weights as diffusers writes them: one file or shards, safetensors or pickle.

    Args:
        folder: The component's folder.
        variant: See [`with_variant`].

    Returns:
        State dict on the CPU.

    Raises:
        OSError: There are no weights.
        ValueError: They are damaged.
    """
    for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        whole = folder / with_variant(name, variant)
        index = folder / with_variant(f"{name}.index.json", variant)
        if whole.is_file():
            files = [whole]
        elif index.is_file():
            weight_map = read_json(index).get("weight_map")
            shards = set(weight_map.values()) if isinstance(weight_map, dict) else {""}
            if not all(isinstance(shard, str) and shard == Path(shard).name != "" for shard in shards):
                raise ValueError(f"'{index}' must hold a `weight_map` to files beside it; it is damaged.")
            files = [folder / shard for shard in sorted(shards)]
        else:
            continue
        tensors: dict[str, torch.Tensor] = {}
        for file in files:
            is_pickle = name == WEIGHTS_NAME
            tensors.update(require_tensors(load_pickle(file), file) if is_pickle else load_safetensors(file))
        return tensors
    wanted = with_variant(SAFETENSORS_WEIGHTS_NAME, variant)
    raise FileNotFoundError(f"'{folder}' holds no weights: expected '{wanted}' (or its shards), or another variant.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object, got {type(content).__name__}.")
    return content


@contextmanager
def staged_folder(
    output: str | Path, *, overwrite: bool, marker: str, entries: Collection[str], inputs: tuple[str | Path, ...] = ()
) -> Iterator[Path]:
    """Build a folder beside its place and move it there at the end, so that it is seen whole or not at all.

    Args:
        output: The folder to make. Missing parents are made.
        overwrite: Replace `output` if it holds a former result; what git and the Hub keep in it stays.
        marker: A file that every result of this kind has; a folder without it is never replaced.
        entries: Patterns of the names that a result of this kind may have; a folder with others is never replaced.
        inputs: Folders and files that are read and so must not be replaced.

    Yields:
        A temporary folder beside `output`; deleted if the body raises.

    Raises:
        OSError: A folder cannot be made or moved.
        ValueError: `output` is not an empty or missing folder and cannot be replaced, or it cannot be moved: it is the
            current folder or where a disk is mounted.
    """
    output = Path(os.path.realpath(output))  # what a link leads to is replaced, not the link
    _check_output(output, overwrite=overwrite, marker=marker, entries=entries, inputs=inputs)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".incomplete", dir=output.parent))
    try:
        contents = staging / "contents"  # made by mkdir and so with the user's permissions, unlike `staging`
        contents.mkdir()
        yield contents
        # What may have appeared in the meantime is looked at again.
        _check_output(output, overwrite=overwrite, marker=marker, entries=entries, inputs=inputs)
        former, kept = staging / "former", []
        if output.exists():
            output.rename(former)
        try:
            for name in KEPT_ENTRIES:
                if (former / name).exists() and not (contents / name).exists():
                    (former / name).rename(contents / name)
                    kept.append(name)
            contents.rename(output)
        except OSError:
            for name in kept:
                (contents / name).rename(former / name)
            if former.exists():
                former.rename(output)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_output(
    output: Path, *, overwrite: bool, marker: str, entries: Collection[str], inputs: tuple[str | Path, ...]
) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output '{output}' must be a folder, got an existing file: choose another.")
    if os.path.ismount(output) or output == Path(os.path.realpath(os.curdir)):
        raise ValueError(
            f"The output '{output}' must be a folder that can be replaced whole, got the current folder or one where "
            "a disk is mounted: choose a folder in it."
        )
    for path in inputs:
        source = Path(path).resolve()
        if source.exists() and (source == output.resolve() or output.resolve() in source.parents):
            raise ValueError(f"The output '{output}' must not be or contain the input '{path}': choose another.")
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"The output '{output}' exists and is not empty: choose another folder, or pass `overwrite=True` "
            "(`--overwrite`) to replace it."
        )
    if not (output / marker).is_file():
        raise ValueError(
            f"The output '{output}' is not a former result (it has no '{marker}') and so is not overwritten: choose "
            "another folder or empty it."
        )
    foreign = sorted(
        path.name for path in output.iterdir() if not any(fnmatchcase(path.name, pattern) for pattern in entries)
    )
    if foreign:
        raise ValueError(
            f"The output '{output}' holds {foreign[0]!r}, which no former result has, and so is not overwritten: "
            "choose another folder or move that elsewhere."
        )
