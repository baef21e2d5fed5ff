"""What diffusers' loader does not say."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["explain_missing_variant"]


def explain_missing_variant(path: str | os.PathLike[str], error: OSError) -> None:
    """Raise an error that names the variants a folder has, if that is why it could not be loaded without one.

    Args:
        path: What was to be loaded; anything but a folder is let pass.
        error: What diffusers raised: that some file of another name is not there.

    Raises:
        OSError: The folder has variants of the weights, and no others.
    """
    names = [file.name.split(".")[1:-1] for file in Path(path).glob("*/diffusion_pytorch_model*.safetensors")]
    if names and all(names):
        variants = " or ".join(sorted({f"`variant={name[0]!r}`" for name in names}))
        raise OSError(f"{os.fspath(path)!r} has its weights in a variant only: pass {variants}.") from error
