"""A pipeline's call, a few pairs at a time, for more of them than the memory holds at once."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..processors.pose_map import read_poses, split_poses
from ..processors.source_image import split_images
from .branch_batching import broadcast_batch
from .calling import plain_call
from .pipeline_output import Appearance, CFLDPipelineOutput, PoseFeatures

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline


def call_in_micro_batches(
    pipe: CFLDPipeline,
    size: int,
    image: Any,
    pose: Any,
    appearance: Appearance | None,
    generator: torch.Generator | list[torch.Generator] | None,
    latents: torch.Tensor | None,
    num_images_per_prompt: int,
    output_type: str,
    return_dict: bool,
    **arguments: Any,
) -> Any:
    """Run a pipeline's call for a few pairs of source and pose at a time.

    Args:
        pipe: The pipeline.
        size: Pairs at once.
        image: As of the call.
        pose: As of the call.
        appearance: As of the call.
        generator: As of the call.
        latents: As of the call.
        num_images_per_prompt: As of the call.
        output_type: As of the call.
        return_dict: As of the call.
        **arguments: The call's other arguments.

    Returns:
        What the call returns.

    Raises:
        TypeError: As the call.
        ValueError: An argument does not go with the number of pairs, or as the call.
    """
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"`micro_batch_size` must be a whole number of at least 1, got {size!r}.")
    if arguments["ip_adapter_image_embeds"] is not None:
        raise ValueError("`micro_batch_size` cannot be combined with `ip_adapter_image_embeds`.")
    if isinstance(image, Appearance) and appearance is None:
        image, appearance = None, image
    if (image is None) == (appearance is None):
        raise ValueError("Pass either `image` or `appearance` (from `encode_appearance`), and not both.")
    images = split_images(image) if appearance is None else [None] * len(appearance)
    poses: Any = pose
    if not isinstance(pose, PoseFeatures):
        poses = split_poses(read_poses(pose, pipe.pose_estimator, shape=pipe.image_shape))
    num_pairs = broadcast_batch(len(images), len(poses))
    num_images = num_pairs * num_images_per_prompt
    for name, items in (("generator", generator), ("latents", latents)):
        if isinstance(items, (list, tuple, torch.Tensor)) and len(items) != num_images:
            raise ValueError(f"`{name}` must be of length {num_images}, the number of images, got {len(items)}.")
    if len(images) == 1 and appearance is None:
        appearance = pipe.encode_appearance(images[0])
    outputs: list[Any] = []
    for first in range(0, num_pairs, size):
        pairs = slice(first, min(first + size, num_pairs))
        rows = slice(pairs.start * num_images_per_prompt, pairs.stop * num_images_per_prompt)
        few_images = images[pairs] if appearance is None else None
        few_appearances = appearance if appearance is None or len(appearance) == 1 else appearance[pairs]
        made = plain_call(
            pipe,
            is_inner=True,
            image=few_images,
            pose=poses if len(poses) == 1 else poses[pairs],
            appearance=few_appearances,
            generator=list(generator)[rows] if isinstance(generator, (list, tuple)) else generator,
            latents=None if latents is None else latents[rows],
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            return_dict=False,
            **arguments,
        )[0]
        outputs.append(made)
        if pipe.interrupt:
            break
    joined: Any
    if isinstance(outputs[0], list):
        joined = [made for some in outputs for made in some]
    else:
        joined = np.concatenate(outputs) if isinstance(outputs[0], np.ndarray) else torch.cat(outputs)
    return CFLDPipelineOutput(images=joined) if return_dict else (joined,)
