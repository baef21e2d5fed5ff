"""Pose adapter P: one spatial residual per cross-attention down block of the U-Net.

Paper: arXiv:2402.18078, Sec. 3.2 and Fig. 2 (H_P), after T2I-Adapter. Reference: YanzuoLu/CFLD
`models/pose_encoder.py` @ f2ea2a7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils import BaseOutput
from torch import nn

from .model_utils import CFLDModelMixin


@dataclass
class PoseAdapterOutput(BaseOutput):
    """Residuals for the U-Net's down blocks.

    Args:
        sample: The first of `residuals`, so that the tuple form begins with a tensor.
        residuals: `"down_blocks.{i}"` of shape (B, C_i, H / (f * 2^i), W / (f * 2^i)), f being the unshuffle factor;
            added to the output of down block i before the block halves its resolution.
    """

    sample: torch.Tensor
    residuals: dict[str, torch.Tensor] = None  # type: ignore[assignment]  # accelerate rebuilds outputs from the first field


class PoseAdapter(CFLDModelMixin, ConfigMixin):
    """Encode a target pose so that the frozen U-Net follows it.

    It consists of a pixel-unshuffle, a 1x1 convolution, and one ResNet block without time embedding per scale, with 2x
    average pooling in between. The default arguments give the published adapter.

    Args:
        pose_channels: Channels of the pose map, 3 + number of joints.
        block_out_channels: C_i, one per residual; the widths of the U-Net's down blocks that receive them.
        unshuffle_factor: f, side of the block of pixels that is folded into channels: pose pixels per latent cell.
        norm_num_groups: Groups of the ResNet blocks' normalisation; must divide every width.

    Raises:
        ValueError: `block_out_channels` is empty or not divisible by `norm_num_groups`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock2D"]
    _repeated_blocks = ["ResnetBlock2D"]
    _skip_layerwise_casting_patterns = ["conv_in", "norm"]

    @register_to_config
    def __init__(
        self,
        pose_channels: int = 21,
        block_out_channels: tuple[int, ...] = (320, 640, 1280),
        unshuffle_factor: int = 4,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        if not block_out_channels or any(width % norm_num_groups for width in block_out_channels):
            raise ValueError(
                f"`block_out_channels` must be one or more multiples of `norm_num_groups`, got {block_out_channels} "
                f"with {norm_num_groups} groups."
            )
        self.unshuffle = nn.PixelUnshuffle(unshuffle_factor)
        self.conv_in = nn.Conv2d(pose_channels * unshuffle_factor**2, block_out_channels[0], kernel_size=1)
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                in_channels=block_out_channels[max(i - 1, 0)],
                out_channels=width,
                temb_channels=None,
                groups=norm_num_groups,
            )
            for i, width in enumerate(block_out_channels)
        )
        self.gradient_checkpointing = False

    def forward(
        self, pose_map: torch.Tensor, return_dict: bool = True
    ) -> PoseAdapterOutput | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the residuals.

        Args:
            pose_map: (B, `pose_channels`, H, W), [0, 1]. A missing joint is an all-zero channel.
            return_dict: Return a [`PoseAdapterOutput`] instead of a tuple of its fields.

        Returns:
            The residuals by down block; the input is not modified.

        Raises:
            ValueError: `pose_map` is not 4-D or does not have `pose_channels` channels, or H or W is not a multiple of
                f * 2^(number of residuals - 1).
        """
        channels = self.config.pose_channels
        multiple = self.config.unshuffle_factor * 2 ** (len(self.resnets) - 1)
        if pose_map.ndim != 4 or pose_map.shape[1] != channels or any(side % multiple for side in pose_map.shape[2:]):
            raise ValueError(
                f"`pose_map` must have shape (batch, {channels}, height, width) with height and width multiples of "
                f"{multiple}, got {tuple(pose_map.shape)}. Build it with `PoseProcessor`."
            )
        hidden_states = self.conv_in(self.unshuffle(pose_map))
        residuals = {}
        for i, resnet in enumerate(self.resnets):
            if i > 0:
                hidden_states = F.avg_pool2d(hidden_states, kernel_size=2)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(resnet, hidden_states, None)
            else:
                hidden_states = resnet(hidden_states, None)
            residuals[f"down_blocks.{i}"] = hidden_states
        if not return_dict:
            return residuals["down_blocks.0"], residuals
        return PoseAdapterOutput(sample=residuals["down_blocks.0"], residuals=residuals)
