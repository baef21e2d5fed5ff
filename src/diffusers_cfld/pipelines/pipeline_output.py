"""What the pipelines return and what they take back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class CFLDPipelineOutput(BaseOutput):
    """Result of a pipeline.

    Args:
        images: A list of PIL images, an array (B, H, W, 3) in [0, 1] (`output_type="np"`), or a tensor: (B, 3, H, W)
            in [0, 1] (`"pt"`) or the latents (B, 4, h, w) (`"latent"`). Images of one source and pose stand together.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class Appearance:
    """Everything the pipeline knows of its source images, encoded once for many poses.

    Args:
        prompt_embeds: (B, Q, D), the coarse-grained prompts.
        null_prompt_embeds: (1, Q, D), the learned prompt of an absent source.
        query_biases: By layer name, (B, C, h, w), the fine-grained biases.
    """

    prompt_embeds: torch.Tensor
    null_prompt_embeds: torch.Tensor
    query_biases: dict[str, torch.Tensor]

    @property
    def batch_size(self) -> int:
        """Number of sources."""
        return self.prompt_embeds.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Appearance:
        """Move or cast, as `torch.Tensor.to` does.

        Args:
            *args: Device, dtype or both.
            **kwargs: As those of `torch.Tensor.to`.

        Returns:
            A new object; this one is not changed.
        """
        query_biases = {name: bias.to(*args, **kwargs) for name, bias in self.query_biases.items()}
        return Appearance(
            self.prompt_embeds.to(*args, **kwargs), self.null_prompt_embeds.to(*args, **kwargs), query_biases
        )


@dataclass(frozen=True, eq=False)
class PoseFeatures:
    """The pose adapter's residuals of one or more poses, encoded once for many sources.

    Args:
        residuals: By down block, (B, C, h, w).
    """

    residuals: dict[str, torch.Tensor]

    @property
    def batch_size(self) -> int:
        """Number of poses."""
        return next(iter(self.residuals.values())).shape[0]

    def to(self, *args: Any, **kwargs: Any) -> PoseFeatures:
        """Move or cast, as `torch.Tensor.to` does.

        Args:
            *args: Device, dtype or both.
            **kwargs: As those of `torch.Tensor.to`.

        Returns:
            A new object; this one is not changed.
        """
        return PoseFeatures({name: residual.to(*args, **kwargs) for name, residual in self.residuals.items()})
