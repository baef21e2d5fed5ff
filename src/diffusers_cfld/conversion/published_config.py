"""The published trainer's `config.yaml`, read as arguments of the models and written from them.

What a `config.yaml` does not say is as in the published model; strict loading then shows whether the weights agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..image_utils import as_pair

ATTENTIONS_PER_BLOCK = 3
PATCH_SIZE = 4

_SWIN, _DECODER = "MODEL.COND_STAGE_CONFIG", "MODEL.DECODER_CONFIG"
_ENCODER, _ADAPTER = "MODEL.APPEARANCE_GUIDANCE_CONFIG", "MODEL.POSE_GUIDANCE_CONFIG"
# The arguments of each model: their settings, and their published values.
_ARGUMENTS: dict[str, dict[str, tuple[str, Any]]] = {
    "source_encoder": {
        "window_size": (f"{_SWIN}.WINDOW_SIZE", 16),
        "embed_dim": (f"{_SWIN}.EMBED_DIM", 128),
        "depths": (f"{_SWIN}.DEPTHS", (2, 2, 18, 2)),
        "num_heads": (f"{_SWIN}.NUM_HEADS", (4, 8, 16, 32)),
        "drop_path_rate": (f"{_SWIN}.DROP_PATH_RATE", 0.2),
    },
    "prompt_decoder": {
        "num_queries": (f"{_DECODER}.N_CTX", 16),
        "dim": (f"{_DECODER}.CTX_DIM", 768),
        "num_attention_heads": (f"{_DECODER}.HEADS", 24),
        "num_layers": (f"{_DECODER}.DEPTH", 8),
    },
    "appearance_encoder": {
        "feature_channels": (f"{_ENCODER}.INNER_DIMS", (128, 256, 512)),
        "hidden_channels": (f"{_ENCODER}.EMBED_DIMS", (64, 128, 256)),
        "query_channels": (f"{_ENCODER}.CTX_DIMS", (320, 640, 1280)),
        "num_attention_heads": (f"{_ENCODER}.HEADS", (2, 4, 8)),
        "num_layers": (f"{_ENCODER}.DEPTH", 4),
    },
    "pose_adapter": {
        "pose_channels": (f"{_ADAPTER}.POSE_CHANNELS", 21),
        "block_out_channels": (f"{_ADAPTER}.CHANNELS", (320, 640, 1280)),
        "unshuffle_factor": (f"{_ADAPTER}.DOWNSCALE_FACTOR", 4),
    },
}
# How often a setting repeats each entry of a list: the trainer lists the encoders of a level one by one.
_REPEATS = {"appearance_encoder": ATTENTIONS_PER_BLOCK}


def read_config(path: Path, vae_scale_factor: int) -> dict[str, dict[str, Any]]:
    """Read the `config.yaml` that the published trainer writes beside its checkpoint.

    Args:
        path: The file. If it does not exist, everything is as in the published model.
        vae_scale_factor: Image pixels per latent cell.

    Returns:
        Arguments of the models by component; of the U-Net, only its `sample_size`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not contain settings in YAML, they contradict each other, or they are those of an ablation.
    """
    settings = _read_settings(path) if path.exists() else {}
    arguments: dict[str, dict[str, Any]] = {}
    for component, names in _ARGUMENTS.items():
        arguments[component] = values = {name: published for name, (_, published) in names.items()}
        for name, (setting, _) in names.items():
            if setting in settings:
                value = settings[setting]
                values[name] = tuple(value[:: _REPEATS.get(component, 1)]) if isinstance(value, list) else value
    swin = arguments["source_encoder"]
    merging = 2 ** (len(swin["depths"]) - 1)
    source_size = settings.get("INPUT.COND.IMG_SIZE", 256)
    blocks = settings.get(f"{_ENCODER}.ATTN_RESIDUAL_BLOCK_IDX", range(11, 2, -1))
    swin |= {"image_size": _divide(source_size, 1), "patch_size": PATCH_SIZE}
    arguments["prompt_decoder"] |= {
        "feature_channels": swin["embed_dim"] * merging,
        "feature_size": _divide(source_size, PATCH_SIZE * merging),
    }
    arguments["appearance_encoder"] |= {
        "up_block_indices": tuple(block // ATTENTIONS_PER_BLOCK for block in blocks[::ATTENTIONS_PER_BLOCK]),
        "attentions_per_block": ATTENTIONS_PER_BLOCK,
    }
    arguments["unet"] = {"sample_size": _divide(settings.get("INPUT.GT.IMG_SIZE", 512), vae_scale_factor)}
    for setting, value in _to_settings(arguments, vae_scale_factor).items():
        if settings.get(setting, value) != value:
            raise ValueError(
                f"`{setting}` in '{path}' must be {value} to fit its other settings, got {settings[setting]}: use the "
                "config.yaml that the trainer wrote. Ablations of the published code cannot be converted."
            )
    return arguments


def write_config(path: Path, arguments: Mapping[str, Mapping[str, Any]], vae_scale_factor: int) -> None:
    """Write arguments of the models as a `config.yaml` that [`read_config`] reads.

    Args:
        path: The file.
        arguments: As [`read_config`] returns them.
        vae_scale_factor: Image pixels per latent cell.

    Raises:
        OSError: The file cannot be written.
    """
    config: dict[str, Any] = {}
    for setting, value in _to_settings(arguments, vae_scale_factor).items():
        part, section, name = setting.split(".")
        config.setdefault(part, {}).setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' must hold the published trainer's settings in YAML.")
    return {setting: value for setting, value in _flatten(config) if value is not None}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _to_settings(arguments: Mapping[str, Mapping[str, Any]], vae_scale_factor: int) -> dict[str, Any]:
    """All settings that the arguments imply, with those of the ablations off."""
    encoder, adapter = arguments["appearance_encoder"], arguments["pose_adapter"]
    last_blocks = [ATTENTIONS_PER_BLOCK * (up_block + 1) - 1 for up_block in encoder["up_block_indices"]]
    blocks = [last - i for last in last_blocks for i in range(ATTENTIONS_PER_BLOCK)]
    latent_size = as_pair(arguments["unet"]["sample_size"])
    settings = {
        "INPUT.COND.IMG_SIZE": list(as_pair(arguments["source_encoder"]["image_size"])),
        "INPUT.GT.IMG_SIZE": [side * vae_scale_factor for side in latent_size],
        "INPUT.POSE.IMG_SIZE": [side * adapter["unshuffle_factor"] for side in latent_size],
        f"{_SWIN}.LAST_NORM": False,
        f"{_DECODER}.POSE_QUERY": False,
        f"{_ENCODER}.ATTN_RESIDUAL_BLOCK_IDX": blocks,
        f"{_ENCODER}.CONVIN_KERNEL_SIZE": [1] * len(blocks),
        f"{_ENCODER}.CONVIN_PADDING": [0] * len(blocks),
        f"{_ENCODER}.CONVIN_STRIDE": [1] * len(blocks),
        f"{_ENCODER}.TO_KEYS": False,
        f"{_ENCODER}.TO_QUERIES": True,
        f"{_ENCODER}.TO_SELF_ATTN": False,
        f"{_ENCODER}.TO_VALUES": False,
        f"{_ADAPTER}.IN_CHANNELS": adapter["block_out_channels"][0],
    }
    for component, names in _ARGUMENTS.items():
        repeats = range(_REPEATS.get(component, 1))
        for name, (setting, _) in names.items():
            value = arguments[component][name]
            settings[setting] = [one for one in value for _ in repeats] if isinstance(value, (tuple, list)) else value
    return settings


def _divide(size: Any, divisor: int) -> int | tuple[int, int]:
    height, width = (side // divisor for side in as_pair(size))
    return height if height == width else (height, width)
