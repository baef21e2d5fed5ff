#!/usr/bin/env python
"""Train CFLD (Coarse-to-Fine Latent Diffusion, arXiv:2402.18078) for pose-guided person image synthesis.

The defaults are the paper's recipe (Sec. 3.3 and 4.1). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.logging import get_logger
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    send_to_device,
    set_seed,
)
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from stream_pairs import SHARD_INDEX, StreamedPosePairs
from torch.utils.data import DataLoader, DistributedSampler, Subset
from tqdm.auto import tqdm

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    Keypoints,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
    __version__,
)
from diffusers_cfld.data import (
    ImageDataset,
    PosePair,
    PosePairDataset,
    SkipReport,
    collate_pose_pairs,
    init_worker,
    load_pairs,
    read_image_size,
    read_padded,
    unique_images,
)
from diffusers_cfld.image_utils import unsquash_size
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.io_utils import lock_folder
from diffusers_cfld.training import (
    LEARNING_RATE_PER_PAIR,
    CFLDTrainingModule,
    LatentCache,
    cfld_loss,
    cubic_timesteps,
    encode_moments,
    get_cfld_schedule,
    loss_terms,
    sample_latents,
    sample_pair_randomness,
    scaled_learning_rate,
    trainable_parameters,
)

logger = get_logger("train_cfld", log_level="INFO")

PARTS = ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
LORA_FILE = "pytorch_lora_weights.safetensors"


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    group = parser.add_argument_group("starting weights")
    group.add_argument(
        "--pretrained_model_name_or_path",
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help="Stable Diffusion 1.5, or a CFLD pipeline to train further: a folder or a Hub id.",
    )
    group.add_argument("--revision", help="Revision of the model on the Hub.")
    group.add_argument("--variant", help="Variant of the model files, e.g. fp16.")
    group.add_argument(
        "--source_encoder_name_or_path",
        default="swin_base_patch4_window12_384.ms_in22k_ft_in1k",
        help="timm name of the Swin weights for S. Not used if you start from a CFLD pipeline, which has its own.",
    )
    group.add_argument("--source_encoder_checkpoint", help="Local file with these weights.")

    group = parser.add_argument_group("data")
    group.add_argument("--train_data_dir", required=True, help="Folder of the data set; for shards also a URL.")
    group.add_argument(
        "--dataset_format",
        choices=["auto", "deepfashion", "market1501", "folder", "shards"],
        default="auto",
        help="folder: one with a pairs.jsonl. shards: those of write_shards.py, streamed.",
    )
    group.add_argument("--max_train_samples", type=int, help="Train on only this many pairs, the first ones.")
    group.add_argument(
        "--validation_data_dir",
        help="Folder of held-out pairs for the validation images; by default training pairs are used.",
    )
    group.add_argument(
        "--validation_split",
        help="Split of --validation_data_dir: for DeepFashion and Market-1501 train or test, by default test; for a "
        "folder with a pairs.jsonl the name of a subfolder, by default none.",
    )
    group.add_argument(
        "--resolution",
        type=int,
        help="Side in pixels of the squares that images are squashed to; by default that of the starting model.",
    )
    group.add_argument(
        "--photo_shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="Size whose aspect ratio all images are padded to, here and by the pipeline. Default: the size of the "
        "first image; with shards, that of the starting model, or 256 176.",
    )
    group.add_argument(
        "--flip_source_prob",
        type=probability,
        default=0.0,
        help="Probability of mirroring the source image. Published: 0.5, with which left and right get mixed up.",
    )
    group.add_argument("--cache_latents", action="store_true", help="Encode all images with the VAE beforehand.")
    group.add_argument("--latent_cache_dir", help="Folder for cached latents; OUTPUT_DIR/latents by default.")
    group.add_argument(
        "--dataloader_num_workers", type=int, default=4, help="Processes that load data, per device; 0 for none."
    )

    group = parser.add_argument_group("what to train, and for which objective")
    group.add_argument(
        "--train_unet",
        choices=["kv", "all"],
        default="kv",
        help="kv: keys and values of the biased layers (the paper). all: everything, without pre-training.",
    )
    group.add_argument("--unet_lora_rank", type=int, help="Train a LoRA of this rank instead of keys and values.")
    group.add_argument("--freeze", nargs="*", choices=PARTS[1:], default=[], help="Parts that do not train.")
    group.add_argument(
        "--condition_dropout_prob",
        type=probability,
        default=0.2,
        help="Probability that a sample loses its conditions, for guidance (the paper: 0.2).",
    )
    group.add_argument(
        "--dropped_conditions",
        choices=["all", "prompt"],
        default="all",
        help="all: those that guidance leaves out (the paper). prompt: as in the published training.",
    )
    group.add_argument(
        "--timestep_sampling",
        choices=["cubic", "uniform"],
        default="cubic",
        help="cubic: favours noisy timesteps (the paper).",
    )
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction"],
        help="What the U-Net predicts; by default as in the starting model.",
    )
    group.add_argument("--snr_gamma", type=float, help="Gamma of Min-SNR weighting; off by default.")
    group.add_argument(
        "--reconstruction_loss_weight",
        type=float,
        default=1.0,
        help="Weight of the self-reconstruction; 0 trains only the transfer, in less time.",
    )

    group = parser.add_argument_group("optimization")
    group.add_argument("--train_batch_size", type=int, default=8, help="Pairs per device; the U-Net sees twice that.")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimizer step.")
    group.add_argument("--num_train_epochs", type=int, default=100, help="Passes over the pairs (the paper: 100).")
    group.add_argument("--max_train_steps", type=int, help="Optimizer steps, instead of the epochs.")
    group.add_argument(
        "--learning_rate",
        type=float,
        default=LEARNING_RATE_PER_PAIR,
        help="Learning rate; with --scale_lr, that for a batch of one pair (the paper: 5e-7).",
    )
    group.add_argument(
        "--scale_lr",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Multiply the learning rate by the number of pairs per optimizer step (the paper).",
    )
    group.add_argument(
        "--lr_scheduler",
        choices=["cfld", *(kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT)],
        default="cfld",
        help="cfld: warm-up, then steps down at --lr_decay_epochs (the paper).",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=1000, help="Steps of the warm-up (the paper: 1000).")
    group.add_argument(
        "--lr_decay_epochs",
        type=int,
        nargs="*",
        default=[50],
        help="Epochs after which the learning rate steps down, with --lr_scheduler cfld.",
    )
    group.add_argument("--lr_decay_factor", type=float, default=0.1, help="Factor of each step down.")
    group.add_argument("--adam_beta1", type=float, default=0.9, help="Adam's decay of the average of gradients.")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="Adam's decay of the squares' average.")
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="Adam's weight decay (the paper: none).")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="Adam's epsilon.")
    group.add_argument("--use_8bit_adam", action="store_true", help="Use 8-bit Adam; needs bitsandbytes and CUDA.")
    group.add_argument("--max_grad_norm", type=float, help="Clip gradients to this norm (the paper: not at all).")
    group.add_argument("--use_ema", action="store_true", help="Validate and save an average of the weights.")
    group.add_argument("--ema_decay", type=float, default=0.9999, help="Decay of this average; lower at the start.")

    group = parser.add_argument_group("machine")
    group.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], help="Precision; by default as accelerate is configured."
    )
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="Compute activations twice: less memory, more time."
    )
    group.add_argument(
        "--allow_tf32", action="store_true", help="Faster but less exact matrix products on GPUs since Ampere."
    )
    group.add_argument("--seed", type=int, default=3407, help="Seed of all random numbers.")

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="Folder for checkpoints, logs and the final pipeline.")
    group.add_argument("--logging_dir", default="logs", help="Folder of the logs, within OUTPUT_DIR.")
    group.add_argument("--report_to", default="tensorboard", help="tensorboard, wandb, all or none.")
    group.add_argument("--tracker_project_name", default="cfld", help="Name of the project in the tracker.")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between two checkpoints.")
    group.add_argument("--checkpoints_total_limit", type=int, help="Keep only this many, the newest; by default all.")
    group.add_argument("--resume_from_checkpoint", help="Folder of a checkpoint, or 'latest'.")
    group.add_argument(
        "--export",
        action="store_true",
        help="Do not train: write the checkpoint (by default the latest) as a pipeline.",
    )
    group.add_argument("--validation_steps", type=int, help="Steps between two validations.")
    group.add_argument("--num_validation_pairs", type=int, default=4, help="Number of validation pairs.")
    group.add_argument(
        "--validation_inference_steps", type=int, default=20, help="Sampling steps of a validation image."
    )
    group.add_argument("--push_to_hub", action="store_true", help="Upload the final pipeline with its model card.")
    group.add_argument("--hub_model_id", help="Hub repository; by default the name of OUTPUT_DIR.")
    group.add_argument("--hub_token", help="Hub token; it is safer to log in with `hf auth login`.")

    args = parser.parse_args(input_args)
    if args.dataset_format == "auto" and (
        "://" in args.train_data_dir or Path(args.train_data_dir, SHARD_INDEX).exists()
    ):
        args.dataset_format = "shards"
    if args.dataset_format == "shards" and (args.cache_latents or args.max_train_samples):
        parser.error("--cache_latents and --max_train_samples cannot be used with shards: leave them out.")
    if args.dataset_format == "shards" and args.validation_steps and not args.validation_data_dir:
        parser.error("With shards, --validation_steps needs --validation_data_dir.")
    if args.unet_lora_rank is not None and args.train_unet == "all":
        parser.error("--unet_lora_rank and --train_unet all cannot be used together: choose one.")
    if args.resolution is not None and (args.resolution < 8 or args.resolution % 8):
        parser.error(f"--resolution must be a multiple of 8, got {args.resolution}.")
    if args.export:
        args.resume_from_checkpoint = args.resume_from_checkpoint or "latest"
    if args.hub_token is not None and args.report_to in ("wandb", "all"):
        parser.error("wandb would log --hub_token with the command line: log in with `hf auth login` instead.")
    return args


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def load_pipeline(args: argparse.Namespace) -> CFLDPipeline:
    """Load a CFLD pipeline to train further, or create one from the U-Net and the VAE of Stable Diffusion."""
    name, options = args.pretrained_model_name_or_path, {"revision": args.revision, "variant": args.variant}
    # Not by the name of the class, because CFLDInpaintPipeline has the same components.
    if "source_encoder" in DiffusionPipeline.load_config(name, revision=args.revision):
        pipeline = CFLDPipeline.from_pretrained(name, **options)
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        try:
            pipeline.load_lora_weights(name, weight_name=LORA_FILE, revision=args.revision, use_safetensors=True)
        except OSError:
            logger.info("%s has no %s.", name, LORA_FILE)
        else:
            # --unet_lora_rank saved it beside the pipeline, and the other parts were trained with it.
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
    else:
        try:
            source_encoder = SwinImageEncoder.from_timm(
                args.source_encoder_name_or_path, checkpoint_path=args.source_encoder_checkpoint
            )
        except OSError as error:
            raise OSError(
                f"The Swin weights '{args.source_encoder_checkpoint or args.source_encoder_name_or_path}' cannot be "
                f"loaded: download them and pass the file with --source_encoder_checkpoint. ({error})"
            ) from error
        unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **options)
        widths = unet.config.block_out_channels[:3]
        *channels, last_channels = source_encoder.feature_channels
        stride = source_encoder.feature_strides[-1]
        pipeline = CFLDPipeline(
            vae=AutoencoderKL.from_pretrained(name, subfolder="vae", **options),
            unet=unet,
            scheduler=DDPMScheduler.from_pretrained(name, subfolder="scheduler", revision=args.revision),
            source_encoder=source_encoder,
            prompt_decoder=PerceptionRefinedDecoder(
                dim=unet.config.cross_attention_dim,
                feature_channels=last_channels,
                feature_size=tuple(side // stride for side in source_encoder.image_size),
            ),
            appearance_encoder=AppearanceEncoder(feature_channels=channels, query_channels=widths),
            pose_adapter=PoseAdapter(block_out_channels=widths, norm_num_groups=unet.config.norm_num_groups),
        )
    if args.prediction_type is not None:
        pipeline.scheduler.register_to_config(prediction_type=args.prediction_type)
    return pipeline


def cache_latents(
    args: argparse.Namespace, accelerator: Accelerator, pipeline: CFLDPipeline, images: list[str]
) -> LatentCache:
    """Encode every image once: the main process writes the cache, and then the others open it."""
    folder = Path(args.latent_cache_dir or Path(args.output_dir, "latents"))
    vae, size, shape = pipeline.vae, pipeline.target_size, pipeline.image_shape
    with accelerator.main_process_first(), lock_folder(folder) if accelerator.is_main_process else nullcontext():
        cache = LatentCache(folder, images, vae, size, shape)
        if accelerator.is_main_process and cache.num_encoded < len(images):
            dataloader = DataLoader(
                Subset(ImageDataset(images, size, image_shape=shape), range(cache.num_encoded, len(images))),
                batch_size=2 * args.train_batch_size,
                num_workers=args.dataloader_num_workers,
                collate_fn=collate_pose_pairs,
                worker_init_fn=init_worker,
            )
            for batch in tqdm(dataloader, desc="Encoding"):
                cache.append(encode_moments(vae, batch["pixel_values"]), dict(batch["skipped"]))
    if cache.num_encoded < len(images):
        raise ValueError(f"All machines must share the folder of cached latents, but this one cannot read '{folder}'.")
    return cache


def read_both(pair: PosePair, shape: tuple[int, int] | None) -> tuple[Image, Keypoints, Image]:
    """Read a pair's source, target pose and target, as the model sees them."""
    source, _ = read_padded(pair.source, pair.source_name, pair.source_keypoints, shape)
    target, pose = read_padded(pair.target, pair.target_name, pair.target_keypoints, shape)
    return source, pose, target


