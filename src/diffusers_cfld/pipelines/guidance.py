"""Guidance of CFLD as pure functions: which U-Net evaluations the two scales need, and how they combine.

Paper: arXiv:2402.18078, Eq. 7. Official code: the `uc_down_full` branch of `pose_transfer_test.py` @ f2ea2a7.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from enum import Enum

import torch


class GuidanceBranch(Enum):
    """One prediction of the U-Net in Eq. 7, by what conditions it."""

    NULL = "null"  # null prompt, no pose, no biases
    POSE = "pose"  # null prompt, pose, no biases
    FULL = "full"  # prompt, pose and biases

    @property
    def has_pose(self) -> bool:
        """Whether the branch sees the target pose."""
        return self is not GuidanceBranch.NULL

    @property
    def has_appearance(self) -> bool:
        """Whether the branch sees the source's prompt and query biases."""
        return self is GuidanceBranch.FULL


def check_guidance_scale(name: str, scale: float) -> None:
    """Check one guidance scale.

    Args:
        name: The argument's name, for the message.
        scale: Its value, unitless.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not finite.
    """
    if not isinstance(scale, numbers.Real):
        raise TypeError(f"`{name}` must be a number >= 0, got {scale!r}.")
    if not math.isfinite(scale) or scale < 0:
        raise ValueError(f"`{name}` must be a finite number >= 0, got {scale}.")


def guidance_weights(pose_guidance_scale: float, appearance_guidance_scale: float) -> dict[GuidanceBranch, float]:
    """Weights of the predictions in Eq. 7, those of weight zero left out.

    Equation:
        e = e_null + w_pose (e_pose - e_null) + w_app (e_full - e_pose)
          = (1 - w_pose) e_null + (w_pose - w_app) e_pose + w_app e_full
        so that equal scales need two evaluations, a pose scale of 1 two, and both 1 one.

    Args:
        pose_guidance_scale: w_pose, unitless, >= 0.
        appearance_guidance_scale: w_app, unitless, >= 0; 0 ignores the source person.

    Returns:
        Weight by branch, in the order null, pose, full; one to three entries that sum to 1.

    Raises:
        ValueError: A scale is negative or not finite.
    """
    check_guidance_scale("pose_guidance_scale", pose_guidance_scale)
    check_guidance_scale("appearance_guidance_scale", appearance_guidance_scale)
    pose_weight, appearance_weight = float(pose_guidance_scale), float(appearance_guidance_scale)
    weights = {
        GuidanceBranch.NULL: 1.0 - pose_weight,
        GuidanceBranch.POSE: pose_weight - appearance_weight,
        GuidanceBranch.FULL: appearance_weight,
    }
    return {branch: weight for branch, weight in weights.items() if weight != 0}


def combine_guidance(noise_preds: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Combine the branches' predictions.

    Equation:
        e = e_1 + sum_{i > 1} w_i (e_i - e_1), which is sum_i w_i e_i because the weights sum to 1, and loses less to
        rounding in half precision.

    Args:
        noise_preds: The branches' predictions, each (B, C, h, w).
        weights: One per prediction, from [`guidance_weights`].

    Returns:
        (B, C, h, w), the dtype of the inputs; the single prediction itself if there is only one.

    Raises:
        ValueError: The numbers of predictions and weights differ or are zero, shapes differ, or the weights do not
            sum to 1.
    """
    if len(noise_preds) != len(weights) or not weights or len({pred.shape for pred in noise_preds}) != 1:
        raise ValueError(
            f"`noise_preds` and `weights` must be as many and of one shape, got {len(weights)} weights for shapes "
            f"{[tuple(pred.shape) for pred in noise_preds]}."
        )
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(f"`weights` must sum to 1, got {list(weights)}. Make them with `guidance_weights`.")
    base = noise_preds[0]
    combined = base
    for noise_pred, weight in zip(noise_preds[1:], weights[1:], strict=True):
        combined = combined + weight * (noise_pred - base)
    return combined
