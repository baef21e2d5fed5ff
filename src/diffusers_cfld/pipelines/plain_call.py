"""The plain pipeline's call, for functions that may be given a pipeline with a call of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline


def plain_call(pipe: CFLDPipeline, **kwargs: Any) -> Any:
    """Call a pipeline as a [`CFLDPipeline`], also if it is one whose own call takes other arguments.

    Args:
        pipe: The pipeline.
        **kwargs: As of `CFLDPipeline.__call__`.

    Returns:
        What that returns.
    """
    from .pipeline_cfld import CFLDPipeline

    return CFLDPipeline.__call__(pipe, **kwargs)
