"""Map the names of the published checkpoint's tensors to those of our components, and back.

The published names are those in the two pickles that YanzuoLu/CFLD @ f2ea2a7 writes: `pytorch_model.bin` with the
source encoder, decoder, appearance encoder, pose encoder and null prompt, and `pytorch_model_1.bin` with the U-Net.
"""

from __future__ import annotations

import re

from ..models.source_encoder import shift_downsample

UNET_COMPONENT = "unet"

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

_SWIN_BUFFER = re.compile(
    r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.(attn\.relative_position_index|attn_mask)", re.ASCII
)


def is_swin_buffer(key: str) -> bool:
    """Return whether a published key is a mask or an index of the Swin, which is computed from its sizes.

    Args:
        key: A key of `pytorch_model.bin`.
    """
    return _SWIN_BUFFER.fullmatch(key) is not None


def from_published_key(key: str, num_encoders: int = 9) -> tuple[str, str]:
    """Map a published key to one of our components and the key there.

    Args:
        key: A key of `pytorch_model.bin`, or one of `pytorch_model_1.bin` with its `model.` prefix. Not a Swin buffer.
        num_encoders: Number of query bias encoders; they are numbered from the end of the U-Net to its beginning.

    Returns:
        The name of the component in the pipeline, and the key in its state dict.

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
        component: Name of the component in the pipeline.
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