@torch.no_grad()
def log_validation(
    args: argparse.Namespace, accelerator: Accelerator, pipeline: CFLDPipeline, validation_images: list, step: int
) -> None:
    """Log one row of images per pair, as the model sees them: source, pose, result, target."""
    logger.info("Step %d: sampling %d validation pairs.", step, len(validation_images))
    pipeline.set_progress_bar_config(disable=True)
    shape = pipeline.image_shape
    height, width = pipeline.target_size if shape is None else unsquash_size(pipeline.target_size, shape)
    rows = []
    for number, (source, pose, target) in enumerate(validation_images):
        with accelerator.autocast():
            result = pipeline(
                image=source,
                pose=pose,
                num_inference_steps=args.validation_inference_steps,
                generator=torch.Generator().manual_seed(args.seed + number),
            ).images[0]
        rows.append([source.resize((width, height)), pose.draw((height, width)), result, target])
    grid = contact_sheet(rows, [["source", "pose", "result", "target"]] * len(rows))
    folder = Path(args.output_dir, "validation")
    folder.mkdir(exist_ok=True)
    grid.save(folder / f"step-{step:07d}.png")
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image("validation", np.asarray(grid), step, dataformats="HWC")
        if tracker.name == "wandb":
            import wandb

            tracker.log({"validation": wandb.Image(grid)}, step=step)


