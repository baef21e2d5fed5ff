"""Hybrid-granularity attention: the stock cross-attention with a bias on its query.

Paper: arXiv:2402.18078, Sec. 3.4, Eq. 4: Q = W_q h, K = W_k c, V = W_v c, out = softmax((Q + B) K^T / sqrt(d)) V.
Reference: YanzuoLu/CFLD `models/xf.py` @ f2ea2a7, there a processor of its own for xformers.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn

from .compilation import uncompiled

# Putting on and taking off is check-then-set on a U-Net that several pipelines may share.
_installation_lock = threading.Lock()

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _BiasedQueryView:
    """An attention layer as its processor sees it, but for `to_q`, which adds the bias to the projected query."""

    def __init__(self, attn: Attention, query_bias: torch.Tensor) -> None:
        self._attn = attn
        self._query_bias = query_bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)

    def to_q(self, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
        query = self._attn.to_q(hidden_states, *args)  # (B, L, C), before the heads are split
        bias = self._query_bias
        if bias.shape[1:] != query.shape[1:] or bias.shape[0] not in (1, query.shape[0]):
            raise ValueError(
                f"`query_bias` must have shape {tuple(query.shape)} here (or batch 1), got {tuple(bias.shape)}. "
                "Resize it to the latents with `query_bias_to_tokens` and repeat it for every branch of the batch."
            )
        # The device too: accelerate's hooks, which split a model over several, know of arguments alone.
        return query + bias.to(query)


class HybridGranularityAttnProcessor(nn.Module):
    """Wrap a layer's attention processor so that a bias is added to the query.

    A thin wrapper: whatever processor the layer has (scaled dot-product, IP-Adapter, sliced, fused, a user's own) does
    the attention, so that everything that composes with the layer goes on composing. It has no weights of its own and
    is a module only so that an IP-Adapter's stay in the U-Net's tree, where offloading finds them. Put it on a U-Net
    with [`hybrid_granularity_attention`].

    Args:
        inner: The processor that does the attention.
        query_bias: (B or 1, L, C), added to the query of L tokens and C channels before the heads are split; `None`
            adds nothing and is bit-equal to `inner`. The attribute may be replaced between forwards; replacing it by
            one of equal shape and dtype does not recompile.
    """

    def __init__(self, inner: Any, query_bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.query_bias = query_bias
        self._owner = threading.get_ident()
        # The layer passes on what the signature of `__call__` names: let it find the inner processor's own arguments.
        parameters = inspect.signature(type(self).__call__).parameters
        own = inspect.signature(inner.__call__).parameters.values()
        extra = [item for item in own if item.name not in parameters and item.kind not in _VARIADIC]
        if extra:
            call = functools.partial(type(self).__call__, self)
            signature = inspect.signature(call)
            merged = [item for item in signature.parameters.values() if item.kind not in _VARIADIC]
            named = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in extra]
            call.__signature__ = signature.replace(parameters=[*merged, *named])  # type: ignore[attr-defined]
            self.__dict__["__call__"] = call

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        ip_adapter_masks: torch.Tensor | list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend with the biased query.

        Args:
            attn: The layer.
            hidden_states: (B, L, C).
            encoder_hidden_states: (B, Q, D), the prompt; some inner processors take a tuple.
            attention_mask: As the inner processor takes it.
            temb: As the inner processor takes it.
            ip_adapter_masks: As the inner processor takes it.
            **kwargs: Arguments of the inner processor's own, from `cross_attention_kwargs`.

        Returns:
            (B, L, C).

        Raises:
            RuntimeError: Another thread put this processor on: two calls are using one U-Net at once.
            ValueError: `query_bias` does not fit the query; the message names both shapes.
        """
        # Autograd replays a checkpointed forward on threads of its own; those are not a second call.
        if not torch.compiler.is_compiling() and threading.get_ident() != self._owner and not _in_backward():
            raise RuntimeError(_SHARED_BY_THREADS)
        # Only what was given is passed on: not every processor takes every argument.
        optional = {"temb": temb, "ip_adapter_masks": ip_adapter_masks}
        return self.inner(
            attn if self.query_bias is None else _BiasedQueryView(attn, self.query_bias),
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **{name: value for name, value in optional.items() if value is not None},
            **kwargs,
        )


_SHARED_BY_THREADS = (
    "This U-Net is in use by another thread whose query biases are on its layers: give each thread a U-Net of its "
    "own, or run the calls one after another."
)


@contextmanager
def hybrid_granularity_attention(
    unet: nn.Module, query_biases: Mapping[str, torch.Tensor | None]
) -> Iterator[dict[str, HybridGranularityAttnProcessor]]:
    """Put query biases on a stock U-Net for the length of a `with` block.

    On exit, also after an exception, every layer has the processor it had before; a processor that was set inside the
    block is left alone. Blocks may be nested in one thread: the inner one replaces the biases and the outer ones come
    back. In training, keep the block open until after `backward()`: with gradient checkpointing the forward is
    replayed there, and without the biases its gradients would be silently wrong.

    Args:
        unet: A `UNet2DConditionModel`, compiled or not.
        query_biases: By layer name as in [`AppearanceEncoder`]: (B or 1, L, C) with L the layer's tokens (see
            [`query_bias_to_tokens`]) and C its query channels, or `None` for no bias yet.

    Yields:
        The processors by layer name; assign `query_bias` on them to change a bias inside the block.

    Raises:
        ValueError: A name is not an attention layer of `unet`.
        RuntimeError: Another thread has biases on this U-Net.

    Example:
        >>> with hybrid_granularity_attention(unet, biases):  # doctest: +SKIP
        ...     noise_pred = unet(latents, timestep, prompt_embeds).sample
    """
    module: Any = uncompiled(unet)
    layers = {name: _get_attention(module, name) for name in query_biases}
    processors: dict[str, HybridGranularityAttnProcessor] = {}
    previous: dict[str, Any] = {}
    # An interrupt may come anywhere: what is on the layers by then is taken off again.
    try:
        with _installation_lock:
            for name, attn in layers.items():
                previous[name] = attn.processor
                if isinstance(attn.processor, HybridGranularityAttnProcessor):
                    if attn.processor._owner != threading.get_ident():
                        raise RuntimeError(_SHARED_BY_THREADS)
                    inner = attn.processor.inner
                else:
                    inner = attn.processor
                processors[name] = HybridGranularityAttnProcessor(inner, query_biases[name])
            for name, attn in layers.items():
                _replace_processor(attn, processors[name])
        yield processors
    finally:
        for processor in processors.values():
            processor.query_bias = None
        with _installation_lock:
            for name, processor in processors.items():
                if getattr(layers[name], "processor", processor) is processor:
                    _replace_processor(layers[name], previous[name])


def query_bias_to_tokens(query_bias: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Turn a bias map into the tokens of a layer, resized if the layer works at another resolution.

    Args:
        query_bias: (B, C, h, w), one map of [`AppearanceEncoder`]'s `query_biases`.
        size: (height, width) of the layer's hidden states in cells.

    Returns:
        (B, height * width, C), row by row. At the map's own size nothing is interpolated, otherwise bilinearly.
    """
    if tuple(query_bias.shape[2:]) != tuple(size):
        query_bias = F.interpolate(query_bias, size=size, mode="bilinear", align_corners=False)
    return query_bias.flatten(2).transpose(1, 2)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # what torch.utils.checkpoint itself asks


def _replace_processor(attn: Attention, processor: Any) -> None:
    # As `attn.set_processor`, which logs that trained weights are removed when it takes a module off.
    if hasattr(attn, "processor"):
        del attn.processor
    attn.processor = processor


def _get_attention(unet: nn.Module, name: str) -> Attention:
    try:
        attn = unet.get_submodule(name)
    except AttributeError:
        attn = None
    if not isinstance(attn, Attention):
        raise ValueError(
            f"`query_biases` names {name!r}, which is not an attention layer of this {type(unet).__name__}. The "
            "appearance encoder's `up_block_indices` and `attentions_per_block` must match the U-Net."
        )
    return attn
