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

from .guidance import BranchConditions, UNetConditions, acts_at, micro_batches

if TYPE_CHECKING:
    from .pipeline_utils import CFLDPipelineBase


@dataclass
class Control:
    """A ControlNet or T2I-Adapter, and what a call gives it.

    Args:
        model: The model.
        image: One image or a batch.
        scale: Factor of the model's residuals.
        start: Fraction of the steps after which a ControlNet begins to act.
        end: Fraction of the steps after which it no longer acts.
    """

    model: Any
    image: Any
    scale: float
    start: float = 0.0
    end: float = 1.0

    def scale_at(self, step: int, num_steps: int) -> float:
        """Compute the factor of a ControlNet's residuals at one step.

        Args:
            step: Index of the step, from 0.
            num_steps: Number of steps.

        Returns:
            The factor; 0 where the ControlNet does not act yet, or no longer.
        """
        return self.scale * acts_at(step, num_steps, self.start, self.end)


def match_controls(
    component: str, model: Any, images: Any, scales: Any, starts: Any = 0.0, ends: Any = 1.0
) -> list[Control]:
    """Match the arguments of a call to the models of a component.

    Args:
        component: `"controlnet"` or `"adapter"`.
        model: The component.
        images: `control_image` or `adapter_image` of the call.
        scales: `controlnet_conditioning_scale` or `adapter_conditioning_scale` of the call.
        starts: `control_guidance_start` of the call.
        ends: `control_guidance_end` of the call.

    Returns:
        One entry for each model.

    Raises:
        ValueError: A model has no image, an image has no model, or a number is out of range.
    """
    models = list_models(model)
    image_name = "control_image" if component == "controlnet" else "adapter_image"
    controls = [
        Control(*parts)
        for parts in zip(
            models,
            _match_images(image_name, images, component, len(models)),
            _match_numbers(f"{component}_conditioning_scale", scales, len(models)),
            _match_numbers("control_guidance_start", starts, len(models)),
            _match_numbers("control_guidance_end", ends, len(models)),
            strict=True,
        )
    ]
    for control in controls:
        if not 0 <= control.start < control.end <= 1:
            raise ValueError(
                "`control_guidance_start` and `control_guidance_end` must have 0 <= start < end <= 1, got "
                f"{control.start} and {control.end}."
            )
    return controls


def encode_controls(
    pipe: CFLDPipelineBase,
    conditions: BranchConditions,
    controlnets: Sequence[Control],
    adapters: Sequence[Control],
    size: tuple[int, int],
    num_images_per_prompt: int,
    micro_batch_size: int | None,
) -> None:
    """Prepare the control images and evaluate the adapters, once for all steps.

    Args:
        pipe: The pipeline.
        conditions: Get both.
        controlnets: The ControlNets with their images.
        adapters: The T2I-Adapters with theirs.
        size: (height, width) of the generated image in pixels.
        num_images_per_prompt: As in the call.
        micro_batch_size: As in the call.

    Raises:
        TypeError: See [`SourceImageProcessor.preprocess`].
        ValueError: See [`SourceImageProcessor.preprocess`]; or the number of images does not fit.
    """
    counts = sorted({1, conditions.batch_size // num_images_per_prompt, conditions.batch_size})

    def prepare(name: str, control: Control, channels: int) -> torch.Tensor:
        try:
            # In the frame that the model sees, squashed, like keypoints that were measured on the image.
            pixels = pipe.source_image_processor.preprocess(control.image, size) / 2 + 0.5
        except (TypeError, ValueError) as error:
            raise type(error)(f"`{name}`: {error}") from error
        if len(pixels) not in counts:
            expected = " or ".join(map(str, counts))
            raise ValueError(f"`{name}` must hold {expected} images for each model, got {len(pixels)}.")
        pixels = pixels.mean(dim=1, keepdim=True) if channels == 1 else pixels
        return pixels.to(conditions.prompt_embeds.device, control.model.dtype)

    conditions.control_images = [
        prepare("control_image", net, net.model.config.conditioning_channels) for net in controlnets
    ]
    images = [prepare("adapter_image", adapter, adapter.model.config.in_channels) for adapter in adapters]
    if not images:
        return
    num_rows, scales = max(map(len, images)), [adapter.scale for adapter in adapters]
    images = [image.repeat_interleave(num_rows // len(image), dim=0) for image in images]
    parts = []
    for rows in micro_batches(num_rows, micro_batch_size):
        if len(images) > 1:
            parts.append(pipe.adapter([image[rows] for image in images], scales))
        else:
            parts.append([scales[0] * residual for residual in pipe.adapter(images[0][rows])])
    conditions.adapter_residuals = [torch.cat(part).to(pipe.unet.dtype) for part in zip(*parts, strict=True)]


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


def _match_images(name: str, images: Any, component: str, count: int) -> list[Any]:
    """Match images to models. As in diffusers, nested lists hold one list for each pair, with an image per model."""
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


def _match_numbers(name: str, values: Any, count: int) -> list[float]:
    """Match numbers to models; a single one is for all."""
    numbers = list(values) if isinstance(values, (list, tuple)) else [values] * count
    if len(numbers) != count or not all(isinstance(number, Real) and math.isfinite(number) for number in numbers):
        raise ValueError(f"`{name}` must be a finite number or a list of {count}, one for each model, got {values!r}.")
    return [float(number) for number in numbers]
