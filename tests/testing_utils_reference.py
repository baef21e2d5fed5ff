"""Checkpoints in the published layout whose every weight is a function of its name, and a base to convert them with.

The weights are those of the reference data that `tests/data/reference` and the golden tensors were made with.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

REFERENCE = Path(__file__).parent / "data" / "reference"
MODEL_FILE = "pytorch_model.bin"
UNET_FILE = "pytorch_model_1.bin"

_TINY_VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 128}
_FULL_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}


def named_normal(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw standard-normal float32 numbers that depend on the key and the shape alone."""
    generator = np.random.Generator(np.random.Philox(zlib.crc32(key.encode())))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def named_weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Make a plausible weight: matrices scaled by their fan-in, norm scales around 1, small biases."""
    noise = named_normal(key, shape)
    if len(shape) > 1:
        return noise / math.prod(shape[1:]) ** 0.5
    return 1 + 0.1 * noise if key.endswith(".weight") else 0.02 * noise


def read_manifest(size: str) -> dict[str, dict[str, list[int]]]:
    """Read the published keys and shapes of both pickles, `"model"` and `"unet"`, at size `"tiny"` or `"full"`."""
    manifest = json.loads((REFERENCE / f"{size}_manifest.json").read_text())
    return {part: manifest[part] for part in ("model", "unet")}


def published_state_dict(size: str, part: str) -> dict[str, torch.Tensor]:
    """Build one of the two state dicts in the published order; the Swin buffers as the original Swin has them."""
    state = {}
    for key, shape in read_manifest(size)[part].items():
        if key.endswith("relative_position_index"):
            state[key] = _swin_index(math.isqrt(shape[0]))
        elif key.endswith("attn_mask"):
            state[key] = _swin_mask(math.isqrt(shape[0]), math.isqrt(shape[1]))
        else:
            state[key] = named_weight(key, tuple(shape))
    return state


def write_checkpoint(folder: Path, size: str = "tiny", parts: tuple[str, ...] = ("model", "unet")) -> Path:
    """Write a checkpoint folder as the published trainer does."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in (("model", MODEL_FILE), ("unet", UNET_FILE)):
        if part in parts:
            torch.save(published_state_dict(size, part), folder / name)
    shutil.copyfile(REFERENCE / f"{size}_config.yaml", folder / "config.yaml")
    return folder


def write_base(folder: Path, size: str = "tiny") -> Path:
    """Write a Stable Diffusion folder with a random VAE."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        **(_TINY_VAE if size == "tiny" else _FULL_VAE),
    )
    vae.save_pretrained(folder / "vae")
    for name, source in (("unet/config", f"{size}_unet_config"), ("scheduler/scheduler_config", "scheduler_config")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REFERENCE / f"{source}.json", folder / f"{name}.json")
    return folder


def assert_same_tensors(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Compare keys, dtypes and every bit."""
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


def _swin_index(window: int) -> torch.Tensor:
    positions = [(row, column) for row in range(window) for column in range(window)]
    span = 2 * window - 1
    return torch.tensor(
        [[(a - c + window - 1) * span + b - d + window - 1 for c, d in positions] for a, b in positions]
    )


def _swin_mask(windows_per_side: int, window: int) -> torch.Tensor:
    side = windows_per_side * window
    image = torch.zeros(side, side)
    bounds = (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bounds for columns in bounds):
        image[rows, columns] = number
    tiles = [
        image[row : row + window, column : column + window].flatten()
        for row in range(0, side, window)
        for column in range(0, side, window)
    ]
    return torch.stack([torch.where(tile[None, :] != tile[:, None], -100.0, 0.0) for tile in tiles])