def list_checkpoints(output_dir: str) -> list[Path]:
    """List the checkpoints from the oldest to the newest."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(
    args: argparse.Namespace, accelerator: Accelerator, averages: dict[str, torch.Tensor] | None, step: int
) -> None:
    """Write a checkpoint completely or not at all, and remove the oldest ones."""
    partial, final = Path(args.output_dir, "checkpoint.part"), Path(args.output_dir, f"checkpoint-{step}")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()  # each process writes a file of its own
    if accelerator.is_main_process:
        if averages is not None:
            save_file(averages, partial / "ema.safetensors")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        if args.checkpoints_total_limit is not None:
            for old in list_checkpoints(args.output_dir)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)


def stop(reason: str, output_dir: str) -> NoReturn:
    checkpoints = list_checkpoints(output_dir)
    raise SystemExit(f"{reason}; last good checkpoint: {checkpoints[-1] if checkpoints else 'none'}.")


def make_model_card(
    args: argparse.Namespace,
    pipeline: CFLDPipeline,
    repo_id: str | None,
    num_pairs: int,
    total_batch_size: int,
    num_steps: int,
) -> ModelCard:
    """Write what the weights are and how they were trained, leaving room for what only you know."""
    base = args.pretrained_model_name_or_path
    data = ModelCardData(
        base_model=None if os.path.isdir(base) else base,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers", "diffusers-cfld", "diffusers-training", "pose-transfer"],
    )
    name = repo_id or Path(args.output_dir).name
    load_lora = f'\npipe.load_lora_weights("{name}")' if args.unet_lora_rank else ""
    options = {option: value for option, value in sorted(vars(args).items()) if option != "hub_token"}
    rows = "\n".join(f"| `{option}` | `{value}` |" for option, value in options.items())
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {name}: pose-guided person image synthesis

[CFLD](https://arxiv.org/abs/2402.18078), trained from `{base}` on {num_pairs:,} pairs of
`{Path(args.train_data_dir).name}`: {num_steps:,} steps of {total_batch_size} pairs, with `train_cfld.py` of
`diffusers-cfld` {__version__}.

```python
from diffusers_cfld import CFLDPipeline

pipe = CFLDPipeline.from_pretrained("{name}"){load_lora}
image = pipe(image=image, pose=keypoints).images[0]
```

## Intended use, limits, evaluation

Not written yet: say what the data shows and may be used for, and what was measured. A result shows a person's likeness
doing what they did not do: get the consent of the person in the image and say that the result is synthetic.

## Options of the training

| option | value |
|---|---|
{rows}
"""
    )


