"""Read the arguments of the four models from a published checkpoint, and write them as the trainer's `config.yaml`.

Each size is read from one tensor; strict loading then shows whether all other tensors agree. What the tensors do not
show (above all, numbers of heads) is in the `config.yaml` that the published trainer writes beside its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..image_utils import as_pair
from ..processors.pose_map import POSE_MAP_CHANNELS

Shapes = Mapping[str, Sequence[int]]
Arguments = Mapping[str, Mapping[str, Any]]

ATTENTIONS_PER_BLOCK = 3
_DROP_PATH_RATE = 0.2
_DECODER_HEADS = {768: 24}
_ENCODER_HEADS = {64: 2, 128: 4, 256: 8}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the `config.yaml` that the published trainer writes beside its checkpoint.

    Args:
        path: The file.

    Returns:
        The nested settings.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not contain settings in YAML.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' must hold the published trainer's settings in YAML.")
    return config


def read_arguments(shapes: Shapes, config: Mapping[str, Any], num_up_blocks: int = 4) -> dict[str, dict[str, Any]]:
    """Read the constructor arguments of the four models from the published state dict.

    Args:
        shapes: Shapes of the tensors in `pytorch_model.bin` by published key.
        config: The trainer's settings, or an empty dict. They are needed for the numbers of heads if widths are not
            the published ones (768 in the decoder; 64, 128, 256 in the appearance encoder) and for source images that
            are not square.
        num_up_blocks: Number of up blocks in the U-Net; the query bias encoders belong to the last ones.

    Returns:
        Arguments by component.

    Raises:
        ValueError: A tensor from which a size is read is missing, or a setting that is needed.
    """
    source_encoder = _read_source_encoder(shapes, config)
    stride = source_encoder["patch_size"] * 2 ** (len(source_encoder["depths"]) - 1)
    height, width = as_pair(source_encoder["image_size"])
    return {
        "source_encoder": source_encoder,
        "prompt_decoder": _read_prompt_decoder(shapes, config, _as_size(height // stride, width // stride)),
        "appearance_encoder": _read_appearance_encoder(shapes, config, num_up_blocks),
        "pose_adapter": _read_pose_adapter(shapes),
    }


def read_sample_size(config: Mapping[str, Any], vae_scale_factor: int) -> int | tuple[int, int] | None:
    """Read the size of the latents that a checkpoint was trained on.

    Args:
        config: The trainer's settings.
        vae_scale_factor: Image pixels per latent cell.

    Returns:
        The U-Net's `sample_size`; `None` if `config` does not have it.
    """
    size = _setting(config, "INPUT.GT.IMG_SIZE")
    return None if size is None else _as_size(*(side // vae_scale_factor for side in as_pair(size)))


def check_config(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that the trainer's settings fit the checkpoint and are not those of an ablation.

    Args:
        config: The settings in `config.yaml`. Settings that are absent are not checked.
        expected: What [`make_config`] returns for the models of the checkpoint.

    Raises:
        ValueError: A setting differs.
    """
    for name, value in _flatten(expected):
        configured = _setting(config, name)
        if configured is not None and configured != value:
            raise ValueError(
                f"`{name}` in config.yaml must be {value} for this checkpoint, got {configured}: use the config.yaml "
                "that the trainer wrote beside it. Ablations of the published code cannot be converted."
            )


def make_config(arguments: Arguments, sample_size: int | Sequence[int], vae_scale_factor: int) -> dict[str, Any]:
    """Write the arguments of the four models as the published trainer's settings.

    Args:
        arguments: Arguments by component.
        sample_size: The U-Net's `sample_size`: (height, width) of the latents, or one number for a square.
        vae_scale_factor: Image pixels per latent cell.

    Returns:
        Nested settings, ready for YAML.
    """
    swin, decoder = arguments["source_encoder"], arguments["prompt_decoder"]
    encoder, adapter = arguments["appearance_encoder"], arguments["pose_adapter"]
    per_block = encoder["attentions_per_block"]
    blocks = [per_block * up + i for up in encoder["up_block_indices"] for i in reversed(range(per_block))]
    latent_size = as_pair(sample_size)

    def per_encoder(name: str) -> list[int]:
        return [value for value in encoder[name] for _ in range(per_block)]

    return {
        "INPUT": {
            "COND": {"IMG_SIZE": list(as_pair(swin["image_size"]))},
            "GT": {"IMG_SIZE": [side * vae_scale_factor for side in latent_size]},
            "POSE": {"IMG_SIZE": [side * adapter["unshuffle_factor"] for side in latent_size]},
        },
        "MODEL": {
            "APPEARANCE_GUIDANCE_CONFIG": {
                "ATTN_RESIDUAL_BLOCK_IDX": blocks,
                "CONVIN_KERNEL_SIZE": [1] * len(blocks),
                "CONVIN_PADDING": [0] * len(blocks),
                "CONVIN_STRIDE": [1] * len(blocks),
                "CTX_DIMS": per_encoder("query_channels"),
                "DEPTH": encoder["num_layers"],
                "EMBED_DIMS": per_encoder("hidden_channels"),
                "HEADS": per_encoder("num_attention_heads"),
                "INNER_DIMS": per_encoder("feature_channels"),
                "TO_KEYS": False,
                "TO_QUERIES": True,
                "TO_SELF_ATTN": False,
                "TO_VALUES": False,
            },
            "COND_STAGE_CONFIG": {
                "DEPTHS": list(swin["depths"]),
                "DROP_PATH_RATE": swin["drop_path_rate"],
                "EMBED_DIM": swin["embed_dim"],
                "LAST_NORM": False,
                "NUM_HEADS": list(swin["num_heads"]),
                "WINDOW_SIZE": swin["window_size"],
            },
            "DECODER_CONFIG": {
                "CTX_DIM": decoder["dim"],
                "DEPTH": decoder["num_layers"],
                "HEADS": decoder["num_attention_heads"],
                "N_CTX": decoder["num_queries"],
                "POSE_QUERY": False,
            },
            "POSE_GUIDANCE_CONFIG": {
                "CHANNELS": list(adapter["block_out_channels"]),
                "DOWNSCALE_FACTOR": adapter["unshuffle_factor"],
                "IN_CHANNELS": adapter["block_out_channels"][0],
                "POSE_CHANNELS": adapter["pose_channels"],
            },
        },
    }


