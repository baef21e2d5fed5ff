"""Where attention looks: the prompt decoder's queries over the source, and the U-Net's layers over the prompt.

Paper: arXiv:2402.18078, Fig. 7 (maps of different queries, averaged over the heads). The models are watched by hooks,
which do not change what they compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from ..models.attention_processor import HybridGranularityAttnProcessor, halve_size
from ..pipelines.guidance import BranchConditions, GuidanceBranch
from ..pipelines.pipeline_cfld import CFLDPipeline
from ..pipelines.pipeline_output import Appearance
from ..processors.source_image import ImageInput


@torch.no_grad()
def prompt_attention_maps(pipe: CFLDPipeline, image: ImageInput) -> torch.Tensor:
    """Compute what each query of the prompt decoder looks at in the source (Fig. 7).

    Args:
        pipe: The pipeline.
        image: Source image or images, as in the pipeline's call.

    Returns:
        (B, R, Q, h, w), float32, on the CPU: for each of the decoder's R blocks and Q queries, the cross-attention to
        the cells of the source's coarsest features, averaged over the heads; sums to 1 over the cells. The cells cover
        the image after the pipeline has padded and squashed it.

    Raises:
        TypeError: `image` is an [`Appearance`], or as in the pipeline's call.
        ValueError: As in the pipeline's call.
    """
    if isinstance(image, Appearance):
        raise TypeError("`image` must be the source image, not an `Appearance`, which no longer has its feature maps.")
    maps: list[torch.Tensor] = []

    def watch(attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        maps.append(_attention_probabilities(attn, args, kwargs).float().cpu())  # (B, Q, cells)

    blocks: Any = unwrap_module(pipe.prompt_decoder).blocks
    with _running_uncompiled(pipe.prompt_decoder), _hooks({block.attn2: watch for block in blocks}):
        pipe.encode_appearance(image)
    return torch.stack(maps, dim=1).unflatten(-1, pipe.prompt_decoder.feature_size)  # type: ignore[no-untyped-call]


class AttentionRecorder:
    """The U-Net's cross-attention maps of one or more calls, filled while they run; see [`record_attention`].

    Args:
        layer_names: The attention layers of the U-Net that are watched.
    """

    def __init__(self, layer_names: Sequence[str]) -> None:
        self.layer_names = list(layer_names)
        # For each call of the pipeline: its number of steps, and the sum of their maps by layer.
        self._counts: list[int] = []
        self._sums: list[dict[str, torch.Tensor]] = []
        self._conditions: BranchConditions | None = None  # those of the running call

    def maps(self, layer_name: str) -> torch.Tensor:
        """A layer's attention to each token of the prompt, averaged over heads and over the steps so far.

        Args:
            layer_name: One of `layer_names`.

        Returns:
            (B, Q, h, w), float32, on the CPU, from the fully conditioned branch; the Q values of a cell sum to 1. B
            counts the images made in the `with` block that have the size of the last one, in the order they were made.

        Raises:
            ValueError: The pipeline has not run yet, or only with an appearance guidance of 0.
        """
        if not self._sums:
            raise ValueError(
                "No attention was recorded: call the pipeline inside the `with` block, with an appearance guidance "
                "above 0."
            )
        means = [sums[layer_name] / count for sums, count in zip(self._sums, self._counts, strict=True)]
        return torch.cat([mean for mean in means if mean.shape[1:] == means[-1].shape[1:]])

    def mean_maps(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Average the maps over all layers.

        Args:
            size: (height, width) to which the maps are resized bilinearly; by default that of the largest layer.

        Returns:
            (B, Q, h, w).

        Raises:
            ValueError: See [`AttentionRecorder.maps`].
        """
        maps = [self.maps(name) for name in self.layer_names]
        largest: Any = max(tuple(one.shape[2:]) for one in maps)
        resized = [torch.nn.functional.interpolate(one, size=size or largest, mode="bilinear") for one in maps]
        return torch.stack(resized).mean(dim=0)

    def _begin(self, conditions: BranchConditions, rows: slice) -> None:
        """Note that the U-Net is about to run for some samples of a call; its conditions identify the call."""
        if conditions is not self._conditions:
            self._conditions = conditions
            self._counts.append(0)
            self._sums.append({})
        if not rows.start:
            self._counts[-1] += 1

    def _add(self, layer_name: str, maps: torch.Tensor, rows: slice, batch_size: int) -> None:
        """Add the maps (number of rows, Q, h, w) of one step."""
        sums = self._sums[-1].setdefault(layer_name, maps.new_zeros(batch_size, *maps.shape[1:]))
        sums[rows] += maps


