"""What diffusers' loading and sharing of components leaves to be wished for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

__all__ = [
    "ComponentSharingMixin",
    "check_frame_options",
    "explain_missing_variant",
    "find_only_variants",
    "find_variants",
]

_WEIGHTS_FILE = re.compile(r"diffusion_pytorch_model(?:\.(.+?))?(?:-\d+-of-\d+)?\.safetensors")

_keeps_dtypes: ContextVar[bool] = ContextVar("keeps_dtypes", default=False)


class ComponentSharingMixin(DiffusionPipeline):
    """A pipeline made from another one's components leaves their dtypes as they are."""

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this class from another one's components, which both then share.

        Args:
            pipeline: The other pipeline. Its `pose_estimator` goes along.
            **kwargs: As `DiffusionPipeline.from_pipe`. Without `dtype` every component keeps its own.

        Returns:
            The new pipeline.

        Raises:
            ValueError: A component is missing, or only one of `frame_height` and `frame_width` is given.
        """
        check_frame_options(kwargs)
        keeps = kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None
        token = _keeps_dtypes.set(keeps)
        try:
            made = super().from_pipe(pipeline, **kwargs)
        finally:
            _keeps_dtypes.reset(token)
        made.pose_estimator = getattr(pipeline, "pose_estimator", None)
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the components, as `DiffusionPipeline.to` does.

        Args:
            *args: As there.
            **kwargs: As there.

        Returns:
            The pipeline itself.
        """
        # diffusers' `from_pipe` ends with a cast to float32, also of what the other pipeline goes on using.
        return self if _keeps_dtypes.get() else super().to(*args, **kwargs)


def check_frame_options(options: Mapping[str, Any]) -> None:
    """Check that the shape of the photos is not given by half: the other half would be that of another shape.

    Args:
        options: What a pipeline is loaded or made with.

    Raises:
        ValueError: Only one of `frame_height` and `frame_width` is among them.
    """
    given = [name for name in ("frame_height", "frame_width") if name in options]
    if len(given) == 1:
        raise ValueError(f"`frame_height` and `frame_width` go together, got `{given[0]}` alone: pass both.")


def find_variants(folder: str | os.PathLike[str]) -> set[str | None]:
    """Tell which variants of the weights a pipeline's folder has.

    Args:
        folder: The folder.

    Returns:
        Their names, as in the files', also where these are in shards; None stands for weights that are no variant.
    """
    files = Path(folder).glob("*/diffusion_pytorch_model*.safetensors")
    return {match[1] for file in files if (match := _WEIGHTS_FILE.fullmatch(file.name))}


def find_only_variants(folder: str | os.PathLike[str]) -> list[str]:
    """Tell which variants have to be chosen from, where a pipeline's folder has no weights that are none.

    Args:
        folder: The folder; anything else has none.

    Returns:
        Their names, sorted; none where the folder can be loaded without choosing.
    """
    found = find_variants(folder)
    return [] if None in found else sorted(name for name in found if name is not None)


def explain_missing_variant(path: str | os.PathLike[str], error: OSError) -> None:
    """Raise an error that names the variants a folder has, if that is why it could not be loaded without one.

    Args:
        path: What was to be loaded; anything but a folder is let pass.
        error: What diffusers raised: that some file of another name is not there.

    Raises:
        OSError: The folder has variants of the weights, and no others.
    """
    names = find_only_variants(path)
    if names:
        variants = " or ".join(f"`variant={name!r}`" for name in names)
        raise OSError(f"{os.fspath(path)!r} has its weights in a variant only: pass {variants}.") from error
