"""DDIM inversion: the noise from which the pipeline makes a given picture.

Paper: arXiv:2010.02502, Sec. 4.3, run backwards. Official code: the test script of YanzuoLu/CFLD @ f2ea2a7 has it with
diffusers' `DDIMInverseScheduler`, which is used here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.image_processor import PipelineImageInput

from .pipelines.calling import claiming, plain_call
from .pipelines.input_checks import check_numbers

# What of a scheduler's configuration says how noise is added and what the U-Net predicts.
_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
)

if TYPE_CHECKING:
    from .pipelines.pipeline_cfld import CFLDPipeline
    from .pipelines.pipeline_output import Appearance

__all__ = ["invert", "reconstruct"]


@torch.no_grad()
def invert(
    pipe: CFLDPipeline,
    image: PIL.Image.Image,
    pose: Any,
    *,
    source_image: PipelineImageInput | None = None,
    appearance: Appearance | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    **kwargs: Any,
) -> torch.Tensor:
    """Find the latents that DDIM turns into a picture, under the pipeline's conditions.

    Pass the result to [`reconstruct`] with the same conditions to get the picture back, or with another appearance or
    pose to edit it. More steps invert better, guidance worse (it amplifies every error).

    Args:
        pipe: The pipeline; its scheduler's noise schedule and prediction type are used. Not modified.
        image: The picture of the person; squashed to the generated size, and padded before if it has another shape
            than 256:176, as its pose is.
        pose: The pose in the picture, as of the pipeline, measured on it.
        source_image: The appearance to invert under; None: the picture's own.
        appearance: From `encode_appearance`, instead.
        height: Height of the generated size in pixels, a multiple of 8; default the U-Net's.
        width: Width of it, likewise.
        num_inference_steps: Steps of the inversion.
        guidance_scale: Both weights; 1 is one U-Net evaluation a step.
        **kwargs: As of the pipeline's call, e.g. `pose_guidance_scale`.

    Returns:
        (1, C, h, w), for `latents=` of the pipeline; close to standard-normal noise.

    Raises:
        TypeError: `image` is not a PIL image, or as the pipeline.
        ValueError: There are both `source_image` and `appearance`, or as the pipeline.
        RuntimeError: Another call uses the pipeline or its scheduler at the same moment.
    """
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(f"`image` must be a PIL image, got {type(image).__name__}.")
    if source_image is not None and appearance is not None:
        raise ValueError("Pass either `source_image` or `appearance` (from `encode_appearance`), and not both.")
    height, width = pipe._choose_size(height, width)
    check_numbers(pipe.vae_scale_factor, height, width, num_inference_steps)
    if appearance is None:
        appearance = pipe.encode_appearance(image if source_image is None else source_image)
    photo = pipe.source_image_processor.to_rgb(image)
    frame = pipe.pose_processor.choose_crop((photo.height, photo.width))
    latents = pipe._encode_reference(photo, frame, (height, width))
    pose = pipe._read_reference_pose(pose, (photo.height, photo.width))
    with _scheduler(pipe, DDIMInverseScheduler):
        inverted: Any = plain_call(
            pipe,
            is_inner=True,
            appearance=appearance,
            pose=pose,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            latents=latents,
            output_type="latent",
            return_dict=False,
            **kwargs,
        )
    noise: torch.Tensor = inverted[0]
    return noise


@torch.no_grad()
def reconstruct(
    pipe: CFLDPipeline,
    latents: torch.Tensor,
    pose: Any,
    *,
    image: PipelineImageInput | None = None,
    appearance: Appearance | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    **kwargs: Any,
) -> Any:
    """Run DDIM forward from inverted latents.

    Args:
        pipe: The pipeline; whatever its scheduler, DDIM is used with its noise schedule. Not modified.
        latents: From [`invert`]; their height and width decide the picture's.
        pose: As of the pipeline.
        image: Source photo, as of the pipeline.
        appearance: From `encode_appearance`, in place of `image`.
        num_inference_steps: As many as in [`invert`].
        guidance_scale: As in [`invert`] to get the picture back.
        **kwargs: As of the pipeline's call, e.g. `output_type`, `output_size`.

    Returns:
        What the pipeline's call returns.

    Raises:
        TypeError: As the pipeline.
        ValueError: As the pipeline.
        RuntimeError: Another call uses the pipeline or its scheduler at the same moment.
    """
    if not isinstance(latents, torch.Tensor) or latents.ndim != 4:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` must be a tensor (B, C, h, w) as `invert` gives it, got {got}.")
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[2:])
    with _scheduler(pipe, DDIMScheduler):
        return plain_call(
            pipe,
            is_inner=True,
            image=image,
            appearance=appearance,
            pose=pose,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            latents=latents,
            **kwargs,
        )


@contextmanager
def _scheduler(pipe: CFLDPipeline, scheduler_class: Any) -> Iterator[None]:
    """DDIM, or its inverse, in the place of the pipeline's scheduler, on the same noise schedule."""
    previous = pipe.scheduler
    config = previous.config
    if config.get("trained_betas") is None and not {"beta_start", "beta_end", "beta_schedule"} <= set(config):
        raise ValueError(
            f"The scheduler must tell the betas that noise is added by, which {type(previous).__name__} does not: use "
            "one for noise or velocity prediction such as `DDIMScheduler`."
        )
    options = {name: config[name] for name in _SCHEDULE if name in config}
    # Both directions have to agree on these, whatever the other scheduler says or leaves open.
    spacing = config.get("timestep_spacing")
    options["timestep_spacing"] = spacing if spacing in ("leading", "trailing") else "leading"
    options["steps_offset"] = config.get("steps_offset", 0) if options["timestep_spacing"] == "leading" else 0
    with claiming(pipe):
        pipe.scheduler = scheduler_class(**options, clip_sample=False)
        try:
            yield
        finally:
            pipe.scheduler = previous
