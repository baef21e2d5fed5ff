"""What is inside of a compiled model, and running it as if it were not compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

__all__ = ["running_uncompiled", "uncompiled"]


def uncompiled(module: nn.Module) -> nn.Module:
    """Look inside what `torch.compile` returned, where layers have their own names.

    Args:
        module: Compiled or not.

    Returns:
        The module itself; its weights are those of the compiled one.
    """
    inner: nn.Module = module._orig_mod if is_compiled_module(module) else module  # type: ignore[assignment]
    return inner


@contextmanager
def running_uncompiled(module: nn.Module) -> Iterator[nn.Module]:
    """Run a module's own code for the length of a `with` block, since compiled code passes hooks by.

    Args:
        module: Compiled by `torch.compile`, in place, in parts, or not at all.

    Yields:
        The module itself, for hooks.
    """
    inner = uncompiled(module)
    if inner is module and not any(part._compiled_call_impl for part in module.modules()):
        yield inner  # without the compiler's slow import
        return
    with torch.compiler.set_stance("force_eager"):
        yield inner
