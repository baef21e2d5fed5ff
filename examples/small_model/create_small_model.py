#!/usr/bin/env python
"""Create a pipeline with the architecture of the small model that ships with the package, ready to be trained.

Everything but the autoencoder starts from random weights.
"""

import argparse

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
)
from diffusers_cfld.small_model import SMALL_MODEL

WIDTHS, DIM, LAYERS_PER_BLOCK = (128, 96, 128), 128, 1
TIME_EMBEDDING_DIM = 256
# For each cross-attention of the decoder. What a cell shows is decided where the cells are finest.
DECODER_TRANSFORMER_LAYERS = (1, 1, 3)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", default=None, help="Folder of the autoencoder; the shipped model's by default.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--height", type=int, default=128, help="Height of sources, pose maps and results, pixels.")
    parser.add_argument("--width", type=int, default=96, help="Width of sources, pose maps and results, pixels.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def create_pipeline(vae: AutoencoderKL, height: int, width: int) -> CFLDPipeline:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    num_blocks = len(WIDTHS)
    source_encoder = SwinImageEncoder(
        model_name="swin_tiny_patch4_window7_224",
        image_size=(height, width),
        window_size=4,
        embed_dim=32,
        depths=(2, 2, 6),
        num_heads=(1, 2, 4),
        drop_path_rate=0.0,
    )
    channels, stride = source_encoder.feature_channels, source_encoder.feature_strides[-1]
    # As in the published model, each feature map is used where the U-Net has its size, and the finest one is not used.
    appearance_encoder = AppearanceEncoder(
        feature_channels=channels[1:num_blocks],
        hidden_channels=(64, 64),
        query_channels=WIDTHS[: num_blocks - 1],
        num_attention_heads=(4, 4),
        num_layers=1,
        up_block_indices=tuple(reversed(range(1, num_blocks))),
        attentions_per_block=LAYERS_PER_BLOCK + 1,
        feature_stages=tuple(range(2, num_blocks + 1)),
    )
    for encoder in appearance_encoder.encoders:
        # Biases start at zero to protect a trained U-Net. Here that would only cost time.
        encoder.proj_in.reset_parameters()
        encoder.proj_out.reset_parameters()
    return CFLDPipeline(
        vae=vae,
        unet=UNet2DConditionModel(
            sample_size=(height // factor, width // factor),
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            block_out_channels=WIDTHS,
            layers_per_block=LAYERS_PER_BLOCK,
            down_block_types=(*("CrossAttnDownBlock2D",) * (num_blocks - 1), "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (num_blocks - 1)),
            transformer_layers_per_block=(1,) * num_blocks,
            reverse_transformer_layers_per_block=DECODER_TRANSFORMER_LAYERS,
            cross_attention_dim=DIM,
            attention_head_dim=4,
            norm_num_groups=8,
            time_embedding_dim=TIME_EMBEDDING_DIM,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
        source_encoder=source_encoder,
        prompt_decoder=PerceptionRefinedDecoder(
            num_queries=16,
            dim=DIM,
            num_attention_heads=4,
            num_layers=3,
            feature_channels=channels[-1],
            feature_size=(height // stride, width // stride),
        ),
        appearance_encoder=appearance_encoder,
        pose_adapter=PoseAdapter(block_out_channels=WIDTHS, unshuffle_factor=factor, norm_num_groups=8),
    )


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    if args.vae is None:
        vae = AutoencoderKL.from_pretrained(SMALL_MODEL, subfolder="vae", variant="fp16")
    else:
        vae = AutoencoderKL.from_pretrained(args.vae)
    pipeline = create_pipeline(vae, args.height, args.width)
    pipeline.save_pretrained(args.output_dir)
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            print(f"{name}: {sum(p.numel() for p in component.parameters()) / 1e6:.2f} M")


if __name__ == "__main__":
    main(parse_args())
