"""Do the components of a pipeline fit each other? Said when they are put together, not deep inside a forward."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from ..models.compilation import uncompiled
from .pipeline_output import Appearance, PoseFeatures


def check_components(
    vae: Any, unet: Any, source_encoder: Any, prompt_decoder: Any, appearance_encoder: Any, pose_adapter: Any
) -> None:
    """Check that the components of a pipeline fit each other; absent ones are not checked.

    Args:
        vae: Autoencoder.
        unet: U-Net.
        source_encoder: S.
        prompt_decoder: D.
        appearance_encoder: A.
        pose_adapter: P.

    Raises:
        ValueError: Two of them do not fit; the message names both and what must be equal.
    """
    checks: list[tuple[str, Any, str, Any]] = []
    if unet is not None and unet.config.sample_size is None:
        raise ValueError("The unet's sample_size must be set (Stable Diffusion 1.5: 64), got None.")
    if unet is not None and vae is not None:
        checks.append(
            ("vae's latent_channels", vae.config.latent_channels, "in_channels", unet.config.in_channels),
        )
    if unet is not None and prompt_decoder is not None:
        checks.append(
            ("prompt_decoder's dim", prompt_decoder.config.dim, "cross_attention_dim", unet.config.cross_attention_dim)
        )
    if unet is not None and pose_adapter is not None:
        widths = tuple(pose_adapter.config.block_out_channels)
        expected = tuple(unet.config.block_out_channels[: len(widths)])
        checks.append(("pose_adapter's block_out_channels", widths, "block_out_channels", expected))
    if unet is not None and appearance_encoder is not None:
        config = appearance_encoder.config
        widths = tuple(config.query_channels)
        reversed_widths = tuple(reversed(unet.config.block_out_channels))
        expected = tuple(
            reversed_widths[index] if index < len(reversed_widths) else None for index in config.up_block_indices
        )
        checks.append(("appearance_encoder's query_channels", widths, "up blocks' channels", expected))
    for name, value, counterpart, expected in checks:
        if value != expected:
            raise ValueError(f"The {name} must equal the unet's {counterpart}, got {value} and {expected}.")
    if unet is not None and appearance_encoder is not None:
        layers = {name for name, _ in uncompiled(unet).named_modules()}
        missing = [name for name in appearance_encoder.layer_names if name not in layers]
        if missing:
            raise ValueError(f"The appearance_encoder serves {missing[0]!r}, which is not a layer of the unet.")
    if source_encoder is not None and appearance_encoder is not None:
        read, stages = tuple(appearance_encoder.config.feature_channels), appearance_encoder.stages
        given = source_encoder.feature_channels
        expected = tuple(given[stage - 1] if stage <= len(given) else None for stage in stages)
        if read != expected:
            raise ValueError(
                "The appearance_encoder's feature_channels must equal those of the source_encoder's stages that it "
                f"reads, {', '.join(map(str, stages))}, got {read} and {expected}."
            )
    if source_encoder is not None and prompt_decoder is not None:
        features = source_encoder.feature_channels[-1]
        if prompt_decoder.config.feature_channels != features:
            raise ValueError(
                "The prompt_decoder's feature_channels must equal the channels of the source_encoder's last stage, "
                f"got {prompt_decoder.config.feature_channels} and {features}."
            )


def check_numbers(
    vae_scale_factor: int, height: Any, width: Any, num_inference_steps: Any, num_images_per_prompt: Any = 1
) -> None:
    """Check the numbers of a pipeline's call.

    Args:
        vae_scale_factor: Pixels per latent cell.
        height: As of the call, defaults filled in.
        width: Likewise.
        num_inference_steps: As of the call.
        num_images_per_prompt: As of the call.

    Raises:
        TypeError: One is not whole.
        ValueError: One is out of range.
    """
    counts = {"num_inference_steps": num_inference_steps, "num_images_per_prompt": num_images_per_prompt}
    for name, number in {"height": height, "width": width, **counts}.items():
        if not isinstance(number, Integral):
            raise TypeError(f"`{name}` must be a whole number, got {number!r}.")
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")
    if height <= 0 or width <= 0 or height % vae_scale_factor or width % vae_scale_factor:
        raise ValueError(
            f"`height` and `width` must be positive multiples of {vae_scale_factor}, got {height} and {width}. Use "
            "`output_size` for any other size of the result."
        )


def check_generator(generator: Any) -> torch.Generator | list[torch.Generator] | None:
    """Check a call's generator.

    Args:
        generator: As of the call.

    Returns:
        It; a list for any sequence, which is all that diffusers knows.

    Raises:
        TypeError: It is neither a generator nor several.
    """
    generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if any(not isinstance(item, torch.Generator) for item in generators) and generator is not None:
        raise TypeError(
            f"`generator` must be a `torch.Generator` or a list of them, got {generator!r}: "
            "`torch.Generator().manual_seed(0)`."
        )
    return generators if isinstance(generator, (list, tuple)) else generator


def check_appearance(appearance: Appearance, unet: Any) -> None:
    """Check that an encoded appearance is of a pipeline with this U-Net's widths.

    Args:
        appearance: The encoded appearance.
        unet: U-Net.

    Raises:
        ValueError: It is not.
    """
    width, expected = appearance.prompt_embeds.shape[-1], unet.config.cross_attention_dim
    if width != expected:
        raise ValueError(
            f"The encoded appearance is of another model: its prompts are {width} wide, the unet's "
            f"cross_attention_dim is {expected}. Encode it with this pipeline."
        )


def check_ip_adapter_inputs(
    unet: Any, image_encoder: Any, ip_adapter_image: Any, ip_adapter_image_embeds: Any
) -> None:
    """Check what a call gives its IP-Adapters.

    Args:
        unet: U-Net, with them or without.
        image_encoder: Of the pipeline.
        ip_adapter_image: As of the call.
        ip_adapter_image_embeds: As of the call.

    Raises:
        TypeError: The embeddings are no list of tensors.
        ValueError: There is no adapter for them, an adapter gets nothing, or the tensors have other dimensions.
    """
    has_adapter = getattr(unet, "encoder_hid_proj", None) is not None
    if ip_adapter_image_embeds is not None:
        embeds = ip_adapter_image_embeds
        if not isinstance(embeds, list) or not all(isinstance(item, torch.Tensor) for item in embeds):
            raise TypeError(
                "`ip_adapter_image_embeds` must be a list with one tensor per IP-Adapter, got "
                f"{type(embeds).__name__}."
            )
        if not has_adapter:
            raise ValueError("`ip_adapter_image_embeds` needs an IP-Adapter; call `load_ip_adapter` first.")
        if not embeds or any(item.ndim not in (3, 4) for item in embeds):
            raise ValueError(
                "`ip_adapter_image_embeds` must hold 3-D or 4-D tensors, got shapes "
                f"{[tuple(item.shape) for item in embeds]}."
            )
    if has_adapter and ip_adapter_image is None and ip_adapter_image_embeds is None:
        raise ValueError(
            "An IP-Adapter is loaded: pass its `ip_adapter_image` or `ip_adapter_image_embeds`, or call "
            "`unload_ip_adapter`."
        )
    if ip_adapter_image is not None and ip_adapter_image_embeds is not None:
        raise ValueError("Pass either `ip_adapter_image` or `ip_adapter_image_embeds`, and not both.")
    if ip_adapter_image is not None and (not has_adapter or image_encoder is None):
        raise ValueError(
            "`ip_adapter_image` needs an IP-Adapter with its image encoder; call `load_ip_adapter` first, or pass "
            "`ip_adapter_image_embeds`."
        )


def check_pose_features(features: PoseFeatures, unet: Any) -> None:
    """Check that encoded poses are of a pipeline with this U-Net's widths.

    Args:
        features: The encoded poses.
        unet: U-Net; without one nothing is checked.

    Raises:
        ValueError: They are not.
    """
    if unet is None:
        return
    channels = tuple(residual.shape[1] for residual in features.residuals.values())
    expected = tuple(unet.config.block_out_channels[: len(channels)])
    if channels != expected:
        raise ValueError(
            f"The encoded poses are of another model: they have {channels} channels, the unet's blocks {expected}. "
            "Encode them with this pipeline."
        )
