"""Which parameters train, and how fast.

Paper: arXiv:2402.18078, Sec. 3.3, 4.1 and Tab. 1: all of S, D, A and P, and in the U-Net only W_k and W_v of the
biased cross-attentions, 1.2 % of it. Official code: `lr_scheduler.py` of YanzuoLu/CFLD @ f2ea2a7.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import nn

PUBLISHED_LEARNING_RATE = 1e-4  # for a batch of 224 pairs
LEARNING_RATE_PER_PAIR = 5e-7

UNetTrainable = Literal["kv", "all", "none"]


def set_unet_trainable(unet: nn.Module, layer_names: Iterable[str], train: UNetTrainable = "kv") -> None:
    """Choose which parameters of the U-Net train, by setting their `requires_grad`.

    Args:
        unet: The U-Net. Its weights are not changed.
        layer_names: The biased cross-attentions, `appearance_encoder.layer_names`.
        train: `"kv"` (the paper) for the projections to keys and values in these layers, `"all"` for everything, if
            the U-Net has no pre-training, `"none"` for nothing, e.g. before a LoRA is added to it.

    Raises:
        ValueError: `train` is unknown.
        AttributeError: One of the layers is not in this U-Net.
    """
    if train not in get_args(UNetTrainable):
        raise ValueError(f"`train` must be 'kv', 'all' or 'none', got {train!r}.")
    unet.requires_grad_(train == "all")
    if train == "kv":
        for layer_name in layer_names:
            for projection in ("to_k", "to_v"):
                unet.get_submodule(f"{layer_name}.{projection}").requires_grad_(True)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Collect the parameters of a module that require a gradient.

    Args:
        module: Any module; for a `CFLDTrainingModule`, the result is everything that trains.

    Returns:
        The parameters by name, in the order of `module.named_parameters()`.
    """
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def scaled_learning_rate(total_batch_size: int, learning_rate_per_pair: float = LEARNING_RATE_PER_PAIR) -> float:
    """Scale the learning rate by the batch size, as in the paper.

    The paper's 5e-7 gives 1.12e-4 for its batch of 224; the published configuration says 1e-4.

    Args:
        total_batch_size: Pairs per optimizer step: pairs per device x devices x accumulation steps, not doubled.
        learning_rate_per_pair: Learning rate for a batch of one pair.

    Returns:
        The learning rate.
    """
    return learning_rate_per_pair * total_batch_size


def get_cfld_schedule(
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: float,
    *,
    num_warmup_steps: int = 1000,
    warmup_start_factor: float = 0.1,
    decay_epochs: Sequence[int] = (50,),
    decay_factor: float = 0.1,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Create the published schedule of the learning rate: a linear warm-up, then steps down.

    Equation:
        Factor for the optimizer's learning rate at step s: f_0 + (1 - f_0) (s + 1) / W for s < W, so that step W - 1
        is the first at the full rate; afterwards d^n, where n is the number of decay epochs that have begun. As
        published, the rate does not step down during the warm-up.

    Args:
        optimizer: The optimizer. Step the schedule once per optimizer step.
        steps_per_epoch: Optimizer steps per epoch: batches / accumulation steps, not always a whole number.
        num_warmup_steps: W >= 0.
        warmup_start_factor: f_0.
        decay_epochs: Epochs, counted from 0, at the beginning of which the rate is multiplied by `decay_factor`.
        decay_factor: d.

    Returns:
        The schedule.
    """
    decay_steps = sorted(epoch * steps_per_epoch for epoch in decay_epochs)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return warmup_start_factor + (1.0 - warmup_start_factor) * (step + 1) / num_warmup_steps
        return float(decay_factor ** bisect_right(decay_steps, step))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
