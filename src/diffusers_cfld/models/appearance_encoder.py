"""Appearance encoder phi_A: turns the source's fine features into query biases for the U-Net's cross-attentions.

Paper: arXiv:2402.18078, Sec. 3.4, Eq. 4 (H_A). Reference: YanzuoLu/CFLD `models/appearance_encoder.py` @ f2ea2a7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock
from diffusers.utils import BaseOutput
from torch import nn

from .model_utils import CFLDModelMixin


@dataclass
class AppearanceEncoderOutput(BaseOutput):
    """Query biases of the hybrid-granularity attention.

    Args:
        sample: The first of `query_biases`, so that the tuple form begins with a tensor.
        query_biases: One map per biased layer, keyed by the layer's name in the U-Net,
            `"up_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2"`; shape (B, C_b, h_b, w_b), where C_b is the
            layer's query width and (h_b, w_b) is the size of the feature map that the bias is computed from.
    """

    sample: torch.Tensor
    query_biases: dict[str, torch.Tensor] = None  # type: ignore[assignment]  # accelerate rebuilds outputs from the first field


class QueryBiasEncoder(nn.Module):
    """phi_A of one layer: 1x1 convolution, transformer, 1x1 convolution. Both convolutions start at zero.

    Args:
        in_channels: Channels of the feature map.
        hidden_channels: Width of the transformer.
        out_channels: Width of the biased layer's query.
        num_attention_heads: Heads of each attention; must divide `hidden_channels`.
        num_layers: Number of transformer layers, each self-attention, self-attention, GEGLU feed-forward.
    """

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, num_attention_heads: int, num_layers: int
    ) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(in_channels, hidden_channels, kernel_size=1)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                hidden_channels,
                num_attention_heads,
                hidden_channels // num_attention_heads,
                double_self_attention=True,
            )
            for _ in range(num_layers)
        )
        self.proj_out = nn.Conv2d(hidden_channels, out_channels, kernel_size=1)
        for parameter in (*self.proj_in.parameters(), *self.proj_out.parameters()):
            nn.init.zeros_(parameter)
        self.gradient_checkpointing = False

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Compute the bias map.

        Args:
            feature_map: (B, `in_channels`, h, w).

        Returns:
            (B, `out_channels`, h, w).
        """
        hidden_states = self.proj_in(feature_map)
        height, width = hidden_states.shape[2:]
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, h * w, hidden_channels), row by row
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
        hidden_states = hidden_states.transpose(1, 2).unflatten(2, (height, width))  # (B, hidden_channels, h, w)
        return self.proj_out(hidden_states)


