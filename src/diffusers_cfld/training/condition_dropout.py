"""Dropping the conditions of some samples, so that the U-Net learns the unconditional branch of the guidance.

Paper: arXiv:2402.18078, Sec. 3.3 and 4.1: x_s and x_p are dropped together with a probability of 20 %. Official code:
`build_model.forward` in `pose_transfer_train.py` of YanzuoLu/CFLD @ f2ea2a7, which drops the prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch

from .uniform import sample_uniform

DroppedConditions = Literal["all", "prompt"]


class Conditions(NamedTuple):
    """What conditions the U-Net.

    Args:
        prompt_embeds: (N, Q, D).
        pose_residuals: One per down block, (N, C_i, h_i, w_i).
        query_biases: By layer name, (N, L, C).
    """

    prompt_embeds: torch.Tensor
    pose_residuals: tuple[torch.Tensor, ...]
    query_biases: dict[str, torch.Tensor]


def sample_condition_drop_mask(
    batch_size: int,
    condition_dropout_prob: float = 0.2,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Decide for each sample on its own whether it loses its conditions.

    The published code draws for the doubled batch, so that a pair's reconstruction and its transfer are dropped
    independently: pass the doubled size.

    Args:
        batch_size: N, number of samples that the U-Net sees: twice the number of pairs in the paper's objective.
        condition_dropout_prob: eta, a fraction in [0, 1]; 0 drops none and 1 all.
        generator: Source of randomness; `None` is torch's global one.
        device: Of the result; `None` is the generator's, or the CPU.

    Returns:
        (N,) bool, true where the conditions are dropped.

    Raises:
        ValueError: `condition_dropout_prob` is outside [0, 1] or `batch_size` is not positive.
    """
    if not 0 <= condition_dropout_prob <= 1:
        raise ValueError(f"`condition_dropout_prob` must be a fraction in [0, 1], got {condition_dropout_prob}.")
    return sample_uniform(batch_size, generator, device) < condition_dropout_prob


def drop_conditions(
    condition_drop_mask: torch.Tensor,
    prompt_embeds: torch.Tensor,
    null_prompt_embeds: torch.Tensor,
    pose_residuals: Sequence[torch.Tensor],
    query_biases: Mapping[str, torch.Tensor],
    dropped_conditions: DroppedConditions = "all",
) -> Conditions:
    """Replace the conditions of the masked samples by those of the unconditional branch.

    With `"all"`, a dropped sample is what sampling calls the null branch of Eq. 7: null prompt, no pose, no biases.
    With `"prompt"` it keeps pose and biases, a combination that sampling never uses; that is what the published
    weights were trained with.

    Args:
        condition_drop_mask: (N,) bool, true where a sample is dropped.
        prompt_embeds: (N, Q, D), the coarse-grained prompts.
        null_prompt_embeds: (1, Q, D), the learned prompt of an absent source.
        pose_residuals: The pose adapter's, (N, C_i, h_i, w_i) each.
        query_biases: By layer name, (N, ...) each.
        dropped_conditions: `"all"` (the paper) or `"prompt"` (the published code).

    Returns:
        New tensors of the same shapes; the inputs are not modified. Without a dropped sample they are bit-equal to the
        inputs. Every input takes part, so that every parameter gets a gradient (zero, where nothing of it is used).

    Raises:
        ValueError: The mask is not (N,) bool, another input has other than N samples, or `dropped_conditions` is
            unknown.
    """
    if dropped_conditions not in get_args(DroppedConditions):
        raise ValueError(f"`dropped_conditions` must be 'all' or 'prompt', got {dropped_conditions!r}.")
    batch_size = prompt_embeds.shape[0]
    if condition_drop_mask.dtype != torch.bool or tuple(condition_drop_mask.shape) != (batch_size,):
        raise ValueError(
            f"`condition_drop_mask` must be bool of shape ({batch_size},), one per prompt, got "
            f"{condition_drop_mask.dtype} of shape {tuple(condition_drop_mask.shape)}."
        )
    sizes = {"`pose_residuals`": pose_residuals, "`query_biases`": tuple(query_biases.values())}
    for name, tensors in sizes.items():
        if any(tensor.shape[0] != batch_size for tensor in tensors):
            raise ValueError(
                f"{name} must have as many samples as `prompt_embeds`, {batch_size}, got "
                f"{[tensor.shape[0] for tensor in tensors]}."
            )

    def zero_dropped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.masked_fill(_as_broadcastable(condition_drop_mask, tensor), 0)

    prompt_mask = _as_broadcastable(condition_drop_mask, prompt_embeds)
    prompt_embeds = torch.where(prompt_mask, null_prompt_embeds.to(prompt_embeds.dtype), prompt_embeds)
    if dropped_conditions == "prompt":
        return Conditions(prompt_embeds, tuple(pose_residuals), dict(query_biases))
    return Conditions(
        prompt_embeds,
        tuple(zero_dropped(residual) for residual in pose_residuals),
        {name: zero_dropped(bias) for name, bias in query_biases.items()},
    )


def _as_broadcastable(mask: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return mask.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
