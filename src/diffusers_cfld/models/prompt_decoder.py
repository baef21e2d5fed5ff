"""Perception-refined decoder D: learnable queries that turn the source image into a coarse-grained prompt.

Paper: arXiv:2402.18078, Sec. 3.3 and Fig. 3 (H_D). Reference: YanzuoLu/CFLD `models/decoder.py` @ f2ea2a7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.utils import BaseOutput
from torch import nn

from ..image_utils import as_pair
from .model_utils import CFLDModelMixin


@dataclass
class PerceptionRefinedDecoderOutput(BaseOutput):
    """The prompts of the conditional and of the unconditional branch.

    Args:
        prompt_embeds: (B, Q, D), the coarse-grained prompt of each source image.
        null_prompt_embeds: (1, Q, D), the learned prompt that stands for an absent source.
    """

    prompt_embeds: torch.Tensor
    null_prompt_embeds: torch.Tensor = None  # type: ignore[assignment]  # accelerate rebuilds outputs from the first field


class PerceptionRefinedDecoderBlock(nn.Module):
    """Cross-attention to the source, then self-attention among the queries, then a GEGLU feed-forward, all pre-norm.

    The query positions are added to the hidden states before each of the two attentions.

    Args:
        dim: D, width of the hidden states.
        num_attention_heads: Heads of both attentions; must divide `dim`.
        cross_attention_dim: Channels of the source tokens.
    """

    def __init__(self, dim: int, num_attention_heads: int, cross_attention_dim: int) -> None:
        super().__init__()
        head_dim = dim // num_attention_heads
        # Named as in the published weights: attn1 is the self-attention, attn2 the cross-attention that comes first.
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(query_dim=dim, heads=num_attention_heads, dim_head=head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(
            query_dim=dim, cross_attention_dim=cross_attention_dim, heads=num_attention_heads, dim_head=head_dim
        )
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")

    def forward(
        self, hidden_states: torch.Tensor, query_position_embeds: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """Refine the queries.

        Args:
            hidden_states: (B, Q, D).
            query_position_embeds: (Q, D).
            encoder_hidden_states: (B, L, `cross_attention_dim`), the source's tokens.

        Returns:
            (B, Q, D).
        """
        hidden_states = hidden_states + query_position_embeds
        hidden_states = hidden_states + self.attn2(
            self.norm2(hidden_states), encoder_hidden_states=encoder_hidden_states
        )
        hidden_states = hidden_states + query_position_embeds
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        return hidden_states + self.ff(self.norm3(hidden_states))


class PerceptionRefinedDecoder(CFLDModelMixin, ConfigMixin, AttentionMixin):
    """Decode the coarsest source features into the prompt of the U-Net's cross-attentions.

    The decoder also holds the null prompt, the learned stand-in for an absent source, so that it is saved, cast and
    offloaded like any other weight. The default arguments give the published decoder.

    Args:
        num_queries: Q, number of tokens in the prompt.
        dim: D, width of the prompt; the U-Net's `cross_attention_dim`.
        num_attention_heads: Heads of each attention; must divide `dim`.
        num_layers: R, number of blocks.
        feature_channels: C, channels of the source's coarsest feature map.
        feature_size: (height, width) of that map, or one number for a square; each cell has a learned position.

    Raises:
        ValueError: `num_attention_heads` does not divide `dim`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PerceptionRefinedDecoderBlock"]
    _repeated_blocks = ["PerceptionRefinedDecoderBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        num_queries: int = 16,
        dim: int = 768,
        num_attention_heads: int = 24,
        num_layers: int = 8,
        feature_channels: int = 1024,
        feature_size: int | tuple[int, int] = 8,
    ) -> None:
        super().__init__()
        if dim % num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `dim`, got {num_attention_heads} heads for {dim} channels."
            )
        self.feature_size = as_pair(feature_size)
        num_positions = self.feature_size[0] * self.feature_size[1]
        self.query_embeds = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.query_position_embeds = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.source_position_embeds = nn.Parameter(0.02 * torch.randn(1, num_positions, feature_channels))
        self.null_prompt_embeds = nn.Parameter(torch.randn(1, num_queries, dim))
        self.blocks = nn.ModuleList(
            PerceptionRefinedDecoderBlock(dim, num_attention_heads, feature_channels) for _ in range(num_layers)
        )
        self.gradient_checkpointing = False

    def forward(
        self, feature_map: torch.Tensor, return_dict: bool = True
    ) -> PerceptionRefinedDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Compute the prompts.

        Args:
            feature_map: (B, C, h, w) with (h, w) = `feature_size`, the source's coarsest feature map.
            return_dict: Return a [`PerceptionRefinedDecoderOutput`] instead of a tuple of its fields.

        Returns:
            The coarse-grained prompt (B, Q, D) and the null prompt (1, Q, D); the input is not modified.

        Raises:
            ValueError: `feature_map` has the wrong shape; the message names both shapes.
        """
        expected = (self.config.feature_channels, *self.feature_size)
        if feature_map.ndim != 4 or tuple(feature_map.shape[1:]) != expected:
            raise ValueError(
                f"`feature_map` must have shape (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(feature_map.shape)}. It is the last of the source encoder's `feature_maps`."
            )
        encoder_hidden_states = feature_map.flatten(2).transpose(1, 2)  # (B, h * w, C), row by row
        encoder_hidden_states = encoder_hidden_states + self.source_position_embeds
        hidden_states = self.query_embeds.expand(feature_map.shape[0], -1, -1)  # (B, Q, D)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, self.query_position_embeds, encoder_hidden_states
                )
            else:
                hidden_states = block(hidden_states, self.query_position_embeds, encoder_hidden_states)
        # A copy, so that changing the output in place does not change the weight.
        null_prompt_embeds = self.null_prompt_embeds.to(hidden_states.dtype).clone()
        if not return_dict:
            return hidden_states, null_prompt_embeds
        return PerceptionRefinedDecoderOutput(prompt_embeds=hidden_states, null_prompt_embeds=null_prompt_embeds)
