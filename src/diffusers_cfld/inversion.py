"""DDIM inversion: the noise from which the pipeline makes a given image.

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

if TYPE_CHECKING:
    from .pipelines.pipeline_cfld import CFLDPipeline
    from .pipelines.pipeline_output import Appearance, PoseFeatures
    from .processors.pose_map import PoseInput
    from .processors.source_image import ImageInput

__all__ = ["invert", "reconstruct"]

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


@torch.no_grad()
def invert(
    pipe: CFLDPipeline,
    image: PIL.Image.Image,
    pose: PoseInput | PoseFeatures,
    *,
    source_image: ImageInput | None = None,
    appearance: Appearance | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    **kwargs: Any,
) -> torch.Tensor:
    """Find the latents that DDIM turns into an image, under the pipeline's conditions.

    Pass the result to [`reconstruct`] with the same conditions to get the image back, or with another appearance or
    pose to edit it. More steps invert better; guidance inverts worse, since it amplifies every error.

    Args:
        pipe: The pipeline; its scheduler's noise schedule and prediction type are used. Not modified.
        image: The image of the person; squashed to the generated size, and padded first if it has another shape
            than 256:176, as its pose is.
        pose: The pose in the image, measured on it, in any form of the pipeline's call.
        source_image: The appearance to invert under; the image's own by default.
        appearance: From `encode_appearance`, in place of `source_image`.
        height: Height of the generated size in pixels, a multiple of 8; the U-Net's by default.
        width: Width of it, likewise.
        num_inference_steps: Steps of the inversion.
        guidance_scale: Both weights; 1 is one U-Net evaluation a step.
        **kwargs: As in the pipeline's call, for example `pose_guidance_scale`.

    Returns:
        (1, C, h, w), for `latents=` of the pipeline; close to standard-normal noise.

    Raises:
        TypeError: As in the pipeline's call.
        ValueError: `source_image` and `appearance` are both given, or as in the pipeline's call.
    """
    if source_image is not None and appearance is not None:
        raise ValueError("Pass either `source_image` or `appearance` (from `encode_appearance`), not both.")
    height = pipe.target_size[0] if height is None else height
    width = pipe.target_size[1] if width is None else width
    if appearance is None:
        appearance = pipe.encode_appearance(image if source_image is None else source_image)
    reference = pipe.source_image_processor.to_rgb(image)
    size = (reference.height, reference.width)
    latents = pipe.encode_reference_image(reference, pipe.pose_processor.choose_crop(size), height, width)
    with _scheduler(pipe, DDIMInverseScheduler):
        (inverted,) = pipe(
            appearance=appearance,
            pose=pipe.read_reference_pose(pose, size),
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            latents=latents,
            output_type="latent",
            return_dict=False,
            **kwargs,
        )
    return inverted  # type: ignore[return-value]  # latents are a tensor


@torch.no_grad()
def reconstruct(
    pipe: CFLDPipeline,
    latents: torch.Tensor,
    pose: PoseInput | PoseFeatures,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    **kwargs: Any,
) -> Any:
    """Run DDIM forward from inverted latents.

    Args:
        pipe: The pipeline; whatever its scheduler, DDIM is used with its noise schedule. Not modified.
        latents: From [`invert`]; their height and width decide the image's.
        pose: As in the pipeline's call.
        num_inference_steps: As many as in [`invert`].
        guidance_scale: As in [`invert`] to get the image back.
        **kwargs: As in the pipeline's call: `image` or `appearance`, `output_type`, `output_size`, and so on.

    Returns:
        What the pipeline's call returns.

    Raises:
        TypeError: As in the pipeline's call.
        ValueError: As in the pipeline's call.
    """
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[2:])
    with _scheduler(pipe, DDIMScheduler):
        return pipe(
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
    """DDIM, or its inverse, in place of the pipeline's scheduler, on the same noise schedule."""
    previous = pipe.scheduler
    config = previous.config
    if config.get("trained_betas") is None and not {"beta_start", "beta_end", "beta_schedule"} <= set(config):
        raise ValueError(
            f"Inversion needs the betas that noise is added by, which {type(previous).__name__} does not have: use a "
            "scheduler for noise or velocity prediction, such as `DDIMScheduler`."
        )
    options = {name: config[name] for name in _SCHEDULE if name in config}
    # Both directions have to agree on these, whatever the other scheduler says or leaves open.
    spacing = config.get("timestep_spacing")
    options["timestep_spacing"] = spacing if spacing in ("leading", "trailing") else "leading"
    options["steps_offset"] = config.get("steps_offset", 0) if options["timestep_spacing"] == "leading" else 0
    pipe.scheduler = scheduler_class(**options, clip_sample=False)
    try:
        yield
    finally:
        pipe.scheduler = previous
