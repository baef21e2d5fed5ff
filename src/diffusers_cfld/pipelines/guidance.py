"""CFLD's guidance: which evaluations of the U-Net Eq. 7 needs, what each is conditioned on, and how they combine.

Paper: arXiv:2402.18078, Eq. 7. Official code: the `uc_down_full` branch of `pose_transfer_test.py` @ f2ea2a7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import zip_longest
from typing import Any

import torch


class GuidanceBranch(Enum):
    """One prediction of the U-Net in Eq. 7, named after what it is conditioned on."""

    NULL = "null"  # null prompt, no pose, no biases
    POSE = "pose"  # null prompt, pose, no biases
    FULL = "full"  # prompt, pose and biases


def guidance_weights(pose_guidance_scale: float, appearance_guidance_scale: float) -> dict[GuidanceBranch, float]:
    """Compute the weights of the predictions in Eq. 7, leaving out predictions with weight zero.

    Equation:
        As printed: e = e_null + w_pose (e_pose - e_null) + w_app (e_full - e_pose).

        Sorted by prediction: e = (1 - w_pose) e_null + (w_pose - w_app) e_pose + w_app e_full. Equal scales therefore
        need two evaluations instead of three, a pose scale of 1 needs two, and two scales of 1 need one.

    Args:
        pose_guidance_scale: w_pose, unitless, >= 0.
        appearance_guidance_scale: w_app, unitless, >= 0; 0 ignores the source person.

    Returns:
        Weights by branch, in the order null, pose, full; one to three entries that sum to 1.
    """
    w_pose, w_app = float(pose_guidance_scale), float(appearance_guidance_scale)
    weights = {
        GuidanceBranch.NULL: 1.0 - w_pose,
        GuidanceBranch.POSE: w_pose - w_app,
        GuidanceBranch.FULL: w_app,
    }
    return {branch: weight for branch, weight in weights.items() if weight != 0}


def acts_at(step: int, num_steps: int, start: float, stop: float) -> bool:
    """Decide whether something acts at a step, by the rule of diffusers' `control_guidance_start` and `..._end`.

    Args:
        step: Index of the step, from 0.
        num_steps: Number of steps.
        start: Fraction of the steps after which it begins to act.
        stop: Fraction of the steps after which it no longer acts.

    Returns:
        Whether the whole step lies between the two.
    """
    return start <= step / num_steps and (step + 1) / num_steps <= stop


def combine_guidance(noise_preds: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Combine the branches' predictions.

    Equation:
        e = e_1 + sum_{i > 1} w_i (e_i - e_1). This equals sum_i w_i e_i because the weights sum to 1, and is more
        exact in half precision.

    Args:
        noise_preds: The branches' predictions, each (B, C, h, w).
        weights: One per prediction, from [`guidance_weights`].

    Returns:
        (B, C, h, w), in the dtype of the inputs; if there is only one prediction, that prediction itself.
    """
    base = noise_preds[0]
    combined = base
    for noise_pred, weight in zip(noise_preds[1:], weights[1:], strict=True):
        combined = combined + weight * (noise_pred - base)
    return combined