class AppearanceEncoder(CFLDModelMixin, ConfigMixin, AttentionMixin):
    """Encode the source's feature maps into one query bias per biased cross-attention.

    Entry l of each argument describes level l, which reads feature map `feature_stages[l]` and computes the biases of
    the cross-attentions in the U-Net's up block `up_block_indices[l]`, with one encoder for each. The default
    arguments give the published encoder.

    Args:
        feature_channels: Channels of each level's feature map, finest first.
        hidden_channels: Width of the transformers of each level.
        query_channels: Channels of the biases of each level, the width of the U-Net block.
        num_attention_heads: Heads of each level's transformers; must divide `hidden_channels`.
        num_layers: K, number of transformer layers in each encoder.
        up_block_indices: Up block of the U-Net for which each level computes biases.
        attentions_per_block: Number of cross-attentions in each of these up blocks.
        feature_stages: Number of the feature map that each level reads, 1 for the finest; `None` for 1, 2, ... It
            costs least to read a map of about the size at which the up block works; other biases are resized.

    Attributes:
        layer_stages: For each biased layer of the U-Net, the name of the feature map that its bias is computed from.
        layer_widths: For each biased layer, the channels of its bias.

    Raises:
        ValueError: The per-level arguments differ in length, an up block has two levels, or a width is not divisible
            by its number of heads.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["QueryBiasEncoder"]
    _repeated_blocks = ["BasicTransformerBlock"]
    _skip_layerwise_casting_patterns = ["norm", "proj_in", "proj_out"]

    @register_to_config
    def __init__(
        self,
        feature_channels: tuple[int, ...] = (128, 256, 512),
        hidden_channels: tuple[int, ...] = (64, 128, 256),
        query_channels: tuple[int, ...] = (320, 640, 1280),
        num_attention_heads: tuple[int, ...] = (2, 4, 8),
        num_layers: int = 4,
        up_block_indices: tuple[int, ...] = (3, 2, 1),
        attentions_per_block: int = 3,
        feature_stages: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.stages = stages = tuple(feature_stages or range(1, len(feature_channels) + 1))
        levels = (feature_channels, hidden_channels, query_channels, num_attention_heads, up_block_indices, stages)
        if len({len(level) for level in levels}) != 1:
            raise ValueError(
                "`feature_channels`, `hidden_channels`, `query_channels`, `num_attention_heads`, `up_block_indices` "
                "and `feature_stages` must have one entry per level, got "
                f"{[len(level) for level in levels]} entries in this order."
            )
        if len(set(up_block_indices)) < len(up_block_indices):
            raise ValueError(f"`up_block_indices` must name each up block once, got {up_block_indices}.")
        for width, heads in zip(hidden_channels, num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(
                    f"`num_attention_heads` must divide `hidden_channels`, got {heads} heads for {width} channels."
                )
        self.layer_stages: dict[str, str] = {}
        self.layer_widths: dict[str, int] = {}
        encoders = []
        # In the order of the U-Net's layers, from the coarsest level to the finest.
        for level in sorted(range(len(up_block_indices)), key=lambda level: up_block_indices[level]):
            for attention in range(attentions_per_block):
                name = f"up_blocks.{up_block_indices[level]}.attentions.{attention}.transformer_blocks.0.attn2"
                self.layer_stages[name] = f"stage{stages[level]}"
                self.layer_widths[name] = query_channels[level]
                encoders.append(
                    QueryBiasEncoder(
                        feature_channels[level],
                        hidden_channels[level],
                        query_channels[level],
                        num_attention_heads[level],
                        num_layers,
                    )
                )
        self.encoders = nn.ModuleList(encoders)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the biased layers in the U-Net, in the order of `encoders`."""
        return tuple(self.layer_stages)

    def forward(
        self, feature_maps: Mapping[str, torch.Tensor], return_dict: bool = True
    ) -> AppearanceEncoderOutput | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the query biases.

        Args:
            feature_maps: The source encoder's `feature_maps`: `"stage1"` (finest), `"stage2"`, ... of shape
                (B, C_i, h_i, w_i). Stages that no layer reads are ignored.
            return_dict: Return an [`AppearanceEncoderOutput`] instead of a tuple of its fields.

        Returns:
            The bias maps by layer name; the input is not modified.

        Raises:
            ValueError: A stage is missing or does not have its `feature_channels`.
        """
        for stage, channels in zip(self.stages, self.config.feature_channels, strict=True):
            feature_map = feature_maps.get(f"stage{stage}")
            if feature_map is None or feature_map.ndim != 4 or feature_map.shape[1] != channels:
                got = "nothing" if feature_map is None else f"shape {tuple(feature_map.shape)}"
                raise ValueError(
                    f"`feature_maps` must hold 'stage{stage}' of shape (batch, {channels}, height, width), got "
                    f"{got}. Pass the source encoder's `feature_maps`."
                )
        query_biases = {
            name: encoder(feature_maps[stage])
            for (name, stage), encoder in zip(self.layer_stages.items(), self.encoders, strict=True)
        }
        sample = next(iter(query_biases.values()))
        if not return_dict:
            return sample, query_biases
        return AppearanceEncoderOutput(sample=sample, query_biases=query_biases)
