"""Convert the published checkpoint into a pipeline folder, and such a folder back.

The published checkpoint (YanzuoLu/CFLD @ f2ea2a7) consists of two pickles written by accelerate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub.utils.sha import sha_fileobj

from ..models.appearance_encoder import AppearanceEncoder
from ..models.pose_adapter import PoseAdapter
from ..models.prompt_decoder import PerceptionRefinedDecoder
from ..models.source_encoder import SwinImageEncoder
from ..pipelines.model_card import make_model_card
from ..pipelines.pipeline_cfld import CFLDPipeline
from .published_config import ATTENTIONS_PER_BLOCK, PATCH_SIZE, read_config, write_config
from .state_dict import to_published_key
from .weights_io import read_pickle, read_safetensors, staged_folder

MODEL_FILE = "pytorch_model.bin"
UNET_FILE = "pytorch_model_1.bin"
CONFIG_FILE = "config.yaml"

_STABLE_DIFFUSION_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_MODEL_CLASSES: dict[str, Any] = {
    "source_encoder": SwinImageEncoder,
    "prompt_decoder": PerceptionRefinedDecoder,
    "appearance_encoder": AppearanceEncoder,
    "pose_adapter": PoseAdapter,
    "unet": UNet2DConditionModel,
}
_SCHEDULE: dict[str, Any] = {
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def convert_checkpoint(
    checkpoint: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    revision: str | None = None,
) -> Path:
    """Convert a published checkpoint into a folder for `CFLDPipeline.from_pretrained`.

    Args:
        checkpoint: Folder with `pytorch_model.bin`, `pytorch_model_1.bin` and, if the sizes are not the published
            ones, the `config.yaml` that the published trainer writes beside them.
        base: Stable Diffusion 1.5, as a local folder or a Hub id. Its VAE, the betas of its scheduler and the
            configuration of its U-Net are used.
        output: Folder to write. It is written completely or not at all.
        dtype: Data type of all weights; `None` keeps the checkpoint's.
        variant: Variant in the names of the weight files, e.g. `"fp16"`.
        overwrite: Replace `output` if it is the result of an earlier conversion.
        token: Hub token for `base`.
        revision: Hub revision of `base`.

    Returns:
        The output folder.

    Raises:
        OSError: A file is missing or cannot be read or written, or `base` cannot be loaded.
        ValueError: A file is damaged; keys are missing, unexpected or have the wrong shape; the parts do not fit
            together; or `output` exists already.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    with staged_folder(output, overwrite=overwrite, marker="model_index.json", made_by="CFLDPipeline") as folder:
        hub_options = {"token": token, "revision": revision}
        try:
            vae = AutoencoderKL.from_pretrained(str(base), subfolder="vae", **hub_options)
            unet_config = UNet2DConditionModel.load_config(str(base), subfolder="unet", **hub_options)
            scheduler_config = DDPMScheduler.load_config(str(base), subfolder="scheduler", **hub_options)
        except (OSError, ValueError) as error:
            raise OSError(
                f"The base '{base}' must be Stable Diffusion 1.5, as a local folder or a Hub id: {error}"
            ) from error
        vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        models = _load_published(checkpoint, unet_config, vae_scale_factor, dtype)
        # Built anew, because the configuration of a loaded model names the folder it was loaded from, and copied,
        # because Windows cannot replace that folder while its weights are mapped into memory.
        weights = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
        vae = _load(_build(AutoencoderKL, vae.config), weights, f"'{base}'", dtype)
        pipe = CFLDPipeline(vae=vae, scheduler=DDPMScheduler.from_config(scheduler_config, **_SCHEDULE), **models)
        files = [checkpoint / name for name in (MODEL_FILE, UNET_FILE, CONFIG_FILE)]
        card = make_model_card(
            pipe,
            "path/to/this/folder",
            base_model=_STABLE_DIFFUSION_ID if Path(base).is_dir() else str(base),
            variant=variant,
            source_files={path.name: _sha256(path) for path in files if path.exists()},
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        pipe.save_pretrained(str(folder), variant=variant)
    return output


def convert_to_original(
    model: str | Path, output: str | Path, *, variant: str | None = None, overwrite: bool = False
) -> Path:
    """Convert a pipeline folder into the published layout: the inverse of [`convert_checkpoint`].

    Args:
        model: Local folder of a saved `CFLDPipeline`.
        output: Folder to write, with `pytorch_model.bin`, `pytorch_model_1.bin` and a `config.yaml` with the sizes.
        variant: Variant of the weights to read.
        overwrite: Replace `output` if it is the result of an earlier conversion.

    Returns:
        The output folder.

    Raises:
        OSError: A part is missing or cannot be read or written.
        ValueError: Keys are missing, unexpected or have the wrong shape; the published layout cannot hold the
            pipeline; or `output` exists already.
    """
    model, output = Path(model), Path(output)
    if not (model / "model_index.json").is_file():
        raise FileNotFoundError(f"The model '{model}' must be the local folder of a saved CFLDPipeline.")
    weights = {name: read_safetensors(model / name, variant) for name in _MODEL_CLASSES}
    models = {
        name: _load(
            _build(model_class, model_class.load_config(model, subfolder=name)), weights[name], f"'{model / name}'"
        )
        for name, model_class in _MODEL_CLASSES.items()
    }
    _refuse_other_layouts(models, DDPMScheduler.load_config(model, subfolder="scheduler"))
    arguments = {name: model.config for name, model in models.items()}
    arguments["source_encoder"] = _swin_arguments(models["source_encoder"])
    vae_config = AutoencoderKL.load_config(model, subfolder="vae")
    keys = _published_keys(models)
    published = {
        name: {keys[name][key]: tensor for key, tensor in built.state_dict().items()} for name, built in models.items()
    }
    unet = published.pop("unet")
    with staged_folder(output, overwrite=overwrite, marker=MODEL_FILE) as folder:
        tensors = {key: tensor for part in published.values() for key, tensor in part.items()}
        torch.save(tensors | _swin_buffers(models["source_encoder"]), folder / MODEL_FILE)
        torch.save(unet, folder / UNET_FILE)
        write_config(folder / CONFIG_FILE, arguments, 2 ** (len(vae_config["block_out_channels"]) - 1))
    return output


def convert_swin(
    swin: str | Path,
    output: str | Path,
    *,
    swin_model: str = "swin_base_patch4_window12_384",
    image_size: int | tuple[int, int] = 256,
    window_size: int = 16,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a file of Swin weights into a folder for `SwinImageEncoder.from_pretrained`.

    Args:
        swin: File in timm's or the original Swin's layout; see [`SwinImageEncoder.from_timm`].
        output: Folder to write.
        swin_model: timm name of the architecture.
        image_size: Side of the source image in pixels, or (height, width).
        window_size: Side of the attention window in tokens; the relative position tables are resized to it.
        dtype: Data type of the written weights; `None` is float32.
        variant: Variant in the name of the weight file.
        overwrite: Replace `output` if it is the result of an earlier conversion.

    Returns:
        The output folder.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The weights do not fit, or `output` exists already.
    """
    output = Path(output)
    with staged_folder(output, overwrite=overwrite, marker="config.json", made_by="SwinImageEncoder") as folder:
        encoder = SwinImageEncoder.from_timm(
            swin_model, checkpoint_path=str(swin), image_size=image_size, window_size=window_size
        )
        encoder.to(dtype).save_pretrained(folder, variant=variant)
    return output


def _load_published(
    checkpoint: Path, unet_config: Mapping[str, Any], vae_scale_factor: int, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Build the models from both pickles; no key may be missing or left over."""
    arguments = read_config(checkpoint / CONFIG_FILE, vae_scale_factor)
    arguments["unet"] = {**unet_config, **arguments["unet"]}
    source = f"'{checkpoint}'"
    if not (checkpoint / CONFIG_FILE).exists():
        source += ", which has no config.yaml and was therefore read with the published sizes,"
    published = read_pickle(checkpoint / MODEL_FILE) | read_pickle(checkpoint / UNET_FILE)
    models = {name: _build(model_class, arguments[name]) for name, model_class in _MODEL_CLASSES.items()}
    # One model after the other: if `dtype` changes the tensors, the memory of the others is freed before the next one.
    for name, keys in _published_keys(models).items():
        tensors = {ours: published.pop(key) for ours, key in keys.items() if key in published}
        _load(models[name], tensors, source, dtype)
    buffers = _swin_buffers(models["source_encoder"])
    found = {key: published.pop(key).shape for key in list(buffers) if key in published}
    differing = sorted({key for key, buffer in buffers.items() if found.get(key) != buffer.shape} | published.keys())
    if differing:
        raise ValueError(
            f"'{checkpoint}' must have exactly the tensors of a published checkpoint with these sizes, masks and "
            f"indices included; missing, unexpected or of the wrong shape: {', '.join(differing)}."
        )
    return models


def _build(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Build a model without weights."""
    with init_empty_weights():
        return model_class.from_config({name: value for name, value in config.items() if not name.startswith("_")})


def _load(model: Any, tensors: Mapping[str, torch.Tensor], source: str, dtype: torch.dtype | None = None) -> Any:
    """Give a model its weights, which are not copied unless `dtype` changes them."""
    if dtype is not None:
        tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The weights of {source} do not fit: {error}") from error
    return model


def _published_keys(models: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The published key of each tensor of each model."""
    num_encoders = len(models["appearance_encoder"].encoders)
    return {
        name: {key: to_published_key(name, key, num_encoders) for key in model.state_dict()}
        for name, model in models.items()
    }


def _swin_buffers(encoder: SwinImageEncoder) -> dict[str, torch.Tensor]:
    """The masks and indices in the original Swin's state dict; timm computes the same ones."""
    return {f"backbone.{name}": buffer for name, buffer in encoder.backbone.named_buffers()}


def _refuse_other_layouts(models: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> None:
    """Refuse settings that the published layout cannot store and that would be lost."""
    source_encoder, encoder = models["source_encoder"], models["appearance_encoder"]
    up_blocks = tuple(encoder.config.up_block_indices)
    settings: dict[str, tuple[Any, Any]] = {
        "backbone": (type(source_encoder.backbone).__name__, "SwinTransformer"),
        "patch_size": (source_encoder.feature_strides[0], PATCH_SIZE),
        "up_block_indices": (up_blocks, tuple(sorted(up_blocks, reverse=True))),
        "attentions_per_block": (encoder.config.attentions_per_block, ATTENTIONS_PER_BLOCK),
        "feature_stages": (encoder.stages, tuple(range(1, len(up_blocks) + 1))),
        "norm_num_groups": (models["pose_adapter"].config.norm_num_groups, 32),
        "prediction_type": (scheduler_config.get("prediction_type", "epsilon"), "epsilon"),
    }
    for name, (value, published) in settings.items():
        if value != published:
            raise ValueError(f"The published layout can only hold models with `{name}` = {published}, got {value}.")


def _swin_arguments(encoder: SwinImageEncoder) -> dict[str, Any]:
    stages = [stage.blocks for stage in encoder.backbone.layers]
    return {
        "image_size": encoder.image_size,
        "window_size": max(stages[0][0].attn.window_size),
        "embed_dim": encoder.feature_channels[0],
        "depths": tuple(len(blocks) for blocks in stages),
        "num_heads": tuple(blocks[0].attn.num_heads for blocks in stages),
        "drop_path_rate": encoder.config.drop_path_rate,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()
