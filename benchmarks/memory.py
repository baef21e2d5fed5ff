"""Count the memory of one image or several at the published size, from the sizes of tensors without values.

    python benchmarks/memory.py

Weights are the models' own sizes. What the steps of a call need beside them (source and pose encoded, one evaluation
of the U-Net for two branches, images decoded) is the largest sum of the tensors that are alive at the same time, as a
device's allocator would count them. Attention is taken to be fused. Workspaces of convolutions, fragmentation and the
device's context are not included.
"""

from __future__ import annotations

import unittest.mock
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers
import torch
from rows import build_published
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_cfld import Appearance, CFLDPipeline, PoseFeatures
from diffusers_cfld.pipelines.guidance import GuidanceBranch, micro_batches

BRANCHES = (GuidanceBranch.NULL, GuidanceBranch.FULL)  # those of equal guidance scales


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that are alive: now, at most, and at most with the weights of the running layer.

    Args:
        weights: Tensors that are not counted.
    """

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.now = self.peak = self.peak_with_layer = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage._cdata not in self.weights and storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        layer = sum(storage.nbytes() for storage in storages(args) if storage._cdata in self.weights)
        self.peak_with_layer = max(self.peak_with_layer, self.now + layer)
        return result

    def forget(self, size: int) -> None:
        """Take off a tensor that is no longer alive."""
        self.now -= size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The memory of all tensors in nested lists."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def attention(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Stand in for `scaled_dot_product_attention`, whose fused kernels keep nothing but the result."""
    return torch.empty_like(query)


def count(pipe: CFLDPipeline, images: int, micro_batch_size: int | None) -> dict[str, tuple[int, int]]:
    """Run the steps of a call and count their memory.

    Args:
        pipe: The models, on the device "meta".
        images: Images to make, of one source in so many poses.
        micro_batch_size: As in the pipeline's call.

    Returns:
        By the name of each model, the most bytes of tensors while it runs, without weights and with those of a layer.
    """
    live = LiveTensors(
        [weight for model in models(pipe).values() for weight in (*model.parameters(), *model.buffers())]
    )
    peaks = {}

    @contextmanager
    def running(name: str) -> Iterator[None]:
        live.peak = live.peak_with_layer = live.now
        yield
        peaks[name] = (live.peak, live.peak_with_layer)

    batches = micro_batches(images, micro_batch_size)
    height, width = pipe.target_size
    config = pipe.pose_processor.config
    with torch.no_grad(), live, unittest.mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        empty = partial(torch.empty, dtype=pipe.unet.dtype, device="meta")
        with running("source_encoder"):
            feature_maps = pipe.source_encoder(empty(1, 3, *pipe.source_encoder.image_size)).feature_maps
        with running("prompt_decoder"):
            prompts = pipe.prompt_decoder(list(feature_maps.values())[-1])
        with running("appearance_encoder"):
            biases = pipe.appearance_encoder(feature_maps).query_biases
        appearance = Appearance(prompts.prompt_embeds, prompts.null_prompt_embeds, biases)
        del feature_maps, prompts, biases
        with running("pose_adapter"):
            maps = empty(images, 21, config["height"], config["width"])
            parts = [pipe.pose_adapter(maps[rows]).residuals for rows in batches]
            features = PoseFeatures({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        del maps, parts
        with running("unet"):
            conditions = pipe.prepare_conditions(appearance, features, height, width)
            latents = empty(images, 4, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
            time = torch.empty((), dtype=torch.int64, device="meta")
            for rows in batches:
                pipe.predict_branches(latents, time, conditions, BRANCHES, rows)
        with running("vae"):
            pipe.decode_latents(latents, pipe.default_output_size, None, micro_batch_size)
    return peaks


def models(pipe: CFLDPipeline) -> dict[str, nn.Module]:
    """The models of a pipeline by name."""
    return {name: model for name, model in pipe.components.items() if isinstance(model, nn.Module)}


def weigh(model: nn.Module, int8: bool) -> int:
    """Bytes of a model's weights; with `int8`, those of linear layers take one byte each and nothing for scales."""
    size = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    linear = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    return size - int8 * sum(weight.nbytes - weight.numel() for weight in linear)


def main() -> None:
    """Print the table."""
    with torch.device("meta"):
        pipe = build_published()
    pipe._cross_attention_kwargs = None  # which a call sets
    vae = pipe.vae
    print("| precision | images | weights | and all else | model offload | group offload |\n|" + "---|" * 6)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.bfloat16)):
        pipe.to(dtype=dtype)
        weights = {part: weigh(model, name == "int8") for part, model in models(pipe).items()}
        for images, micro_batch_size, option in (
            (1, None, ""),
            (1, None, "VAE tiling"),
            (4, None, ""),
            (4, None, "VAE slicing"),
            (4, 1, "micro_batch_size=1"),
        ):
            vae.use_slicing, vae.use_tiling = option == "VAE slicing", option == "VAE tiling"
            vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
            peaks = count(pipe, images, micro_batch_size)
            total = sum(weights.values())
            resident = total + max(peak for peak, _ in peaks.values())
            by_model = max(weights[part] + peak for part, (peak, _) in peaks.items())
            by_layer = max(peak for _, peak in peaks.values())
            sizes = " | ".join(f"{size / 1e9:.2f} GB" for size in (total, resident, by_model, by_layer))
            print(f"| {name} | {', '.join(filter(None, (str(images), option)))} | {sizes} |")


if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()  # nothing is lost by casting tensors without values
    main()
