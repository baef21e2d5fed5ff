"""The arguments that the calls of all pipelines share, for type checkers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

from ..processors.source_image import ImageInput
from .pipeline_output import Appearance

ControlImageInput: TypeAlias = ImageInput | Sequence[ImageInput]
"""An image or a batch for one model; for several models a list with one for each, or a list of such lists."""

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
StepCallback: TypeAlias = (
    Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks
)


class SamplingOptions(TypedDict, total=False):
    """The arguments; the calls document them."""

    height: int | None
    width: int | None
    num_inference_steps: int
    timesteps: list[int] | None
    sigmas: list[float] | None
    guidance_scale: float
    pose_guidance_scale: float | None
    appearance_guidance_scale: float | None
    num_images_per_prompt: int
    eta: float
    generator: Generators
    latents: torch.Tensor | None
    appearance: Appearance | None
    ip_adapter_image: PipelineImageInput | None
    ip_adapter_image_embeds: list[torch.Tensor] | None
    cross_attention_kwargs: dict[str, Any] | None
    guidance_rescale: float
    callback_on_step_end: StepCallback | None
    callback_on_step_end_tensor_inputs: list[str]
    micro_batch_size: int | None
    control_image: ControlImageInput | None
    controlnet_conditioning_scale: float | list[float]
    control_guidance_start: float | list[float]
    control_guidance_end: float | list[float]
    adapter_image: ControlImageInput | None
    adapter_conditioning_scale: float | list[float]
    guidance_interval: tuple[float, float] | None