@contextmanager
def record_attention(pipe: CFLDPipeline, layer_names: Sequence[str] | None = None) -> Iterator[AttentionRecorder]:
    """Watch the U-Net's cross-attention to the prompt while the pipeline is called.

    Args:
        pipe: The pipeline. Inside the block a compiled U-Net runs uncompiled; after it, everything is as before.
        layer_names: Attention layers of its U-Net; by default those with query biases (the hybrid-granularity ones).

    Yields:
        The recorder, which you can read inside the block or after it.

    Raises:
        ValueError: A name is not an attention layer of the U-Net.

    Example:
        >>> with record_attention(pipe) as recorder:  # doctest: +SKIP
        ...     image = pipe(image=photo, pose=pose).images[0]
        >>> maps = recorder.mean_maps()  # doctest: +SKIP
    """
    recorder = AttentionRecorder(pipe.appearance_encoder.layer_names if layer_names is None else layer_names)
    modules = dict(unwrap_module(pipe.unet).named_modules())
    for name in recorder.layer_names:
        if not isinstance(modules.get(name), Attention):
            raise ValueError(f"`layer_names` must be attention layers of the U-Net, got {name!r}.")
    predict_branches, outer = pipe.predict_branches, vars(pipe).get("predict_branches")

    def predict_and_record(
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: BranchConditions,
        branches: tuple[GuidanceBranch, ...],
        rows: slice,
    ) -> tuple[torch.Tensor, ...]:
        if GuidanceBranch.FULL not in branches:
            return predict_branches(sample, timestep, conditions, branches, rows)

        @torch.no_grad()
        def watch(name: str, attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            probabilities = _attention_probabilities(attn, args, kwargs).chunk(len(branches))[-1]  # (B, cells, Q)
            sizes = (halve_size((sample.shape[2], sample.shape[3]), times) for times in range(16))
            size = next(size for size in sizes if size[0] * size[1] == probabilities.shape[1])
            maps = probabilities.float().cpu().transpose(1, 2)
            recorder._add(name, maps.reshape(*maps.shape[:2], *size), rows, conditions.batch_size)

        recorder._begin(conditions, rows)
        with _hooks({modules[name]: partial(watch, name) for name in recorder.layer_names}):
            return predict_branches(sample, timestep, conditions, branches, rows)

    pipe.predict_branches = predict_and_record  # type: ignore[method-assign, assignment]
    try:
        with _running_uncompiled(pipe.unet):
            yield recorder
    finally:
        del pipe.predict_branches
        if outer is not None:
            pipe.predict_branches = outer  # type: ignore[method-assign]


@contextmanager
def _hooks(watches: dict[Any, Any]) -> Iterator[None]:
    """Call a function before each forward of a layer."""
    handles = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer, watch in watches.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _running_uncompiled(module: nn.Module) -> Iterator[None]:
    """Run a module's own code, since compiled code bypasses hooks."""
    if module is unwrap_module(module) and not any(part._compiled_call_impl for part in module.modules()):
        yield  # avoids the slow import of the compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _attention_probabilities(attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The attention of a layer that is about to run, (B, queries, keys), averaged over heads, with its query bias.

    Equation:
        softmax((Q + B) K^T / sqrt(d)), Eq. 4.
    """
    hidden_states = args[0] if args else kwargs["hidden_states"]
    encoder_hidden_states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if isinstance(encoder_hidden_states, tuple):
        encoder_hidden_states = encoder_hidden_states[0]  # the others are those of an IP-Adapter
    query = attn.to_q(hidden_states)
    if isinstance(attn.processor, HybridGranularityAttnProcessor) and attn.processor.query_bias is not None:
        query = query + attn.processor.query_bias.to(query)
    key = attn.to_k(hidden_states if encoder_hidden_states is None else encoder_hidden_states)
    scores = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
    mean: torch.Tensor = scores.view(len(hidden_states), attn.heads, *scores.shape[1:]).mean(dim=1)
    return mean
