#!/usr/bin/env python
"""Train CFLD (Coarse-to-Fine Latent Diffusion, arXiv:2402.18078) for pose-guided person image synthesis.

Without options this is the paper's recipe (Sec. 3.3 and 4.1). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    send_to_device,
    set_seed,
)
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from huggingface_hub import ModelCard, ModelCardData, create_repo, hf_hub_download, upload_folder
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stream_pairs import SHARD_INDEX, StreamedPosePairs
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
    __version__,
)
from diffusers_cfld.data import (
    ImageDataset,
    PosePairDataset,
    SkipReport,
    UnreadableDataError,
    UnreadableImageError,
    collate_pose_pairs,
    init_worker,
    load_pairs,
    read_image,
    unique_images,
)
from diffusers_cfld.pipelines.model_card import output_size_option
from diffusers_cfld.script_errors import errors_as_one_sentence
from diffusers_cfld.training import (
    LEARNING_RATE_PER_PAIR,
    AlignmentMaps,
    CFLDTrainingModule,
    LatentCache,
    LossWeightMaps,
    Muon,
    cfld_loss,
    check_trainable_dtype,
    cubic_timesteps,
    digest_weights,
    double_batch,
    encode_moments,
    learning_rate_lambda,
    min_snr_weights,
    parameter_groups,
    pixel_metric,
    prediction_target,
    sample_latents,
    sample_pair_randomness,
    scaled_learning_rate,
    set_learning_rates,
    trainable_parameters,
    uniform_timesteps,
)

logger = get_logger("train_cfld", log_level="INFO")

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SWIN = "swin_base_patch4_window12_384.ms_in22k_ft_in1k"
PARTS = ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
LORA_FILE = "pytorch_lora_weights.safetensors"
PIPELINE_FILES = ("model_index.json", "README.md", LORA_FILE)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = argparse.BooleanOptionalAction

    group = parser.add_argument_group("starting weights")
    group.add_argument(
        "--pretrained_model_name_or_path",
        default=STABLE_DIFFUSION,
        help="Stable Diffusion 1.5, or a CFLD pipeline to go on from; a folder or a Hub id.",
    )
    group.add_argument("--revision", default=None, help="Revision of the model on the Hub.")
    group.add_argument("--variant", default=None, help="Variant of the model's files, e.g. fp16.")
    group.add_argument(
        "--source_encoder_name_or_path",
        default=SWIN,
        help="timm name of the Swin weights that S starts from. Not used with a CFLD pipeline, which has its own.",
    )
    group.add_argument("--source_encoder_checkpoint", default=None, help="Local file of these weights instead.")

    group = parser.add_argument_group("data")
    group.add_argument("--train_data_dir", required=True, help="Folder of the data set; of shards also a URL.")
    group.add_argument(
        "--dataset_format",
        choices=["auto", "deepfashion", "market1501", "folder", "shards"],
        default="auto",
        help="folder: with a pairs.jsonl. shards: from write_shards.py, streamed.",
    )
    group.add_argument("--max_train_samples", type=int, default=None, help="Train on this many pairs only.")
    group.add_argument(
        "--validation_data_dir",
        default=None,
        help="Folder of held-out pairs for the grids; without it they show pairs of the training.",
    )
    group.add_argument(
        "--validation_split",
        default=None,
        help="Part of --validation_data_dir: train or test of DeepFashion and Market-1501, by default test; of a "
        "folder with a pairs.jsonl its subfolder, by default none.",
    )
    group.add_argument(
        "--photo_shape",
        type=int,
        nargs=2,
        default=None,
        metavar=("HEIGHT", "WIDTH"),
        help="Shape of the photos, to which the pipeline pads others; default: the first one's, for shards that of "
        "the model which is trained on, or 256 176.",
    )
    group.add_argument("--flip_source_prob", type=float, default=0.0, help="0.5 as published: left and right blur.")
    group.add_argument(
        "--targets_per_source",
        type=int,
        default=1,
        help="Pairs of a batch that share their source, 1 in the paper. S, D and A run once for all of them: more "
        "pairs in the same time, of fewer people a step. A source without as many targets repeats some.",
    )
    group.add_argument("--cache_latents", action="store_true", help="Encode all pictures by the VAE once, ahead.")
    group.add_argument("--latent_cache_dir", default=None, help="Where to; OUTPUT_DIR/latents otherwise.")
    group.add_argument(
        "--dataloader_num_workers", type=int, default=4, help="Processes that decode and render, on each device."
    )

    group = parser.add_argument_group("what trains, on which objective")
    group.add_argument(
        "--train_unet",
        choices=["kv", "all"],
        default="kv",
        help="kv: keys and values of the biased layers (the paper). all: for a U-Net without pre-training.",
    )
    group.add_argument(
        "--unet_lora_rank", type=int, default=None, help="Train a LoRA of this rank there instead of keys and values."
    )
    group.add_argument("--unet_lora_alpha", type=int, default=None, help="The rank if not given.")
    group.add_argument("--freeze", nargs="*", choices=PARTS[1:], default=[], help="Parts that do not train.")
    group.add_argument(
        "--condition_dropout_prob",
        type=float,
        default=0.2,
        help="How often a sample loses its conditions, for guidance (the paper: 0.2).",
    )
    group.add_argument(
        "--dropped_conditions",
        choices=["all", "prompt"],
        default="all",
        help="all: as sampling leaves them out (the paper). prompt: as the published weights were trained.",
    )
    group.add_argument(
        "--timestep_sampling", choices=["cubic", "uniform"], default="cubic", help="cubic favours noise (the paper)."
    )
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction"],
        default=None,
        help="The model's own if not given; v_prediction weighs noisy timesteps more, for models from scratch.",
    )
    group.add_argument(
        "--snr_gamma", type=float, default=None, help="Min-SNR weighting of the loss; off if not given."
    )
    group.add_argument(
        "--reconstruction_loss_weight", type=float, default=1.0, help="0 trains the transfer only, in less time."
    )
    group.add_argument(
        "--transfer_loss_weight", type=float, default=1.0, help="Of source to target; the paper weighs both alike."
    )
    group.add_argument(
        "--loss_metric",
        choices=["latent", "pixel"],
        default="latent",
        help="latent: all channels of the latents count alike (the paper). pixel: by what they change in the picture, "
        "for autoencoders whose channels differ in that.",
    )
    group.add_argument(
        "--loss_weight_maps",
        metavar="FOLDER",
        default=None,
        help="Maps of the training pictures that say how much each cell of the latents counts, e.g. more for hands "
        "or garments: see diffusers_cfld.training.LossWeightMaps. All count alike if not given (the paper).",
    )
    group.add_argument(
        "--alignment_maps",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="Maps of the training pictures that features of the U-Net have to agree with, so that it learns faster "
        "(arXiv:2410.06940): see diffusers_cfld.training.AlignmentMaps. Not part of CFLD.",
    )
    group.add_argument(
        "--alignment_layer",
        nargs="+",
        default=["up_blocks.2.attentions.0"],
        metavar="NAME",
        help="Whose output these are, one layer for each folder.",
    )
    group.add_argument("--alignment_weight", type=float, default=0.1, help="Of the maps' squared error in the loss.")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--train_batch_size", type=int, default=8, help="Pairs per device; the U-Net sees twice that.")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches of an optimizer step.")
    group.add_argument("--num_train_epochs", type=int, default=100, help="Passes over the pairs (the paper: 100).")
    group.add_argument("--max_train_steps", type=int, default=None, help="Overrides the epochs.")
    group.add_argument(
        "--learning_rate", type=float, default=LEARNING_RATE_PER_PAIR, help="Of one pair with --scale_lr (the paper)."
    )
    group.add_argument(
        "--scale_lr", action=flag, default=True, help="Multiply the rate by the pairs of an optimizer step."
    )
    group.add_argument(
        "--learning_rate_multiplier",
        nargs="*",
        default=[],
        metavar="PART=FACTOR",
        help="Factors for single parts, e.g. source_encoder=0.1.",
    )
    group.add_argument(
        "--lr_scheduler",
        choices=["cfld", *(kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT)],
        default="cfld",
        help="cfld: warm-up, then steps down at --lr_decay_epochs (the paper).",
    )
    group.add_argument(
        "--lr_warmup_steps", type=int, default=1000, help="Over which the rate rises (the paper: 1000)."
    )
    group.add_argument(
        "--lr_warmup_start_factor", type=float, default=0.1, help="Of the rate, at the first step, with cfld."
    )
    group.add_argument("--lr_num_cycles", type=int, default=1, help="Hard restarts with cosine_with_restarts.")
    group.add_argument(
        "--lr_decay_epochs", type=int, nargs="*", default=[50], help="After which the rate steps down, with cfld."
    )
    group.add_argument("--lr_decay_factor", type=float, default=0.1, help="By which it does.")
    group.add_argument(
        "--optimizer",
        choices=["adamw", "muon"],
        default="adamw",
        help="adamw: the paper's Adam. muon: fewer steps for networks that start untrained, see "
        "diffusers_cfld.training.Muon.",
    )
    group.add_argument("--adam_beta1", type=float, default=0.9, help="Decay of the gradients' average.")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="Decay of the squared gradients' average.")
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="The paper trains with Adam: none.")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="Adam's term against division by zero.")
    group.add_argument("--use_8bit_adam", action="store_true", help="Needs bitsandbytes and CUDA.")
    group.add_argument("--max_grad_norm", type=float, default=None, help="The paper does not clip.")
    group.add_argument("--use_ema", action="store_true", help="Validate and save an average of the weights.")
    group.add_argument("--ema_decay", type=float, default=0.9999, help="The longest; it is shorter at first.")

    group = parser.add_argument_group("machine")
    group.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], default=None, help="accelerate's otherwise."
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="Less memory: activations are computed again in the backward.",
    )
    group.add_argument(
        "--allow_tf32", action="store_true", help="Faster float32 products on GPUs since Ampere, less exact."
    )
    group.add_argument(
        "--channels_last", action="store_true", help="Memory format of convolutions; try which is faster."
    )
    group.add_argument("--seed", type=int, default=3407, help="Fixes everything that is random.")

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="Folder for checkpoints, logs and the final pipeline.")
    group.add_argument("--logging_dir", default="logs", help="Under OUTPUT_DIR.")
    group.add_argument("--report_to", default="tensorboard", help="tensorboard, wandb, all or none.")
    group.add_argument("--tracker_project_name", default="cfld", help="Name of the run's project there.")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Save a checkpoint each so many steps.")
    group.add_argument(
        "--checkpoints_total_limit", type=int, default=None, help="Keep the newest so many; all if not given."
    )
    group.add_argument("--resume_from_checkpoint", default=None, help="A checkpoint's folder, or latest.")
    group.add_argument("--validation_steps", type=int, default=None, help="Draw a grid each so many steps.")
    group.add_argument("--num_validation_pairs", type=int, default=4, help="Pairs in the grid.")
    group.add_argument("--validation_inference_steps", type=int, default=20, help="Steps of its sampling.")
    group.add_argument("--validation_guidance_scale", type=float, default=2.0, help="Its guidance.")
    group.add_argument("--push_to_hub", action="store_true", help="Upload the final pipeline with a model card.")
    group.add_argument(
        "--hub_model_id", default=None, help="Repository; the name of OUTPUT_DIR in your account if not given."
    )
    group.add_argument("--hub_token", default=None, help="Better: log in with `hf auth login`.")

    args = parser.parse_args(arguments)
    if args.unet_lora_rank is not None and args.train_unet == "all":
        parser.error("--unet_lora_rank trains a LoRA instead of weights of the U-Net: leave out --train_unet all.")
    if args.use_8bit_adam and args.optimizer != "adamw":
        parser.error(f"--use_8bit_adam and --optimizer {args.optimizer} exclude each other: leave out one of them.")
    if not args.reconstruction_loss_weight and not args.transfer_loss_weight:
        parser.error("--reconstruction_loss_weight and --transfer_loss_weight are both 0: nothing would be learned.")
    if args.hub_token and ("wandb" in args.report_to or args.report_to == "all"):
        parser.error("wandb logs the command line with its --hub_token: log in with `hf auth login` instead.")
    for name, partner in (
        ("latent_cache_dir", "cache_latents"),
        ("validation_split", "validation_data_dir"),
        ("validation_data_dir", "validation_steps"),
        ("unet_lora_alpha", "unet_lora_rank"),
        ("ema_decay", "use_ema"),
        ("alignment_layer", "alignment_maps"),
        ("alignment_weight", "alignment_maps"),
        ("hub_model_id", "push_to_hub"),
    ):
        if getattr(args, name) != parser.get_default(name) and not getattr(args, partner):
            parser.error(f"--{name} is for --{partner}: give both or neither.")
    check_numbers(parser, args)
    is_index = Path(args.train_data_dir, SHARD_INDEX).is_file()
    if args.dataset_format == "auto" and (is_index or "://" in args.train_data_dir):
        args.dataset_format = "shards"
    if args.dataset_format == "shards":
        for name in (
            "cache_latents",
            "max_train_samples",
            "targets_per_source",
            "loss_metric",
            "loss_weight_maps",
            "alignment_maps",
        ):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} needs a list of files, not shards, which are read once from end to end.")
        if args.validation_steps and not args.validation_data_dir:
            parser.error("--validation_steps needs --validation_data_dir when the training data is in shards.")
    return args


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    least = dict.fromkeys(("lr_warmup_steps", "dataloader_num_workers", "seed"), 0)
    counts = (
        "train_batch_size",
        "lr_num_cycles",
        "targets_per_source",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_train_steps",
        "max_train_samples",
        "unet_lora_rank",
        "unet_lora_alpha",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "validation_steps",
        "num_validation_pairs",
        "validation_inference_steps",
    )
    for name, bound in {**least, **dict.fromkeys(counts, 1)}.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            parser.error(f"--{name} must be at least {bound}, got {value}.")
    if args.train_batch_size % args.targets_per_source:
        parser.error(
            f"--targets_per_source must divide --train_batch_size, got {args.targets_per_source} for "
            f"{args.train_batch_size}."
        )
    for name in ("condition_dropout_prob", "flip_source_prob"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"--{name} must be from 0 to 1, got {getattr(args, name)}.")
    if min(args.photo_shape or [1]) < 1:
        parser.error(f"--photo_shape must be two numbers of at least 1, got {args.photo_shape}.")
    if args.alignment_maps and len(args.alignment_maps) != len(args.alignment_layer):
        parser.error(
            f"--alignment_layer must name one layer for each of the {len(args.alignment_maps)} folders of "
            f"--alignment_maps, got {args.alignment_layer}."
        )
    for name in ("reconstruction_loss_weight", "transfer_loss_weight", "alignment_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be 0 or more, got {getattr(args, name)}.")
    if args.snr_gamma is not None and not 0 < args.snr_gamma < math.inf:
        parser.error(f"--snr_gamma must be above 0, got {args.snr_gamma}: without it nothing is weighed by it.")
    if args.lr_decay_epochs != sorted(args.lr_decay_epochs) or min(args.lr_decay_epochs, default=0) < 0:
        parser.error(f"--lr_decay_epochs must be 0 or more and ascend, got {args.lr_decay_epochs}.")
    if args.max_grad_norm is not None and not args.max_grad_norm > 0:
        parser.error(f"--max_grad_norm must be above 0, got {args.max_grad_norm}: without it nothing is clipped.")


def load_components(args: argparse.Namespace) -> dict[str, Any]:
    """Components of a pipeline, from one or made for a Stable Diffusion's U-Net."""
    path, options = args.pretrained_model_name_or_path, {"revision": args.revision, "variant": args.variant}
    config = DiffusionPipeline.load_config(path, revision=args.revision)
    # Not by the class's name: CFLDInpaintPipeline has the same components.
    if "source_encoder" in config:
        if args.source_encoder_checkpoint is not None:
            raise SystemExit(
                f"--source_encoder_checkpoint is for a Stable Diffusion, but {path} is a CFLD pipeline, which has its "
                "source encoder: leave it out."
            )
        pipeline = CFLDPipeline.from_pretrained(path, **options)
        fuse_lora(pipeline, path, args.revision)
        components = pipeline.components
        scheduler_config = components["scheduler"].config
    else:
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **options)
        scheduler_config = DDPMScheduler.load_config(path, subfolder="scheduler", revision=args.revision)
        widths, dim = unet.config.block_out_channels, unet.config.cross_attention_dim
        source_encoder = SwinImageEncoder.from_timm(
            args.source_encoder_name_or_path, checkpoint_path=args.source_encoder_checkpoint
        )
        channels = source_encoder.feature_channels
        stride = source_encoder.feature_strides[-1]
        components = {
            "vae": AutoencoderKL.from_pretrained(path, subfolder="vae", **options),
            "unet": unet,
            "source_encoder": source_encoder,
            "prompt_decoder": PerceptionRefinedDecoder(
                dim=dim,
                feature_channels=channels[-1],
                feature_size=tuple(side // stride for side in source_encoder.image_size),
            ),
            "appearance_encoder": AppearanceEncoder(feature_channels=channels[:3], query_channels=widths[:3]),
            "pose_adapter": PoseAdapter(block_out_channels=widths[:3]),
        }
    overrides = {} if args.prediction_type is None else {"prediction_type": args.prediction_type}
    components["scheduler"] = DDPMScheduler.from_config(scheduler_config, **overrides)
    return components


def fuse_lora(pipeline: CFLDPipeline, path: str, revision: str | None) -> None:
    """Add the LoRA that --unet_lora_rank has saved beside the pipeline, whose other parts were trained with it."""
    if os.path.isdir(path):
        file = os.path.join(path, LORA_FILE)
    else:
        try:
            file = hf_hub_download(path, LORA_FILE, revision=revision)
        except LocalEntryNotFoundError:
            logger.warning("The Hub cannot be asked whether a %s belongs to %s: begun without.", LORA_FILE, path)
            return
        except EntryNotFoundError:
            return
    if os.path.isfile(file):
        pipeline.load_lora_weights(os.path.dirname(file), weight_name=LORA_FILE)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        logger.info("Added %s to the U-Net.", file)


def add_lora(module: CFLDTrainingModule, rank: int, alpha: int | None) -> None:
    """Put a trainable LoRA on the keys and values that would train otherwise."""
    from peft import LoraConfig

    layers = [
        f"{name}.{projection}" for name in module.appearance_encoder.layer_names for projection in ("to_k", "to_v")
    ]
    module.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers))


