"""The guidance's predictions as images: what each branch expects the result to be, at chosen steps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch

from ..pipelines.guidance import BranchConditions, GuidanceBranch
from ..pipelines.pipeline_cfld import CFLDPipeline


@dataclass(frozen=True)
class GuidancePictures:
    """The predictions of one step, decoded.

    Args:
        step: Index into the scheduler's timesteps, from 0.
        timestep: The timestep.
        null: Prediction without any condition.
        pose: Prediction with the pose alone.
        full: Prediction with pose and appearance.
        guided: Their combination by Eq. 7, which the step uses.
    """

    step: int
    timestep: float
    null: PIL.Image.Image
    pose: PIL.Image.Image
    full: PIL.Image.Image
    guided: PIL.Image.Image


@torch.no_grad()
def guidance_pictures(
    pipe: CFLDPipeline,
    *,
    steps: Sequence[int] | None = None,
    num_inference_steps: int = 20,
    output_size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> list[GuidancePictures]:
    """Run the pipeline for one source and one pose, and show what its branches predict on the way.

    At the steps that are shown, all three branches are evaluated, even those that Eq. 7 does not need at these scales.

    Args:
        pipe: The pipeline. Not modified.
        steps: Which of the scheduler's timesteps to show, counted from 0; by default first, middle and last.
        num_inference_steps: As in the pipeline's call.
        output_size: (height, width) in pixels of the images, as in the pipeline's call.
        **kwargs: As in the pipeline's call: `image` or `appearance`, `pose`, `guidance_scale`, `generator`, and so on.

    Returns:
        One entry for each step shown.

    Raises:
        TypeError: As in the pipeline's call.
        ValueError: A step does not exist, the scheduler is not one for noise or velocity prediction, the call makes
            more than one image, or as in the pipeline's call.
    """
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"The scheduler must have `alphas_cumprod`, but {type(pipe.scheduler).__name__} has none: use another "
            "one, such as `DDIMScheduler`."
        )
    if output_size is None and kwargs.get("height") is None and kwargs.get("width") is None:
        output_size = pipe.default_output_size
    shown: list[GuidancePictures] = []
    numbers = itertools.count()
    watched = copy.copy(pipe)
    predict_noise = watched.predict_noise

    def predict_and_show(
        sample: torch.Tensor, timestep: torch.Tensor, conditions: BranchConditions, *args: Any
    ) -> torch.Tensor:
        step, num_steps = next(numbers), watched.num_timesteps
        chosen = [0, num_steps // 2, num_steps - 1] if steps is None else steps
        if not set(chosen) <= set(range(num_steps)):
            raise ValueError(f"`steps` must be numbers from 0 to {num_steps - 1}, got {list(chosen)}.")
        if len(sample) != 1:
            raise ValueError(f"`guidance_pictures` takes one source and one pose, got {len(sample)} pairs.")
        guided = predict_noise(sample, timestep, conditions, *args)
        if step in chosen:
            branches = watched.predict_branches(sample, timestep, conditions, tuple(GuidanceBranch), slice(0, 1))
            latents = predict_original(watched.scheduler, sample, timestep, torch.cat([*branches, guided]))
            decoded = watched.decode_latents(latents, output_size)
            images = watched.image_processor.postprocess(decoded, do_denormalize=[False] * len(decoded))
            shown.append(GuidancePictures(step, float(timestep), *images))
        return guided

    watched.predict_noise = predict_and_show  # type: ignore[method-assign, assignment]
    watched(num_inference_steps=num_inference_steps, output_type="latent", **kwargs)
    return shown


def predict_original(
    scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor, predictions: torch.Tensor
) -> torch.Tensor:
    """Convert predictions of the noise or velocity to the latents at timestep 0 that they imply.

    Equation:
        x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t), or sqrt(a_t) x_t - sqrt(1 - a_t) v for velocity prediction.

    Args:
        scheduler: A scheduler of diffusers with `alphas_cumprod`.
        sample: x_t, (1, C, h, w), as the U-Net takes it: variance-preserving with every scheduler.
        timestep: t.
        predictions: e or v, (B, C, h, w).

    Returns:
        x0, (B, C, h, w).

    Raises:
        ValueError: The scheduler predicts something else.
    """
    alpha = scheduler.alphas_cumprod[round(float(timestep))].to(sample)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - (1 - alpha).sqrt() * predictions) / alpha.sqrt()
    if kind == "v_prediction":
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * predictions
    raise ValueError(f"The scheduler must predict 'epsilon' or 'v_prediction', got {kind!r}.")
