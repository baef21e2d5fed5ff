#!/usr/bin/env python
"""Put together the untrained pipeline from which the small model that ships with the package was trained.

Everything but the autoencoder starts from random weights, or all but S and D with `--source_encoder_from`, or A alone
with `--all_but_biases_from`, or none of it with `--all_from`; `train_autoencoder.py` makes the autoencoder.
Transformer layers that the U-Net to start from does not have begin as if they were not there. Where it is half as
wide, each channel becomes two that are read in random shares, so that at first they do together what the one did; the
few normalisations of channels of different widths side by side give nearly what they gave. Attention that it has where
the cells are coarsest is left out.
"""

import argparse
import re

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
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
TIME_EMBEDDING_DIM = 256  # four times the finest width before that was doubled
# Of each cross-attention of the decoder; what a cell shows is decided where the cells are finest.
DECODER_TRANSFORMER_LAYERS = (1, 1, 3)
# Where there are 4 x 3 cells attention had learned nothing that showed; a U-Net to start from may have it.
LEFT_OUT = ("mid_block.attentions", "mid_block.resnets.1", "down_blocks.2.attentions", "up_blocks.0.attentions")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", default=None, help="Folder of the autoencoder; the shipped model's if not given.")
    taught = parser.add_mutually_exclusive_group()
    taught.add_argument(
        "--source_encoder_from",
        default=None,
        help="Folder of a pipeline to take S and D from (pretrain_source_encoder.py writes one); random if not given.",
    )
    taught.add_argument(
        "--all_but_biases_from",
        default=None,
        help="Folder of a pipeline to take S, D, P and the U-Net from; the biases start at zero.",
    )
    taught.add_argument("--all_from", default=None, help="Folder of a pipeline to take S, D, A, P and the U-Net from.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--height", type=int, default=128, help="Of sources, pose maps and results, pixels.")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without_query_biases",
        action="store_true",
        help="For the ablation: leave the query biases at zero; train with --freeze appearance_encoder.",
    )
    parser.add_argument(
        "--without_refinement",
        action="store_true",
        help="For the ablation: a decoder without blocks, whose prompt is the same for every source.",
    )
    return parser.parse_args(arguments)


@torch.no_grad()
def skip_new_layers(unet: UNet2DConditionModel, taught: UNet2DConditionModel) -> None:
    """Let the transformer layers that only `unet` has add nothing at first."""
    known = {name for name, _ in taught.named_modules()}
    unknown = {name for name in known if not name.startswith(LEFT_OUT)} - {name for name, _ in unet.named_modules()}
    if unknown:
        raise SystemExit(f"The U-Net to start from has a layer that the small model has not: {min(unknown)}.")
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock) and name not in known:
            for layer in (module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[-1]):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)


def spread(old: int, new: int) -> torch.Tensor:
    """Which channel each of `new` channels is the twin of; in front, some may have no twin."""
    single = 2 * old - new
    if not 0 <= single < old:
        raise SystemExit(f"Only as many or twice as many channels can be made of {old}, not {new}.")
    return torch.cat([torch.arange(single), torch.arange(single, old).repeat_interleave(2)])


@torch.no_grad()
def widen(taught: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights for `model` from those of one that has half as many channels in some places."""
    widened, wide = {}, model.state_dict()
    for name, old in taught.items():
        new = wide.get(name)
        if new is None or new.shape == old.shape:
            widened[name] = old
            continue
        if name == "time_embedding.linear_1.weight":
            # Of twice as many frequencies every other one is an old one.
            widened[name] = torch.zeros_like(new)
            widened[name][:, ::2] = old
            continue
        value = old
        if new.shape[0] != old.shape[0]:
            value = value[spread(old.shape[0], new.shape[0])]
            if re.search(r"attn\d\.to_q\.|^encoders\.\d+\.proj_out\.", name):
                # The sum over twice the channels doubles; attention divides it by the root of their number.
                value = value / 2**0.5
        if new.ndim > 1 and new.shape[1] != old.shape[1]:
            count, single = old.shape[1], 2 * old.shape[1] - new.shape[1]
            # Never halves: twins that are read alike would stay alike.
            share = 0.5 + 0.3 * (2 * torch.rand(new.shape[0], count - single) - 1)
            shares = torch.cat([torch.ones(new.shape[0], single), torch.stack([share, 1 - share], 2).flatten(1)], 1)
            value = value[:, spread(count, new.shape[1])] * shares.reshape(*shares.shape, *[1] * (new.ndim - 2))
        widened[name] = value
    return widened


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    if args.vae is None:
        vae = AutoencoderKL.from_pretrained(SMALL_MODEL, subfolder="vae", variant="fp16")
    else:
        vae = AutoencoderKL.from_pretrained(args.vae)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    num_blocks = len(WIDTHS)
    source_encoder = SwinImageEncoder(
        model_name="swin_tiny_patch4_window7_224",
        image_size=(args.height, args.width),
        window_size=4,
        embed_dim=32,
        depths=(2, 2, 6),
        num_heads=(1, 2, 4),
        drop_path_rate=0.0,
    )
    channels = source_encoder.feature_channels
    stride = source_encoder.feature_strides[-1]
    # As in the published geometry: each map of S goes where the U-Net works at its size, the finest one nowhere.
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
    if not args.without_query_biases:
        # The zero start protects a trained U-Net, for which one zero is enough, and costs time.
        for encoder in appearance_encoder.encoders:
            encoder.proj_in.reset_parameters()
            if not args.all_but_biases_from:
                encoder.proj_out.reset_parameters()
    pipeline = CFLDPipeline(
        vae=vae,
        unet=UNet2DConditionModel(
            sample_size=(args.height // factor, args.width // factor),
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
            num_layers=0 if args.without_refinement else 3,
            feature_channels=channels[-1],
            feature_size=(args.height // stride, args.width // stride),
        ),
        appearance_encoder=appearance_encoder,
        pose_adapter=PoseAdapter(block_out_channels=WIDTHS, unshuffle_factor=factor, norm_num_groups=8),
    )
    names = ["source_encoder", *([] if args.without_refinement else ["prompt_decoder"])]
    if args.all_but_biases_from or args.all_from:
        names += ["unet", "pose_adapter"]
    if args.all_from:
        names.append("appearance_encoder")
    folder = args.source_encoder_from or args.all_but_biases_from or args.all_from
    if folder:
        taught = CFLDPipeline.from_pretrained(folder)
        if "unet" in names:
            skip_new_layers(pipeline.unet, taught.unet)
        for name in names:
            component = getattr(pipeline, name)
            weights = widen(getattr(taught, name).state_dict(), component)
            component.load_state_dict(weights, strict=name != "unet")
    pipeline.save_pretrained(args.output_dir)
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            print(f"{name}: {sum(p.numel() for p in component.parameters()) / 1e6:.2f} M")


if __name__ == "__main__":
    main(parse_args())