def make_pipeline(args: argparse.Namespace, components: dict[str, Any], pairs: list) -> CFLDPipeline:
    """The pipeline, for photos of the shape that is trained on."""
    shape = args.photo_shape
    for pair in pairs if shape is None else []:
        try:
            picture = read_image(pair.source)
        except UnreadableImageError:
            continue
        shape = picture.height, picture.width
        break
    if shape is None:
        # Shards do not tell the photos' shape: that of the model which is trained on stays.
        start = DiffusionPipeline.load_config(args.pretrained_model_name_or_path, revision=args.revision)
        if "frame_height" not in start:
            return CFLDPipeline(**components)
        shape = start["frame_height"], start["frame_width"]
    return CFLDPipeline(**components, frame_height=shape[0], frame_width=shape[1])


def parse_multipliers(items: list[str]) -> dict[str, float]:
    try:
        return {name: float(factor) for name, factor in (item.split("=") for item in items)}
    except ValueError:
        raise SystemExit(f"--learning_rate_multiplier takes PART=FACTOR, got {' '.join(items)!r}.") from None


class ResumableSampler(DistributedSampler):
    """A process's share of the epoch's permutation, from some sample on: nothing is decoded to be skipped.

    What is permuted is groups of samples, which stay together.
    """

    first_group = 0

    def __init__(self, groups: list[list[int]], num_processes: int, process_index: int, seed: int) -> None:
        super().__init__(groups, num_processes, process_index, seed=seed, drop_last=True)
        self.groups = groups

    def __len__(self) -> int:
        return super().__len__() * len(self.groups[0])

    def resume(self, epoch: int, first_sample: int) -> None:
        """Iterate over this epoch from this sample on, which is the first of its group."""
        self.set_epoch(epoch)
        self.first_group = first_sample // len(self.groups[0])

    def __iter__(self) -> Iterator[int]:
        for group in itertools.islice(super().__iter__(), self.first_group, None):
            yield from self.groups[group]


