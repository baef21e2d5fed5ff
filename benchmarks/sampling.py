"""Time a sampling step of the pipeline, compared with one arranged as in the published code, at equal sizes.

The published code evaluates all three branches of Eq. 7, whatever the scales, and deep-copies every feature that it
passes to the U-Net at each step. Weights are random.

`python benchmarks/sampling.py [--scale X] [--repeats N] [--steps N]`
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
    hybrid_granularity_attention,
    query_bias_to_tokens,
)


def build_pipeline() -> CFLDPipeline:
    """Build the published model at half its width, with D and A at half their depth: source 128x128, latents 32x32."""
    torch.manual_seed(0)
    widths = (160, 320, 640, 640)
    pipe = CFLDPipeline(
        vae=AutoencoderKL(block_out_channels=(32,) * 4, **_VAE_BLOCKS),
        unet=UNet2DConditionModel(sample_size=32, block_out_channels=widths, cross_attention_dim=384),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        source_encoder=SwinImageEncoder(image_size=128, window_size=8, embed_dim=64, num_heads=(2, 4, 8, 16)),
        prompt_decoder=PerceptionRefinedDecoder(16, 384, 12, 4, feature_channels=512, feature_size=4),
        appearance_encoder=AppearanceEncoder((64, 128, 256), (32, 64, 128), (160, 320, 640), (1, 2, 4), 2),
        pose_adapter=PoseAdapter(block_out_channels=widths[:3]),
    )
    for parameter in pipe.appearance_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    pipe.source_encoder.eval()  # no stochastic depth
    pipe.set_progress_bar_config(disable=True)
    return pipe


_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


@torch.no_grad()
def sample_the_published_way(
    pipe: CFLDPipeline, image: torch.Tensor, pose: torch.Tensor, latents: torch.Tensor, steps: int, scale: float
) -> torch.Tensor:
    """Sample with three branches per step and every feature copied at every step."""
    appearance, features = pipe.encode_appearance(image), pipe.encode_pose(pose)
    null = appearance.null_prompt_embeds.expand_as(appearance.prompt_embeds)
    prompts = torch.cat([null, null, appearance.prompt_embeds])
    residuals = [torch.cat([torch.zeros_like(item), item, item]) for item in features.residuals.values()]
    biases = {}
    for name, bias in appearance.query_biases.items():
        tokens = query_bias_to_tokens(bias, (bias.shape[2], bias.shape[3]))
        biases[name] = torch.cat([torch.zeros_like(tokens), torch.zeros_like(tokens), tokens])
    pipe.scheduler.set_timesteps(steps)
    for t in pipe.scheduler.timesteps:
        with hybrid_granularity_attention(pipe.unet, copy.deepcopy(biases)):
            noise_pred = pipe.unet(
                torch.cat([latents] * 3),
                t,
                encoder_hidden_states=copy.deepcopy(prompts),
                down_intrablock_additional_residuals=copy.deepcopy(residuals),
            ).sample
        unconditional, posed, full = noise_pred.chunk(3)
        noise_pred = unconditional + scale * (posed - unconditional) + scale * (full - posed)
        latents = pipe.scheduler.step(noise_pred, t, latents).prev_sample
    return latents


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=2.0, help="both guidance scales")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    pipe = build_pipeline()
    image, pose, latents = torch.rand(1, 3, 128, 128), torch.rand(1, 21, 128, 128), torch.randn(1, 4, 32, 32)

    def ours() -> torch.Tensor:
        return pipe(
            image=image,
            pose=pose,
            latents=latents,
            num_inference_steps=args.steps,
            guidance_scale=args.scale,
            output_type="latent",
        ).images

    def published() -> torch.Tensor:
        return sample_the_published_way(pipe, image, pose, latents, args.steps, args.scale)

    difference = (ours() - published()).abs().max() / published().abs().max()
    if difference > 1e-4:
        raise SystemExit(f"The two differ by {difference:.1e} of the largest latent.")
    seconds: dict[str, list[float]] = {"ours": [], "published way": []}
    for _ in range(args.repeats):
        for name, run in (("ours", ours), ("published way", published)):
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / args.steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:14} {1000 * median:8.1f} ms a step, encoding included")
    ratio = medians["published way"] / medians["ours"]
    print(f"ratio          {ratio:8.2f}x; largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
