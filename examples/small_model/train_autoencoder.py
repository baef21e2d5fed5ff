#!/usr/bin/env python
"""Train a small autoencoder from scratch on a folder of images.

It is for models at sizes for which there is no autoencoder. To start from Stable Diffusion, use its autoencoder as it
is. `--pretrained_vae` continues from what an earlier run saved.
"""

import argparse
import itertools
import logging
import math
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

logger = logging.getLogger("train_autoencoder")


class ImageFolder(Dataset):
    """Images under a folder, squeezed into one size: (3, height, width) in [-1, 1].

    They stay in memory once they have been read, because decoding them costs more than a training step.
    """

    def __init__(self, folder: str, size: tuple[int, int], max_samples: int | None = None):
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in {".png", ".jpg"})
        if not files:
            sys.exit(f"--train_data_dir must have .png or .jpg files in it, but {folder!r} has none.")
        stride = 1 if max_samples is None else max(1, len(files) // max_samples)
        self.files = files[::stride][:max_samples]
        self.size = size
        self.images: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self.images:
            height, width = self.size
            with PIL.Image.open(self.files[index]) as file:
                image = file.convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC)
            self.images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.images[index].float() / 127.5 - 1


def crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the same square out of every image, at a random place."""
    top, left = (int(torch.randint(length - size + 1, ())) for length in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_data_dir", required=True, help="Folder of images, searched recursively.")
    parser.add_argument("--output_dir", required=True, help="Folder for the autoencoder.")
    parser.add_argument("--pretrained_vae", default=None, help="Folder of an autoencoder to start from.")
    parser.add_argument("--height", type=int, default=128, help="Height that images are squeezed to, pixels.")
    parser.add_argument("--width", type=int, default=96, help="Width that images are squeezed to, pixels.")
    parser.add_argument("--crop", type=int, default=64, help="Side of the crop that a step sees; 0 for whole images.")
    parser.add_argument("--max_train_samples", type=int, default=None)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[16, 32, 64, 64])
    parser.add_argument("--latent_channels", type=int, default=8)
    parser.add_argument("--layers_per_block", type=int, default=1)
    parser.add_argument("--norm_num_groups", type=int, default=2)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--max_train_steps", type=int, default=2500)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--lr_scheduler", default="cosine", help="Name for diffusers.optimization.get_scheduler.")
    parser.add_argument("--lr_warmup_steps", type=int, default=100)
    parser.add_argument(
        "--kl_weight", type=float, default=1e-6, help="Weight of the KL divergence, a sum over a latent."
    )
    parser.add_argument(
        "--anchor_weight",
        type=float,
        default=0.5,
        help="Weight of a loss that pulls three latent channels towards the mean colours, otherwise learned late.",
    )
    parser.add_argument("--initial_logvar", type=float, default=-6.0, help="Initial log variance of the posteriors.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--saving_steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not 0 <= args.crop <= min(args.height, args.width):
        parser.error(f"--crop must be from 0 to {min(args.height, args.width)}, got {args.crop}.")
    return args


def initialize(vae: AutoencoderKL, initial_logvar: float) -> None:
    """Initialise the network so that it passes colours through, with posteriors narrow enough to keep them.

    With the usual random weights, every convolution between two residual blocks weakens what came before it, and
    thousands of steps at the start learn nothing but brightness.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            if name.endswith(("conv_in", "conv_shortcut", "samplers.0.conv", "post_quant_conv")):
                nn.init.dirac_(module.weight)
            elif name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] *= 0.1
        vae.quant_conv.bias[channels:] = initial_logvar


def create_autoencoder(args: argparse.Namespace) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=tuple(args.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * len(args.block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        # Attention over all cells would see other sizes than in training on crops.
        mid_block_add_attention=False,
        # With more groups, each has so few channels that the norms remove the colours.
        norm_num_groups=args.norm_num_groups,
        sample_size=max(args.height, args.width),
    )
    initialize(vae, args.initial_logvar)
    return vae


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, images: torch.Tensor) -> tuple[float, float]:
    """Return the standard deviation of the latents and the PSNR of the reconstruction, dB (pixels in [0, 1])."""
    latents = vae.encode(images).latent_dist.mode()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    psnr = -10 * ((decoded - images) / 2).square().flatten(1).mean(1).log10()
    return latents.std().item(), psnr.mean().item()


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = AutoencoderKL.from_pretrained(args.pretrained_vae) if args.pretrained_vae else create_autoencoder(args)
    vae.to(device)
    dataset = ImageFolder(args.train_data_dir, (args.height, args.width), args.max_train_samples)
    loader = DataLoader(dataset, args.train_batch_size, shuffle=True, drop_last=len(dataset) >= args.train_batch_size)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    sample = torch.stack([dataset[index] for index in range(0, len(dataset), max(1, len(dataset) // 256))]).to(device)

    progress = tqdm(total=args.max_train_steps)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, images in zip(range(1, args.max_train_steps + 1), batches, strict=False):
        images = images.to(device)
        images = crop(images, args.crop) if args.crop else images
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        reconstruction = F.l1_loss(decoded, images)
        anchor = F.l1_loss(posterior.mean[:, :3], F.adaptive_avg_pool2d(images, posterior.mean.shape[2:]))
        loss = reconstruction + F.mse_loss(decoded, images)
        loss = loss + args.anchor_weight * anchor + args.kl_weight * posterior.kl().mean()
        if not math.isfinite(loss.item()):
            sys.exit(f"The loss is {loss.item()} at step {step}: try a lower --learning_rate.")
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress.update()
        progress.set_postfix(l1=f"{reconstruction.item():.4f}")
        if step % args.saving_steps == 0 or step == args.max_train_steps:
            std, psnr = measure_latents(vae, sample)
            vae.register_to_config(scaling_factor=1 / std)
            vae.save_pretrained(args.output_dir)
            logger.info("Step %d: saved %s, PSNR %.2f dB, latent std %.3f.", step, args.output_dir, psnr, std)
    progress.close()


if __name__ == "__main__":
    main(parse_args())
