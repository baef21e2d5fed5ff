"""Map the names of our components' tensors to those of the published checkpoint.

The published names are those in the two pickles that YanzuoLu/CFLD @ f2ea2a7 writes: `pytorch_model.bin` with the
source encoder, decoder, appearance encoder, pose encoder and null prompt, and `pytorch_model_1.bin` with the U-Net.
"""

from __future__ import annotations

from ..models.source_encoder import shift_downsample

_RENAMED_PARAMETERS = {
    "null_prompt_embeds": "learnable_vector",
    "query_embeds": "decoder.query_feat",
    "query_position_embeds": "decoder.pos_embed",
    "source_position_embeds": "decoder.kv_pos_embed",
}
_ENCODER_PARTS = {"blocks": "blocks", "proj_in": "zero_conv_ins", "proj_out": "zero_conv_outs"}


def to_published_key(component: str, key: str, num_encoders: int = 9) -> str:
    """Map a key of one of our components to the published one.

    Args:
        component: Name of the component in the pipeline.
        key: A key of the component's state dict.
        num_encoders: Number of query bias encoders; the published ones are numbered from the end of the U-Net to its
            beginning.

    Returns:
        The published key.
    """
    if component == "unet":
        return f"model.{key}"
    if component == "source_encoder":
        return shift_downsample(key, -1)
    if component == "prompt_decoder":
        return _RENAMED_PARAMETERS.get(key, f"decoder.{key}")
    if component == "pose_adapter":
        return f"pose_encoder.{key}"
    _, index, part, name = key.split(".", 3)  # encoders.{index}.{part}.{name} of the appearance encoder
    return f"appearance_encoder.{_ENCODER_PARTS[part]}.{num_encoders - 1 - int(index)}.{name}"
