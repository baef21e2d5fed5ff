"""Where attention looks: the prompt decoder's queries over the source, and the U-Net's layers over the prompt.

Paper: arXiv:2402.18078, Fig. 7 (maps of different queries, averaged over the heads). The models are watched by hooks;
nothing of them is changed, and what runs is what runs without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import PipelineImageInput
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from ..models.attention_processor import HybridGranularityAttnProcessor, halve_size
from ..pipelines.guidance import GuidanceBranch, guidance_weights
from ..pipelines.pipeline_output import Appearance

if TYPE_CHECKING:
    from ..pipelines.pipeline_cfld import CFLDPipeline

__all__ = ["AttentionRecorder", "prompt_attention_maps", "record_attention"]


@contextmanager
def running_uncompiled(module: nn.Module) -> Iterator[nn.Module]:
    """Run a module's own code for the duration of a `with` block, since compiled code bypasses hooks.

    Args:
        module: Compiled by `torch.compile`, in place, in parts, or not at all.

    Yields:
        The module itself, for hooks.
    """
    inner: nn.Module = unwrap_module(module)
    if inner is module and not any(part._compiled_call_impl for part in module.modules()):
        yield inner  # without the slow import of the compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield inner


@torch.no_grad()
def prompt_attention_maps(pipe: CFLDPipeline, image: PipelineImageInput) -> torch.Tensor:
    """What each query of the prompt decoder looks at in the source (Fig. 7).

    Args:
        pipe: The pipeline.
        image: Source photo or photos, as of the pipeline.

    Returns:
        (B, R, Q, h, w), float32, on the CPU: for each of the decoder's R blocks and Q queries the cross-attention to
        the cells of the source's coarsest features, averaged over the heads; sums to 1 over the cells. The cells cover
        the photo as the pipeline squashes or pads it.

    Raises:
        TypeError: `image` is an [`Appearance`], or as the pipeline.
        ValueError: As the pipeline.
    """
    if isinstance(image, Appearance):
        raise TypeError("`image` must be the photo itself: an `Appearance` no longer has the source's cells.")
    maps: list[torch.Tensor] = []

    def watch(attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        maps.append(_attention_probabilities(attn, args, kwargs).float().cpu())  # (B, Q, L)

    with running_uncompiled(pipe.prompt_decoder) as decoder:
        blocks: Any = decoder.blocks
        hooks = [block.attn2.register_forward_pre_hook(watch, with_kwargs=True) for block in blocks]
        try:
            pipe.encode_appearance(image)
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(maps, dim=1).unflatten(-1, pipe.prompt_decoder.feature_size)  # type: ignore[no-untyped-call]


class AttentionRecorder:
    """The U-Net's cross-attention maps of one call, filled while it runs; see [`record_attention`].

    Args:
        pipe: The pipeline that is watched.
        layer_names: Attention layers of its U-Net.
    """

    def __init__(self, pipe: CFLDPipeline, layer_names: list[str]) -> None:
        self.layer_names = layer_names
        self._pipe = pipe
        self._latent_size = (0, 0)
        self._num_evaluations = 0
        self._timestep = math.inf
        self._call: tuple[Any, ...] = ()
        self._unbegun: set[str] = set()  # layers of which the present run has nothing yet
        # By layer, one tensor per run of the pipeline; with micro-batches a call is several.
        self._sums: dict[str, list[torch.Tensor]] = {name: [] for name in layer_names}
        self._counts: dict[str, list[int]] = {name: [] for name in layer_names}

    def maps(self, layer_name: str) -> torch.Tensor:
        """A layer's attention to each token of the prompt, averaged over heads and over the steps so far.

        Args:
            layer_name: One of `layer_names`.

        Returns:
            (B, Q, h, w), float32, on the CPU, of the fully conditioned branch; the Q values of a cell sum to 1. B are
            all pictures that were made in the block at the last one's size, in their order.

        Raises:
            ValueError: There is no such layer, or nothing has run yet, or with an appearance guidance of 0.
        """
        if layer_name not in self.layer_names:
            raise ValueError(f"`layer_name` must be one of {self.layer_names}, got {layer_name!r}.")
        runs = [total / count for total, count in zip(self._sums[layer_name], self._counts[layer_name], strict=True)]
        if not runs:
            raise ValueError("Nothing is recorded: call the pipeline first, with an appearance guidance above 0.")
        return torch.cat([run for run in runs if run.shape[1:] == runs[-1].shape[1:]])

    def mean_maps(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The mean over all layers.

        Args:
            size: (height, width) that the maps are brought to, bilinearly; default the largest layer's.

        Returns:
            (B, Q, h, w).

        Raises:
            ValueError: As [`AttentionRecorder.maps`].
        """
        maps = [self.maps(name) for name in self.layer_names]
        if size is None:
            height, width = max(tuple(one.shape[2:]) for one in maps)
            size = (height, width)
        resized = [torch.nn.functional.interpolate(one, size=size, mode="bilinear") for one in maps]
        return torch.stack(resized).mean(dim=0)

    def _watch_unet(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        timestep = float(args[1] if len(args) > 1 else kwargs["timestep"])
        self._latent_size = tuple(sample.shape[2:])
        # Timesteps go down within a run, those of an inversion up.
        timesteps = self._pipe.scheduler.timesteps
        has_turned = timestep < self._timestep if timesteps[-1] > timesteps[0] else timestep > self._timestep
        # Not the whole batch: a callback that changes a scale changes the number of branches.
        branches = guidance_weights(self._pipe.pose_guidance_scale, self._pipe.appearance_guidance_scale)
        pictures = (len(sample) // len(branches), *sample.shape[1:])
        call = (id(self._pipe.scheduler), self._pipe.num_timesteps, pictures)
        is_whole = self._num_evaluations in (0, self._pipe.num_timesteps)
        is_new_run = has_turned or is_whole or call != self._call
        if is_new_run:
            self._unbegun = set(self.layer_names)
        self._call = call
        self._num_evaluations = 1 if is_new_run else self._num_evaluations + 1
        self._timestep = timestep

    def _watch_layer(self, attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str) -> None:
        branches = list(guidance_weights(self._pipe.pose_guidance_scale, self._pipe.appearance_guidance_scale))
        if GuidanceBranch.FULL not in branches:
            return
        with torch.no_grad():
            probabilities = _attention_probabilities(attn, args, kwargs).chunk(len(branches))[-1]  # (B, L, Q)
        maps = probabilities.float().cpu().transpose(1, 2).contiguous()
        maps = maps.view(*maps.shape[:2], *self._layer_size(maps.shape[-1]))
        sums, counts = self._sums[name], self._counts[name]
        if name in self._unbegun:
            self._unbegun.remove(name)
            sums.append(torch.zeros_like(maps))
            counts.append(0)
        sums[-1] += maps
        counts[-1] += 1

    def _layer_size(self, num_tokens: int) -> tuple[int, int]:
        for times in range(16):
            size = halve_size(self._latent_size, times)
            if size[0] * size[1] == num_tokens:
                return size
        raise ValueError(f"A layer of {num_tokens} tokens does not work on latents of {self._latent_size} cells.")


@contextmanager
def record_attention(pipe: CFLDPipeline, layer_names: list[str] | None = None) -> Iterator[AttentionRecorder]:
    """Watch the U-Net's cross-attention to the prompt while the pipeline is called.

    Args:
        pipe: The pipeline. Not modified; a compiled U-Net runs uncompiled meanwhile.
        layer_names: Attention layers of its U-Net; default those with query biases (the hybrid-granularity ones).

    Yields:
        The recorder; read it inside of the block or after it.

    Raises:
        ValueError: A name is not an attention layer of the U-Net, or this or the appearance encoder is missing.

    Example:
        >>> with record_attention(pipe) as recorder:  # doctest: +SKIP
        ...     image = pipe(image=photo, pose=pose).images[0]
        >>> maps = recorder.mean_maps()  # doctest: +SKIP
    """
    names = list(pipe.appearance_encoder.layer_names) if layer_names is None else list(layer_names)
    unet = unwrap_module(pipe.unet)
    modules = dict(unet.named_modules())
    recorder = AttentionRecorder(pipe, names)
    for name in names:
        if not isinstance(modules.get(name), Attention):
            raise ValueError(f"`layer_names` must be attention layers of the U-Net, got {name!r}.")
    hooks = [unet.register_forward_pre_hook(recorder._watch_unet, with_kwargs=True)]
    hooks += [
        modules[name].register_forward_pre_hook(partial(recorder._watch_layer, name=name), with_kwargs=True)
        for name in names
    ]
    try:
        with running_uncompiled(pipe.unet):
            yield recorder
    finally:
        for hook in hooks:
            hook.remove()


def _attention_probabilities(attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Softmax of a layer about to run, (B, queries, keys), averaged over its heads, with its query bias if any.

    Equation:
        softmax((Q + B) K^T / sqrt(d)), Eq. 4.
    """
    hidden_states = args[0] if args else kwargs["hidden_states"]
    encoder_hidden_states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if isinstance(encoder_hidden_states, tuple):
        encoder_hidden_states = encoder_hidden_states[0]  # before those of an IP-Adapter
    query = attn.to_q(hidden_states)
    if isinstance(attn.processor, HybridGranularityAttnProcessor) and attn.processor.query_bias is not None:
        query = query + attn.processor.query_bias.to(query)
    key = attn.to_k(hidden_states if encoder_hidden_states is None else encoder_hidden_states)
    scores = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
    mean: torch.Tensor = scores.view(len(hidden_states), attn.heads, *scores.shape[1:]).mean(dim=1)
    return mean
