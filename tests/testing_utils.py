"""Tiny components of the real classes, the same on every machine, and comparison with the reference."""

from __future__ import annotations

import io
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
)

DATA = Path(__file__).parent / "data"
FIGURES = DATA / "figures"  # six drawn people in two poses each, 128x96, as a folder of pairs

# The published layers at an eighth and less of their width, one for two in the U-Net's blocks: source and pose 64x64,
# latents 16x16, images 128x128.
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (16, 24, 32, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 48,
    "attention_head_dim": 4,
}
SOURCE_ENCODER_CONFIG: dict[str, Any] = {
    "image_size": 64,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
}
PROMPT_DECODER_CONFIG: dict[str, Any] = {
    "num_queries": 4,
    "dim": 48,
    "num_attention_heads": 3,
    "num_layers": 2,
    "feature_channels": 128,
    "feature_size": 2,
}
APPEARANCE_ENCODER_CONFIG: dict[str, Any] = {
    "feature_channels": (16, 32, 64),
    "hidden_channels": (8, 16, 16),
    "query_channels": (16, 24, 32),
    "num_attention_heads": (1, 2, 2),
    "num_layers": 1,
    "attentions_per_block": 2,
}
POSE_ADAPTER_CONFIG: dict[str, Any] = {"block_out_channels": (16, 24, 32), "norm_num_groups": 8}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 128,
}


def fill(module: nn.Module, salt: str = "") -> nn.Module:
    """Give a module weights that depend on their names alone, and no zero convolution."""
    state = module.state_dict()
    for index, (name, value) in enumerate(sorted(state.items())):
        if not value.is_floating_point():
            continue
        rng = np.random.default_rng([index, len(salt), *f"{salt}{name}".encode()])
        noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), dtype=np.float32))
        if value.ndim >= 2:
            value.copy_(noise / np.sqrt(np.prod(value.shape[1:])))
        else:
            value.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise)
    return module.eval()


def scheduler_config() -> dict[str, Any]:
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "clip_sample": False,
    }


def tiny_components() -> dict[str, Any]:
    """Components of a pipeline whose every condition changes the result, in eval mode."""
    return _unpack(_packed_components())


@cache
def _packed_components() -> tuple[bytes, list[torch.Tensor]]:
    """Copies are made in a fraction of the time."""
    components = {
        "vae": fill(AutoencoderKL(**VAE_CONFIG), "vae"),
        "unet": fill(UNet2DConditionModel(**UNET_CONFIG), "unet"),
        "scheduler": DDPMScheduler(**scheduler_config()),
        "source_encoder": fill(SwinImageEncoder(**SOURCE_ENCODER_CONFIG), "source_encoder"),
        "prompt_decoder": fill(PerceptionRefinedDecoder(**PROMPT_DECODER_CONFIG), "prompt_decoder"),
        "appearance_encoder": fill(AppearanceEncoder(**APPEARANCE_ENCODER_CONFIG), "appearance_encoder"),
        "pose_adapter": fill(PoseAdapter(**POSE_ADAPTER_CONFIG), "pose_adapter"),
        "feature_extractor": None,
        "image_encoder": None,
    }
    return _pack(components)


def _pack(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler.tensors


def _unpack(packed: tuple[bytes, list[torch.Tensor]]) -> Any:
    return _Unpickler(io.BytesIO(packed[0]), packed[1]).load()


class _Pickler(pickle.Pickler):
    """Keeps tensors beside the pickle."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, index: int) -> torch.Tensor:
        tensor = self.tensors[index]
        copy = tensor.detach().clone()
        return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


_loaded: dict[tuple[str, str], tuple[bytes, list[torch.Tensor]]] = {}


def load_each_folder_once(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let the files of these folders, or of all, be read once: who loads one again gets a copy of what was read."""
    load = CFLDPipeline.from_pretrained

    def load_or_copy(folder: str | Path, **options: Any) -> CFLDPipeline:
        if folders and Path(folder) not in folders:
            return load(folder, **options)
        key = (str(folder), str(options))
        if key not in _loaded:
            _loaded[key] = _pack(load(folder, **options))
        return _unpack(_loaded[key])

    monkeypatch.setattr(CFLDPipeline, "from_pretrained", load_or_copy)


def tiny_pipeline() -> CFLDPipeline:
    """A pipeline of [`tiny_components`] without progress bar."""
    pipe = CFLDPipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_image(seed: int = 0, batch_size: int = 1, size: int = 64) -> torch.Tensor:
    """(B, 3, size, size) in [0, 1]."""
    return torch.rand(batch_size, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tiny_pose(seed: int = 0, batch_size: int = 1, size: int = 64) -> torch.Tensor:
    """(B, 21, size, size) in [0, 1]."""
    return torch.rand(batch_size, 21, size, size, generator=torch.Generator().manual_seed(1000 + seed))


@cache
def tiny_conditions() -> dict[str, Any]:
    """`appearance` and `pose` of [`tiny_image`] and [`tiny_pose`], which need not be encoded for every call."""
    pipe = tiny_pipeline()
    return {"appearance": pipe.encode_appearance(tiny_image()), "pose": pipe.encode_pose(tiny_pose())}


def load_reference(name: str) -> dict[str, torch.Tensor]:
    """Golden tensors that the published code computed, from `tests/data/reference`."""
    return load_file(DATA / "reference" / f"{name}.safetensors")


def load_reference_json(name: str) -> dict[str, Any]:
    """A manifest or configuration from `tests/data/reference`."""
    return json.loads((DATA / "reference" / f"{name}.json").read_text())


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


# Adapters of others


def lora_state_dict(seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of rank 4 on all attention projections, large enough to see."""
    unet = tiny_pipeline().unet
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    state = get_peft_model_state_dict(unet)
    generator = torch.Generator().manual_seed(seed)
    state = {key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    return {f"unet.{key}": value for key, value in state.items()}


def ip_adapter(unet: nn.Module, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    attention, key = {}, 1
    for name in unet.attn_processors:
        if ".attn2." in name:
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for part in "kv":
                attention[f"{key}.to_{part}_ip.weight"] = torch.randn(width, 48, generator=generator) / 5
            key += 2
    projection = {
        "proj.weight": torch.randn(4 * 48, 16, generator=generator),
        "proj.bias": torch.randn(4 * 48, generator=generator),
        "norm.weight": torch.ones(48),
        "norm.bias": torch.zeros(48),
    }
    return {"image_proj": projection, "ip_adapter": attention}


def image_embeds(halves: int = 2) -> list[torch.Tensor]:
    """Embeddings as Stable Diffusion takes them: with guidance the negative half first."""
    return [torch.randn(halves, 1, 16, generator=torch.Generator().manual_seed(5))]


def load_ip_adapter(pipe: CFLDPipeline) -> None:
    pipe.load_ip_adapter(ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
