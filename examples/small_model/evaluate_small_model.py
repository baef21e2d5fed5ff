#!/usr/bin/env python
"""Measure a small model on drawn people it has never seen, and show what it makes of them.

The PSNR of each row is the mean over the pairs, against the true target picture: what the model makes of the right
photo and pose, of somebody else's photo, and of somebody else's pose; for comparison the source picture itself, and
the best that the autoencoder can do.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from drawn_figures import DrawnFigures
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.small_model import SAMPLING_OPTIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model makes which pictures in how many steps."""
    parser.add_argument("--model", required=True, help="Folder of the pipeline.")
    parser.add_argument("--variant", default=None)
    parser.add_argument("--num_pairs", type=int, default=64)
    parser.add_argument("--first_identity", type=int, default=6000, help="Number of people that were trained on.")
    parser.add_argument("--steps", type=int, default=SAMPLING_OPTIONS["num_inference_steps"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_options(parser)
    parser.add_argument("--scheduler", default=None, help="Class of diffusers; the model's own if not given.")
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[SAMPLING_OPTIONS["guidance_scale"]])
    parser.add_argument("--only_right", action="store_true", help="Leave out other people's photos and poses.")
    parser.add_argument("--grid", default=None, help="Picture to write: source, pose, result, truth of 12 pairs.")
    parser.add_argument("--json", default=None, help="File for the numbers.")
    return parser.parse_args(arguments)


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as the pipeline reads sources; size is (height, width)."""
    return np.asarray(PIL.Image.fromarray(picture).resize(size[::-1], PIL.Image.Resampling.BICUBIC))


def mean_psnr(results: list[np.ndarray], truths: list[np.ndarray]) -> float:
    scores = [peak_signal_noise_ratio(truth, result) for result, truth in zip(results, truths, strict=True)]
    return float(np.mean(scores))


def mean_ssim(results: list[np.ndarray], truths: list[np.ndarray]) -> float:
    scores = [structural_similarity(a, b, channel_axis=2) for a, b in zip(results, truths, strict=True)]
    return float(np.mean(scores))


def generate(pipe: CFLDPipeline, sources: list, poses: list, scale: float, args: argparse.Namespace) -> list:
    """One picture of each source in its pose; noise depends on the seed and the pair's number alone."""
    results = []
    for first in range(0, len(sources), args.batch_size):
        chosen = slice(first, first + args.batch_size)
        numbers = range(first, first + len(sources[chosen]))
        images = pipe(
            image=[PIL.Image.fromarray(source) for source in sources[chosen]],
            pose=poses[chosen],
            num_inference_steps=args.steps,
            guidance_scale=scale,
            generator=[torch.Generator().manual_seed(args.seed + number) for number in numbers],
        ).images
        results += [np.asarray(image) for image in images]
    return results


@torch.no_grad()
def reconstruct(pipe: CFLDPipeline, pictures: list[np.ndarray]) -> list[np.ndarray]:
    pixels = pipe.image_processor.preprocess([PIL.Image.fromarray(picture) for picture in pictures])
    decoded = pipe.vae.decode(pipe.vae.encode(pixels.to(pipe.vae.dtype)).latent_dist.mean).sample
    return [np.asarray(image) for image in pipe.image_processor.postprocess(decoded)]


def main(args: argparse.Namespace) -> None:
    pipe = CFLDPipeline.from_pretrained(args.model, variant=args.variant)
    pipe.set_progress_bar_config(disable=True)
    if args.scheduler is not None:
        import diffusers

        pipe.scheduler = getattr(diffusers, args.scheduler).from_config(pipe.scheduler.config)
    size = pipe.target_size
    people = DrawnFigures(args.num_pairs, 2, (256, 176), first_identity=args.first_identity)
    drawn = [people[2 * number] for number in range(args.num_pairs)]
    sources, poses = [pair["source_image"] for pair in drawn], [pair["target_keypoints"] for pair in drawn]
    truths = [resize(pair["target_image"], size) for pair in drawn]

    references = {
        "source copied": [resize(source, size) for source in sources],
        "autoencoder": reconstruct(pipe, truths),
    }
    rows = [(name, "", pictures) for name, pictures in references.items()]
    first_results = None
    for scale in args.guidance_scale:
        results = generate(pipe, sources, poses, scale, args)
        first_results = first_results or results
        rows.append(("photo and pose", f"{scale:g}", results))
        if not args.only_right:
            rows.append(
                ("another's photo", f"{scale:g}", generate(pipe, sources[1:] + sources[:1], poses, scale, args))
            )
            rows.append(("another's pose", f"{scale:g}", generate(pipe, sources, poses[1:] + poses[:1], scale, args)))
    table = [
        {"row": name, "guidance": scale, "psnr": mean_psnr(pictures, truths), "ssim": mean_ssim(pictures, truths)}
        for name, scale, pictures in rows
    ]
    print("| | guidance | PSNR, dB | SSIM |\n|---|---|---|---|")
    for row in table:
        print(f"| {row['row']} | {row['guidance']} | {row['psnr']:.2f} | {row['ssim']:.3f} |")
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1) + "\n")
    if args.grid:
        columns = []
        for number in range(min(12, args.num_pairs)):
            pose = np.asarray(poses[number].draw())
            pictures = (sources[number], pose, first_results[number], truths[number])
            columns.append(np.concatenate([resize(picture, (256, 176)) for picture in pictures]))
        columns += [np.full_like(columns[0], 255)] * (-len(columns) % 6)
        halves = [np.concatenate(columns[first : first + 6], axis=1) for first in range(0, len(columns), 6)]
        PIL.Image.fromarray(np.concatenate(halves)).save(args.grid)


if __name__ == "__main__":
    main(parse_args())
