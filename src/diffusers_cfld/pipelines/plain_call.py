"""A pipeline's call: one at a time, and the plain one for functions that may be given a pipeline with another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline

_Call = TypeVar("_Call", bound=Callable[..., Any])

_lock = threading.Lock()
_in_call: set[int] = set()  # ids of pipelines and of their schedulers, which their callers keep alive


def one_call_at_a_time(call: _Call) -> _Call:
    """Refuse a pipeline's call while another one runs, before it changes what that one reads.

    A call notes its scales on the pipeline and its timesteps on the scheduler, as callbacks expect, and reads them at
    every step. Each thread, and a callback, needs a pipeline and a scheduler of its own.

    Args:
        call: A pipeline's `__call__`.

    Returns:
        The guarded call; the bare one is its `__wrapped__`.
    """

    @wraps(call)
    def guarded(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        # Not the U-Net: between two evaluations others may use it, and during one its processors refuse them.
        claimed = {id(part) for part in (pipe, pipe.scheduler) if part is not None}
        with _lock:
            if _in_call & claimed:
                raise RuntimeError(
                    "This pipeline, or one with the same scheduler, is in the middle of a call, of another thread or "
                    "of the one whose callback this is: run the calls one after another, or give each a pipeline with "
                    "a scheduler and a U-Net of its own."
                )
            _in_call.update(claimed)
        try:
            return call(pipe, *args, **kwargs)
        finally:
            with _lock:
                _in_call.difference_update(claimed)

    return guarded  # type: ignore[return-value]


def plain_call(pipe: CFLDPipeline, *, is_inner: bool = False, **kwargs: Any) -> Any:
    """Call a pipeline as a [`CFLDPipeline`], also if it is one whose own call takes other arguments.

    Args:
        pipe: The pipeline.
        is_inner: Whether this is a part of the pipeline's own call.
        **kwargs: As of `CFLDPipeline.__call__`.

    Returns:
        What that returns.
    """
    from .pipeline_cfld import CFLDPipeline

    call: Any = CFLDPipeline.__call__
    return (call.__wrapped__ if is_inner else call)(pipe, **kwargs)
