"""The training objective and the dropout of conditions.

Paper: arXiv:2402.18078, Eq. 3, 5 and 6, Sec. 3.3 and 4.1. Official code: `pose_transfer_train.py` of YanzuoLu/CFLD @
f2ea2a7, where a batch has the samples of the self-reconstruction first and then those of the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

DroppedConditions = Literal["all", "prompt"]


def cfld_loss(
    noise_pred: torch.Tensor,
    target: torch.Tensor,
    *,
    reconstruction_weight: float = 1.0,
    sample_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the mean squared error of the noise for self-reconstruction and transfer together (Eq. 6).

    Equation:
        L = (w_rec L_rec + L_mse) / 2, each term a mean over samples and elements. With w_rec = 1 this is the mean over
        the whole batch, as published: half of the paper's Eq. 6, which has the same minimum.

    Args:
        noise_pred: (2B, C, h, w), predictions of the U-Net, first for source->source (Eq. 5), then for source->target
            (Eq. 3). With `reconstruction_weight=0` it is (B, C, h, w), only for source->target.
        target: What should be predicted, eps or the velocity, in the same shape.
        reconstruction_weight: w_rec >= 0.
        sample_weights: One weight per sample, e.g. from Min-SNR; `None` weights all samples equally, as in the paper.

    Returns:
        A float32 scalar, computed in float32 whatever the dtypes of the inputs.
    """
    terms = loss_terms(noise_pred, target, reconstruction_weight=reconstruction_weight, sample_weights=sample_weights)
    if reconstruction_weight == 0:
        return terms["transfer_loss"] / 2
    return (reconstruction_weight * terms["reconstruction_loss"] + terms["transfer_loss"]) / 2


def loss_terms(
    noise_pred: torch.Tensor,
    target: torch.Tensor,
    *,
    reconstruction_weight: float = 1.0,
    sample_weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Compute the terms of the loss separately, for example to log them.

    Args:
        noise_pred: As in [`cfld_loss`].
        target: As in [`cfld_loss`].
        reconstruction_weight: As in [`cfld_loss`]; at 0 there are no reconstructions. The terms are not weighted.
        sample_weights: As in [`cfld_loss`].

    Returns:
        `reconstruction_loss` (Eq. 5), unless its weight is 0, and `transfer_loss` (Eq. 3), float32 scalars.
    """
    losses = (noise_pred.float() - target.float()).square().flatten(1).mean(1)
    if sample_weights is not None:
        losses = losses * sample_weights.to(losses)
    if reconstruction_weight == 0:
        return {"transfer_loss": losses.mean()}
    reconstruction, transfer = losses.chunk(2)
    return {"reconstruction_loss": reconstruction.mean(), "transfer_loss": transfer.mean()}


class Conditions(NamedTuple):
    """The conditions of the U-Net.

    Args:
        prompt_embeds: (N, Q, D).
        pose_residuals: One per down block, (N, C_i, h_i, w_i).
        query_biases: By layer name, (N, L, C).
    """

    prompt_embeds: torch.Tensor
    pose_residuals: tuple[torch.Tensor, ...]
    query_biases: dict[str, torch.Tensor]


def drop_conditions(
    condition_drop_mask: torch.Tensor,
    prompt_embeds: torch.Tensor,
    null_prompt_embeds: torch.Tensor,
    pose_residuals: Sequence[torch.Tensor],
    query_biases: Mapping[str, torch.Tensor],
    dropped_conditions: DroppedConditions = "all",
) -> Conditions:
    """Replace the conditions of the masked samples by those of the unconditional branch.

    With `"all"`, a dropped sample is what the null branch of Eq. 7 is in sampling: null prompt, no pose, no biases.
    With `"prompt"`, it keeps pose and biases, a combination that sampling never uses, but which the published weights
    were trained with.

    Args:
        condition_drop_mask: (N,) bool, true where a sample is dropped.
        prompt_embeds: (N, Q, D), the coarse-grained prompts.
        null_prompt_embeds: (1, Q, D), the learned prompt of an absent source.
        pose_residuals: Residuals of the pose adapter, (N, C_i, h_i, w_i) each.
        query_biases: By layer name, (N, ...) each.
        dropped_conditions: `"all"` (the paper) or `"prompt"` (the published code).

    Returns:
        New tensors of the same shapes; the inputs are not modified. If no sample is dropped, they equal the inputs to
        the bit. Every input is used, so that every parameter gets a gradient, even if it is zero.
    """

    def replace(tensor: torch.Tensor, replacement: torch.Tensor | float) -> torch.Tensor:
        mask = condition_drop_mask.view(-1, *[1] * (tensor.ndim - 1)).to(tensor.device)
        return torch.where(mask, replacement, tensor)

    prompt_embeds = replace(prompt_embeds, null_prompt_embeds.to(prompt_embeds.dtype))
    if dropped_conditions == "prompt":
        return Conditions(prompt_embeds, tuple(pose_residuals), dict(query_biases))
    return Conditions(
        prompt_embeds,
        tuple(replace(residual, 0.0) for residual in pose_residuals),
        {name: replace(bias, 0.0) for name, bias in query_biases.items()},
    )
