#!/usr/bin/env python
"""Compare the images of a small model with the true ones, for drawn people it was not trained on.

Each row is a mean over the pairs: for images made from the right image and pose, from another person's image, and from
another person's pose. For comparison, there are the source image itself and the autoencoder's reconstruction.
"""

import argparse

import numpy as np
import PIL.Image
import torch
from drawn_figures import DrawnFigures
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_cfld import CFLDPipeline, Keypoints
from diffusers_cfld.small_model import SAMPLING_OPTIONS


def create_parser(description: str) -> argparse.ArgumentParser:
    """Options that choose a model, its images and how they are sampled."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder of the pipeline.")
    parser.add_argument("--variant", default=None)
    parser.add_argument("--num_pairs", type=int, default=64)
    parser.add_argument("--first_identity", type=int, default=6000, help="Number of people in the training set.")
    parser.add_argument("--steps", type=int, default=SAMPLING_OPTIONS["num_inference_steps"])
    parser.add_argument("--guidance_scale", type=float, default=SAMPLING_OPTIONS["guidance_scale"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser(__doc__)
    parser.add_argument("--grid", default=None, help="Image to write: source, pose, result and truth of 12 pairs.")
    return parser.parse_args(arguments)


def load_pipeline(args: argparse.Namespace) -> CFLDPipeline:
    pipe = CFLDPipeline.from_pretrained(args.model, variant=args.variant)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image as the pipeline resizes sources; size is (height, width)."""
    return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BICUBIC))


def generate(
    pipe: CFLDPipeline, sources: list[np.ndarray], poses: list[Keypoints], args: argparse.Namespace
) -> list[np.ndarray]:
    """Make one image of each source in its pose; the noise depends only on the seed and the number of the pair."""
    results = []
    for first in range(0, len(sources), args.batch_size):
        numbers = range(first, min(first + args.batch_size, len(sources)))
        images = pipe(
            image=[PIL.Image.fromarray(sources[number]) for number in numbers],
            pose=[poses[number] for number in numbers],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=[torch.Generator().manual_seed(args.seed + number) for number in numbers],
        ).images
        results += [np.asarray(image) for image in images]
    return results


@torch.no_grad()
def reconstruct(pipe: CFLDPipeline, images: list[np.ndarray]) -> list[np.ndarray]:
    pixels = pipe.image_processor.preprocess([PIL.Image.fromarray(image) for image in images])
    decoded = pipe.vae.decode(pipe.vae.encode(pixels.to(pipe.vae.dtype)).latent_dist.mean).sample
    return [np.asarray(image) for image in pipe.image_processor.postprocess(decoded)]


def draw_grid(rows: list[list[np.ndarray]]) -> PIL.Image.Image:
    """Put the images of each pair into a column, six columns side by side."""
    columns = [np.concatenate([resize(image, (256, 176)) for image in images]) for images in zip(*rows, strict=True)]
    columns += [np.full_like(columns[0], 255)] * (-len(columns) % 6)
    halves = [np.concatenate(columns[first : first + 6], axis=1) for first in range(0, len(columns), 6)]
    return PIL.Image.fromarray(np.concatenate(halves))


def main(args: argparse.Namespace) -> None:
    pipe = load_pipeline(args)
    people = DrawnFigures(args.num_pairs, 2, (256, 176), first_identity=args.first_identity)
    pairs = [people[2 * number] for number in range(args.num_pairs)]
    sources, poses = [pair["source_image"] for pair in pairs], [pair["target_keypoints"] for pair in pairs]
    results = generate(pipe, sources, poses, args)
    size = results[0].shape[:2]
    truths = [resize(pair["target_image"], size) for pair in pairs]
    rows = {
        "source copied": [resize(source, size) for source in sources],
        "autoencoder": reconstruct(pipe, truths),
        "image and pose": results,
        "another's image": generate(pipe, sources[1:] + sources[:1], poses, args),
        "another's pose": generate(pipe, sources, poses[1:] + poses[:1], args),
    }
    print("| | PSNR, dB | SSIM |\n|---|---|---|")
    for name, images in rows.items():
        comparisons = list(zip(truths, images, strict=True))
        psnr = np.mean([peak_signal_noise_ratio(truth, image) for truth, image in comparisons])
        ssim = np.mean([structural_similarity(truth, image, channel_axis=2) for truth, image in comparisons])
        print(f"| {name} | {psnr:.2f} | {ssim:.3f} |")
    if args.grid:
        drawn_poses = [np.asarray(pose.draw()) for pose in poses]
        draw_grid([images[:12] for images in (sources, drawn_poses, results, truths)]).save(args.grid)


if __name__ == "__main__":
    main(parse_args())
