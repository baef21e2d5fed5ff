"""Pure key maps between the published checkpoint and our components, both ways; no file is touched here.

The published names are those of the two pickles that YanzuoLu/CFLD @ f2ea2a7 writes: `pytorch_model.bin` with the
source encoder, decoder, appearance encoder, pose encoder and null prompt, and `pytorch_model_1.bin` with the U-Net.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch

MODEL_COMPONENTS = ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
UNET_COMPONENT = "unet"
MAX_LISTED_KEYS = 20

_UNET_PREFIX = "model."
_RENAMED_PARAMETERS = {
    "learnable_vector": "null_prompt_embeds",
    "decoder.query_feat": "query_embeds",
    "decoder.pos_embed": "query_position_embeds",
    "decoder.kv_pos_embed": "source_position_embeds",
}
_RENAMED_PARAMETERS_BACK = {ours: published for published, ours in _RENAMED_PARAMETERS.items()}
_ENCODER_PARTS = {"blocks": "blocks", "zero_conv_ins": "proj_in", "zero_conv_outs": "proj_out"}
_ENCODER_PARTS_BACK = {ours: published for published, ours in _ENCODER_PARTS.items()}

_DOWNSAMPLE = re.compile(r"(?<![^.])layers\.(\d+)\.downsample\.")
_SWIN_BUFFER = re.compile(
    r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.(attn\.relative_position_index|attn_mask)", re.ASCII
)
_PART_ORDER = ("learnable_vector", "backbone.", "appearance_encoder.", "pose_encoder.", "decoder.")
_SWIN_BLOCK_ORDER = (
    "attn_mask",
    "norm1.",
    "attn.relative_position_bias_table",
    "attn.relative_position_index",
    "attn.qkv.",
    "attn.proj.",
    "norm2.",
    "mlp.fc1.",
    "mlp.fc2.",
)
_DOWNSAMPLE_ORDER = ("reduction.", "norm.")


def shift_downsample(key: str, by: int) -> str:
    """Renumber the stage of a Swin patch merging.

    The original Swin counts patch merging to the stage before it, timm to the stage after it.

    Args:
        key: A key of a Swin state dict, with or without a prefix.
        by: Stages to add: 1 from the original to timm, -1 back.

    Returns:
        The key in the other layout; keys of other layers are returned as they are.
    """
    return _DOWNSAMPLE.sub(lambda match: f"layers.{int(match[1]) + by}.downsample.", key)


def is_swin_buffer(key: str) -> bool:
    """Tell whether a published key is one of the Swin buffers that follow from the geometry and are no weights.

    Args:
        key: A key of `pytorch_model.bin`.
    """
    return _SWIN_BUFFER.fullmatch(key) is not None


def from_published_key(key: str, num_encoders: int = 9) -> tuple[str, str]:
    """Map a published key to a component of ours and its key there.

    Args:
        key: A key of `pytorch_model.bin`, or one of `pytorch_model_1.bin` with its `model.` prefix. Not a Swin buffer.
        num_encoders: Number of query bias encoders; the published list runs from the U-Net's end to its beginning.

    Returns:
        The component, one of `MODEL_COMPONENTS` or `UNET_COMPONENT`, and the key in its state dict.

    Raises:
        ValueError: No component has such a key.
    """
    if key in _RENAMED_PARAMETERS:
        return "prompt_decoder", _RENAMED_PARAMETERS[key]
    part, _, rest = key.partition(".")
    if part == "model" and rest:
        return UNET_COMPONENT, rest
    if part == "backbone" and rest and not is_swin_buffer(key):
        return "source_encoder", shift_downsample(key, 1)
    if part == "decoder" and rest.startswith("blocks."):
        return "prompt_decoder", rest
    if part == "pose_encoder" and rest:
        return "pose_adapter", rest
    if part == "appearance_encoder":
        list_name, _, item = rest.partition(".")
        index, _, name = item.partition(".")
        if list_name in _ENCODER_PARTS and index.isdecimal() and int(index) < num_encoders and name:
            encoder = num_encoders - 1 - int(index)
            return "appearance_encoder", f"encoders.{encoder}.{_ENCODER_PARTS[list_name]}.{name}"
    raise ValueError(f"{key!r} is not a key of a published CFLD checkpoint with {num_encoders} query bias encoders.")


def to_published_key(component: str, key: str, num_encoders: int = 9) -> str:
    """Map a key of one of our components to the published one: the inverse of [`from_published_key`].

    Args:
        component: One of `MODEL_COMPONENTS` or `UNET_COMPONENT`.
        key: A key of the component's state dict.
        num_encoders: Number of query bias encoders.

    Returns:
        The published key.

    Raises:
        ValueError: The component is unknown or cannot have such a key.
    """
    if component == UNET_COMPONENT:
        return _UNET_PREFIX + key
    if component == "source_encoder" and key.startswith("backbone.") and "layers.0.downsample." not in key:
        return shift_downsample(key, -1)
    if component == "pose_adapter":
        return f"pose_encoder.{key}"
    if component == "prompt_decoder":
        if key in _RENAMED_PARAMETERS_BACK:
            return _RENAMED_PARAMETERS_BACK[key]
        if key.startswith("blocks."):
            return f"decoder.{key}"
    if component == "appearance_encoder":
        match = re.fullmatch(r"encoders\.(\d+)\.(blocks|proj_in|proj_out)\.(.+)", key)
        if match and int(match[1]) < num_encoders:
            index = num_encoders - 1 - int(match[1])
            return f"appearance_encoder.{_ENCODER_PARTS_BACK[match[2]]}.{index}.{match[3]}"
    raise ValueError(f"{key!r} of `{component}` has no counterpart in a published CFLD checkpoint.")


def sort_published_keys(keys: Iterable[str]) -> list[str]:
    """Put the keys of `pytorch_model.bin` in the order in which the published trainer writes them.

    Args:
        keys: Published keys; within one layer, in the order of our modules.

    Returns:
        The same keys.
    """
    return sorted(keys, key=_published_rank)


def _published_rank(key: str) -> tuple[int, ...]:
    # Whatever gets equal ranks keeps its order: there, our modules are built in the published order.
    part = next((i for i, prefix in enumerate(_PART_ORDER) if key.startswith(prefix)), len(_PART_ORDER))
    match = re.fullmatch(r"backbone\.layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.+)", key)
    if match:
        order = _DOWNSAMPLE_ORDER if match[2] is None else _SWIN_BLOCK_ORDER
        place = next((i for i, prefix in enumerate(order) if match[3].startswith(prefix)), len(order))
        return part, int(match[1]), int(match[2] is None), int(match[2] or 0), place
    match = re.fullmatch(r"appearance_encoder\.(blocks|zero_conv_ins|zero_conv_outs)\.(\d+)\..+", key)
    if match:
        return part, list(_ENCODER_PARTS).index(match[1]), int(match[2])
    if key.startswith("decoder."):
        return part, int(key.startswith("decoder.blocks."))
    return part, -1


def relative_position_index(window_size: int) -> torch.Tensor:
    """Compute where each pair of a window's tokens finds its entry in the relative position table.

    Args:
        window_size: w, side of the window in tokens.

    Returns:
        int64 (w^2, w^2): entry (i, j) is the row of the table for the offset of token i from token j.
    """
    row = torch.arange(window_size).repeat_interleave(window_size)
    column = torch.arange(window_size).repeat(window_size)
    span = 2 * window_size - 1
    row_offset = row[:, None] - row[None, :] + window_size - 1
    column_offset = column[:, None] - column[None, :] + window_size - 1
    return row_offset * span + column_offset


def shifted_window_mask(height: int, width: int, window_size: int) -> torch.Tensor:
    """Compute the mask that keeps tokens from attending across the seam of a cyclically shifted map.

    Args:
        height: Height of the map in tokens, a multiple of `window_size`.
        width: Width of the map in tokens, a multiple of `window_size`.
        window_size: w, side of the window; the shift is w // 2.

    Returns:
        float32 (height * width / w^2, w^2, w^2): 0 where attention is allowed, -100 where it is not.
    """
    shift = window_size // 2

    def region(length: int) -> torch.Tensor:
        position = torch.arange(length)
        return (position >= length - window_size).int() + (position >= length - shift).int()

    regions = 3 * region(height)[:, None] + region(width)[None, :]
    windows = regions.view(height // window_size, window_size, width // window_size, window_size)
    windows = windows.transpose(1, 2).reshape(-1, window_size**2)
    crosses_seam = windows[:, :, None] != windows[:, None, :]
    return torch.zeros(crosses_seam.shape).masked_fill(crosses_seam, -100.0)


def swin_buffers(
    image_size: tuple[int, int], patch_size: int, window_size: int, depths: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Compute the buffers that the original Swin keeps in its state dict, as the published checkpoint names them.

    Args:
        image_size: (height, width) of the input in pixels.
        patch_size: Side of a patch in pixels.
        window_size: Side of the window in tokens; a stage that is not larger is one window, as large as the stage.
        depths: Blocks per stage.

    Returns:
        `relative_position_index` of every block and `attn_mask` of every shifted one. Equal ones share memory.

    Raises:
        ValueError: The windows do not tile a stage, which the original Swin cannot represent.
    """
    buffers: dict[str, torch.Tensor] = {}
    for stage, depth in enumerate(depths):
        height, width = (side // (patch_size * 2**stage) for side in image_size)
        window = min(window_size, height, width)
        if height % window or width % window:
            raise ValueError(
                f"The original Swin needs windows that tile each stage, got a {height}x{width} map in stage "
                f"{stage + 1} for windows of {window}: choose another image or window size."
            )
        is_shifted = min(height, width) > window_size > 1
        index = relative_position_index(window)
        mask = shifted_window_mask(height, width, window) if is_shifted else None
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}"
            buffers[f"{name}.attn.relative_position_index"] = index
            if mask is not None and block % 2:
                buffers[f"{name}.attn_mask"] = mask
    return buffers


def describe_mismatch(
    source: str, expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> str | None:
    """Compare the keys and shapes of a state dict with those that are needed.

    Args:
        source: What the state dict is, for the message.
        expected: Shapes by key.
        found: Shapes by key.

    Returns:
        All that is missing, unexpected or mis-shaped, with counts, up to `MAX_LISTED_KEYS` keys of each by name;
        `None` if there is nothing.
    """
    misshaped = [
        f"{key} (expected {tuple(expected[key])}, got {tuple(found[key])})"
        for key in expected.keys() & found.keys()
        if tuple(expected[key]) != tuple(found[key])
    ]
    groups = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "mis-shaped": misshaped,
    }
    parts = []
    for name, entries in groups.items():
        if entries:
            listed = ", ".join(sorted(entries)[:MAX_LISTED_KEYS])
            rest = len(entries) - MAX_LISTED_KEYS
            parts.append(f"{len(entries)} {name}: {listed}{f' and {rest} more' if rest > 0 else ''}")
    return f"{source} does not fit. {'; '.join(parts)}." if parts else None
