"""What the pipelines return, and the encoded conditions that they take back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from typing_extensions import TypeVar

Images: TypeAlias = "list[PIL.Image.Image] | np.ndarray | torch.Tensor"
ImagesT = TypeVar("ImagesT", bound=Images, default=Images)


@dataclass
class CFLDPipelineOutput(BaseOutput, Generic[ImagesT]):
    """Result of a pipeline.

    Args:
        images: A list of PIL images, an array (B, H, W, 3) in [0, 1] (`output_type="np"`), or a tensor: (B, 3, H, W)
            in [0, 1] (`"pt"`) or the latents (B, 4, h, w) (`"latent"`). Images of one source and pose are next to each
            other.
    """

    images: ImagesT


@dataclass(frozen=True, eq=False)
class Appearance:
    """Everything the pipeline knows about its source images, encoded once for many poses.

    Args:
        prompt_embeds: (B, Q, D), the coarse-grained prompts.
        null_prompt_embeds: (1, Q, D), the learned prompt of an absent source.
        query_biases: By layer name, (B, C, h, w), the fine-grained biases.
    """

    prompt_embeds: torch.Tensor
    null_prompt_embeds: torch.Tensor
    query_biases: dict[str, torch.Tensor]

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.prompt_embeds)

    def __getitem__(self, index: int | slice | list[int]) -> Appearance:
        """Some of the sources, as views unless `index` is a list."""
        rows = _as_rows(index, len(self))
        query_biases = {name: bias[rows] for name, bias in self.query_biases.items()}
        return Appearance(self.prompt_embeds[rows], self.null_prompt_embeds, query_biases)

    def lerp(
        self,
        other: Appearance,
        weight: float,
        *,
        prompt_weight: float | None = None,
        bias_weight: float | None = None,
    ) -> Appearance:
        """Interpolate prompts and query biases linearly to another appearance (Sec. 4.6, Fig. 6b).

        Args:
            other: The appearance at weight 1, with the same number of sources; one of the two may have a single one.
            weight: 0 (this appearance) to 1 (the other); values outside this range exaggerate the difference.
            prompt_weight: Separate weight for the prompts, which carry the coarse features.
            bias_weight: Separate weight for the query biases, which carry the fine details.

        Returns:
            A new object.
        """
        prompt_weight = weight if prompt_weight is None else prompt_weight
        bias_weight = weight if bias_weight is None else bias_weight
        return _combine([self, other], [1 - prompt_weight, prompt_weight], [1 - bias_weight, bias_weight])

    @staticmethod
    def mean(appearances: Sequence[Appearance], weights: Sequence[float] | None = None) -> Appearance:
        """Average several appearances, for example those of several images of one person.

        Args:
            appearances: At least one. A single appearance of several sources is averaged over its sources.
            weights: One for each, with a positive sum; equal by default.

        Returns:
            A new object.

        Raises:
            ValueError: There are not as many weights as appearances, or their sum is not positive.
        """
        items = list(appearances)
        if len(items) == 1:
            items = [items[0][index] for index in range(len(items[0]))]
        shares = [1.0] * len(items) if weights is None else [float(weight) for weight in weights]
        if len(shares) != len(items) or not sum(shares) > 0:
            raise ValueError(
                f"`weights` must have one number per appearance and a positive sum, got {shares} for {len(items)} "
                "appearances."
            )
        shares = [share / sum(shares) for share in shares]
        return _combine(items, shares, shares)

    @staticmethod
    def cat(appearances: Sequence[Appearance]) -> Appearance:
        """Put the sources of several appearances into one batch.

        Args:
            appearances: At least one.

        Returns:
            A new object with the null prompt of the first.
        """
        items = list(appearances)
        query_biases = {name: torch.cat([item.query_biases[name] for item in items]) for name in items[0].query_biases}
        prompt_embeds = torch.cat([item.prompt_embeds for item in items])
        return Appearance(prompt_embeds, items[0].null_prompt_embeds, query_biases)

    def to(self, *args: Any, **kwargs: Any) -> Appearance:
        """Move or cast, as `torch.Tensor.to` does.

        Args:
            *args: Device, dtype or both.
            **kwargs: Passed on to `torch.Tensor.to`.

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

    def __len__(self) -> int:
        """Number of poses."""
        return len(next(iter(self.residuals.values())))

    def __getitem__(self, index: int | slice | list[int]) -> PoseFeatures:
        """Some of the poses, as views unless `index` is a list."""
        rows = _as_rows(index, len(self))
        return PoseFeatures({name: residual[rows] for name, residual in self.residuals.items()})

    def to(self, *args: Any, **kwargs: Any) -> PoseFeatures:
        """Move or cast, as `torch.Tensor.to` does.

        Args:
            *args: Device, dtype or both.
            **kwargs: Passed on to `torch.Tensor.to`.

        Returns:
            A new object; this one is not changed.
        """
        return PoseFeatures({name: residual.to(*args, **kwargs) for name, residual in self.residuals.items()})


def _as_rows(index: int | slice | list[int], length: int) -> slice | list[int]:
    if isinstance(index, (slice, list)):
        return index
    if not -length <= index < length:
        raise IndexError(f"Index {index} is out of range for a batch of {length}.")
    return slice(index, index + 1 or None)


def _combine(items: list[Appearance], prompt_shares: list[float], bias_shares: list[float]) -> Appearance:
    """The weighted sum of prompts and biases, with the null prompt of the first."""

    def weigh(tensors: list[torch.Tensor], shares: list[float]) -> torch.Tensor:
        result = shares[0] * tensors[0]
        for tensor, share in zip(tensors[1:], shares[1:], strict=True):
            result = result + share * tensor.to(result)
        return result

    query_biases = {
        name: weigh([item.query_biases[name] for item in items], bias_shares) for name in items[0].query_biases
    }
    prompt_embeds = weigh([item.prompt_embeds for item in items], prompt_shares)
    return Appearance(prompt_embeds, items[0].null_prompt_embeds, query_biases)
