"""The guidance's three predictions as pictures: what each branch believes the result to be, at chosen steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch

from ..pipelines.guidance import GuidanceBranch, combine_guidance, guidance_weights
from .attention_maps import running_uncompiled

if TYPE_CHECKING:
    from ..pipelines.pipeline_cfld import CFLDPipeline

__all__ = ["GuidancePictures", "guidance_pictures"]

# With equal scales the middle term of Eq. 7 cancels and is not computed; this difference changes no picture.
_NUDGE = 1e-5


@dataclass(frozen=True)
class GuidancePictures:
    """The predictions of one step, decoded.

    Args:
        step: Number of the step, from 0.
        timestep: Its timestep.
        null: Prediction without any condition.
        pose: With the pose alone.
        full: With pose and appearance.
        guided: Their combination by Eq. 7, which the step takes.
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
    guidance_scale: float = 2.0,
    pose_guidance_scale: float | None = None,
    appearance_guidance_scale: float | None = None,
    output_size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> list[GuidancePictures]:
    """Run the pipeline for one source and pose and show what its branches predict on the way.

    Equation:
        x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t), or sqrt(a_t) x_t - sqrt(1 - a_t) v for velocity prediction.

    Args:
        pipe: The pipeline. Not modified.
        steps: Which steps to show, from 0; default the first, one in the middle and the last.
        num_inference_steps: As of the pipeline.
        guidance_scale: As of the pipeline.
        pose_guidance_scale: As of the pipeline.
        appearance_guidance_scale: As of the pipeline.
        output_size: As of the pipeline.
        **kwargs: As of the pipeline's call: `image` or `appearance`, `pose`, `generator`, ...

    Returns:
        One entry for each shown step.

    Raises:
        TypeError: As the pipeline.
        ValueError: An argument does not apply, a step is not among the steps, a guidance scale leaves a branch out (0,
            or 1 for the pose), the scheduler does not tell steps or noise in the usual way, the call makes more than
            one picture, or as the pipeline.
        RuntimeError: Another call uses the pipeline or its scheduler at the same moment.
    """
    foreign = sorted({"guidance_rescale", "timesteps", "sigmas", "output_type", "return_dict"} & kwargs.keys())
    if foreign:
        raise ValueError(f"`guidance_pictures` does not take {', '.join(foreign)}: leave it out.")
    chosen = [0, num_inference_steps // 2, num_inference_steps - 1] if steps is None else list(steps)
    chosen = sorted(set(chosen))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < num_inference_steps:
        raise ValueError(f"`steps` must be from 0 to {num_inference_steps - 1}, got {list(chosen)}.")
    pose_scale = guidance_scale if pose_guidance_scale is None else pose_guidance_scale
    appearance_scale = guidance_scale if appearance_guidance_scale is None else appearance_guidance_scale
    if pose_scale == appearance_scale:
        appearance_scale += _NUDGE
    weights = guidance_weights(pose_scale, appearance_scale)
    if list(weights) != list(GuidanceBranch):
        raise ValueError(
            "All three branches have to be computed: the pose's guidance scale must not be 1 and the appearance's not "
            f"0, got {pose_scale:g} and {appearance_scale:g}."
        )
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"The scheduler must have `alphas_cumprod`, which {type(pipe.scheduler).__name__} has not: use another, "
            "e.g. `DDIMScheduler`."
        )
    pictures: list[GuidancePictures] = []
    num_evaluations = 0

    def watch(unet: Any, args: tuple[Any, ...], call: dict[str, Any], output: Any) -> None:
        nonlocal num_evaluations
        order = pipe.scheduler.order
        if pipe.num_timesteps != order * num_inference_steps - (order - 1):
            raise ValueError(
                f"The scheduler must evaluate the U-Net {order} times a step, {type(pipe.scheduler).__name__} does it "
                f"{pipe.num_timesteps} times in {num_inference_steps} steps: use another one, e.g. "
                "`DDIMScheduler`, or another number of steps."
            )
        step, num_evaluations = num_evaluations // pipe.scheduler.order, num_evaluations + 1
        if step not in chosen or (pictures and pictures[-1].step == step):
            return
        sample, timestep = args[0], args[1]
        branches = output[0].chunk(len(weights))
        if len(branches[0]) != 1:
            raise ValueError(f"`guidance_pictures` shows one picture at a time, got {len(branches[0])}.")
        predictions = [*branches, combine_guidance(branches, tuple(weights.values()))]
        # Schedulers scale the U-Net's input so that it is the variance-preserving x_t, whatever they keep themselves.
        alpha = pipe.scheduler.alphas_cumprod[round(float(timestep))].to(sample)
        latents = torch.cat([_predict_original(pipe, sample[:1], prediction, alpha) for prediction in predictions])
        images = pipe.image_processor.postprocess(
            pipe.decode_latents(latents, output_size), output_type="pil", do_denormalize=[False] * len(latents)
        )
        pictures.append(GuidancePictures(step, float(timestep), *images))

    with running_uncompiled(pipe.unet) as unet:
        hook = unet.register_forward_hook(watch, with_kwargs=True)
        try:
            pipe(
                num_inference_steps=num_inference_steps,
                pose_guidance_scale=pose_scale,
                appearance_guidance_scale=appearance_scale,
                output_type="latent",
                **kwargs,
            )
        finally:
            hook.remove()
    return pictures


def _predict_original(
    pipe: CFLDPipeline, sample: torch.Tensor, prediction: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The latents at timestep 0 that a prediction amounts to."""
    kind = pipe.scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - (1 - alpha).sqrt() * prediction) / alpha.sqrt()
    if kind == "v_prediction":
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * prediction
    raise ValueError(f"The scheduler must predict 'epsilon' or 'v_prediction', got {kind!r}.")
