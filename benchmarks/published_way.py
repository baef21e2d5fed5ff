"""What the published code does for a step of sampling, a step of training, and an item of its data set.

Written for comparison, on the models of this package. Described in `docs/performance.md`.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from torchvision import transforms

from diffusers_cfld import (
    Appearance,
    CFLDPipeline,
    Keypoints,
    PoseFeatures,
    hybrid_granularity_attention,
    query_bias_to_tokens,
)
from diffusers_cfld.data import PosePair
from diffusers_cfld.pose.skeleton import draw_skeleton
from diffusers_cfld.training import CFLDTrainingModule


@torch.no_grad()
def sample(
    pipe: CFLDPipeline,
    appearance: Appearance,
    features: PoseFeatures,
    latents: torch.Tensor,
    steps: int,
    scale: float,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Denoise with all three branches of Eq. 7 in each step, whatever the scales, and copies of all features.

    Args:
        pipe: The models, in float32.
        appearance: B sources, encoded in float32.
        features: B poses, encoded in float32.
        latents: (B, C, h, w), the noise to start from.
        steps: Denoising steps.
        scale: Both guidance scales.
        dtype: In half precision, weights and conditions stay in float32 and autocast casts them in every step.

    Returns:
        (B, C, h, w), the denoised latents.
    """
    null = appearance.null_prompt_embeds.expand_as(appearance.prompt_embeds)
    prompts = torch.cat([null, null, appearance.prompt_embeds])
    residuals = [torch.cat([torch.zeros_like(item), item, item]) for item in features.residuals.values()]
    biases = {}
    for name, bias in appearance.query_biases.items():
        tokens = query_bias_to_tokens(bias, (bias.shape[2], bias.shape[3]))
        biases[name] = torch.cat([torch.zeros_like(tokens), torch.zeros_like(tokens), tokens])
    pipe.scheduler.set_timesteps(steps, device=latents.device)
    for t in pipe.scheduler.timesteps:
        with (
            hybrid_granularity_attention(pipe.unet, copy.deepcopy(biases)),
            torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32),
        ):
            noise_pred = pipe.unet(
                torch.cat([latents] * 3),
                t,
                encoder_hidden_states=copy.deepcopy(prompts),
                down_intrablock_additional_residuals=copy.deepcopy(residuals),
            ).sample
        unconditional, posed, full = noise_pred.float().chunk(3)
        noise_pred = unconditional + scale * (posed - unconditional) + scale * (full - posed)
        latents = pipe.scheduler.step(noise_pred, t, latents).prev_sample
    return latents


def predict_for_training(
    module: CFLDTrainingModule,
    source: torch.Tensor,
    pose_map: torch.Tensor,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    drop_mask: torch.Tensor,
) -> torch.Tensor:
    """Predict the noise of reconstructions and transfers, with copies of all features.

    Args:
        module: The models.
        source: (B, 3, H, W), [-1, 1].
        pose_map: (2B, 21, H, W), [0, 1], the sources' own poses first.
        noisy_latents: (2B, C, h, w).
        timesteps: (2B,).
        drop_mask: (2B,), true where the conditions are dropped.

    Returns:
        (2B, C, h, w).
    """
    features = module.source_encoder(source).feature_maps
    prompts = module.prompt_decoder(list(features.values())[-1])
    mask = drop_mask.float().view(-1, 1, 1)
    prompt = prompts.null_prompt_embeds * mask + torch.cat([prompts.prompt_embeds] * 2) * (1 - mask)
    tokens = {
        name: query_bias_to_tokens(torch.cat([bias, bias]) * (1 - mask[..., None]), bias.shape[2:]).clone()
        for name, bias in module.appearance_encoder(features).query_biases.items()
    }
    residuals = module.pose_adapter(pose_map).residuals.values()
    with hybrid_granularity_attention(module.unet, tokens):
        return module.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=prompt.clone(),
            down_intrablock_additional_residuals=[(item * (1 - mask[..., None])).clone() for item in residuals],
        ).sample


def evaluate_gaussians(keypoints: Keypoints, size: tuple[int, int]) -> np.ndarray:
    """Evaluate the 18 heat maps on the full grid.

    Args:
        keypoints: The joints.
        size: (height, width) of the map, pixels.

    Returns:
        (18, H, W), float64.
    """
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    heat_maps = np.zeros((len(keypoints.xy), *size))
    for joint, (x, y) in enumerate(np.trunc(keypoints.rescale(size).xy)):
        if keypoints.visible[joint]:
            heat_maps[joint] = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 6**2))
    return heat_maps


class PairReader(Dataset[dict[str, Any]]):
    """A data set that parses, opens and draws everything for each item.

    Args:
        pairs: Pairs that were measured on images of 256x176.
    """

    def __init__(self, pairs: list[PosePair]) -> None:
        self.pairs = pairs
        normalize = transforms.Normalize([0.5] * 3, [0.5] * 3)
        bicubic = transforms.InterpolationMode.BICUBIC
        self.transforms = {
            side: transforms.Compose([transforms.Resize((side, side), bicubic), transforms.ToTensor(), normalize])
            for side in (256, 512)
        }
        # As the columns of the data set's table have them.
        self.columns = [
            [json.dumps(pose.xy[:, axis].tolist()) for axis in (1, 0)]
            for pair in pairs
            for pose in (pair.source_keypoints, pair.target_keypoints)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Make one item of the sizes of the published training: images 512x512, source and poses 256x256."""
        pair = self.pairs[index]
        item: dict[str, Any] = {}
        source, target = (PIL.Image.open(path).convert("RGB") for path in (pair.source, pair.target))
        for name, image, side in (
            ("source_pixel_values", source, 512),
            ("target_pixel_values", target, 512),
            ("source_image", source, 256),
        ):
            item[name] = self.transforms[side](image)
        for name, (y, x) in zip(
            ("source_pose_map", "target_pose_map"), self.columns[2 * index : 2 * index + 2], strict=True
        ):
            keypoints = Keypoints.from_deepfashion(json.loads(y), json.loads(x))
            heat_maps = evaluate_gaussians(keypoints, (256, 256)).astype(np.float32)
            skeleton = np.zeros((256, 256, 3), np.uint8)  # drawn as we do, which is in its favour
            draw_skeleton(skeleton, np.trunc(keypoints.rescale((256, 256)).xy), keypoints.visible, joint_radius=3)
            colors = skeleton.transpose(2, 0, 1) / np.float32(255)
            item[name] = torch.from_numpy(np.concatenate([colors, heat_maps]))
        return item
