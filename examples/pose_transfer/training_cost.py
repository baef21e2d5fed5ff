"""Compute what the paper's training run costs in memory and time; nothing here was run on a GPU.

The operations of one training step at the published sizes are counted on tensors without values (forward and backward
of the five models, forward of the VAE), and so are the bytes that autograd keeps. The time on a GPU is this count
divided by a share of its peak rate, which is an assumption: `--utilization`. Optimizer, data loading, communication
and the memory of gradients in flight are not included.

`python examples/pose_transfer/training_cost.py [--utilization X]`
"""

from __future__ import annotations

import argparse
import unittest.mock
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from diffusers_cfld import AppearanceEncoder, PerceptionRefinedDecoder, PoseAdapter, SwinImageEncoder
from diffusers_cfld.training import CFLDTrainingModule

PAIRS, EPOCHS = 101_966, 100  # of the paper's run, arXiv:2402.18078, Sec. 4.1
GIB = 2**30
# Peak rate of dense matrix products with 16-bit inputs, 1e12 operations a second, and memory in GiB: vendors' sheets.
GPUS = {
    "T4 16 GB (fp16)": (65, 16),
    "V100 32 GB (fp16)": (125, 32),
    "L4 24 GB": (121, 24),
    "RTX 4090 24 GB": (165, 24),
    "A100 80 GB": (312, 80),
    "H100 SXM 80 GB": (989, 80),
}
RESERVE = 2.0  # GiB of a GPU for its context, workspaces and fragmentation: an assumption


class CountedAttention(torch.autograd.Function):
    """Attention as in fused kernels: the weights are not kept, but computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Count the two products and keep what a fused kernel keeps."""
        output = torch.matmul(torch.matmul(query, key.mT), value)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Count the five products."""
        query, key, value, _ = ctx.saved_tensors
        weights = torch.matmul(query, key.mT)
        grad_weights = torch.matmul(grad, value.mT)
        return torch.matmul(grad_weights, key), torch.matmul(grad_weights.mT, query), torch.matmul(weights.mT, grad)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Stand in for `scaled_dot_product_attention`."""
    return CountedAttention.apply(query, key, value)


@contextmanager
def mixed_precision() -> Iterator[None]:
    """Do what autocast does on a GPU (products in 16 bits, norms in 32), since it skips tensors without values."""

    def in_precision(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(dtype), (args, kwargs))
            return function(*args, **kwargs)

        return run

    products, norms = torch.bfloat16, torch.float32
    with ExitStack() as stack:
        for owner, name, dtype in (
            (F, "linear", products),
            (F, "conv2d", products),
            (torch.Tensor, "__matmul__", products),
            (F, "group_norm", norms),
            (F, "layer_norm", norms),
        ):
            stack.enter_context(unittest.mock.patch.object(owner, name, in_precision(getattr(owner, name), dtype)))
        yield


@dataclass
class KeptTensors:
    """Bytes that autograd holds for the backward: now, and at most."""

    now: int = 0
    peak: int = 0
    parameters: set[int] = field(default_factory=set)
    known: weakref.WeakValueDictionary[int, Any] = field(default_factory=weakref.WeakValueDictionary)

    def pack(self, tensor: torch.Tensor) -> Any:
        """Count what autograd keeps; weights and further views of the same memory cost nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.parameters:
            return tensor
        holder = self.known.get(key)
        if holder is None:
            holder = self.known[key] = Holder(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(holder, self.release, size)
        return holder, tensor

    def release(self, size: int) -> None:
        """Forget a storage that autograd has let go."""
        self.now -= size

    @staticmethod
    def unpack(packed: Any) -> torch.Tensor:
        """Return what was packed."""
        return packed if isinstance(packed, torch.Tensor) else packed[1]


class Holder:
    """A storage that is kept, however many tensors share it."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage


