"""DDIM inversion: find the noise from which the pipeline makes a given image.

Paper: arXiv:2010.02502, Sec. 4.3, run backwards. As in the test script of YanzuoLu/CFLD @ f2ea2a7, diffusers'
`DDIMInverseScheduler` is used.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import PIL.Image
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from .image_utils import load_image
from .pipelines.pipeline_cfld import CFLDPipeline
from .pipelines.pipeline_output import Appearance, PoseFeatures
from .processors.pose_map import PoseInput
from .processors.source_image import ImageInput


@torch.no_grad()
def invert(
    pipe: CFLDPipeline,
    image: PIL.Image.Image | str | os.PathLike[str],
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
    pose to edit it. More steps make the inversion better; guidance makes it worse, since it amplifies every error.

    Args:
        pipe: The pipeline; its scheduler's noise schedule and prediction type are used. Not modified.
        image: The image of the person, or its path or URL; squashed to the generated size. If its aspect ratio is not
            256:176, image and pose are padded first.
        pose: The pose of the person, measured on the image, in any form that the pipeline's call takes.
        source_image: The image whose appearance is the condition; by default `image` itself.
        appearance: From `encode_appearance`, instead of `source_image`.
        height: Generated height in pixels, a multiple of 8; the U-Net's by default.
        width: Generated width in pixels, likewise.
        num_inference_steps: Steps of the inversion.
        guidance_scale: Both weights; at 1, each step is one U-Net evaluation.
        **kwargs: As in the pipeline's call, for example `pose_guidance_scale`.

    Returns:
        (1, C, h, w), close to standard-normal noise; pass it to the pipeline as `latents`.

    Raises:
        TypeError: As in the pipeline's call.
        ValueError: Both `source_image` and `appearance` are given, or as in the pipeline's call.
    """
    if source_image is not None and appearance is not None:
        raise ValueError("Pass either `source_image` or `appearance` (from `encode_appearance`), not both.")
    height = pipe.target_size[0] if height is None else height
    width = pipe.target_size[1] if width is None else width
    if appearance is None:
        appearance = pipe.encode_appearance(image if source_image is None else source_image)
    reference = pipe.source_image_processor.to_rgb(load_image(image))
    size = (reference.height, reference.width)
    (inverted,) = _call(
        pipe,
        DDIMInverseScheduler,
        appearance=appearance,
        pose=pipe.read_reference_pose(pose, size),
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        latents=pipe.encode_reference_image(reference, height, width),
        output_type="latent",
        return_dict=False,
        **kwargs,
    )
    return inverted


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
        latents: From [`invert`]; if they do not have the U-Net's own size, the image has theirs, times the VAE's scale
            factor.
        pose: As in the pipeline's call.
        num_inference_steps: The same number as in [`invert`].
        guidance_scale: The same as in [`invert`], to get the image back.
        **kwargs: As in the pipeline's call: `image` or `appearance`, `output_type`, `output_size`, and so on.

    Returns:
        What the pipeline's call returns.

    Raises:
        TypeError: As in the pipeline's call.
        ValueError: As in the pipeline's call.
    """
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[2:])
    size: dict[str, Any] = {} if (height, width) == pipe.target_size else {"height": height, "width": width}
    return _call(
        pipe,
        DDIMScheduler,
        pose=pose,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        latents=latents,
        **{**size, **kwargs},
    )


def _call(pipe: CFLDPipeline, scheduler_class: Any, **arguments: Any) -> Any:
    """Call the pipeline with DDIM or its inverse as the scheduler, and the same noise schedule."""
    previous = pipe.scheduler
    config = previous.config
    if config.get("trained_betas") is None and not {"beta_start", "beta_end", "beta_schedule"} <= set(config):
        raise ValueError(
            f"Inversion needs a scheduler with betas, for noise or velocity prediction, such as `DDIMScheduler`, but "
            f"the pipeline has {type(previous).__name__}."
        )
    options = {name: config[name] for name in inspect.signature(scheduler_class).parameters if name in config}
    # Both directions must agree on these, whatever the pipeline's own scheduler says or leaves open.
    spacing = config.get("timestep_spacing")
    options["timestep_spacing"] = spacing if spacing in ("leading", "trailing") else "leading"
    options["steps_offset"] = config.get("steps_offset", 0) if options["timestep_spacing"] == "leading" else 0
    pipe.scheduler = scheduler_class(**{**options, "clip_sample": False, "thresholding": False})
    try:
        return pipe(**arguments)
    finally:
        pipe.scheduler = previous
