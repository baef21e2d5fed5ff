"""Check, once, that a pipeline's components fit together and that the arguments of a call make sense."""

from __future__ import annotations

import logging
import math
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from diffusers.utils.torch_utils import unwrap_module

from ..processors.pose_map import POSE_MAP_CHANNELS
from ..processors.source_image import ImageInput, SourceImageProcessor
from .control import list_models
from .pipeline_output import Appearance

if TYPE_CHECKING:
    from .pipeline_utils import CFLDPipelineBase

logger = logging.getLogger(__name__)

_SMALL_MODEL = Path(__file__).resolve().parents[1] / "small_model" / "pipeline"


def check_components(pipe: CFLDPipelineBase) -> None:
    """Check that the components of a pipeline fit together.

    Args:
        pipe: The pipeline. Components may be absent; without U-Net or source encoder, nothing is checked.

    Raises:
        ValueError: A ControlNet or adapter is of another kind, or two components do not fit together; the message
            names both and what must be equal.
    """
    for name, kind in (("controlnet", ControlNetModel), ("adapter", T2IAdapter)):
        for model in list_models(getattr(pipe, name)):
            if not isinstance(unwrap_module(model), kind):
                wanted = f"{kind.__name__}, or a list of them in `from_pipe`"
                raise ValueError(f"`{name}` must be a {wanted}, got {type(model).__name__}.")
    unet, encoder = pipe.unet, pipe.source_encoder
    if unet is None or encoder is None:
        return
    widths = unet.config.block_out_channels
    if pipe.vae is not None:
        channels = pipe.vae.config.latent_channels
        _compare("vae's latent_channels", channels, "unet's in_channels", unet.config.in_channels)
    if pipe.prompt_decoder is not None:
        config = pipe.prompt_decoder.config
        _compare("prompt_decoder's dim", config.dim, "unet's cross_attention_dim", unet.config.cross_attention_dim)
        name, last = "source_encoder's last stage's channels", encoder.feature_channels[-1]
        _compare("prompt_decoder's feature_channels", config.feature_channels, name, last)
        size, stride = pipe.prompt_decoder.feature_size, encoder.feature_strides[-1]
        cells = [-(-side // stride) for side in encoder.image_size]
        _compare("prompt_decoder's feature_size", size, "size of the source_encoder's coarsest map", cells)
    if pipe.appearance_encoder is not None:
        config = pipe.appearance_encoder.config
        channels = dict(enumerate(reversed(widths)))
        expected = [channels.get(index) for index in config.up_block_indices]
        _compare("appearance_encoder's query_channels", config.query_channels, "unet's up blocks' channels", expected)
        channels = dict(enumerate(encoder.feature_channels, start=1))
        expected = [channels.get(stage) for stage in pipe.appearance_encoder.stages]
        name = "channels of the source_encoder's stages"
        _compare("appearance_encoder's feature_channels", config.feature_channels, name, expected)
    if pipe.pose_adapter is not None:
        config = pipe.pose_adapter.config
        _compare("pose_adapter's pose_channels", config.pose_channels, "channels of a pose map", POSE_MAP_CHANNELS)
        name, expected = "unet's block_out_channels", widths[: len(config.block_out_channels)]
        _compare("pose_adapter's block_out_channels", config.block_out_channels, name, expected)
    for net in list_models(pipe.controlnet):
        for key in ("in_channels", "cross_attention_dim", "block_out_channels"):
            _compare(f"controlnet's {key}", net.config[key], f"unet's {key}", unet.config[key])
        name, num_skips = "controlnet's number of residuals", sum(len(block.resnets) for block in unet.up_blocks)
        _compare(name, len(net.controlnet_down_blocks), "unet's number of skip connections", num_skips)
        name, is_pooled = "controlnet's global_pool_conditions", net.config.global_pool_conditions
        _compare(name, is_pooled, "value for acting in all branches", False)
    for model in list_models(pipe.adapter):
        channels, factor = model.config.channels, model.config.downscale_factor
        _compare("adapter's channels", channels, "unet's block_out_channels", widths[: len(channels)])
        _compare("adapter's downscale_factor", factor, "vae's", pipe.vae_scale_factor)


def _compare(name: str, value: Any, counterpart: str, expected: Any) -> None:
    """Check that two values are equal; a list equals a tuple."""
    value, expected = (tuple(one) if isinstance(one, list) else one for one in (value, expected))
    if value != expected:
        raise ValueError(f"The {name} must equal the {counterpart}, got {value} and {expected}.")


def check_call(
    pipe: CFLDPipelineBase,
    appearance: Appearance | None,
    height: int,
    width: int,
    output_type: str,
    callback_on_step_end_tensor_inputs: list[str],
) -> None:
    """Check the components and the arguments that the calls of all pipelines share.

    Args:
        pipe: The pipeline.
        appearance: As in the call.
        height: As in the call, with the default filled in.
        width: Likewise.
        output_type: As in the call.
        callback_on_step_end_tensor_inputs: As in the call.

    Raises:
        TypeError: `appearance` is not an [`Appearance`].
        ValueError: A component or one of its weights is missing, or an argument is out of range or contradicts
            another.
    """
    check_components(pipe)  # which may have been assigned
    optional = {*pipe._optional_components, *(["vae"] if output_type == "latent" else [])}
    for name, component in pipe.components.items():
        if component is None and name not in optional:
            raise ValueError(f"The pipeline has no `{name}`: load one.")
        if isinstance(component, torch.nn.Module) and not hasattr(component, "_hf_hook"):  # not offloaded
            absent = next((key for key, weight in component.named_parameters() if weight.is_meta), None)
            if absent is not None:
                raise ValueError(f"The `{name}` was loaded without its weight {absent!r}: its files are incomplete.")
    if not hasattr(pipe.scheduler, "init_noise_sigma") or not hasattr(pipe.scheduler, "scale_model_input"):
        name = type(pipe.scheduler).__name__
        raise ValueError(f"`scheduler` must be one for noise or velocity, such as `DDIMScheduler`, got {name}.")
    if appearance is not None:
        if not isinstance(appearance, Appearance):
            name = type(appearance).__name__
            raise TypeError(f"`appearance` must come from `encode_appearance`, got {name}: pass images as `image`.")
        widths = {name: bias.shape[1] for name, bias in appearance.query_biases.items()}
        if widths != pipe.appearance_encoder.layer_widths:
            # Missing biases would change the image without any error.
            raise ValueError("`appearance` was encoded by another model: encode it with this pipeline.")
    factor = pipe.vae_scale_factor
    if not all(isinstance(side, Integral) and side > 0 and side % factor == 0 for side in (height, width)):
        raise ValueError(
            f"`height` and `width` must be positive multiples of {factor}, got {height} and {width}: `output_size` "
            "may be any other size."
        )
    if pipe.unet.config.time_cond_proj_dim is not None and (
        pipe._pose_guidance_scale is not None
        or pipe._appearance_guidance_scale is not None
        or pipe._guidance_interval is not None
    ):
        raise ValueError(
            "This U-Net takes a single guidance scale as an input (`time_cond_proj_dim`): pass `guidance_scale`, "
            "without `pose_guidance_scale`, `appearance_guidance_scale` and `guidance_interval`."
        )
    for name in ("guidance_scale", "pose_guidance_scale", "appearance_guidance_scale"):
        scale = getattr(pipe, name)
        if scale is None or not 0 <= scale < math.inf:
            raise ValueError(f"`{name}` must be a finite number >= 0, got {scale}.")
    interval = pipe._guidance_interval
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2
    if interval is not None and not (is_pair and 0 <= interval[0] < interval[1] <= 1):
        raise ValueError(f"`guidance_interval` must be (start, stop) with 0 <= start < stop <= 1, got {interval}.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
    unknown = [name for name in callback_on_step_end_tensor_inputs if name not in pipe._callback_tensor_inputs]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be some of {pipe._callback_tensor_inputs}, got {unknown}."
        )


def check_counts(**counts: int | None) -> None:
    """Check the numbers of steps and images in a call.

    Args:
        **counts: The numbers by their names in the call.

    Raises:
        ValueError: One is less than 1, or not whole.
    """
    for name, count in counts.items():
        if count is not None and not (isinstance(count, Integral) and count >= 1):
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {count!r}.")


def check_ip_adapter(pipe: CFLDPipelineBase, ip_adapter_image: Any, ip_adapter_image_embeds: Any) -> None:
    """Check that there is one input for a loaded IP-Adapter, and none without.

    Args:
        pipe: The pipeline.
        ip_adapter_image: As in the call.
        ip_adapter_image_embeds: As in the call.

    Raises:
        TypeError: The embeddings are not a list.
        ValueError: An input is missing, or has no IP-Adapter.
    """
    if ip_adapter_image is not None and ip_adapter_image_embeds is not None:
        raise ValueError("Pass either `ip_adapter_image` or `ip_adapter_image_embeds`, not both.")
    has_adapter = getattr(pipe.unet, "encoder_hid_proj", None) is not None
    has_input = ip_adapter_image is not None or ip_adapter_image_embeds is not None
    if has_adapter and not has_input:
        inputs = "`ip_adapter_image` or `ip_adapter_image_embeds`"
        raise ValueError(f"An IP-Adapter is loaded: pass its {inputs}, or call `unload_ip_adapter`.")
    if has_input and (not has_adapter or (ip_adapter_image is not None and pipe.image_encoder is None)):
        raise ValueError(
            "No IP-Adapter is loaded for this input: call `load_ip_adapter`, for an image with its image encoder."
        )
    if isinstance(ip_adapter_image_embeds, torch.Tensor):
        raise TypeError("`ip_adapter_image_embeds` must be a list with one tensor per IP-Adapter, got a tensor.")


def check_finite(pipe: CFLDPipelineBase, result: torch.Tensor) -> None:
    """Check that a result is finite; otherwise it would become a black image.

    Args:
        pipe: The pipeline that made the result.
        result: Decoded images or latents.

    Raises:
        ValueError: Some values are not finite; the message names the cause if it can be found.
    """
    if torch.isfinite(result).all():
        return
    cause = ""
    config = pipe.scheduler.config
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            weights = [weight for weight in component.parameters() if not weight.is_meta]  # not offloaded
            if not all(torch.isfinite(weight).all() for weight in weights):
                cause = f" The weights of the {name} are not finite: its files are damaged, or its training diverged."
            elif component.dtype == torch.float16:
                cause = cause or " Half precision may have overflowed: try `torch.bfloat16` or `torch.float32`."
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon":
        cause = (
            " A scheduler with `rescale_betas_zero_snr=True` divides by zero unless the model predicts velocity: load "
            "it with `rescale_betas_zero_snr=False`."
        )
    raise ValueError(f"The result is not finite and would be a black image.{cause}")


def warn_of_photos(pipe: CFLDPipelineBase, image: ImageInput) -> None:
    """Warn of images that are no drawn figures if the model is the small one, which knows nothing else.

    Drawn figures stand before a plain, light wall: each row has the same colour on the left and on the right.

    Args:
        pipe: The pipeline.
        image: Source images, as in its call.
    """
    if Path(pipe.source_encoder.config.get("_name_or_path", "")).resolve().parent != _SMALL_MODEL:
        return
    processor = SourceImageProcessor(*pipe.source_encoder.image_size)  # one that does not pad
    pixels = (processor.preprocess(image) + 1) / 2
    left, right = pixels[..., :3].mean(dim=-1), pixels[..., -3:].mean(dim=-1)  # (B, 3, H)
    difference = (left - right).abs().amax(dim=1).median(dim=-1).values  # (B,)
    brightness = left.amax(dim=1).median(dim=-1).values
    if not ((difference < 7 / 255) & (brightness > 0.6) & (brightness < 0.99)).all():
        logger.warning(
            "The small model knows only drawn figures, and this looks like a photo, of which it makes no sensible "
            "image: load a model of photos with `CFLDPipeline.from_pretrained(...)`, or `--model` on the command line "
            '("Weights" in the README says where there is one).'
        )
