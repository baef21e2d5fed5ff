"""Fit the conditions to the latents: biases and residuals at the resolutions at which the U-Net takes them.

Ours: the published code runs at one size only, at which nothing here interpolates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from .attention_processor import query_bias_to_tokens


def fit_query_biases(
    query_biases: Mapping[str, torch.Tensor], latent_size: tuple[int, int], num_up_blocks: int
) -> dict[str, torch.Tensor]:
    """Turn bias maps into the tokens of their layers.

    Args:
        query_biases: Of [`AppearanceEncoder`], by layer name, (B, C, h, w) each.
        latent_size: (height, width) of the latents in cells.
        num_up_blocks: Up blocks of the U-Net; the last works at the latents' size, each one before at half of it.

    Returns:
        By layer name, (B, L, C) with L the layer's tokens; see [`query_bias_to_tokens`].
    """
    return {
        name: query_bias_to_tokens(bias, halve_size(latent_size, num_up_blocks - 1 - int(name.split(".")[1])))
        for name, bias in query_biases.items()
    }


def fit_pose_residuals(residuals: Mapping[str, torch.Tensor], latent_size: tuple[int, int]) -> list[torch.Tensor]:
    """Resize residuals to the outputs of their down blocks.

    Args:
        residuals: Of [`PoseAdapter`], from the first down block on, (B, C_i, h_i, w_i) each.
        latent_size: (height, width) of the latents in cells.

    Returns:
        One (B, C_i, h, w) per residual: the tensor itself where the size fits, else resized bilinearly.
    """
    fitted = []
    for i, residual in enumerate(residuals.values()):
        size = halve_size(latent_size, i)
        if tuple(residual.shape[2:]) != size:
            residual = F.interpolate(residual, size=size, mode="bilinear", align_corners=False)
        fitted.append(residual)
    return fitted


def halve_size(size: tuple[int, int], times: int) -> tuple[int, int]:
    """Size after as many of the U-Net's stride-2 convolutions, which round up.

    Args:
        size: (height, width) in cells.
        times: How often it is halved.

    Returns:
        (height, width) in cells.
    """
    height, width = size
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
