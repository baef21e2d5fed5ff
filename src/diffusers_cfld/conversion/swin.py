"""Weights for the source encoder from timm's Swin Transformers or the original ones."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .state_dict import describe_mismatch, shift_downsample
from .weights_io import load_pickle, load_safetensors, require_tensors

if TYPE_CHECKING:
    from ..models.source_encoder import SwinImageEncoder

logger = logging.getLogger(__name__)

# Classifier, final norm, and buffers that follow from the geometry.
_DROPPED = re.compile(r"(head|norm)\..+|(.+\.)?(relative_position_index|relative_coords_table|attn_mask)")
_DOWNSAMPLE_STAGE = re.compile(r"layers\.(\d+)\.downsample\.")
_TABLE_SUFFIX = "relative_position_bias_table"


def load_swin_weights(encoder: SwinImageEncoder, checkpoint_path: str | Path) -> None:
    """Load a file of Swin weights into a source encoder, in place.

    Args:
        encoder: The encoder.
        checkpoint_path: `.safetensors`, or a pickle (read with `weights_only=True`), in the layout of the original
            Swin, `{"model": state_dict}` or the state dict alone, or in timm's.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or the weights do not fit; see [`load_swin_state_dict`].
    """
    path = Path(checkpoint_path)
    content: Any = load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    load_swin_state_dict(encoder, require_tensors(content, path), source=str(path))


def load_swin_state_dict(encoder: SwinImageEncoder, state_dict: Mapping[str, torch.Tensor], source: str) -> None:
    """Load Swin weights into a source encoder, in place, the relative position tables resized to its windows.

    Head, final norm and the buffers that follow from the geometry are left out; all else must fit exactly.

    Args:
        encoder: The encoder.
        state_dict: In the original Swin's layout or timm's: they differ in the stage that patch merging counts to.
        source: Where the weights are from, for messages.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; the message lists them all.
    """
    backbone: torch.nn.Module = encoder.backbone
    config: Any = encoder.config
    expected = backbone.state_dict()
    # The first stage has patch merging in the original layout only, the last one in timm's only.
    stages = {int(match[1]) for match in map(_DOWNSAMPLE_STAGE.match, state_dict) if match}
    shift = 1 if 0 in stages else 0
    weights: dict[str, torch.Tensor] = {}
    for key, value in state_dict.items():
        if not _DROPPED.fullmatch(key):
            key = shift_downsample(key, shift)
            weights[key] = _resize_table(backbone, key, value) if key.endswith(_TABLE_SUFFIX) else value
    problem = describe_mismatch(
        f"The Swin weights of '{source}' for this encoder ({config.model_name})",
        {key: tuple(value.shape) for key, value in expected.items()},
        {key: tuple(value.shape) for key, value in weights.items()},
    )
    if problem is not None:
        raise ValueError(problem)
    backbone.load_state_dict(weights, strict=True)


def _resize_table(backbone: torch.nn.Module, key: str, table: torch.Tensor) -> torch.Tensor:
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

    try:
        attention = backbone.get_submodule(key.removesuffix(f".{_TABLE_SUFFIX}"))
    except AttributeError:
        return table
    target = getattr(attention, _TABLE_SUFFIX, None)
    if target is None or table.ndim != 2 or table.shape == target.shape or table.shape[1] != target.shape[1]:
        return table
    if math.isqrt(table.shape[0]) ** 2 != table.shape[0]:
        return table
    logger.info("Resizing %s from %d to %d entries.", key, table.shape[0], target.shape[0])
    window: Any = attention.window_size
    resized: torch.Tensor = resize_rel_pos_bias_table_simple(
        table.float(), new_window_size=window, new_bias_shape=target.shape
    )
    return resized.to(table.dtype)
