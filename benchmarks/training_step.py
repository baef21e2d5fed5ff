"""Time and peak memory of a training step, compared with one arranged as in the published code, at equal sizes.

The published code runs the VAE in every step and passes copies of every feature to the U-Net. Ours passes the features
themselves, and reads the VAE's moments from the cache of `--cache_latents` (it is also measured without). Both encode
each source once for its two samples. It is checked that they compute the same loss. Weights are random.

Every variant runs in its own process, so that peak memory is measured separately; they alternate `--rounds` times.

    python benchmarks/training_step.py [--pairs N] [--steps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from contextlib import ExitStack

import numpy as np
import torch
from diffusers import AutoencoderKL
from sampling import build_pipeline

from diffusers_cfld import CFLDPipeline, hybrid_granularity_attention, query_bias_to_tokens
from diffusers_cfld.training import (
    CFLDTrainingModule,
    cfld_loss,
    encode_moments,
    sample_latents,
)

VARIANTS = ("published way", "ours", "ours, cached latents")


def build(pairs: int) -> tuple[CFLDPipeline, torch.Tensor]:
    """Build the models, and the images of the sources and targets."""
    pipe = build_pipeline()
    torch.manual_seed(1)
    # Also half the published width, or it would have less than its share of a step.
    pipe.vae = AutoencoderKL(
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe.vae.requires_grad_(False)
    return pipe, torch.rand(2 * pairs, 3, 256, 256) * 2 - 1


def cache(pairs: int) -> np.ndarray:
    """Compute the moments that `--cache_latents` stores, in a process whose peak memory is not measured."""
    pipe, pixel_values = build(pairs)
    return encode_moments(pipe.vae, pixel_values).numpy()


def run(variant: str, pairs: int, steps: int, cached: np.ndarray) -> dict[str, float]:
    """Train for some steps; return the seconds per step, the bytes beyond those of the models, and the first loss."""
    pipe, pixel_values = build(pairs)
    parts = ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
    module = CFLDTrainingModule(**{name: getattr(pipe, name) for name in parts})
    module.set_trainable("kv")
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)

    source = torch.rand(pairs, 3, 128, 128) * 2 - 1
    pose_maps = torch.rand(2 * pairs, 21, 128, 128)
    posterior_noise, noise = torch.randn(2, 2 * pairs, 4, 32, 32)
    timesteps = torch.randint(0, 1000, (2 * pairs,))
    drop_mask = torch.arange(2 * pairs) % 5 == 0

    def predict_the_published_way(source, pose_map, noisy_latents, timesteps, drop_mask):
        features = pipe.source_encoder(source).feature_maps
        prompts = pipe.prompt_decoder(list(features.values())[-1])
        biases = {name: torch.cat([b, b]) for name, b in pipe.appearance_encoder(features).query_biases.items()}
        residuals = pipe.pose_adapter(pose_map).residuals
        mask = drop_mask.float().view(-1, 1, 1)
        prompt = prompts.null_prompt_embeds * mask + torch.cat([prompts.prompt_embeds] * 2) * (1 - mask)
        tokens = {
            name: query_bias_to_tokens(bias * (1 - mask[..., None]), bias.shape[2:]).clone()
            for name, bias in biases.items()
        }
        residuals = [(residual * (1 - mask[..., None])).clone() for residual in residuals.values()]
        with hybrid_granularity_attention(pipe.unet, tokens):
            return pipe.unet(
                noisy_latents,
                timesteps,
                encoder_hidden_states=prompt.clone(),
                down_intrablock_additional_residuals=residuals,
            ).sample

    def step() -> float:
        current = torch.from_numpy(cached) if "cached" in variant else encode_moments(pipe.vae, pixel_values)
        latents = sample_latents(pipe.vae, current, posterior_noise)
        noisy_latents = pipe.scheduler.add_noise(latents, noise, timesteps)
        predict = predict_the_published_way if variant == "published way" else module
        loss = cfld_loss(predict(source, pose_maps, noisy_latents, timesteps, drop_mask), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ExitStack() as stack:
        if variant != "published way":
            stack.enter_context(module.training_attention())
        loss = step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - start) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mebibytes": (peak - before) / 1024, "loss": loss}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        cached = pool.apply(cache, (args.pairs,))
    for _ in range(args.rounds):
        for name in VARIANTS:
            with context.Pool(1) as pool:
                results[name].append(pool.apply(run, (name, args.pairs, args.steps, cached)))
    losses = [rounds[0]["loss"] for rounds in results.values()]
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise SystemExit(f"The variants do not compute the same loss: {losses}.")

    print(f"{args.pairs} pairs, half the published width, {torch.get_num_threads()} threads; medians of {args.rounds}")
    medians = {
        name: {key: statistics.median(entry[key] for entry in rounds) for key in ("seconds", "mebibytes")}
        for name, rounds in results.items()
    }
    base = medians[VARIANTS[0]]
    for name, median in medians.items():
        print(
            f"{name:22} {median['seconds']:7.2f} s a step ({base['seconds'] / median['seconds']:.2f}x), "
            f"{median['mebibytes']:7.0f} MiB over the models ({base['mebibytes'] / median['mebibytes']:.2f}x)"
        )


if __name__ == "__main__":
    main()
