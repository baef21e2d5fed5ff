"""Hybrid-granularity attention: the U-Net's own cross-attention with a bias added to its query.

Paper: arXiv:2402.18078, Sec. 3.4, Eq. 4: Q = W_q h, K = W_k c, V = W_v c, out = softmax((Q + B) K^T / sqrt(d)) V.
Reference: YanzuoLu/CFLD `models/xf.py` @ f2ea2a7, a custom processor for xformers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import unwrap_module
from torch import nn


class _BiasedLayer:
    """What the processor gets instead of the attention layer: the same layer, except that its query is biased."""

    def __init__(self, attn: Attention, query_bias: torch.Tensor) -> None:
        self._attn = attn
        self._query_bias = query_bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)

    def to_q(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query = self._attn.to_q(hidden_states)  # (B, L, C), before the heads are split
        bias = self._query_bias
        if bias.shape[1:] != query.shape[1:] or bias.shape[0] not in (1, query.shape[0]):
            raise ValueError(
                f"`query_bias` must have shape {tuple(query.shape)} here (or batch 1), got {tuple(bias.shape)}. "
                "Resize it to the latents with `query_bias_to_tokens` and repeat it for every sample of the batch."
            )
        # Q + B of Eq. 4. `to` is needed because the hooks that spread a model over devices only move arguments.
        return query + bias.to(query)


class HybridGranularityAttnProcessor(nn.Module):
    """Wrap a layer's attention processor so that a bias is added to the query.

    The attention itself is left to whatever processor the layer has (scaled dot-product, sliced, IP-Adapter, fused,
    a user's own), so everything that works with the layer keeps working. The wrapper has no weights of its own; it is
    a module only so that the weights of an IP-Adapter stay in the U-Net's tree, where offloading finds them. Use
    [`hybrid_granularity_attention`] to put it on a U-Net.

    Args:
        inner: The processor that computes the attention.
        query_bias: (B or 1, L, C), added to the query of L tokens and C channels before the heads are split; with
            `None` the result is exactly that of `inner`. You may replace the attribute between forwards; compiled code
            is reused if shape and dtype stay the same.
    """

    def __init__(self, inner: Any, query_bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.query_bias = query_bias
        self._zeros: torch.Tensor | None = None
        self._thread = threading.get_ident()
        # `Attention.forward` reads the signature of this attribute to decide which arguments to pass on, so it must be
        # that of `inner`. The call itself goes to the method below, since Python looks it up in the class.
        self.__call__ = inner.__call__  # type: ignore[method-assign]

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attend with the biased query.

        Args:
            attn: The layer.
            hidden_states: (B, L, C).
            *args: Arguments for `inner`, the prompt first.
            **kwargs: Arguments for `inner`.

        Returns:
            (B, L, C).

        Raises:
            RuntimeError: Another thread put this processor on, so two calls are using one U-Net at the same time.
            ValueError: `query_bias` does not fit the query; the message names both shapes.
        """
        if not torch.compiler.is_compiling():
            self._refuse_other_threads()
        layer = attn if self.query_bias is None else _BiasedLayer(attn, self.query_bias)
        output: torch.Tensor = self.inner(layer, hidden_states, *args, **kwargs)
        return output

    def _refuse_other_threads(self) -> None:
        # Autograd repeats a checkpointed forward on threads of its own; that is not a second call.
        in_backward = torch._C._current_graph_task_id() != -1
        if threading.get_ident() != self._thread and not in_backward:
            raise RuntimeError(
                "This U-Net is in use by another thread: give each thread a U-Net of its own, or run the calls one "
                "after another."
            )

    def _fill_with_zeros(self, transformer: Any, args: tuple[torch.Tensor]) -> None:
        """Hook for a transformer that is about to run: give its layer a bias of zeros if it has none."""
        if self.query_bias is None or self.query_bias is self._zeros:
            batch, _, height, width = args[0].shape
            self.query_bias = self._zeros = args[0].new_zeros(batch, height * width, transformer.inner_dim)


# Held while processors are replaced, so that two threads cannot both find a U-Net without biases.
_exchange = threading.Lock()


@contextmanager
def hybrid_granularity_attention(
    unet: nn.Module, query_biases: Mapping[str, torch.Tensor | None]
) -> Iterator[dict[str, HybridGranularityAttnProcessor]]:
    """Put query biases on a stock U-Net for the duration of a `with` block.

    On exit, even after an exception, every layer gets back the processor it had before, unless another one was set
    inside the block. Within one thread, blocks may be nested: the biases of the inner block replace those of the outer
    one until it ends. In training, keep the block open until `backward()` has run: gradient checkpointing repeats the
    forward there, and without the biases the gradients would be wrong without any error.

    Args:
        unet: A `UNet2DConditionModel`, compiled or not.
        query_biases: Biases by layer name, as in [`AppearanceEncoder`]: (B or 1, L, C), where L is the layer's number
            of tokens (see [`query_bias_to_tokens`]) and C its query channels, or `None` for no bias yet.

    Yields:
        The processors by layer name; assign to their `query_bias` to change a bias inside the block.

    Raises:
        ValueError: A name is not an attention layer of `unet`.
        RuntimeError: Another thread has put biases on this U-Net.

    Example:
        >>> with hybrid_granularity_attention(unet, biases):  # doctest: +SKIP
        ...     noise_pred = unet(latents, timestep, prompt_embeds).sample
    """
    modules: dict[str, Any] = dict(unwrap_module(unet).named_modules())
    # Compiled code is specialised on whether a layer has a bias. After `compile_repeated_blocks` every cross-attention
    # therefore gets one, so that all blocks of one width share one compiled variant, as in the stock U-Net.
    compiled = [n for n in modules if n.endswith(".attn2") and modules[n.removesuffix(".attn2")]._compiled_call_impl]
    previous: dict[str, Any] = {}
    processors: dict[str, HybridGranularityAttnProcessor] = {}
    hooks = []
    try:
        with _exchange:
            for name, query_bias in {**dict.fromkeys(compiled), **query_biases}.items():
                if not isinstance(modules.get(name), Attention):
                    raise ValueError(
                        f"`query_biases` names {name!r}, which is not an attention layer of this U-Net. The "
                        "appearance encoder's `up_block_indices` and `attentions_per_block` must match the U-Net."
                    )
                inner = previous[name] = modules[name].processor
                if isinstance(inner, HybridGranularityAttnProcessor):
                    inner._refuse_other_threads()
                    inner = inner.inner
                processors[name] = HybridGranularityAttnProcessor(inner, query_bias)
            for name, processor in processors.items():
                modules[name].processor = processor
        for name in compiled:
            transformer = modules[name.split(".transformer_blocks.")[0]]
            hooks.append(transformer.register_forward_pre_hook(processors[name]._fill_with_zeros))
        yield processors
    finally:
        for hook in hooks:
            hook.remove()
        with _exchange:
            for name, processor in processors.items():
                if modules[name].processor is processor:
                    # As `set_processor` does, which would also log each time that it may remove trained weights.
                    del modules[name].processor
                    modules[name].processor = previous[name]


def query_bias_to_tokens(query_bias: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Turn a bias map into the tokens of a layer, and resize it if the layer works at another resolution.

    Args:
        query_bias: (B, C, h, w), one map of [`AppearanceEncoder`]'s `query_biases`.
        size: (height, width) of the layer's hidden states, in cells.

    Returns:
        (B, height * width, C), row by row; resized bilinearly unless the map has this size already.
    """
    return _resize(query_bias, size).flatten(2).transpose(1, 2)


def fit_query_biases(
    query_biases: Mapping[str, torch.Tensor], latent_size: tuple[int, int], num_up_blocks: int
) -> dict[str, torch.Tensor]:
    """Turn bias maps into the tokens of their layers, at any size of the latents.

    The published code runs at one size only, at which nothing is interpolated.

    Args:
        query_biases: Those of [`AppearanceEncoder`], by layer name, (B, C, h, w) each.
        latent_size: (height, width) of the latents, in cells.
        num_up_blocks: Number of up blocks in the U-Net. The last one works at the size of the latents, and each
            earlier one at half the size of the next.

    Returns:
        The biases by layer name, (B, L, C) with L tokens in the layer; see [`query_bias_to_tokens`].
    """
    return {
        name: query_bias_to_tokens(bias, halve_size(latent_size, num_up_blocks - 1 - int(name.split(".")[1])))
        for name, bias in query_biases.items()
    }


def fit_pose_residuals(residuals: Mapping[str, torch.Tensor], latent_size: tuple[int, int]) -> list[torch.Tensor]:
    """Resize pose residuals to the outputs of their down blocks.

    Args:
        residuals: Those of [`PoseAdapter`], from the first down block on, (B, C_i, h_i, w_i) each.
        latent_size: (height, width) of the latents, in cells.

    Returns:
        One tensor (B, C_i, h, w) per residual: the residual itself if its size fits, otherwise resized bilinearly.
    """
    return [_resize(residual, halve_size(latent_size, i)) for i, residual in enumerate(residuals.values())]


def halve_size(size: tuple[int, int], times: int) -> tuple[int, int]:
    """Compute the size after several of the U-Net's stride-2 convolutions, which round up.

    Args:
        size: (height, width), in cells.
        times: How often to halve it.

    Returns:
        (height, width), in cells.
    """
    return -(-size[0] // 2**times), -(-size[1] // 2**times)


def _resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(feature_map.shape[2:]) == tuple(size):
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)
