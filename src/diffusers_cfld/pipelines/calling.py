"""A pipeline's call: one at a time, and the plain one for functions that may be given a pipeline with another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline

_Call = TypeVar("_Call", bound=Callable[..., Any])

_lock = threading.Lock()
_in_call: set[int] = set()  # ids of pipelines and of their schedulers
_is_inner: ContextVar[bool] = ContextVar("is_inner", default=False)


@contextmanager
def claiming(pipe: Any) -> Iterator[None]:
    """Have a pipeline and its scheduler for oneself.

    A call notes its scales on the pipeline and its timesteps on the scheduler, as callbacks expect, and reads them at
    every step. Each thread, and a callback, needs a pipeline and a scheduler of its own. The U-Net is not claimed:
    between two evaluations others may use it, and during one its processors refuse them.

    Args:
        pipe: The pipeline.

    Yields:
        Nothing.

    Raises:
        RuntimeError: The pipeline, or one with the same scheduler, is claimed already.
    """
    parts = [part for part in (pipe, pipe.scheduler) if part is not None]  # kept, so that no other gets their ids
    claimed = {id(part) for part in parts}
    with _lock:
        if _in_call & claimed:
            raise RuntimeError(
                "This pipeline, or one with the same scheduler, is in the middle of a call, of another thread or of "
                "the one whose callback this is: run the calls one after another, or give each a pipeline with a "
                "scheduler and a U-Net of its own."
            )
        _in_call.update(claimed)
    try:
        yield
    finally:
        with _lock:
            _in_call.difference_update(claimed)


def one_call_at_a_time(call: _Call) -> _Call:
    """Refuse a pipeline's call while another one runs, before it changes what that one reads.

    Args:
        call: A pipeline's `__call__`.

    Returns:
        The same with the pipeline claimed, unless [`plain_call`] says that its caller has claimed it.
    """

    @wraps(call)
    def guarded(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_inner.get():
            with claiming(pipe):
                return call(pipe, *args, **kwargs)
        token = _is_inner.set(False)  # a callback's calls are others again
        try:
            return call(pipe, *args, **kwargs)
        finally:
            _is_inner.reset(token)

    return guarded  # type: ignore[return-value]


def plain_call(pipe: CFLDPipeline, *, is_inner: bool = False, **kwargs: Any) -> Any:
    """Call a pipeline as a [`CFLDPipeline`], also if it is one whose own call takes other arguments.

    Args:
        pipe: The pipeline.
        is_inner: Whether the caller has claimed the pipeline.
        **kwargs: As of `CFLDPipeline.__call__`.

    Returns:
        What that returns.
    """
    from .pipeline_cfld import CFLDPipeline

    token = _is_inner.set(is_inner)
    try:
        return CFLDPipeline.__call__(pipe, **kwargs)
    finally:
        _is_inner.reset(token)
