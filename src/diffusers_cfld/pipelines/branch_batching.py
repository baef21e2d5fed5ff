"""The guidance's branches in one batch: conditions are zero, or the null prompt, where a branch does not see them."""

from __future__ import annotations

from typing import Any

import torch

from .guidance import GuidanceBranch


def broadcast_batch(num_images: int, num_poses: int) -> int:
    """Number of pairs of images and poses, of which either may be one for all."""
    if not num_images or not num_poses:
        raise ValueError(f"There must be at least one image and one pose, got {num_images} and {num_poses}.")
    if num_images != num_poses and 1 not in (num_images, num_poses):
        raise ValueError(
            f"The numbers of images and poses must be equal, or one of them 1, got {num_images} images and "
            f"{num_poses} poses."
        )
    return max(num_images, num_poses)


def repeat_to(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeat each sample so that all copies of one stand together, up to `batch_size` in all."""
    repeats = batch_size // tensor.shape[0]
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=0)


def batch_prompts(
    branches: tuple[GuidanceBranch, ...],
    prompt_embeds: torch.Tensor,
    null_prompt_embeds: torch.Tensor,
    batch_size: int,
) -> torch.Tensor:
    """The prompts with all branches in one batch, branch by branch; checked, as a callback may have replaced them."""
    fits = null_prompt_embeds.shape[1:] == prompt_embeds.shape[1:] and null_prompt_embeds.shape[0] in (1, batch_size)
    if prompt_embeds.shape[0] != batch_size or not fits:
        raise ValueError(
            f"`prompt_embeds` from a callback must keep its batch of {batch_size} and `null_prompt_embeds` its shape, "
            f"got {tuple(prompt_embeds.shape)} and {tuple(null_prompt_embeds.shape)}."
        )
    null_prompt_embeds = null_prompt_embeds.expand_as(prompt_embeds)
    return torch.cat([prompt_embeds if branch.has_appearance else null_prompt_embeds for branch in branches])


def batch_residual(branches: tuple[GuidanceBranch, ...], residual: torch.Tensor) -> torch.Tensor:
    """A down block's residual with all branches in one batch: zero in the one without pose."""
    return torch.cat([residual if branch.has_pose else torch.zeros_like(residual) for branch in branches])


def batch_image_embeds(
    branches: tuple[GuidanceBranch, ...], image_embeds: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, Any] | None:
    """The IP-Adapters' embeddings with all branches in one batch: negative in those without appearance."""
    if not image_embeds:
        return None
    pairs = [
        torch.cat([positive if branch.has_appearance else negative for branch in branches])
        for negative, positive in image_embeds
    ]
    return {"image_embeds": pairs}


def batch_query_bias(branches: tuple[GuidanceBranch, ...], query_bias: torch.Tensor) -> torch.Tensor | None:
    """A layer's bias with all branches in one batch: zero in those without appearance."""
    if not any(branch.has_appearance for branch in branches):
        return None
    return torch.cat([query_bias if branch.has_appearance else torch.zeros_like(query_bias) for branch in branches])