def build() -> tuple[CFLDTrainingModule, AutoencoderKL]:
    """Build the models at the published sizes, without values; `tests/test_reference.py` checks these sizes."""
    with torch.device("meta"):
        module = CFLDTrainingModule(
            UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            SwinImageEncoder(),
            PerceptionRefinedDecoder(),
            AppearanceEncoder(),
            PoseAdapter(),
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    module.set_trainable("kv")
    vae.requires_grad_(False)
    return module, vae


def step(module: CFLDTrainingModule, pairs: int) -> Callable[[], None]:
    """Return a function that runs forward and backward for some pairs."""
    inputs = (
        torch.empty(pairs, 3, 256, 256, device="meta"),
        torch.empty(2 * pairs, 21, 256, 256, device="meta"),
        torch.empty(2 * pairs, 4, 64, 64, device="meta"),
        torch.empty(2 * pairs, device="meta", dtype=torch.int64),
    )

    def run() -> None:
        with module.training_attention():
            module(*inputs).sum().backward()

    return run


def count_operations(run: Callable[[], None]) -> float:
    """Count the multiplications and additions of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


@contextmanager
def measuring_blocks(unet: UNet2DConditionModel, kept: KeptTensors) -> Iterator[list[int]]:
    """Measure the bytes that each ResNet or transformer block keeps for the backward; checkpointing reruns these."""
    begun: list[int] = []
    taken: list[int] = []
    hooks = []
    for block in unet.modules():
        if isinstance(block, (ResnetBlock2D, BasicTransformerBlock)):
            hooks.append(block.register_forward_pre_hook(lambda *_: begun.append(kept.now)))
            hooks.append(block.register_forward_hook(lambda *_: taken.append(kept.now - begun.pop())))
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def count_kept(module: CFLDTrainingModule) -> tuple[float, float]:
    """Count the most bytes per pair that autograd keeps in mixed precision, and those of the largest block.

    With gradient checkpointing, the first number does not include what a block keeps when it is run again.
    """
    peaks, largest = [], []
    for pairs in (1, 2):
        kept = KeptTensors(parameters={parameter.untyped_storage()._cdata for parameter in module.parameters()})
        packing = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
        with packing, mixed_precision(), measuring_blocks(module.unet, kept) as taken:
            step(module, pairs)()
        peaks.append(kept.peak)
        largest.append(max(taken))
    # Without the copies of the weights in 16 bits, which do not depend on the batch.
    return peaks[1] - peaks[0], largest[1] - largest[0]


def main() -> None:
    """Print the counts and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilization", type=float, default=0.35, help="share of the peak rate (default %(default)s)")
    args = parser.parse_args()

    module, vae = build()
    frozen = sum(p.numel() for p in (*module.parameters(), *vae.parameters()) if not p.requires_grad)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    # The VAE in float32; the weights of the other models in float32, and autocast's copies of them in 16 bits; for
    # trained weights also the gradient and two moments in float32. DDP's buckets are the gradients themselves.
    encoder = sum(p.numel() for p in vae.parameters())
    fixed = 4 * encoder + 6 * (frozen - encoder) + 18 * trained

    with unittest.mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        models = count_operations(step(module, 1))
        with torch.no_grad():
            picture = torch.empty(2, 3, 512, 512, device="meta")
            encoding = count_operations(lambda: vae.encode(picture))
        kept, block = count_kept(module)
        module.enable_gradient_checkpointing()
        models_again = count_operations(step(module, 1))
        # The largest blocks are the last ones, which are run again while the inputs of all others are still kept.
        kept_checkpointed = count_kept(module)[0] + block

    total = (models + encoding) * PAIRS * EPOCHS
    print(f"Weights: {trained / 1e6:.1f} M train, {frozen / 1e6:.1f} M do not.")
    print(f"Memory that does not depend on the batch: {fixed / GIB:.1f} GiB.")
    print(f"Per pair: {models / 1e12:.2f} TFLOP forward and backward, {encoding / 1e12:.2f} in the VAE,")
    print(f"  {models_again / 1e12:.2f} with gradient checkpointing; kept for the backward, in mixed precision,")
    print(f"  {kept / GIB:.2f} GiB, with gradient checkpointing {kept_checkpointed / GIB:.2f} GiB at most.")
    print(f"The run: {total:.2e} operations, {(models * PAIRS * EPOCHS):.2e} with --cache_latents.\n")
    print("| GPU | pairs that fit | with gradient checkpointing | GPU days | days on 8, with --cache_latents |")
    print("|---|---|---|---|---|")
    for name, (rate, memory) in GPUS.items():
        free = (memory - RESERVE) * GIB - fixed
        fits = [max(0, int(free // size)) for size in (kept, kept_checkpointed)]
        computed = models if fits[0] else models_again
        operations = [each * PAIRS * EPOCHS for each in (computed + encoding, computed)]
        days = [number / (rate * 1e12 * args.utilization) / 86400 for number in operations]
        print(f"| {name} | {fits[0]} | {fits[1]} | {days[0]:.0f} | {days[1] / 8:.1f} |")


if __name__ == "__main__":
    main()
