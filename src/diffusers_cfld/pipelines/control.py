"""ControlNets and T2I-Adapters, which were made for Stable Diffusion: what they see, and what they add to the U-Net.

Papers: arXiv:2302.05543 (ControlNet), arXiv:2302.08453 (T2I-Adapter). As in diffusers, a ControlNet is evaluated at
every step and its residuals go into the U-Net's skip connections; an adapter is evaluated once and its residuals go
into the down blocks, as those of the pose adapter do. Both act in all branches of Eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from diffusers.utils.torch_utils import unwrap_module

from .checks import compare_values
from .guidance import BranchConditions, UNetConditions, acts_at, micro_batches

if TYPE_CHECKING:
    from .pipeline_utils import CFLDPipelineBase


def check_control_components(vae_scale_factor: int, unet: Any, controlnet: Any, adapter: Any) -> None:
    """Check that ControlNets and T2I-Adapters fit to the U-Net; any of them may be absent.

    Args:
        vae_scale_factor: Pixels per latent cell.
        unet: U-Net, or None.
        controlnet: One `ControlNetModel` or `MultiControlNetModel`, or None.
        adapter: One `T2IAdapter` or `MultiAdapter`, or None.

    Raises:
        ValueError: A model is of another kind or does not fit.
    """
    for name, component, kind in (("controlnet", controlnet, ControlNetModel), ("adapter", adapter, T2IAdapter)):
        for model in list_models(component):
            if not isinstance(unwrap_module(model), kind):
                wanted = f"{kind.__name__}, or a list of them in `from_pipe`"
                raise ValueError(f"`{name}` must be a {wanted}, got {type(model).__name__}.")
    if unet is None:
        return
    for net in list_models(controlnet):
        for key in ("in_channels", "cross_attention_dim", "block_out_channels"):
            compare_values(f"controlnet's {key}", net.config[key], f"unet's {key}", unet.config[key])
        name, count = "controlnet's number of residuals", len(net.controlnet_down_blocks)
        num_skips = sum(len(block.resnets) for block in unet.up_blocks)
        compare_values(name, count, "unet's number of skip connections", num_skips)
        name, is_pooled = "controlnet's global_pool_conditions", net.config.global_pool_conditions
        compare_values(name, is_pooled, "value for acting in all branches", False)
    for model in list_models(adapter):
        widths, factor = model.config.channels, model.config.downscale_factor
        expected = unet.config.block_out_channels[: len(widths)]
        compare_values("adapter's channels", widths, "unet's block_out_channels", expected)
        compare_values("adapter's downscale_factor", factor, "vae's", vae_scale_factor)


@dataclass
class Controls:
    """The arguments of a call for ControlNets and adapters, checked and sorted: one entry per model.

    Args:
        pipe: The pipeline.
        control_image: As in the call; afterwards one image or a batch for each ControlNet.
        controlnet_conditioning_scale: As in the call; afterwards a list.
        control_guidance_start: Likewise.
        control_guidance_end: Likewise.
        adapter_image: As in the call; afterwards one image or a batch for each adapter.
        adapter_conditioning_scale: As in the call; afterwards a list.

    Raises:
        ValueError: A model has no image, an image has no model, or a number is out of range.
    """

    pipe: CFLDPipelineBase
    control_image: Any
    controlnet_conditioning_scale: Any
    control_guidance_start: Any
    control_guidance_end: Any
    adapter_image: Any
    adapter_conditioning_scale: Any

    def __post_init__(self) -> None:
        pipe = self.pipe
        check_control_components(pipe.vae_scale_factor, pipe.unet, pipe.controlnet, pipe.adapter)  # may be assigned
        controlnets, adapters = len(list_models(pipe.controlnet)), len(list_models(pipe.adapter))
        self.control_image = _sort_images("control_image", self.control_image, "controlnet", controlnets)
        self.adapter_image = _sort_images("adapter_image", self.adapter_image, "adapter", adapters)
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            setattr(self, name, _sort_numbers(name, getattr(self, name), controlnets))
        name = "adapter_conditioning_scale"
        self.adapter_conditioning_scale = _sort_numbers(name, self.adapter_conditioning_scale, adapters)
        for start, end in zip(self.control_guidance_start, self.control_guidance_end, strict=True):
            if not 0 <= start < end <= 1:
                names = "`control_guidance_start` and `control_guidance_end`"
                raise ValueError(f"{names} must have 0 <= start < end <= 1, got {start} and {end}.")

    def encode(
        self,
        conditions: BranchConditions,
        size: tuple[int, int],
        num_images_per_prompt: int,
        micro_batch_size: int | None,
    ) -> None:
        """Prepare the control images and evaluate the adapters, once for all steps.

        Args:
            conditions: Get both.
            size: (height, width) of the generated image in pixels.
            num_images_per_prompt: As in the call.
            micro_batch_size: As in the call.

        Raises:
            TypeError: See [`SourceImageProcessor.preprocess`].
            ValueError: See [`SourceImageProcessor.preprocess`]; or the number of images does not fit.
        """
        counts = sorted({1, conditions.batch_size // num_images_per_prompt, conditions.batch_size})

        def prepare(name: str, image: Any, model: Any, channels: int) -> torch.Tensor:
            try:
                # In the frame that the model sees, squashed, like keypoints that were measured on the image.
                pixels = self.pipe.source_image_processor.preprocess(image, size) / 2 + 0.5
            except (TypeError, ValueError) as error:
                raise type(error)(f"`{name}`: {error}") from error
            if len(pixels) not in counts:
                expected = " or ".join(map(str, counts))
                raise ValueError(f"`{name}` must hold {expected} images for each model, got {len(pixels)}.")
            pixels = pixels.mean(dim=1, keepdim=True) if channels == 1 else pixels
            return pixels.to(self.pipe._execution_device, model.dtype)

        nets = zip(self.control_image, list_models(self.pipe.controlnet), strict=True)
        conditions.control_images = [
            prepare("control_image", image, net, net.config.conditioning_channels) for image, net in nets
        ]
        adapters = zip(self.adapter_image, list_models(self.pipe.adapter), strict=True)
        images = [prepare("adapter_image", image, adapter, adapter.config.in_channels) for image, adapter in adapters]
        if not images:
            return
        num_rows, scales = max(map(len, images)), self.adapter_conditioning_scale
        images = [image.repeat_interleave(num_rows // len(image), dim=0) for image in images]
        parts = []
        for rows in micro_batches(num_rows, micro_batch_size):
            if len(images) > 1:
                parts.append(self.pipe.adapter([image[rows] for image in images], scales))
            else:
                parts.append([scales[0] * residual for residual in self.pipe.adapter(images[0][rows])])
        conditions.adapter_residuals = [torch.cat(part).to(self.pipe.unet.dtype) for part in zip(*parts, strict=True)]

    def scales_at(self, step: int, num_steps: int) -> list[float]:
        """Compute the factors of the ControlNets' residuals at one step.

        Args:
            step: Index of the step, from 0.
            num_steps: Number of steps.

        Returns:
            One for each ControlNet; 0 where it does not act yet, or no longer.
        """
        intervals = zip(self.control_guidance_start, self.control_guidance_end, strict=True)
        acts = [acts_at(step, num_steps, start, end) for start, end in intervals]
        return [scale * act for scale, act in zip(self.controlnet_conditioning_scale, acts, strict=True)]


def evaluate_controlnet(
    controlnet: Any, sample: torch.Tensor, timestep: torch.Tensor, batch: UNetConditions, scales: Sequence[float]
) -> dict[str, Any]:
    """Compute what ControlNets add to the U-Net at one step.

    They get the same prompts as the U-Net: those of CFLD, which ControlNets of Stable Diffusion never saw in training.

    Args:
        controlnet: A `ControlNetModel` or `MultiControlNetModel`; None without control images.
        sample: (B, C, h, w), the U-Net's input.
        timestep: The timestep.
        batch: The conditions of the B samples.
        scales: Factors of the residuals, one for each ControlNet.

    Returns:
        Arguments for the U-Net; empty if no ControlNet acts, since none is then evaluated.
    """
    if not any(scales):
        return {}
    dtype, is_multiple = controlnet.dtype, hasattr(controlnet, "nets")
    down, mid = controlnet(
        sample.to(dtype),
        timestep,
        encoder_hidden_states=batch.encoder_hidden_states.to(dtype),
        controlnet_cond=batch.control_images if is_multiple else batch.control_images[0],
        conditioning_scale=list(scales) if is_multiple else scales[0],
        return_dict=False,
    )
    return {
        "down_block_additional_residuals": [residual.to(sample.dtype) for residual in down],
        "mid_block_additional_residual": mid.to(sample.dtype),
    }


def list_models(component: Any) -> list[Any]:
    """List the models of a component.

    Args:
        component: A model, a `MultiControlNetModel`, a `MultiAdapter`, or None.

    Returns:
        The models, none for None.
    """
    if component is None:
        return []
    return list(getattr(component, "nets", getattr(component, "adapters", [component])))


def _sort_images(name: str, images: Any, component: str, count: int) -> list[Any]:
    """Sort images by model. As in diffusers, nested lists hold one list for each pair, with an image per model."""
    if images is None and count == 0:
        return []
    if count == 0:
        raise ValueError(f"`{name}` is given, but the pipeline has no `{component}`: add one by `from_pipe`.")
    if images is None:
        without = f"leave the model out by `from_pipe(pipe, {component}=None)`"
        raise ValueError(f"`{name}` is missing: pass an image for the pipeline's `{component}`, or {without}.")
    if count == 1:
        return [images]
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    is_nested = bool(items) and all(isinstance(item, (list, tuple)) for item in items)
    if any(len(entry) != count for entry in (items if is_nested else [items])):
        raise ValueError(
            f"`{name}` must be a list of {count} entries, one for each model, or such a list for each pair of images."
        )
    return [list(of_model) for of_model in zip(*items, strict=True)] if is_nested else items


def _sort_numbers(name: str, values: Any, count: int) -> list[float]:
    """Sort numbers by model; a single one is for all."""
    numbers = list(values) if isinstance(values, (list, tuple)) else [values] * count
    if len(numbers) != count or not all(isinstance(number, Real) and math.isfinite(number) for number in numbers):
        raise ValueError(f"`{name}` must be a finite number or a list of {count}, one for each model, got {values!r}.")
    return [float(number) for number in numbers]