@dataclass
class BranchConditions:
    """The conditions of the U-Net for a batch of B samples, before they are laid out for the guidance branches.

    Each tensor has n rows, and each row holds for B / n neighbouring samples of the batch.

    Args:
        batch_size: B.
        prompt_embeds: (n, Q, D), the prompts of the sources.
        null_prompt_embeds: (1, Q, D), the learned prompt of an absent source.
        pose_residuals: One per down block, (n, C, h, w).
        query_biases: By layer name, (n, L, C).
        image_embeds: One pair (negative, positive) per IP-Adapter, (n, ...) each.
        adapter_residuals: Those of T2I-Adapters, one per down block, (n, C, h, w), for all branches.
        control_images: One per ControlNet, (n, C, H, W), [0, 1], for all branches.
        control_scales: Factors of the ControlNets' residuals at the running step.
        timestep_cond: (1, E), the embedded guidance scale of a U-Net that takes one.
        is_guided: Whether guidance acts at the running step.
    """

    batch_size: int
    prompt_embeds: torch.Tensor
    null_prompt_embeds: torch.Tensor
    pose_residuals: Sequence[torch.Tensor]
    query_biases: Mapping[str, torch.Tensor]
    image_embeds: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    adapter_residuals: Sequence[torch.Tensor] = ()
    control_images: Sequence[torch.Tensor] = ()
    control_scales: Sequence[float] = ()
    timestep_cond: torch.Tensor | None = None
    is_guided: bool = True
    _last: tuple[Any, UNetConditions] | None = None

    def replace_prompts(self, prompt_embeds: torch.Tensor, null_prompt_embeds: torch.Tensor) -> None:
        """Take over the prompts, which a callback may have replaced.

        Args:
            prompt_embeds: (B, Q, D).
            null_prompt_embeds: (1, Q, D).

        Raises:
            ValueError: `prompt_embeds` does not have one sample per sample of the batch.
        """
        if len(prompt_embeds) != self.batch_size:
            raise ValueError(
                f"A callback must keep the {self.batch_size} samples of `prompt_embeds`, got {len(prompt_embeds)}: "
                "`SDCFGCutoffCallback`, for example, keeps only the last one, so it works for one image at a time."
            )
        self.prompt_embeds, self.null_prompt_embeds = prompt_embeds, null_prompt_embeds

    def batch(self, branches: Sequence[GuidanceBranch], rows: slice) -> UNetConditions:
        """Lay out the conditions of some samples branch by branch, as one batch for the U-Net.

        Args:
            branches: The branches to evaluate.
            rows: Which of the B samples to use.

        Returns:
            Conditions for `len(branches)` times as many samples.
        """

        def lay_out(tensor: torch.Tensor, absent: torch.Tensor | None, seen: list[bool]) -> torch.Tensor:
            present = select_rows(tensor, rows, self.batch_size)
            missing = torch.zeros_like(present) if absent is None else select_rows(absent, rows, self.batch_size)
            return torch.cat([present if is_seen else missing for is_seen in seen])

        has_pose = [branch is not GuidanceBranch.NULL for branch in branches]
        has_appearance = [branch is GuidanceBranch.FULL for branch in branches]
        prompts = lay_out(self.prompt_embeds, self.null_prompt_embeds, has_appearance)
        # Only the prompts may change from step to step: without micro-batches, all else is laid out once.
        key = (tuple(branches), rows.start, rows.stop)
        if self._last is None or self._last[0] != key:
            everywhere = [True] * len(branches)
            pose = [lay_out(residual, None, has_pose) for residual in self.pose_residuals]
            added = [lay_out(residual, None, everywhere) for residual in self.adapter_residuals]
            large = UNetConditions(
                encoder_hidden_states=prompts,
                residuals=[
                    first if second is None else second if first is None else first + second
                    for first, second in zip_longest(pose, added)
                ],
                query_biases={
                    name: lay_out(bias, None, has_appearance) if any(has_appearance) else None
                    for name, bias in self.query_biases.items()
                },
                image_embeds=[lay_out(positive, negative, has_appearance) for negative, positive in self.image_embeds],
                control_images=[lay_out(image, None, everywhere) for image in self.control_images],
            )
            self._last = (key, large)
        return replace(self._last[1], encoder_hidden_states=prompts)


@dataclass
class UNetConditions:
    """The conditions of one evaluation of the U-Net.

    Args:
        encoder_hidden_states: (B, Q, D), the prompts.
        residuals: One per down block, (B, C, h, w), of the pose adapter and of T2I-Adapters.
        query_biases: By layer name, (B, L, C), or `None` for layers where no sample has a bias.
        image_embeds: One per IP-Adapter, (B, ...).
        control_images: One per ControlNet, (B, C, H, W).
    """

    encoder_hidden_states: torch.Tensor
    residuals: list[torch.Tensor]
    query_biases: dict[str, torch.Tensor | None]
    image_embeds: list[torch.Tensor]
    control_images: list[torch.Tensor]


def select_rows(tensor: torch.Tensor, rows: slice, batch_size: int) -> torch.Tensor:
    """Select samples of a batch from a tensor whose rows each hold for several neighbouring samples.

    Args:
        tensor: (n, ...), where n divides `batch_size`.
        rows: Which samples of the batch to select.
        batch_size: Number of samples in the batch.

    Returns:
        (number of selected samples, ...).
    """
    copies = batch_size // tensor.shape[0]
    if copies == 1:
        return tensor[rows]
    return tensor[torch.arange(batch_size, device=tensor.device)[rows] // copies]


def micro_batches(batch_size: int, micro_batch_size: int | None) -> list[slice]:
    """Split a batch into slices.

    Args:
        batch_size: Number of samples in the batch.
        micro_batch_size: Number of samples in a slice; None for one slice.

    Returns:
        Slices that cover the batch in order.
    """
    size = micro_batch_size or batch_size
    return [slice(first, min(first + size, batch_size)) for first in range(0, batch_size, size)]
