"""Are the arguments of a pipeline's call what they should be? Said before anything is computed."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch


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


def check_fractions(**fractions: Any) -> None:
    """Check numbers that lie between 0 and 1.

    Args:
        **fractions: By name, as of the call.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of range.
    """
    for name, number in fractions.items():
        if not isinstance(number, Real):
            raise TypeError(f"`{name}` must be a number from 0 to 1, got {number!r}.")
        if not 0 <= float(number) <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1, got {number}.")


def check_generator(generator: Any) -> torch.Generator | list[torch.Generator] | None:
    """Check a call's generator.

    Args:
        generator: As of the call.

    Returns:
        It; a list for any sequence, which is all that diffusers knows.

    Raises:
        TypeError: It is neither a generator nor several.
    """
    is_several = isinstance(generator, (list, tuple))
    if generator is not None and not all(
        isinstance(item, torch.Generator) for item in (generator if is_several else [generator])
    ):
        raise TypeError(
            f"`generator` must be a `torch.Generator` or a list of them, got {generator!r}: "
            "`torch.Generator().manual_seed(0)`."
        )
    return list(generator) if is_several else generator


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