def _read_source_encoder(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    patch_size = _size(shapes, "backbone.patch_embed.proj.weight", 2)
    num_stages = _count(shapes, "backbone.layers")
    tables = [f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(num_stages)]
    num_patches = _size(shapes, "decoder.kv_pos_embed", 1) * 4 ** (num_stages - 1)
    image_size = _setting(config, "INPUT.COND.IMG_SIZE") or patch_size * math.isqrt(num_patches)
    height, width = as_pair(image_size)
    if height * width != num_patches * patch_size**2:
        raise ValueError(
            f"The checkpoint's source images must consist of {num_patches} patches of {patch_size}x{patch_size} "
            f"pixels, got {height}x{width} pixels: put a config.yaml with their height and width as "
            "`INPUT.COND.IMG_SIZE` beside the checkpoint."
        )
    drop_path_rate = _setting(config, "MODEL.COND_STAGE_CONFIG.DROP_PATH_RATE")
    return {
        "image_size": _as_size(height, width),
        "window_size": (math.isqrt(_size(shapes, tables[0], 0)) + 1) // 2,  # a table has (2 * window - 1)^2 rows
        "embed_dim": _size(shapes, "backbone.patch_embed.proj.weight", 0),
        "depths": tuple(_count(shapes, f"backbone.layers.{i}.blocks") for i in range(num_stages)),
        "num_heads": tuple(_size(shapes, table, 1) for table in tables),
        "patch_size": patch_size,
        "drop_path_rate": _DROP_PATH_RATE if drop_path_rate is None else drop_path_rate,
    }


def _read_prompt_decoder(
    shapes: Shapes, config: Mapping[str, Any], feature_size: int | tuple[int, int]
) -> dict[str, Any]:
    dim = _size(shapes, "learnable_vector", 2)
    heads = _setting(config, "MODEL.DECODER_CONFIG.HEADS")
    return {
        "num_queries": _size(shapes, "learnable_vector", 1),
        "dim": dim,
        "num_attention_heads": heads or _published_heads("MODEL.DECODER_CONFIG.HEADS", _DECODER_HEADS, dim),
        "num_layers": _count(shapes, "decoder.blocks"),
        "feature_channels": _size(shapes, "decoder.kv_pos_embed", 2),
        "feature_size": feature_size,
    }


def _read_appearance_encoder(shapes: Shapes, config: Mapping[str, Any], num_up_blocks: int) -> dict[str, Any]:
    # The encoders are listed from the end of the U-Net to its beginning; those of one up block have the same sizes.
    first_of_level = range(0, _count(shapes, "appearance_encoder.blocks"), ATTENTIONS_PER_BLOCK)
    inputs = [f"appearance_encoder.zero_conv_ins.{i}.weight" for i in first_of_level]
    outputs = [f"appearance_encoder.zero_conv_outs.{i}.weight" for i in first_of_level]
    hidden_channels = tuple(_size(shapes, key, 0) for key in inputs)
    setting = "MODEL.APPEARANCE_GUIDANCE_CONFIG.HEADS"
    heads = _setting(config, setting)
    return {
        "feature_channels": tuple(_size(shapes, key, 1) for key in inputs),
        "hidden_channels": hidden_channels,
        "query_channels": tuple(_size(shapes, key, 0) for key in outputs),
        "num_attention_heads": tuple(heads[::ATTENTIONS_PER_BLOCK])
        if heads
        else tuple(_published_heads(setting, _ENCODER_HEADS, width) for width in hidden_channels),
        "num_layers": _count(shapes, "appearance_encoder.blocks.0"),
        "up_block_indices": tuple(num_up_blocks - 1 - level for level in range(len(first_of_level))),
        "attentions_per_block": ATTENTIONS_PER_BLOCK,
    }


def _read_pose_adapter(shapes: Shapes) -> dict[str, Any]:
    num_scales = _count(shapes, "pose_encoder.resnets")
    return {
        "pose_channels": POSE_MAP_CHANNELS,
        "block_out_channels": tuple(
            _size(shapes, f"pose_encoder.resnets.{i}.conv1.weight", 0) for i in range(num_scales)
        ),
        "unshuffle_factor": math.isqrt(_size(shapes, "pose_encoder.conv_in.weight", 1) // POSE_MAP_CHANNELS),
    }


def _published_heads(setting: str, published: Mapping[int, int], width: int) -> int:
    if width not in published:
        raise ValueError(
            f"The number of attention heads cannot be read from weights of width {width}: put the trainer's "
            f"config.yaml, which has it as `{setting}`, beside the checkpoint."
        )
    return published[width]


def _size(shapes: Shapes, key: str, dimension: int) -> int:
    shape = shapes.get(key, ())
    if dimension >= len(shape):
        raise ValueError(
            f"pytorch_model.bin must be the published trainer's state dict, in which '{key}' has at least "
            f"{dimension + 1} dimensions, got {f'shape {tuple(shape)}' if shape else 'no such tensor'}."
        )
    return shape[dimension]


def _count(shapes: Shapes, prefix: str) -> int:
    return next(i for i in itertools.count() if not any(key.startswith(f"{prefix}.{i}.") for key in shapes))


def _setting(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _as_size(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)
