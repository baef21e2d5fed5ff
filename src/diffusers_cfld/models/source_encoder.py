"""Source image encoder S: a timm Swin Transformer that returns one feature map per stage.

Paper: arXiv:2402.18078, Sec. 3.2 and Fig. 2 (H_S). Reference: YanzuoLu/CFLD `models/swin_transformer.py` @ f2ea2a7, a
copy of the original Swin. timm's computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..image_utils import as_pair
from .model_utils import CFLDModelMixin

_DOWNSAMPLE = re.compile(r"(?<![^.])layers\.(\d+)\.downsample\.")
# The classifier, the final norm, and buffers that are computed from the sizes.
_UNUSED = re.compile(r"(head|norm)\..+|(.+\.)?(relative_position_index|relative_coords_table|attn_mask)")


@dataclass
class SwinImageEncoderOutput(BaseOutput):
    """Features of the source image.

    Args:
        sample: (B, C_L, H / s_L, W / s_L), the map of the last stage, the same tensor as the last of `feature_maps`.
        feature_maps: `"stage1"` ... `"stageL"`; that of stage i has shape (B, C_i, H / s_i, W / s_i) with strides
            s = 4, 8, 16, 32, and is taken before the next patch merging, without a final norm.
    """

    sample: torch.Tensor
    feature_maps: dict[str, torch.Tensor] = None  # type: ignore[assignment]  # accelerate rebuilds outputs from the first field


class SwinImageEncoder(CFLDModelMixin, ConfigMixin):
    """Encode the source image into multi-scale features f1..f4.

    The default arguments give the published encoder: Swin-B at 256x256 pixels with window 16. A new encoder is in eval
    mode; stochastic depth acts only in `train()` mode. [`SwinImageEncoder.from_timm`] starts from timm's ImageNet
    weights.

    Args:
        model_name: Name of a timm Swin Transformer (with or without pretrained tag). Only the architecture is taken
            from it: the constructor never downloads weights.
        image_size: Height and width of the input in pixels, or one number for a square. Each must be a multiple of
            the coarsest stride (32 for every four-stage Swin with patch 4).
        window_size: Side of the attention window in tokens; `None` keeps that of `model_name`. A window larger than
            the feature map of a stage is reduced to the map's size, as in the original Swin.
        embed_dim: Channels of the first stage; `None` keeps that of `model_name`.
        depths: Blocks per stage; `None` keeps those of `model_name`.
        num_heads: Attention heads per stage; `None` keeps those of `model_name`.
        patch_size: Side of a patch in pixels; `None` keeps that of `model_name`.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1); the rate rises linearly from 0.

    Raises:
        ValueError: `model_name` is not a timm Swin Transformer, or `image_size` is not a multiple of the stride.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = [
        "SwinTransformerBlock",
        "SwinTransformerV2Block",
        "SwinTransformerV2CrBlock",
        "PatchEmbed",
        "PatchMerging",
    ]
    _repeated_blocks = ["SwinTransformerBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "norm", "relative_position_bias_table"]

    @register_to_config
    def __init__(
        self,
        model_name: str = "swin_base_patch4_window12_384",
        image_size: int | tuple[int, int] = 256,
        window_size: int | None = 16,
        embed_dim: int | None = None,
        depths: tuple[int, ...] | None = None,
        num_heads: tuple[int, ...] | None = None,
        patch_size: int | None = None,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        self.backbone = _create_swin(
            model_name,
            img_size=as_pair(image_size),
            window_size=window_size,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
        )
        self.gradient_checkpointing = False
        self.eval()  # new models of diffusers are deterministic

    @classmethod
    def from_timm(
        cls, model_name: str, *, pretrained: bool = True, checkpoint_path: str | None = None, **config: Any
    ) -> SwinImageEncoder:
        """Build an encoder with pretrained Swin weights; relative position tables are resized to its windows.

        Args:
            model_name: timm name, with a tag to choose particular weights, e.g.
                `"swin_base_patch4_window12_384.ms_in22k_ft_in1k"`.
            pretrained: Load timm's weights (from the Hub or timm's cache). Ignored when `checkpoint_path` is given.
            checkpoint_path: Local file of weights with the keys of timm or of the original Swin (`.safetensors`,
                `.pth`, `.bin`; pickles are read with `weights_only=True`).
            **config: Any argument of the constructor except `model_name`.

        Returns:
            An encoder in eval mode. Its saved config does not ask for pretrained weights.

        Raises:
            OSError: `checkpoint_path` cannot be read.
            ValueError: As in the constructor; or keys of the weights are missing, unexpected or have the wrong shape.
        """
        import timm

        encoder = cls(model_name=model_name, **config)
        if checkpoint_path is None and not pretrained:
            return encoder
        if checkpoint_path is None:
            weights = timm.create_model(model_name, pretrained=True, num_classes=0).state_dict()
        elif Path(checkpoint_path).is_file():
            weights = timm.models.load_state_dict(checkpoint_path, weights_only=True)
        else:
            raise FileNotFoundError(f"`checkpoint_path` must be a file of Swin weights, got '{checkpoint_path}'.")
        try:
            encoder.backbone.load_state_dict(_fit_swin_weights(weights, encoder.backbone))
        except RuntimeError as error:
            source = checkpoint_path or model_name
            raise ValueError(f"The weights of '{source}' do not fit this encoder: {error}") from error
        return encoder

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return as_pair(self.config.image_size)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the feature maps, finest first."""
        return tuple(info["num_chs"] for info in self.backbone.feature_info)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Image pixels per feature cell, finest first."""
        return tuple(info["reduction"] for info in self.backbone.feature_info)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = torch.utils.checkpoint.checkpoint
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        self.backbone.set_grad_checkpointing(enable)

    def forward(
        self, image: torch.Tensor, return_dict: bool = True
    ) -> SwinImageEncoderOutput | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the feature maps.

        Args:
            image: (B, 3, H, W) with (H, W) = `image_size`, [-1, 1].
            return_dict: Return a [`SwinImageEncoderOutput`] instead of a tuple of its fields.

        Returns:
            The feature maps; the input is not modified.

        Raises:
            ValueError: `image` has the wrong shape; the message names both shapes.
        """
        height, width = self.image_size
        if image.ndim != 4 or image.shape[1] != 3 or tuple(image.shape[2:]) != (height, width):
            raise ValueError(
                f"`image` must have shape (batch, 3, {height}, {width}), got {tuple(image.shape)}. Resize it, or "
                "build the encoder with another `image_size`."
            )
        maps = self.backbone.forward_intermediates(image, intermediates_only=True)
        feature_maps = {f"stage{i + 1}": feature_map for i, feature_map in enumerate(maps)}
        if not return_dict:
            return maps[-1], feature_maps
        return SwinImageEncoderOutput(sample=maps[-1], feature_maps=feature_maps)


def shift_downsample(key: str, by: int) -> str:
    """Renumber the stage of a Swin's patch merging.

    In the original Swin, patch merging ends a stage; in timm, it begins the next one.

    Args:
        key: A key of a Swin state dict, with or without a prefix.
        by: What to add to the stage: 1 from the original to timm, -1 from timm to the original.

    Returns:
        The key in the other layout; keys of other layers are returned unchanged.
    """
    return _DOWNSAMPLE.sub(lambda match: f"layers.{int(match[1]) + by}.downsample.", key)


def _create_swin(model_name: str, img_size: tuple[int, int], **options: Any) -> Any:
    import timm  # here, because it takes as long to import as diffusers

    architecture = model_name.split(".")[0]
    if architecture not in timm.list_models("swin*"):
        raise ValueError(
            f"`model_name` must be a Swin Transformer of timm, got {model_name!r}. "
            '`timm.list_models("swin*")` lists them.'
        )
    options = {name: value for name, value in options.items() if value is not None}
    stride = options.get("patch_size", 4) * 2 ** (len(options.get("depths", (0,) * 4)) - 1)
    if any(side <= 0 or side % stride for side in img_size):
        raise ValueError(
            f"Both sides of `image_size` must be positive multiples of {stride}, the coarsest stride, got "
            f"{img_size[0]}x{img_size[1]}."
        )
    create = partial(timm.create_model, architecture, pretrained=False, num_classes=0, img_size=img_size, **options)
    if _is_loading_on_meta():
        # timm creates its masks and position indices on the device of the weights. No checkpoint holds them, so they
        # must be real tensors even while the weights are still on the meta device.
        # timm's swinv2 has no such option.
        uninitialized = {"weight_init": "skip"} if architecture.startswith("swin_") else {}
        backbone = create(device="meta", **uninitialized).to_empty(device="cpu")
        for module in backbone.modules():
            if module is not backbone and hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad))
    else:
        backbone = create()
    backbone.prune_intermediate_layers(list(range(len(backbone.feature_info))), prune_norm=True)
    return backbone


def _fit_swin_weights(state_dict: Mapping[str, torch.Tensor], backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Convert weights in timm's or the original layout to timm's keys and to this window size."""
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

    # timm's `checkpoint_filter_fn` does not serve: older versions need the classifier to tell the layouts apart.
    shift = int("layers.0.downsample.reduction.weight" in state_dict)
    weights = {shift_downsample(key, shift): value for key, value in state_dict.items() if not _UNUSED.fullmatch(key)}
    for name, module in backbone.named_modules():
        key = f"{name}.relative_position_bias_table"
        if key in weights:
            shape = module.relative_position_bias_table.shape
            # Plain bicubic, as in the original Swin; timm would resize on a geometric grid.
            resized = resize_rel_pos_bias_table_simple(weights[key].float(), module.window_size, shape)
            weights[key] = resized.to(weights[key].dtype)
    return weights


def _is_loading_on_meta() -> bool:
    """Whether diffusers is loading a model: new weights then go to the meta device, other new tensors do not."""
    return nn.Linear(1, 1, bias=False).weight.is_meta and not torch.empty(0).is_meta