def group_by_source(pairs: list, size: int) -> list[list[int]]:
    """Indices of pairs in groups of one source; a source whose targets make no whole number of groups repeats some."""
    if size == 1:
        return [[index] for index in range(len(pairs))]
    by_source: dict[Any, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_source.setdefault(pair.source, []).append(index)
    groups = []
    for indices in by_source.values():
        endless = itertools.cycle(indices)
        groups += [list(itertools.islice(endless, size)) for _ in range(0, len(indices), size)]
    return groups


def share_sources(batch: dict[str, torch.Tensor], pairs: list, size: int) -> dict[str, torch.Tensor]:
    """Keep one source of each group of pairs, and order the pairs so that pair j is of source j mod their number."""
    sources = [pairs[index].source for index in batch["index"].tolist()]
    # A pair of another source, read in the place of a broken one, gives way to the group's first.
    order = [
        number if source == sources[number - number % size] else number - number % size
        for number, source in enumerate(sources)
    ]
    order = torch.tensor(order).view(-1, size).T.flatten()
    shared = {name: tensor[order] for name, tensor in batch.items()}
    return {**shared, "source_image": shared["source_image"][: len(sources) // size]}


def make_loader(
    args: argparse.Namespace, accelerator: Accelerator, dataset: PosePairDataset | StreamedPosePairs
) -> DataLoader:
    """Not to be prepared by accelerate: the shares of the processes and the place to go on from are settled here."""
    sampler = None
    if isinstance(dataset, PosePairDataset):
        groups = group_by_source(dataset.pairs, args.targets_per_source)
        sampler = ResumableSampler(groups, accelerator.num_processes, accelerator.process_index, args.seed)
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        collate_fn=collate_pose_pairs,
        worker_init_fn=init_worker,
        pin_memory=accelerator.device.type == "cuda",
    )


def count_batches(loader: DataLoader) -> int:
    if isinstance(loader.dataset, StreamedPosePairs):
        return loader.dataset.num_batches(loader.batch_size, loader.num_workers)
    return len(loader)


def begin_epoch(loader: DataLoader, epoch: int, first_batch: int) -> Iterator[dict[str, Any]]:
    """The epoch's batches from this one on; a stream reads those before it once more."""
    loader.dataset.set_epoch(epoch)
    if isinstance(loader.dataset, StreamedPosePairs):
        return itertools.islice(loader, first_batch, None)
    loader.sampler.resume(epoch, first_batch * loader.batch_size)
    return iter(loader)


def autocast(accelerator: Accelerator) -> torch.autocast:
    """Mixed precision for what runs beside the training step; accelerate's own does nothing under DeepSpeed."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, dtype, enabled=dtype is not None)


def cache_latents(
    args: argparse.Namespace,
    accelerator: Accelerator,
    vae: AutoencoderKL,
    pairs: list,
    size: tuple[int, int],
    report: SkipReport,
) -> tuple[LatentCache, list]:
    """Encode every picture once; the main process writes, the others wait and read."""
    names = unique_images(pairs)
    folder = args.latent_cache_dir or os.path.join(args.output_dir, "latents")
    with accelerator.main_process_first():
        cache = LatentCache(folder, names, vae, size)
        missing = range(cache.num_encoded, len(names))
        if accelerator.is_main_process and missing:
            loader = DataLoader(
                torch.utils.data.Subset(ImageDataset(names, size), missing),
                batch_size=2 * args.train_batch_size,
                num_workers=args.dataloader_num_workers,
                collate_fn=collate_pose_pairs,
                worker_init_fn=init_worker,
            )
            # In the autoencoder's own precision, whatever the run's: another run may use them.
            for batch in tqdm(loader, desc="Encoding"):
                cache.append(encode_moments(vae, batch["pixel_values"]), dict(batch["skipped"]))
        # A disk may have been away when their turn came.
        for name in list(cache.unreadable) if accelerator.is_main_process else []:
            try:
                picture = ImageDataset([name], size)[0]
            except UnreadableDataError:
                continue
            cache.mend(name, encode_moments(vae, picture["pixel_values"][None]))
    if cache.num_encoded < len(names):
        raise SystemExit(
            f"{folder} has the latents of {cache.num_encoded} of {len(names)} pictures in process "
            f"{accelerator.process_index}: all machines must reach the folder in which the first one writes them."
        )
    if accelerator.is_main_process:
        report.update(cache.unreadable.items())
    return cache, [pair for pair in pairs if not cache.unreadable.keys() & {pair.source, pair.target}]


def estimate_metric(accelerator: Accelerator, vae: AutoencoderKL, pairs: list, size: tuple[int, int]) -> torch.Tensor:
    """The pixels' metric from 32 pictures from all over the list; alike in all processes and after a resume."""
    names = unique_images(pairs)
    pictures = ImageDataset(names[:: max(1, len(names) // 32)][:32], size)
    moments = [encode_moments(vae, picture["pixel_values"][None]).float() for picture in pictures]
    means = torch.cat(moments).chunk(2, dim=1)[0] * vae.config.scaling_factor
    metric = pixel_metric(vae, means, generator=torch.Generator().manual_seed(0))
    weights = ", ".join(f"{weight:.2f}" for weight in metric.diagonal().tolist())
    logger.info("Errors of the latents' channels weigh %s.", weights)
    return metric.to(accelerator.device)


def name_pictures(batch: dict[str, torch.Tensor], pairs: list) -> list[str]:
    """Files of a batch's sources, then of its targets."""
    chosen = [pairs[index] for index in batch["index"].tolist()]
    return [pair.source for pair in chosen] + [pair.target for pair in chosen]


def predicted(args: argparse.Namespace, half: int) -> slice:
    """Which of `half` reconstructions and as many transfers: what weighs nothing need not be predicted."""
    return slice(0 if args.reconstruction_loss_weight else half, None if args.transfer_loss_weight else half)


def training_loss(
    args: argparse.Namespace,
    model: torch.nn.Module,
    vae: AutoencoderKL,
    noise_scheduler: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    moments: torch.Tensor,
    epoch: int,
    *,
    metric: torch.Tensor | None = None,
    cell_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Eq. 6 on a batch of B pairs; moments and weights are those of the B pairs' sources, then of their targets."""
    channels, height, width = moments.shape[1] // 2, *moments.shape[2:]
    random = sample_pair_randomness(batch["index"], (channels, height, width), seed=args.seed, epoch=epoch)
    random = random.to(moments.device)
    latents = sample_latents(vae, moments, random.posterior_noise).float()
    doubled = double_batch(*latents.chunk(2), batch["source_pose_map"], batch["target_pose_map"])

    num_timesteps = noise_scheduler.config.num_train_timesteps
    if args.timestep_sampling == "cubic":
        timesteps = cubic_timesteps(random.timestep_uniform, num_timesteps)
    else:
        timesteps = uniform_timesteps(random.timestep_uniform, num_timesteps)
    noisy_latents = noise_scheduler.add_noise(doubled.latents, random.noise, timesteps)
    drop_mask = random.drop_uniform < args.condition_dropout_prob
    target = prediction_target(noise_scheduler, doubled.latents, random.noise, timesteps)

    asked = predicted(args, len(batch["index"]))
    prediction = target.clone()
    dtype = next(model.parameters()).dtype  # not float32 under DeepSpeed, which casts the models but not what they get
    prediction[asked] = model(
        batch["source_image"].to(dtype),
        doubled.pose_map[asked].to(dtype),
        noisy_latents[asked].to(dtype),
        timesteps[asked],
        drop_mask[asked],
    ).to(prediction.dtype)
    weights = None
    if args.snr_gamma is not None:
        weights = min_snr_weights(
            noise_scheduler.alphas_cumprod, timesteps, args.snr_gamma, noise_scheduler.config.prediction_type
        )
    return cfld_loss(
        prediction,
        target,
        reconstruction_weight=args.reconstruction_loss_weight,
        transfer_weight=args.transfer_loss_weight,
        sample_weights=weights,
        metric=metric,
        cell_weights=cell_weights,
    )


def alignment_loss(
    args: argparse.Namespace,
    module: CFLDTrainingModule,
    maps: Sequence[AlignmentMaps],
    pictures: list[str],
) -> torch.Tensor:
    """Mean squared error of the maps that the heads made of the last step's features, summed over the heads."""
    names, losses = pictures[predicted(args, len(pictures) // 2)], []
    for aligned, layer_maps in zip(module.aligned, maps, strict=True):
        expected = F.interpolate(layer_maps(names).to(aligned.device), aligned.shape[-2:], mode="area")
        losses.append(F.mse_loss(aligned.float(), expected))
    module.aligned = []
    return torch.stack(losses).sum()


@contextmanager
def averaged_weights(ema: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """The average in the models' place, for sampling and saving."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def choose_validation_pairs(pairs: list, number: int) -> list:
    """Some pairs from all over the list whose pictures can be read; broken ones are named now, not hours later."""
    chosen = []
    for pair in pairs[:: max(1, len(pairs) // number)]:
        try:
            for path in (pair.source, pair.target):
                read_image(path)
        except UnreadableImageError as error:
            logger.warning("Not among the validation pairs: %s", error)
            continue
        chosen.append(pair)
        if len(chosen) == number:
            return chosen
    if not chosen:
        raise SystemExit("No validation pair can be read: give others by --validation_data_dir.")
    return chosen


@torch.no_grad()
def log_validation(args: argparse.Namespace, accelerator: Accelerator, pipeline: CFLDPipeline, pairs: list, step: int):
    """A grid with one row per pair: source, pose, result, truth; and the results' mean PSNR."""
    pipeline.set_progress_bar_config(disable=True)
    height, width = pipeline.target_size
    rows, psnr = [], []
    for number, pair in enumerate(pairs):
        source, target = read_image(pair.source), read_image(pair.target)
        with autocast(accelerator):
            result = pipeline(
                image=source,
                pose=pair.target_keypoints,
                num_inference_steps=args.validation_inference_steps,
                guidance_scale=args.validation_guidance_scale,
                generator=torch.Generator().manual_seed(args.seed + number),
            ).images[0]
        pictures = (source, pair.target_keypoints.draw(), result, target)
        arrays = [np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC)) for picture in pictures]
        psnr.append(-10 * math.log10(max(((arrays[2] / 255.0 - arrays[3] / 255.0) ** 2).mean(), 1e-10)))
        rows.append(np.concatenate(arrays, axis=1))
    grid = np.concatenate(rows)
    folder = Path(args.output_dir) / "validation"
    folder.mkdir(exist_ok=True)
    PIL.Image.fromarray(grid).save(folder / f"step-{step:07d}.png")
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": grid[None]}, step=step, **options)
    mean = sum(psnr) / len(psnr)
    accelerator.log({"validation_psnr": mean}, step=step)
    logger.info("Step %d: PSNR of %d validation pairs %.2f dB.", step, len(psnr), mean)


def save_checkpoint(
    args: argparse.Namespace,
    accelerator: Accelerator,
    module: CFLDTrainingModule,
    ema: EMAModel | None,
    step: int,
    description: dict[str, Any],
) -> Path:
    """Write a checkpoint that is there completely or not at all, and drop the oldest ones."""
    folder = Path(args.output_dir)
    partial, final = folder / "checkpoint.part", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # each process writes a file of its own
    if accelerator.is_main_process:
        if ema is not None:
            names = trainable_parameters(module)
            averages = (tensor.contiguous() for tensor in ema.shadow_params)
            save_file(dict(zip(names, averages, strict=True)), partial / "ema.safetensors")
        state = {
            "step": step,
            "ema_step": None if ema is None else ema.optimization_step,
            **description,
        }
        (partial / "trainer_state.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        if args.checkpoints_total_limit is not None:
            for old in list_checkpoints(folder)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def describe_batches(args: argparse.Namespace, accelerator: Accelerator, batches_per_epoch: int) -> dict[str, int]:
    """What the place of a step in the data depends on."""
    names = ("train_batch_size", "gradient_accumulation_steps", "seed")
    batches = {"num_processes": accelerator.num_processes, **{name: getattr(args, name) for name in names}}
    batches["batches_per_epoch"] = batches_per_epoch
    if args.dataset_format == "shards":
        batches["dataloader_num_workers"] = args.dataloader_num_workers
    if args.targets_per_source > 1:
        batches["targets_per_source"] = args.targets_per_source
    return batches


def describe_trained(
    args: argparse.Namespace, module: CFLDTrainingModule, vae: AutoencoderKL, noise_scheduler: DDPMScheduler
) -> dict[str, Any]:
    """What the trained weights and their optimizer's state belong to, beside the names and shapes of these weights.

    Keys are options; the frozen weights stand for those that chose them, since a checkpoint does not have them.
    """
    frozen = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    frozen |= {f"vae.{name}": parameter for name, parameter in vae.named_parameters()}
    return {
        "optimizer": args.optimizer,
        "use_8bit_adam": args.use_8bit_adam,
        "alignment_layer": args.alignment_layer if args.alignment_maps else [],
        "prediction_type": noise_scheduler.config.prediction_type,
        "unet_lora_alpha": (args.unet_lora_alpha or args.unet_lora_rank) if args.unet_lora_rank else None,
        "pretrained_model_name_or_path": f"frozen weights {digest_weights(frozen)[:16]}",
    }


def collect_report(accelerator: Accelerator, report: SkipReport) -> None:
    """Bring what all processes skipped to the main one, whose report is the one that is saved and told."""
    others = gather_object([report.state_dict()])[1:]
    if accelerator.is_main_process:
        for state in others:
            report.merge(state)
    else:
        report.load_state_dict(SkipReport().state_dict())


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name, -1 for other names."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def find_checkpoint(args: argparse.Namespace, accelerator: Accelerator) -> Path | None:
    """The same one for all processes, or none."""
    if args.resume_from_checkpoint == "latest":
        found = [str(folder) for folder in list_checkpoints(Path(args.output_dir))[-1:]]
        (name,) = broadcast_object_list([*found, None][:1])
        if name is None:
            return None
    else:
        name = args.resume_from_checkpoint
    folder = Path(name)
    is_there = gather_object([(folder / "trainer_state.json").exists()])
    if not any(is_there):
        raise SystemExit(f"--resume_from_checkpoint must be latest or a checkpoint's folder, got {name!r}.")
    if not all(is_there):
        raise SystemExit(
            f"{is_there.count(False)} of {len(is_there)} processes do not see {name!r}: put it and --output_dir where "
            "all machines can read them."
        )
    return folder


def check_checkpoint(folder: Path, state: dict[str, Any], module: CFLDTrainingModule, trained: dict[str, Any]) -> None:
    """Refuse what cannot be gone on from with this run's options."""
    found, here = {}, {name: tuple(parameter.shape) for name, parameter in trainable_parameters(module).items()}
    file = folder / "trained.safetensors"
    if file.exists():
        with safe_open(file, framework="pt") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    differing = sorted(name for name in {**found, **here} if found.get(name) != here.get(name))
    if found and differing:
        raise SystemExit(
            f"In the run of {folder} other weights trained than in this one, {differing[0]!r} among {len(differing)}: "
            "give the same --train_unet, --unet_lora_rank, --freeze and --alignment_maps, or begin in another "
            "--output_dir from the weights of a finished run."
        )
    for name, value in trained.items():
        if state.get("trained", {}).get(name, value) != value:
            raise SystemExit(
                f"{folder} was made with --{name} {state['trained'][name]}, this run has {value}: give the same, or "
                "begin in another --output_dir from the weights of a finished run."
            )


def load_checkpoint(
    args: argparse.Namespace,
    accelerator: Accelerator,
    module: CFLDTrainingModule,
    ema: EMAModel | None,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR,
    description: dict[str, Any],
) -> int:
    """Go on from a checkpoint; returns its step."""
    folder = find_checkpoint(args, accelerator)
    if folder is None:
        logger.info("There is no checkpoint in %s yet: starting anew.", args.output_dir)
        return 0
    state = json.loads((folder / "trainer_state.json").read_text())
    later = [found for found in list_checkpoints(Path(args.output_dir)) if step_of(found) > state["step"]]
    if any(gather_object([bool(later)])):
        raise SystemExit(
            f"{args.output_dir} has checkpoints of later steps than {state['step']}, at which {folder} is, and the "
            "next resume would go on from them: move them elsewhere, or begin in another --output_dir."
        )
    check_checkpoint(folder, state, module, description["trained"])
    if accelerator.scaler is not None and not (folder / "scaler.pt").is_file():
        raise SystemExit(
            f"{folder} has no gradient scaler, since it was not made with --mixed_precision fp16: go on with the "
            "precision it was made with, or in bf16."
        )
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    accelerator.load_state(str(folder))
    # Rates and the like are those of this run's options, which --scale_lr may have made others than the checkpoint's.
    for group, options in zip(optimizer.param_groups, groups, strict=True):
        group.update(options)
    set_learning_rates(optimizer, lr_scheduler, [options["initial_lr"] for options in groups])
    # A checkpoint stands between two steps, also one that was left in the middle of an accumulation.
    accelerator.step = state["step"] * args.gradient_accumulation_steps
    has_averages = (folder / "ema.safetensors").exists()
    if ema is not None and has_averages:
        averages = load_file(folder / "ema.safetensors")
        ema.shadow_params = [averages[name].to(p.device) for name, p in trainable_parameters(module).items()]
        ema.optimization_step = state["ema_step"]
    elif ema is not None:
        logger.warning("%s has no averages: --use_ema begins them anew from its weights.", folder)
        ema.shadow_params = [p.detach().clone() for p in trainable_parameters(module).values()]
    elif has_averages:
        logger.warning("%s has averages, which are lost without --use_ema.", folder)
    batches = description["batches"]
    former = {"batches_per_epoch": batches["batches_per_epoch"], **state.get("batches", batches)}
    if former != batches:
        epochs = [
            state["step"] * one["gradient_accumulation_steps"] // one["batches_per_epoch"] for one in (former, batches)
        ]
        moved = f" It is now of epoch {epochs[1]}, not {epochs[0]}."
        logger.warning(
            "%s was made with %s, this run has %s: other pairs come next than would have come.%s",
            *(folder, former, batches, moved if epochs[0] != epochs[1] else ""),
        )
    logger.info("Resuming from %s.", folder)
    return state["step"]


def use_lean_checkpoints(accelerator: Accelerator, module: CFLDTrainingModule) -> None:
    """Let checkpoints hold what trains: the frozen weights can be had again from where they came."""

    def save(models: list, weights: list, output_dir: str) -> None:
        if accelerator.is_main_process:
            tensors = {name: p.detach().contiguous() for name, p in trainable_parameters(module).items()}
            save_file(tensors, os.path.join(output_dir, "trained.safetensors"))
        weights.clear()

    def load(models: list, input_dir: str) -> None:
        models.clear()
        module.load_state_dict(load_file(os.path.join(input_dir, "trained.safetensors")), strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def make_module(
    args: argparse.Namespace, components: dict[str, Any], maps: Sequence[AlignmentMaps] = ()
) -> CFLDTrainingModule:
    """Everything that trains, with gradients only where asked for."""
    module = CFLDTrainingModule(
        **{name: components[name] for name in PARTS}, dropped_conditions=args.dropped_conditions
    )
    module.set_trainable(unet="none" if args.unet_lora_rank else args.train_unet)
    for layer_name, layer_maps in zip(args.alignment_layer, maps, strict=False):
        module.add_alignment_head(layer_name, layer_maps.num_maps)
    for name in args.freeze:
        module.parts[name].requires_grad_(False)
    if args.unet_lora_rank:
        add_lora(module, args.unet_lora_rank, args.unet_lora_alpha)
    check_trainable_dtype(module)
    if args.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    if args.channels_last:
        module.to(memory_format=torch.channels_last)
    set_train_mode(args, module)
    return module


def set_train_mode(args: argparse.Namespace, module: CFLDTrainingModule) -> None:
    module.train()
    for name in args.freeze:
        module.parts[name].eval()


def make_optimizer(
    args: argparse.Namespace, module: CFLDTrainingModule, total_batch_size: int, num_processes: int
) -> torch.optim.Optimizer:
    learning_rate = args.learning_rate
    if args.scale_lr:
        learning_rate = scaled_learning_rate(total_batch_size, learning_rate)
    optimizer_class = torch.optim.AdamW
    if args.optimizer == "muon":
        optimizer_class = partial(Muon, share=num_processes > 1)
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as optimizer_class
        except ImportError:
            raise SystemExit("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes.") from None
    return optimizer_class(
        parameter_groups(
            dict(module.named_children()), learning_rate, parse_multipliers(args.learning_rate_multiplier)
        ),
        lr=learning_rate,  # of no group, but diffusers' polynomial schedule goes by it
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )


def make_lr_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, steps_per_epoch: float, max_train_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    if args.lr_scheduler == "polynomial" and args.lr_warmup_steps >= max_train_steps:
        raise SystemExit(
            f"--lr_warmup_steps must be less than the {max_train_steps} steps of the run with --lr_scheduler "
            f"polynomial, got {args.lr_warmup_steps}."
        )
    if args.lr_scheduler != "cfld":
        return get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=max_train_steps,
            num_cycles=args.lr_num_cycles,
        )
    factor_of_step = learning_rate_lambda(
        steps_per_epoch,
        num_warmup_steps=args.lr_warmup_steps,
        warmup_start_factor=args.lr_warmup_start_factor,
        decay_epochs=args.lr_decay_epochs,
        decay_factor=args.lr_decay_factor,
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor_of_step)


def has_finite_weights(accelerator: Accelerator, module: CFLDTrainingModule) -> bool:
    """Whether all processes' weights are numbers."""
    finite = all(torch.isfinite(parameter).all() for parameter in trainable_parameters(module).values())
    return all(gather_object([finite]))


def stop_at_nan(
    args: argparse.Namespace,
    accelerator: Accelerator,
    module: CFLDTrainingModule,
    ema: EMAModel | None,
    step: int,
    description: dict[str, Any],
    loss: float | None,
) -> None:
    """Leave a checkpoint, unless the weights are broken, and end the run."""
    what = f"{'The weights are not finite' if loss is None else f'The loss is {loss}'} after {step} steps"
    if loss is not None and has_finite_weights(accelerator, module):
        folder = Path(args.output_dir) / f"checkpoint-{step}"
        if not any(gather_object([folder.exists()])):  # else nothing has changed since
            save_checkpoint(args, accelerator, module, ema, step, description)
        where = f"the weights that gave it are in {folder}"
    else:
        what += "" if loss is None else ", and the weights are not finite either"
        good = list_checkpoints(Path(args.output_dir))
        where = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    accelerator.end_training()
    raise SystemExit(f"{what}; {where}.")


def main(args: argparse.Namespace) -> None:
    output = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            # An accumulation goes on across the end of an epoch: no optimizer step sees fewer pairs.
            num_steps=args.gradient_accumulation_steps,
            sync_with_dataloader=False,
        ),
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(str(output), str(output / args.logging_dir)),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The others wait while the first process fills the cache or samples, maybe for longer than is the default.
            *(
                [InitProcessGroupKwargs(timeout=timedelta(days=1))]
                if args.cache_latents or args.validation_steps
                else []
            ),
        ],
    )
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if is_sharded and (args.use_ema or args.validation_steps or args.unet_lora_rank or args.alignment_maps):
        raise SystemExit(
            "With FSDP and DeepSpeed no process has all weights in float32: leave out --use_ema, --validation_steps, "
            "--unet_lora_rank and --alignment_maps, or train with DDP."
        )
    if is_sharded and args.optimizer == "muon":
        raise SystemExit("--optimizer muon needs whole weights, which FSDP and DeepSpeed split: train with DDP.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    set_seed(args.seed)
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if list_checkpoints(output) and not args.resume_from_checkpoint:
        raise SystemExit(
            f"{output} has checkpoints of another run: go on from them with --resume_from_checkpoint latest, or name "
            "another --output_dir."
        )
    accelerator.wait_for_everyone()
    repo_id = None
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        if args.push_to_hub:
            # Before the training, not after it: what is wrong with name or token shows now.
            repo_id = create_repo(args.hub_model_id or output.name, token=args.hub_token, exist_ok=True).repo_id
    accelerator.wait_for_everyone()

    # 1. Models
    components = load_components(args)
    vae, noise_scheduler = components["vae"], components["scheduler"]
    maps = [AlignmentMaps(folder, args.train_data_dir) for folder in args.alignment_maps]
    loss_weights = LossWeightMaps(args.loss_weight_maps, args.train_data_dir) if args.loss_weight_maps else None
    module = make_module(args, components, maps)
    vae.requires_grad_(False).to(accelerator.device)
    pipeline = CFLDPipeline(**components)

    # 2. Data
    image_size, pose = pipeline.target_size, pipeline.pose_processor.config
    sizes = {
        "source_size": module.source_encoder.image_size,
        "image_size": image_size,
        "pose_size": (pose.height, pose.width),
    }
    report = SkipReport()
    cache, validation_pairs = None, []
    is_streamed = args.dataset_format == "shards"
    if is_streamed:
        dataset = StreamedPosePairs(
            args.train_data_dir,
            **sizes,
            flip_source_prob=args.flip_source_prob,
            seed=args.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        num_pairs = dataset.num_pairs
    else:
        pairs = load_pairs(args.train_data_dir, args.dataset_format, report=report)[: args.max_train_samples]
        validation_pairs = pairs
        if args.cache_latents:
            cache, pairs = cache_latents(args, accelerator, vae, pairs, image_size, report)
        dataset = PosePairDataset(
            pairs,
            **sizes,
            flip_source_prob=args.flip_source_prob,
            load_pixel_values=cache is None,
            seed=args.seed,
        )
        num_pairs = len(pairs)
        names = unique_images(pairs) if maps or loss_weights is not None else []
        for picture_maps in (*maps, *([] if loss_weights is None else [loss_weights])):
            picture_maps.find_rows(names)  # here, and not when a picture without maps has its turn
    metric = None
    if args.loss_metric == "pixel":
        metric = estimate_metric(accelerator, vae, pairs, image_size)
    pipeline = make_pipeline(args, components, validation_pairs)
    if args.validation_data_dir:
        validation_pairs = load_pairs(args.validation_data_dir, split=args.validation_split, default_split="test")
    elif args.validation_steps:
        logger.info("The validation grids show pairs of the training; --validation_data_dir gives others.")
    if args.validation_steps:
        validation_pairs = choose_validation_pairs(validation_pairs, args.num_validation_pairs)
    loader = make_loader(args, accelerator, dataset)
    batches_per_epoch = count_batches(loader)
    if not batches_per_epoch:
        raise SystemExit(
            f"{args.train_batch_size * accelerator.num_processes} pairs make a batch of all processes, but there are "
            f"{num_pairs}: lower --train_batch_size"
            + (" or --dataloader_num_workers, each of which makes batches of its own." if is_streamed else ".")
        )
    pairs_per_epoch = batches_per_epoch * args.train_batch_size * accelerator.num_processes
    if is_streamed and pairs_per_epoch < num_pairs:
        logger.info("Whole batches of all workers take %d of the %d pairs in an epoch.", pairs_per_epoch, num_pairs)

    # 3. Optimizer
    accumulation = args.gradient_accumulation_steps
    total_batch_size = args.train_batch_size * accelerator.num_processes * accumulation
    max_train_steps = args.max_train_steps or args.num_train_epochs * batches_per_epoch // accumulation
    if max_train_steps < 1:
        raise SystemExit(
            f"{args.num_train_epochs} epochs of {batches_per_epoch} batches make no step of {accumulation}: lower "
            "--gradient_accumulation_steps."
        )
    optimizer = make_optimizer(args, module, total_batch_size, accelerator.num_processes)
    lr_scheduler = make_lr_scheduler(args, optimizer, batches_per_epoch / accumulation, max_train_steps)

    # 4. Processes and checkpoints
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed has settings of its own, which accelerate would otherwise fill in: it clips to 1 by default.
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=args.train_batch_size,
            gradient_accumulation_steps=accumulation,
            gradient_clipping=args.max_grad_norm or 0.0,
        )
    description = {
        "batches": describe_batches(args, accelerator, batches_per_epoch),
        "trained": describe_trained(args, module, vae, noise_scheduler),
    }
    model, optimizer = accelerator.prepare(module, optimizer)
    # Not prepared, because it would step once per process; it has to be in the checkpoints all the same.
    accelerator.register_for_checkpointing(lr_scheduler, report)
    accelerator.register_save_state_pre_hook(lambda *_: collect_report(accelerator, report))
    if not is_sharded:
        use_lean_checkpoints(accelerator, module)
    trained = list(trainable_parameters(module).values())
    ema = EMAModel(trained, decay=args.ema_decay, foreach=True) if args.use_ema else None
    settings = {name: str(value) for name, value in vars(args).items() if name != "hub_token"}
    accelerator.init_trackers(args.tracker_project_name, config=settings)
    if args.report_to != "none" and accelerator.is_main_process and not accelerator.trackers:
        logger.warning("--report_to %s is not installed: nothing is logged to it.", args.report_to)
    step = 0
    if args.resume_from_checkpoint:
        step = load_checkpoint(args, accelerator, module, ema, optimizer, lr_scheduler, description)
    if not accelerator.is_main_process:
        report.load_state_dict(SkipReport().state_dict())  # what all processes have found or loaded alike
    logger.info("%d pairs, %d of them in an optimizer step, %d steps.", num_pairs, total_batch_size, max_train_steps)
    logger.info("%.1f M weights train.", sum(p.numel() for p in trained) / 1e6)

    # 5. Training
    progress = tqdm(
        total=max_train_steps, initial=step, disable=not accelerator.is_local_main_process, desc="Training"
    )
    micro_steps, mean_loss = step * accumulation, 0.0
    with module.training_attention():
        while step < max_train_steps:
            epoch, first_batch = divmod(micro_steps, batches_per_epoch)
            for batch in begin_epoch(loader, epoch, first_batch):
                report.update(batch.pop("skipped"))
                # For stochastic depth alone; everything else that is random is the pairs' own.
                torch.manual_seed(args.seed + micro_steps * accelerator.num_processes + accelerator.process_index)
                if args.targets_per_source > 1:
                    batch = share_sources(batch, dataset.pairs, args.targets_per_source)
                # Shards have no files, and nothing that is looked up by them.
                pictures = [] if is_streamed else name_pictures(batch, dataset.pairs)
                batch = send_to_device(batch, accelerator.device, non_blocking=True)
                if cache is None:
                    pixel_values = torch.cat([batch["source_pixel_values"], batch["target_pixel_values"]])
                    with autocast(accelerator):
                        moments = encode_moments(vae, pixel_values).float()
                else:
                    moments = cache(pictures).to(accelerator.device)
                cell_weights = None
                if loss_weights is not None:
                    cell_weights = loss_weights(pictures).to(accelerator.device)
                with accelerator.accumulate(model):
                    weights = {"metric": metric, "cell_weights": cell_weights}
                    loss = training_loss(args, model, vae, noise_scheduler, batch, moments, epoch, **weights)
                    if maps:
                        loss = loss + args.alignment_weight * alignment_loss(args, module, maps, pictures)
                    mean_of_processes = accelerator.reduce(loss.detach(), reduction="mean").item()
                    if not math.isfinite(mean_of_processes):
                        stop_at_nan(args, accelerator, module, ema, step, description, mean_of_processes)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and args.max_grad_norm is not None:
                        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                    optimizer.step()
                    if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                        lr_scheduler.step()
                    optimizer.zero_grad()
                micro_steps += 1
                mean_loss += mean_of_processes / accumulation
                if not accelerator.sync_gradients:
                    continue

                step += 1
                if ema is not None:
                    ema.step(trained)
                logs = {"loss": mean_loss, "lr": lr_scheduler.get_last_lr()[0]}
                mean_loss = 0.0
                progress.update()
                progress.set_postfix(loss=f"{logs['loss']:.4f}", lr=f"{logs['lr']:.2e}")
                accelerator.log(logs, step=step)
                if step % args.checkpointing_steps == 0 or step == max_train_steps:
                    # Gradients can break them without the loss having told.
                    if not has_finite_weights(accelerator, module):
                        stop_at_nan(args, accelerator, module, ema, step, description, None)
                    save_checkpoint(args, accelerator, module, ema, step, description)
                if args.validation_steps and (step % args.validation_steps == 0 or step == max_train_steps):
                    if accelerator.is_main_process:
                        module.eval()
                        with averaged_weights(ema, trained):
                            log_validation(args, accelerator, pipeline, validation_pairs, step)
                        set_train_mode(args, module)
                    accelerator.wait_for_everyone()
                if step == max_train_steps:
                    break
    progress.close()

    # 6. Results
    collect_report(accelerator, report)
    if len(report):
        logger.info(report.summary())
    if is_sharded:
        weights = accelerator.get_state_dict(model)
        if accelerator.is_main_process:
            components = load_components(args)
            pipeline = make_pipeline(args, components, validation_pairs)
            whole = make_module(args, components)
            # What is frozen stays as it came: here it may have been rounded, by DeepSpeed to 16 bits.
            whole.load_state_dict({name: weights[name] for name in trainable_parameters(whole)}, strict=False)
    if accelerator.is_main_process:
        module.eval()
        with averaged_weights(ema, trained):
            card = make_model_card(args, pipeline, repo_id, num_pairs, total_batch_size, step)
            save_pipeline(args, pipeline, card, repo_id, step)
    accelerator.end_training()


def make_model_card(
    args: argparse.Namespace,
    pipeline: CFLDPipeline,
    repo_id: str | None,
    num_pairs: int,
    total_batch_size: int,
    num_steps: int,
) -> ModelCard:
    """What the weights are and how they were made: facts alone, and room for what only their maker knows."""
    base = args.pretrained_model_name_or_path
    data = ModelCardData(
        base_model=None if os.path.isdir(base) else base,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers", "diffusers-cfld", "diffusers-training", "pose-transfer"],
    )
    location = repo_id or Path(args.output_dir).name
    data_name, lora, load_lora = Path(args.train_data_dir).name, "", ""
    if args.unet_lora_rank:
        lora = f"`{LORA_FILE}` (rank {args.unet_lora_rank}) belongs to it."
        load_lora = f'\npipe.load_lora_weights("{location}")'
    output_size = output_size_option(pipeline.target_size, pipeline.image_shape)
    options = {name: value for name, value in sorted(vars(args).items()) if name != "hub_token"}
    rows = "\n".join(f"| `{name}` | `{value}` |" for name, value in options.items())
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {location}: pose-guided person image synthesis

[CFLD](https://arxiv.org/abs/2402.18078), trained from `{base}` on {num_pairs:,} pairs of `{data_name}`:
{num_steps:,} steps of {total_batch_size} pairs, with `train_cfld.py` of `diffusers-cfld` {__version__}. {lora}

```python
from diffusers_cfld import CFLDPipeline

pipe = CFLDPipeline.from_pretrained("{location}"){load_lora}
image = pipe(image=photo, pose=keypoints{output_size}).images[0]
```

## Intended use, limits, evaluation

Not written yet: say what the data shows and may be used for, and what was measured. A result shows a person's likeness
doing what they did not do: get the consent of whoever is in the photo and say that the image is synthetic.

## Options of the training

| option | value |
|---|---|
{rows}
"""
    )


def save_pipeline(
    args: argparse.Namespace, pipeline: CFLDPipeline, card: ModelCard, repo_id: str | None, num_steps: int
) -> None:
    """The final pipeline with its card, and with --unet_lora_rank the LoRA beside it."""
    output = Path(args.output_dir)
    if args.channels_last:
        for name in PARTS:
            getattr(pipeline, name).to(memory_format=torch.contiguous_format)
    if args.unet_lora_rank:
        from peft.utils import get_peft_model_state_dict

        CFLDPipeline.save_lora_weights(
            output,
            unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
            # Without its configuration a LoRA is loaded as if alpha were the rank.
            unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
        )
        pipeline.unload_lora_weights()
    else:
        (output / LORA_FILE).unlink(missing_ok=True)  # of an earlier run, whose it would be taken for
    pipeline.save_pretrained(output)
    card.save(output / "README.md")
    if repo_id is not None:
        upload_folder(
            repo_id=repo_id,
            folder_path=output,
            commit_message=f"After {num_steps} steps",
            # Not the checkpoints and logs, and not the validation grids, which show the data set's own photos.
            allow_patterns=[*(f"{name}/*" for name in pipeline.components), *PIPELINE_FILES],
            delete_patterns=None if args.unet_lora_rank else [LORA_FILE],
            token=args.hub_token,
        )
    logger.info("Saved %s.", output)


if __name__ == "__main__":
    with errors_as_one_sentence():
        main(parse_args())
