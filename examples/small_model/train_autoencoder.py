#!/usr/bin/env python
"""Train a small autoencoder from scratch on a folder of pictures.

Only for models at sizes for which no autoencoder exists, like the small model that ships with the package. Whoever
starts from Stable Diffusion uses its autoencoder as it is.
"""

import argparse
import itertools
import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from diffusers_cfld.script_errors import errors_as_one_sentence
from diffusers_cfld.training import set_learning_rates

logger = logging.getLogger("train_autoencoder")


class PictureFolder(Dataset):
    """Pictures under a folder, squeezed into one size: (3, height, width) in [-1, 1].

    They are kept in memory once they were read: small as they are, decoding them each time would cost more than the
    training step.
    """

    def __init__(self, folder: str, size: tuple[int, int], max_samples: int | None = None):
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in {".png", ".jpg"})
        if not files:
            raise SystemExit(f"There is no .png or .jpg under {folder!r}.")
        stride = 1 if max_samples is None else max(1, len(files) // max_samples)
        self.files = files[::stride][:max_samples]
        self.size = size
        self.pictures: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self.pictures:
            height, width = self.size
            with PIL.Image.open(self.files[index]) as file:
                picture = file.convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC)
            self.pictures[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return self.pictures[index].float() / 127.5 - 1


def crop(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the same square out of every picture, at a random place."""
    top, left = (int(torch.randint(length - size + 1, ())) for length in pictures.shape[2:])
    return pictures[:, :, top : top + size, left : left + size]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_data_dir", required=True, help="Folder of pictures, searched recursively.")
    parser.add_argument("--output_dir", required=True, help="Where checkpoints and the autoencoder go.")
    parser.add_argument("--pretrained_vae", default=None, help="Folder of an autoencoder to go on from.")
    parser.add_argument("--height", type=int, default=128, help="Pictures are squeezed into this height, pixels.")
    parser.add_argument("--width", type=int, default=96, help="And into this width, pixels.")
    parser.add_argument("--crop", type=int, default=64, help="Side of the crop that a step sees; 0 sees all, slower.")
    parser.add_argument("--max_train_samples", type=int, default=None)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[16, 32, 64, 64])
    parser.add_argument("--latent_channels", type=int, default=8)
    parser.add_argument("--layers_per_block", type=int, default=1)
    parser.add_argument("--norm_num_groups", type=int, default=2)
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--max_train_steps", type=int, default=2500)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--lr_scheduler", default="cosine", help="Any of diffusers.optimization.get_scheduler.")
    parser.add_argument("--lr_warmup_steps", type=int, default=100)
    parser.add_argument("--kl_weight", type=float, default=1e-6, help="Of the KL divergence, summed over a latent.")
    parser.add_argument(
        "--anchor_weight",
        type=float,
        default=0.5,
        help="Pulls three latent channels towards the picture's mean colours, which are learned late otherwise.",
    )
    parser.add_argument("--initial_logvar", type=float, default=-6.0, help="Of the posteriors.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--checkpointing_steps", type=int, default=250)
    parser.add_argument("--resume_from_checkpoint", choices=["latest"], default=None)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def initialize(vae: AutoencoderKL, initial_logvar: float) -> None:
    """Start from a network that passes colours through, with posteriors that leave them legible.

    With the usual random weights every convolution between two residual blocks weakens what came before it, and the
    first thousands of steps learn nothing but brightness.
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
    """Build the autoencoder that starts from random weights."""
    vae = AutoencoderKL(
        block_out_channels=tuple(args.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * len(args.block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        # Attention over all cells would see other sizes than in training on crops.
        mid_block_add_attention=False,
        # More groups leave so few channels in each that the norms take the colours away.
        norm_num_groups=args.norm_num_groups,
        sample_size=max(args.height, args.width),
    )
    initialize(vae, args.initial_logvar)
    return vae


def measure_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[float, float]:
    """Standard deviation of the latents, and the PSNR of the reconstruction in dB (pixels in [0, 1])."""
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
        decoded = vae.decode(latents).sample.clamp(-1, 1)
    psnr = -10 * ((decoded - pictures) / 2).square().flatten(1).mean(1).log10()
    return latents.std().item(), psnr.mean().item()


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise SystemExit("This script trains in one process: start it without `accelerate launch`.")
    if not 0 <= args.crop <= min(args.height, args.width):
        raise SystemExit(f"--crop must be from 0 to {min(args.height, args.width)}, got {args.crop}.")
    set_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.pretrained_vae) if args.pretrained_vae else create_autoencoder(args)
    dataset = PictureFolder(args.train_data_dir, (args.height, args.width), args.max_train_samples)
    loader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        shuffle=True,
        drop_last=len(dataset) >= args.train_batch_size,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    vae, optimizer, loader, scheduler = accelerator.prepare(vae, optimizer, loader, scheduler)

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    step = 0
    checkpoint, former = output / "checkpoint", output / "checkpoint.old"
    if former.exists() and not checkpoint.exists():
        os.replace(former, checkpoint)  # killed between the two moves below
    if checkpoint.exists() and not args.resume_from_checkpoint:
        raise SystemExit(f"{output} has a checkpoint: use --resume_from_checkpoint latest, or another --output_dir.")
    if args.resume_from_checkpoint and (checkpoint / "step.json").exists():
        accelerator.load_state(str(checkpoint))
        # The rate is this command's, not the checkpoint's.
        set_learning_rates(optimizer, scheduler.scheduler, [args.learning_rate])
        step = json.loads((checkpoint / "step.json").read_text())["step"]
        logger.info("Resuming at step %d.", step)

    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_main_process)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for pictures in batches:
        if step >= args.max_train_steps:
            break
        pictures = crop(pictures, args.crop) if args.crop else pictures
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        reconstruction = F.l1_loss(decoded, pictures)
        squared = F.mse_loss(decoded, pictures)
        colours = F.adaptive_avg_pool2d(pictures, posterior.mean.shape[2:])
        anchor = F.l1_loss(posterior.mean[:, :3], colours)
        loss = reconstruction + squared + args.anchor_weight * anchor + args.kl_weight * posterior.kl().mean()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"The loss is {loss.item()} at step {step}; the last checkpoint is in {checkpoint}.")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(vae.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        step += 1
        progress.update()
        progress.set_postfix(l1=f"{reconstruction.item():.4f}")
        if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
            if not all(torch.isfinite(weight).all() for weight in vae.parameters()):
                raise SystemExit(f"The weights broke within {step} steps: go on at a lower rate from {checkpoint}.")
            std, psnr = measure_latents(vae, pictures)
            logger.info("step %d: l1 %.4f, PSNR %.2f dB, latent std %.3f", step, reconstruction.item(), psnr, std)
            partial = output / "checkpoint.part"
            shutil.rmtree(partial, ignore_errors=True)
            accelerator.save_state(str(partial))
            (partial / "step.json").write_text(json.dumps({"step": step}))
            shutil.rmtree(former, ignore_errors=True)
            if checkpoint.exists():
                os.replace(checkpoint, former)
            os.replace(partial, checkpoint)
            shutil.rmtree(former, ignore_errors=True)

    vae.eval()
    sample = torch.stack([dataset[index] for index in range(0, len(dataset), max(1, len(dataset) // 256))])
    std, psnr = measure_latents(vae, sample.to(accelerator.device))
    vae.register_to_config(scaling_factor=1 / std)
    vae.save_pretrained(output / "vae")
    logger.info("Saved %s: PSNR %.2f dB, latent std %.3f.", output / "vae", psnr, std)


if __name__ == "__main__":
    with errors_as_one_sentence():
        main(parse_args())