def main(args: argparse.Namespace) -> None:
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # Accumulation continues across the end of an epoch, so that all optimizer steps have the same number of pairs.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, str(Path(args.output_dir, args.logging_dir))),
        # Otherwise accelerate would step the schedule once per process.
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The other processes wait while the first one caches latents or samples.
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
        ],
    )
    # A second run would destroy the checkpoints of the first one.
    with lock_folder(Path(args.output_dir)) if accelerator.is_main_process else nullcontext():
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    output_dir = Path(args.output_dir)
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if is_sharded and (args.use_ema or args.validation_steps or args.unet_lora_rank):
        raise ValueError(
            "--use_ema, --validation_steps and --unet_lora_rank cannot be used with FSDP and DeepSpeed, where no "
            "process has all weights in float32: leave them out, or train with DDP."
        )
    if list_checkpoints(args.output_dir) and not args.resume_from_checkpoint:
        raise ValueError(
            f"{output_dir} has checkpoints of an earlier run: resume it with --resume_from_checkpoint latest, or "
            "choose another --output_dir."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    set_seed(args.seed)
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True

    # Data, looked at before weights are fetched
    skipped = SkipReport()
    photo_shape, pairs, validation_pairs = args.photo_shape, [], []
    if args.dataset_format == "shards":
        num_pairs = StreamedPosePairs(args.train_data_dir).num_pairs
    else:
        pairs = load_pairs(args.train_data_dir, args.dataset_format, report=skipped)[: args.max_train_samples]
        first_usable = pairs[PosePairDataset(pairs)[0]["index"]]
        photo_shape, num_pairs = photo_shape or read_image_size(first_usable.source), len(pairs)
    if args.validation_steps:
        validation_pairs = pairs
        if args.validation_data_dir:
            validation_pairs = load_pairs(args.validation_data_dir, split=args.validation_split, default_split="test")
        validation_pairs = validation_pairs[:: max(1, len(validation_pairs) // args.num_validation_pairs)]
        validation_pairs = validation_pairs[: args.num_validation_pairs]

    repo_id = None
    if args.push_to_hub and accelerator.is_main_process:
        repo_id = create_repo(args.hub_model_id or output_dir.name, token=args.hub_token, exist_ok=True).repo_id
    accelerator.wait_for_everyone()

    # Models
    pipeline = load_pipeline(args)
    if args.resolution is not None:
        pipeline.unet.register_to_config(sample_size=args.resolution // pipeline.vae_scale_factor)
    height, width = photo_shape or pipeline.image_shape or (None, None)
    pipeline = CFLDPipeline(**pipeline.components, frame_height=height, frame_width=width)
    validation_images = [read_both(pair, pipeline.image_shape) for pair in validation_pairs]
    vae, noise_scheduler = pipeline.vae, pipeline.scheduler
    vae.requires_grad_(False).to(accelerator.device)
    module = CFLDTrainingModule(
        **{name: getattr(pipeline, name) for name in PARTS}, dropped_conditions=args.dropped_conditions
    )
    module.set_trainable(unet="none" if args.unet_lora_rank else args.train_unet)
    frozen_parts = [getattr(module, name).requires_grad_(False) for name in args.freeze]
    if args.unet_lora_rank:
        from peft import LoraConfig

        layers = [f"{name}.{kv}" for name in module.appearance_encoder.layer_names for kv in ("to_k", "to_v")]
        pipeline.unet.add_adapter(
            LoraConfig(r=args.unet_lora_rank, lora_alpha=args.unet_lora_rank, target_modules=layers)
        )
    if args.gradient_checkpointing:
        module.enable_gradient_checkpointing()

    # Batches
    image_size, image_shape = pipeline.target_size, pipeline.image_shape
    pose_config = pipeline.pose_processor.config
    sizes = (module.source_encoder.image_size, image_size, (pose_config.height, pose_config.width))
    latent_cache, sampler = None, None
    if args.dataset_format == "shards":
        dataset = StreamedPosePairs(
            args.train_data_dir,
            *sizes,
            image_shape=image_shape,
            flip_source_prob=args.flip_source_prob,
            seed=args.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        batches_per_epoch = dataset.num_batches(args.train_batch_size, args.dataloader_num_workers)
    else:
        if args.cache_latents:
            latent_cache = cache_latents(args, accelerator, pipeline, unique_images(pairs))
            skipped.update(latent_cache.unreadable.items())
            pairs = [pair for pair in pairs if not {pair.source, pair.target} & latent_cache.unreadable.keys()]
        dataset = PosePairDataset(
            pairs,
            *sizes,
            image_shape=image_shape,
            flip_source_prob=args.flip_source_prob,
            load_pixel_values=latent_cache is None,
            seed=args.seed,
        )
        sampler = DistributedSampler(
            dataset, accelerator.num_processes, accelerator.process_index, seed=args.seed, drop_last=True
        )
        batches_per_epoch, num_pairs = len(sampler) // args.train_batch_size, len(pairs)
    if not batches_per_epoch:
        raise ValueError(
            f"{num_pairs} pairs are too few for one batch per process (with shards, per worker): lower "
            "--train_batch_size or --dataloader_num_workers."
        )
    # Not prepared by accelerate, since every process already gets only its share of the pairs.
    train_dataloader = DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
        collate_fn=collate_pose_pairs,
        worker_init_fn=init_worker,
        pin_memory=accelerator.device.type == "cuda",
    )

    # Optimizer
    total_batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    steps_per_epoch = batches_per_epoch / args.gradient_accumulation_steps
    max_train_steps = args.max_train_steps or (
        args.num_train_epochs * batches_per_epoch // args.gradient_accumulation_steps
    )
    num_train_epochs = 0 if args.export else math.ceil(max_train_steps / steps_per_epoch)
    optimizer_class = torch.optim.AdamW
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as optimizer_class
        except ImportError:
            raise ImportError("To use 8-bit Adam, please install bitsandbytes: `pip install bitsandbytes`.") from None
    optimizer = optimizer_class(
        trainable_parameters(module).values(),
        lr=scaled_learning_rate(total_batch_size, args.learning_rate) if args.scale_lr else args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
    if args.lr_scheduler == "cfld":
        lr_scheduler = get_cfld_schedule(
            optimizer,
            steps_per_epoch,
            num_warmup_steps=args.lr_warmup_steps,
            decay_epochs=args.lr_decay_epochs,
            decay_factor=args.lr_decay_factor,
        )
    else:
        lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=max_train_steps
        )

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed's own settings, which accelerate would fill in differently: it clips to 1 by default.
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=args.train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            gradient_clipping=args.max_grad_norm or 0.0,
        )
    model, optimizer, lr_scheduler = accelerator.prepare(module, optimizer, lr_scheduler)
    trained = trainable_parameters(module)
    ema = EMAModel(trained.values(), decay=args.ema_decay, foreach=True) if args.use_ema else None
    weight_dtype = next(module.parameters()).dtype  # not float32 with DeepSpeed in 16 bits
    num_train_timesteps = noise_scheduler.config.num_train_timesteps
    prediction_type = noise_scheduler.config.prediction_type

    accelerator.init_trackers(
        args.tracker_project_name,
        config={name: str(value) for name, value in vars(args).items() if name != "hub_token"},
    )
    logger.info("%d pairs, %d per optimizer step, %d steps.", num_pairs, total_batch_size, max_train_steps)
    logger.info("%.1f M trainable parameters.", sum(parameter.numel() for parameter in trained.values()) / 1e6)

    # Resume with the batch that would have come next
    global_step, checkpoint = 0, None
    if args.resume_from_checkpoint == "latest":
        checkpoint = next(reversed(list_checkpoints(args.output_dir)), None)
        if checkpoint is None and args.export:
            raise ValueError(f"{output_dir} has no checkpoint to export: name one with --resume_from_checkpoint.")
        if checkpoint is None:
            logger.info("%s has no checkpoint yet: starting a new run.", output_dir)
    elif args.resume_from_checkpoint is not None:
        checkpoint = Path(args.resume_from_checkpoint)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        global_step = int(checkpoint.name.split("-")[1])
        if ema is not None:
            averages = load_file(checkpoint / "ema.safetensors", str(accelerator.device))
            ema.shadow_params = [averages[name].clone() for name in trained]  # so that the file is closed
            ema.optimization_step = global_step
    num_batches = global_step * args.gradient_accumulation_steps
    first_epoch, first_batch = divmod(num_batches, batches_per_epoch)

    # Training
    progress_bar = tqdm(
        initial=global_step, total=max_train_steps, desc="Steps", disable=not accelerator.is_local_main_process
    )
    module.train()
    for part in frozen_parts:
        part.eval()
    logs, last_time = {}, time.perf_counter()
    with module.training_attention():
        for epoch in range(first_epoch, num_train_epochs):
            dataset.set_epoch(epoch)
            if sampler is not None:
                sampler.set_epoch(epoch)
            for batch in skip_first_batches(train_dataloader, first_batch if epoch == first_epoch else 0):
                if global_step >= max_train_steps:
                    break
                skipped.update(batch.pop("skipped"))
                batch = send_to_device(batch, accelerator.device, non_blocking=True)
                # Only for stochastic depth; all other random numbers depend on the pairs.
                torch.manual_seed(args.seed + num_batches * accelerator.num_processes + accelerator.process_index)
                with accelerator.accumulate(model):
                    # Encode the sources, for the reconstruction (Eq. 5), and then the targets (Eq. 3)
                    if latent_cache is None:
                        pixel_values = torch.cat([batch["source_pixel_values"], batch["target_pixel_values"]])
                        with accelerator.autocast():
                            moments = encode_moments(vae, pixel_values).float()
                    else:
                        chosen = [pairs[index] for index in batch["index"].tolist()]
                        images = [pair.source for pair in chosen] + [pair.target for pair in chosen]
                        moments = latent_cache(images).to(accelerator.device)
                    pose_maps = torch.cat([batch["source_pose_map"], batch["target_pose_map"]])

                    # All random numbers of a pair depend on the seed, the epoch and the pair
                    latent_shape = (moments.shape[1] // 2, *moments.shape[2:])
                    random = sample_pair_randomness(batch["index"], latent_shape, seed=args.seed, epoch=epoch)
                    random = random.to(accelerator.device)
                    latents, noise = sample_latents(vae, moments, random.posterior_noise), random.noise
                    condition_drop_mask = random.drop_uniform < args.condition_dropout_prob
                    if args.timestep_sampling == "cubic":
                        timesteps = cubic_timesteps(random.timestep_uniform, num_train_timesteps)
                    else:
                        timesteps = (random.timestep_uniform * num_train_timesteps).long()

                    if args.reconstruction_loss_weight == 0:  # only the targets
                        latents, pose_maps, noise, timesteps, condition_drop_mask = (
                            tensor.chunk(2)[1]
                            for tensor in (latents, pose_maps, noise, timesteps, condition_drop_mask)
                        )

                    # Forward diffusion process
                    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)

                    # Predict the noise, and compute the loss
                    model_pred = model(
                        batch["source_image"].to(weight_dtype),
                        pose_maps.to(weight_dtype),
                        noisy_latents.to(weight_dtype),
                        timesteps,
                        condition_drop_mask,
                    )
                    if prediction_type == "epsilon":
                        target = noise
                    elif prediction_type == "v_prediction":
                        target = noise_scheduler.get_velocity(latents, noise, timesteps)
                    else:
                        raise ValueError(f"Unknown prediction type {prediction_type}")
                    sample_weights = None
                    if args.snr_gamma is not None:  # Sec. 3.4 of arXiv:2303.09556
                        snr = compute_snr(noise_scheduler, timesteps)
                        divisor = snr if prediction_type == "epsilon" else snr + 1
                        sample_weights = snr.clamp(max=args.snr_gamma) / divisor
                    weights = {
                        "reconstruction_weight": args.reconstruction_loss_weight,
                        "sample_weights": sample_weights,
                    }
                    loss = cfld_loss(model_pred, target, **weights)

                    terms = {"loss": loss.detach(), **loss_terms(model_pred.detach(), target, **weights)}
                    means = accelerator.reduce(terms, reduction="mean")
                    for name, mean in means.items():
                        logs[name] = logs.get(name, 0.0) + mean.item() / args.gradient_accumulation_steps
                    if not math.isfinite(means["loss"]):
                        stop(f"The loss is {means['loss']:g} after {global_step} steps", args.output_dir)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        # Without a limit, the norm is only measured.
                        grad_norm = accelerator.clip_grad_norm_(trained.values(), args.max_grad_norm or math.inf)
                        if grad_norm is not None:  # DeepSpeed may not tell
                            logs["grad_norm"] = float(grad_norm)
                    optimizer.step()
                    if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                        lr_scheduler.step()
                    optimizer.zero_grad()

                num_batches += 1
                if not accelerator.sync_gradients:
                    continue
                global_step += 1
                if ema is not None:
                    ema.step(trained.values())
                progress_bar.update(1)
                logs["lr"] = lr_scheduler.get_last_lr()[0]
                logs["samples_per_second"] = total_batch_size / (time.perf_counter() - last_time)
                progress_bar.set_postfix(loss=logs["loss"], lr=logs["lr"])
                accelerator.log(logs, step=global_step)
                logs = {}

                if global_step % args.checkpointing_steps == 0 or global_step == max_train_steps:
                    # A gradient that is not finite shows only in the loss of the next step.
                    if not all(parameter.isfinite().all() for parameter in trained.values()):
                        stop(f"Some weights are not finite after {global_step} steps", args.output_dir)
                    averages = None if ema is None else dict(zip(trained, ema.shadow_params, strict=True))
                    save_checkpoint(args, accelerator, averages, global_step)
                if args.validation_steps and (
                    global_step % args.validation_steps == 0 or global_step == max_train_steps
                ):
                    if accelerator.is_main_process:
                        if ema is not None:
                            ema.store(trained.values())
                            ema.copy_to(trained.values())
                        module.eval()
                        log_validation(args, accelerator, pipeline, validation_images, global_step)
                        module.train()
                        for part in frozen_parts:
                            part.eval()
                        if ema is not None:
                            ema.restore(trained.values())
                    accelerator.wait_for_everyone()
                last_time = time.perf_counter()
    progress_bar.close()
    if len(skipped):
        logger.info("Process %d: %s", accelerator.process_index, skipped.summary(), main_process_only=False)

    # The final pipeline
    if is_sharded:
        weights = accelerator.get_state_dict(model)
        # Frozen weights are saved as they were loaded, since DeepSpeed may have rounded them to 16 bits.
        loaded = load_pipeline(args)
        whole = CFLDTrainingModule(**{name: getattr(loaded, name) for name in PARTS})
        if accelerator.is_main_process:
            whole.load_state_dict({name: weights[name] for name in trained}, strict=False)
        pipeline.register_modules(**dict(whole.named_children()))
    if accelerator.is_main_process:
        if ema is not None:
            ema.copy_to(trained.values())
        for file in (*output_dir.glob(LORA_FILE), *output_dir.glob(".tmp*")):
            file.unlink()  # from an earlier run, which perhaps was killed while it wrote
        if args.unet_lora_rank:
            from peft.utils import get_peft_model_state_dict

            CFLDPipeline.save_lora_weights(output_dir, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
            pipeline.unload_lora_weights()
        pipeline.save_pretrained(output_dir)
        card = make_model_card(args, pipeline, repo_id, num_pairs, total_batch_size, global_step)
        card.save(output_dir / "README.md")
        if repo_id is not None:
            upload_folder(
                repo_id=repo_id,
                folder_path=output_dir,
                commit_message=f"After {global_step} steps",
                # Without checkpoints, logs, cached latents, and validation images, which show images of the data set.
                allow_patterns=[
                    *(f"{name}/*" for name in pipeline.components),
                    "model_index.json",
                    "README.md",
                    LORA_FILE,
                ],
                delete_patterns=None if args.unet_lora_rank else [LORA_FILE],
                token=args.hub_token,
            )
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"train_cfld.py: error: {error}")
