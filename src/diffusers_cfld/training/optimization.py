"""Which parameters train, and how fast.

Paper: arXiv:2402.18078, Sec. 3.3 and Tab. 1: all of S, D, A and P, and of the U-Net only W_k and W_v of the biased
cross-attentions, 1.2 % of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

UNetTrainable = Literal["kv", "all", "none"]


def set_unet_trainable(unet: nn.Module, layer_names: Iterable[str], train: UNetTrainable = "kv") -> tuple[str, ...]:
    """Choose what of the U-Net trains by setting `requires_grad` of each of its parameters.

    Args:
        unet: The U-Net. Its weights are not changed.
        layer_names: The biased cross-attentions, `appearance_encoder.layer_names`.
        train: `"kv"` (the paper): keys' and values' projections of these layers. `"all"`: everything, for a U-Net
            without pre-training. `"none"`: nothing, e.g. before a LoRA is added to it.

    Returns:
        Names of the parameters that train, in the order of `unet.named_parameters()`.

    Raises:
        ValueError: `train` is unknown, or a layer has no keys and values in this U-Net.
    """
    if train not in get_args(UNetTrainable):
        raise ValueError(f"`train` must be 'kv', 'all' or 'none', got {train!r}.")
    parameters = dict(unet.named_parameters())
    prefixes = [f"{layer}.{projection}." for layer in layer_names for projection in ("to_k", "to_v")]
    chosen = set(parameters) if train == "all" else set()
    if train == "kv":
        for prefix in prefixes:
            names = [name for name in parameters if name.startswith(prefix)]
            if not names:
                raise ValueError(
                    f"`layer_names` needs {prefix[:-1]!r}, which this {type(unet).__name__} does not have: pass "
                    "`appearance_encoder.layer_names` of the encoder that was made for it."
                )
            chosen.update(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return tuple(name for name in parameters if name in chosen)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that require a gradient.

    Args:
        module: Any module; a `CFLDTrainingModule` gives all that trains.

    Returns:
        By name, in the order of `module.named_parameters()`.
    """
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def parameter_groups(
    parts: Mapping[str, nn.Module], learning_rate: float, multipliers: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by part, for an optimizer.

    Args:
        parts: The models by name, `CFLDTrainingModule.parts`.
        learning_rate: The base learning rate.
        multipliers: Factors on it by part, >= 0; parts without one have 1, as the published training has for all.

    Returns:
        One group per part that has something to train, with `"params"`, `"lr"` and `"name"`, in the order of `parts`.

    Raises:
        ValueError: A multiplier names no part, names one where nothing trains, or is negative; or nothing trains.
    """
    multipliers = {} if multipliers is None else multipliers
    trained = {name: list(trainable_parameters(part).values()) for name, part in parts.items()}
    for name, multiplier in multipliers.items():
        if not trained.get(name):
            raise ValueError(
                f"`multipliers` names {name!r}, where nothing trains; the trained parts are "
                f"{[part for part, parameters in trained.items() if parameters]}."
            )
        if multiplier < 0:
            raise ValueError(f"`multipliers` must be >= 0, got {multiplier} for {name!r}.")
    groups = [
        {"name": name, "params": parameters, "lr": learning_rate * multipliers.get(name, 1.0)}
        for name, parameters in trained.items()
        if parameters
    ]
    if not groups:
        raise ValueError("No parameter requires a gradient: there is nothing to train.")
    return groups


def check_trainable_dtype(module: nn.Module) -> None:
    """Make sure that what trains is in full precision, where small updates are not rounded away.

    Call it before `accelerator.prepare`; frozen weights may have any precision.

    Args:
        module: Any module; a `CFLDTrainingModule` checks all that trains.

    Raises:
        ValueError: A parameter that trains is not float32; the message names the first and counts them.
    """
    low = {name: p.dtype for name, p in trainable_parameters(module).items() if p.dtype != torch.float32}
    if low:
        name, dtype = next(iter(low.items()))
        raise ValueError(
            f"Weights that train must be float32, got {dtype} for {name!r} and {len(low) - 1} more: cast them with "
            "`.float()` and let mixed precision come from autocast."
        )
