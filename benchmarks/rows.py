"""The rows of the benchmark, each a small function, and the models and inputs that they share.

To add one, write a function with a [`Bench`] that prepares what is done once and returns the call to be timed, and put
`@row(...)` above it, or `@option(...)` if it is another way of computing the default call.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import math
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import published_way
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
)
from diffusers_cfld.cli import generate, main
from diffusers_cfld.data import PosePair, PosePairDataset
from diffusers_cfld.openvino import use_openvino
from diffusers_cfld.processors.pose_map import render_pose_map
from diffusers_cfld.small_model import example_poses, load_small_model
from diffusers_cfld.training import CFLDTrainingModule, cfld_loss, encode_moments, sample_latents

TOLERANCE = 1e-4  # largest difference of a result in float32, relative to its largest value
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCALE = 2.0  # both guidance scales, as published

NO_TEXT = dict.fromkeys(["tokenizer", "text_encoder", "safety_checker", "feature_extractor", "image_encoder"])

Call = Callable[[], Any]


# The models and inputs that rows share.


def _build(vae: dict[str, Any], widths: Sequence[int], **models: Any) -> CFLDPipeline:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe = CFLDPipeline(
        vae=AutoencoderKL(**blocks, layers_per_block=2, **vae),
        # With this spacing, few steps also begin with pure noise, so that a wrong prediction shows.
        scheduler=DDIMScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", clip_sample=False, steps_offset=1),
        pose_adapter=PoseAdapter(block_out_channels=tuple(widths[:3])),
        **models,
    )
    for parameter in pipe.appearance_encoder.parameters():  # some are zero before training
        torch.nn.init.normal_(parameter, std=0.02)
    return pipe


def build_half() -> CFLDPipeline:
    """Build the published model at half its width and size, A and D at half their depth; random weights."""
    widths = (160, 320, 640, 640)
    return _build(
        {"block_out_channels": (64, 128, 256, 256)},
        widths,
        unet=UNet2DConditionModel(sample_size=32, block_out_channels=widths, cross_attention_dim=384),
        source_encoder=SwinImageEncoder(image_size=128, window_size=8, embed_dim=64, num_heads=(2, 4, 8, 16)),
        prompt_decoder=PerceptionRefinedDecoder(16, 384, 12, 4, feature_channels=512, feature_size=4),
        appearance_encoder=AppearanceEncoder((64, 128, 256), (32, 64, 128), (160, 320, 640), (1, 2, 4), 2),
    )


def build_published() -> CFLDPipeline:
    """Build the published model, which makes images of 512x512, with random weights."""
    return _build(
        {"block_out_channels": (128, 256, 512, 512)},
        (320, 640, 1280),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        source_encoder=SwinImageEncoder(),
        prompt_decoder=PerceptionRefinedDecoder(),
        appearance_encoder=AppearanceEncoder(),
    )


SIZES = {"small": load_small_model, "half": build_half, "published": build_published}


class Bench:
    """Models, inputs and settings of a run.

    Args:
        size: A name in `SIZES`.
        device: Where the models are.
        dtype: Precision of the models, except in the published way.
        steps: Denoising steps of a call.
        folder: An empty folder for files.
    """

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype, steps: int, folder: Path) -> None:
        self.device, self.dtype, self.steps, self.folder = device, dtype, steps, folder
        self.float32_pipe = SIZES[size]().to(device)
        for model in self.float32_pipe.components.values():
            if isinstance(model, torch.nn.Module):
                model.eval().requires_grad_(False)  # `eval`: no stochastic depth
        self.pipe = self.float32_pipe
        if dtype != torch.float32:
            self.pipe = CFLDPipeline(**copy.deepcopy(self.pipe.components)).to(dtype=dtype)

    @property
    def pose_size(self) -> tuple[int, int]:
        """(height, width) of the pose maps."""
        config = self.pipe.pose_processor.config
        return config["height"], config["width"]

    def rand(self, *shape: int) -> torch.Tensor:
        """Draw numbers in [0, 1], the same in each call and on every device."""
        return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def sources(self, count: int = 1) -> torch.Tensor:
        """Source images (count, 3, H, W)."""
        return self.rand(count, 3, *self.pipe.source_encoder.image_size)

    def poses(self, count: int = 1) -> torch.Tensor:
        """Pose maps (count, 21, H, W)."""
        return self.rand(count, 21, *self.pose_size)

    def latents(self, count: int = 1, scale: float = 1.0) -> torch.Tensor:
        """Noise (count, C, h, w), at the model's own size times `scale`."""
        height, width = (int(side * scale) // self.pipe.vae_scale_factor for side in self.pipe.target_size)
        shape = (count, self.pipe.unet.config.in_channels, height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def denoise(self, pipe: CFLDPipeline | None = None, count: int = 1, scale: float = 1.0, **options: Any) -> Call:
        """Prepare a call that begins with encoded conditions and ends with latents."""
        pipe = pipe or self.pipe
        pipe.set_progress_bar_config(disable=True)
        latents = self.latents(count, scale)
        options = {
            "appearance": pipe.encode_appearance(self.sources(count)),
            "pose": pipe.encode_pose(self.poses(count)),
            "latents": latents,
            "height": latents.shape[2] * pipe.vae_scale_factor,
            "width": latents.shape[3] * pipe.vae_scale_factor,
            "guidance_scale": SCALE,
            **options,
        }
        return lambda: pipe(**options, num_inference_steps=self.steps, output_type="latent").images

    def denoise_with(self, unet: Any) -> Call:
        """Prepare the default call with another U-Net."""
        return self.denoise(CFLDPipeline.from_pipe(self.pipe, unet=unet))

    @functools.cached_property
    def host(self) -> StableDiffusionPipeline:
        """The Stable Diffusion pipeline of diffusers, with the same U-Net, VAE and scheduler."""
        # It warns of any other offset.
        scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config, steps_offset=1)
        return StableDiffusionPipeline(
            vae=self.pipe.vae, unet=self.pipe.unet, scheduler=scheduler, **NO_TEXT, requires_safety_checker=False
        )

    @functools.cached_property
    def jpegs(self) -> list[str]:
        """Files of smooth noise, of 1101x750 pixels like those of DeepFashion's high-resolution archive."""
        random = np.random.default_rng(0)
        paths = [str(self.folder / f"{number}.jpg") for number in range(8)]
        for path in paths:
            noise = PIL.Image.fromarray(random.integers(0, 256, (22, 15, 3), dtype=np.uint8))
            noise.resize((750, 1101), PIL.Image.Resampling.BICUBIC).save(path, quality=90)
        return paths

    @functools.cached_property
    def training(self) -> CFLDTrainingModule:
        """Models that train, by optimizers that never change them, so that all rows find the same weights."""
        names = ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
        module = CFLDTrainingModule(**{name: getattr(self.float32_pipe, name) for name in names})
        module.set_trainable("kv")
        return module


def sharing_weights(module: Any) -> Any:
    """Copy a module but not its weights, so that it can have other processors or compiled code."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


# The rows, in the order of the table.


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        group: What the row belongs to.
        name: What is measured.
        make: Does what is done once; returns the function to time. That may return a tensor, to be compared.
        against: Name of the row above that it is timed alternately with.
        tolerance: Largest difference from the result of that row in float32, relative to its largest value; infinite
            if the difference is only reported, None if results cannot be compared.
        same_work: Operations are not counted, but taken from that row: it computes the same, in a way of its own.
        images: How many images, steps or items a call makes; the time is that of one.
    """

    group: str
    name: str
    make: Callable[[Bench], Call]
    against: str | None = None
    tolerance: float | None = TOLERANCE
    same_work: bool = False
    images: int = 1


ROWS: dict[str, Row] = {}


def row(group: str, name: str, **options: Any) -> Callable[[Callable[[Bench], Call]], Callable[[Bench], Call]]:
    """Register the function below as a row."""

    def register(make: Callable[[Bench], Call]) -> Callable[[Bench], Call]:
        ROWS[name] = Row(group, name, make, **options)
        return make

    return register


option = functools.partial(row, "options", against="default", same_work=True)


@row("denoising", "published way")
def _published(bench: Bench) -> Call:
    pipe, latents = bench.float32_pipe, bench.latents()
    conditions = pipe.encode_appearance(bench.sources()), pipe.encode_pose(bench.poses())
    return lambda: published_way.sample(pipe, *conditions, latents, bench.steps, SCALE, bench.dtype)


@row("denoising", "default", against="published way")
def _default(bench: Bench) -> Call:
    return bench.denoise()


@row("denoising", "StableDiffusionPipeline", against="default", tolerance=None)
def _host(bench: Bench) -> Call:
    latents, size = bench.latents().to(bench.dtype), bench.pipe.target_size
    prompt = bench.pipe.encode_appearance(bench.sources()).prompt_embeds.to(bench.dtype)
    bench.host.set_progress_bar_config(disable=True)
    return lambda: (
        bench.host(
            prompt_embeds=prompt,
            negative_prompt_embeds=prompt,
            latents=latents,
            height=size[0],
            width=size[1],
            num_inference_steps=bench.steps,
            guidance_scale=SCALE,
            output_type="latent",
        ).images
    )


@row("denoising", "its U-Net alone", against="default", tolerance=None)
def _unet(bench: Bench) -> Call:
    latents = bench.latents(2).to(bench.dtype)
    prompts = bench.pipe.encode_appearance(bench.sources(2)).prompt_embeds.to(bench.dtype)
    bench.pipe.scheduler.set_timesteps(bench.steps, device=bench.device)
    timesteps = bench.pipe.scheduler.timesteps
    return lambda: [bench.pipe.unet(latents, t, prompts).sample for t in timesteps][-1]


@row("denoising", "unequal scales", against="default", tolerance=None)
def _unequal_scales(bench: Bench) -> Call:
    return bench.denoise(appearance_guidance_scale=SCALE + 0.5)


@row("denoising", "no guidance", against="default", tolerance=None)
def _no_guidance(bench: Bench) -> Call:
    return bench.denoise(guidance_scale=1.0)


@option("channels_last")
def _channels_last(bench: Bench) -> Call:
    return bench.denoise_with(copy.deepcopy(bench.pipe.unet).to(memory_format=torch.channels_last))


@option("fuse_qkv_projections")
def _fused(bench: Bench) -> Call:
    unet = sharing_weights(bench.pipe.unet)
    unet.fuse_qkv_projections()
    return bench.denoise_with(unet)


@option("compile_repeated_blocks")
def _compiled_blocks(bench: Bench) -> Call:
    torch.compiler.reset()
    unet = sharing_weights(bench.pipe.unet)
    unet.compile_repeated_blocks(fullgraph=True)
    return bench.denoise_with(unet)


@option("compile_repeated_blocks, channels_last")
def _compiled_channels_last(bench: Bench) -> Call:
    torch.compiler.reset()
    unet = copy.deepcopy(bench.pipe.unet).to(memory_format=torch.channels_last)
    unet.compile_repeated_blocks(fullgraph=True)
    return bench.denoise_with(unet)


@option("OpenVINO")
def _openvino(bench: Bench) -> Call:
    unet = sharing_weights(bench.float32_pipe.unet)
    use_openvino(unet)
    return bench.denoise_with(unet)


@option("OpenVINO, bfloat16", tolerance=math.inf)
def _openvino_bfloat16(bench: Bench) -> Call:
    unet = sharing_weights(bench.float32_pipe.unet)
    use_openvino(unet, precision="bf16")
    return bench.denoise_with(unet)


@option("compile, CUDA graphs, channels_last")
def _cuda_graphs(bench: Bench) -> Call:
    if bench.device.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    torch.compiler.reset()
    unet = copy.deepcopy(bench.pipe.unet).to(memory_format=torch.channels_last)
    unet.compile(mode="reduce-overhead")
    return bench.denoise_with(unet)


for _backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):

    @option(f"sdpa_kernel({_backend.name})")
    def _attention_backend(bench: Bench, backend: SDPBackend = _backend) -> Call:
        if bench.device.type != "cuda":
            raise RuntimeError("a CPU has one fast kernel of attention")
        call = bench.denoise()

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return call()

        return run


@option("attention slicing")
def _sliced_attention(bench: Bench) -> Call:
    unet = sharing_weights(bench.pipe.unet)
    unet.set_attention_slice("auto")
    return bench.denoise_with(unet)


@option("bfloat16", tolerance=math.inf)
def _bfloat16(bench: Bench) -> Call:
    return bench.denoise_with(copy.deepcopy(bench.pipe.unet).to(torch.bfloat16))


@row("growth", "batch of 1")
def _batch_of_1(bench: Bench) -> Call:
    return bench.denoise()


for _count in (2, 4):

    @row("growth", f"batch of {_count}", against="batch of 1", images=_count)
    def _batch(bench: Bench, count: int = _count) -> Call:
        return bench.denoise(count=count)


@row("growth", "batch of 4, micro_batch_size=1", against="batch of 4", same_work=True, images=4)
def _micro_batches(bench: Bench) -> Call:
    return bench.denoise(count=4, micro_batch_size=1)


@row("growth", "4 poses, encoded with 4 sources", images=4)
def _sources_and_poses(bench: Bench) -> Call:
    sources, poses = bench.sources().expand(4, -1, -1, -1), bench.poses(4)
    return bench.denoise(count=4, appearance=None, image=sources, pose=poses)


@row("growth", "4 poses, encoded with 1 source", against="4 poses, encoded with 4 sources", images=4)
def _poses_of_one_source(bench: Bench) -> Call:
    return bench.denoise(count=4, appearance=None, image=bench.sources(), pose=bench.poses(4))


@row("growth", "1.5 times as high and wide", against="batch of 1", tolerance=None)
def _larger(bench: Bench) -> Call:
    return bench.denoise(scale=1.5)


def _whole_images(bench: Bench, count: int) -> Call:
    """A call from source images and pose maps to images of the default size."""
    bench.pipe.set_progress_bar_config(disable=True)
    options = {"image": bench.sources(count), "pose": bench.poses(count), "num_inference_steps": bench.steps}
    latents = bench.latents(count)
    return lambda: bench.pipe(**options, latents=latents, output_type="pt").images


@row("growth", "whole images, batch of 1")
def _whole_image(bench: Bench) -> Call:
    return _whole_images(bench, 1)


for _count in (2, 4, 8, 16):

    @row("growth", f"whole images, batch of {_count}", against="whole images, batch of 1", images=_count)
    def _whole_batch(bench: Bench, count: int = _count) -> Call:
        return _whole_images(bench, count)


@row("parts", "source encoders S, D, A")
def _encode_source(bench: Bench) -> Call:
    sources = bench.sources()
    return lambda: bench.pipe.encode_appearance(sources).prompt_embeds


@row("parts", "pose adapter P")
def _encode_pose(bench: Bench) -> Call:
    poses = bench.poses()
    return lambda: next(iter(bench.pipe.encode_pose(poses).residuals.values()))


@row("parts", "U-Net, 1 sample")
def _unet_once(bench: Bench) -> Call:
    latents = bench.latents().to(bench.dtype)
    prompts = bench.pipe.encode_appearance(bench.sources()).prompt_embeds.to(bench.dtype)
    return lambda: bench.pipe.unet(latents, 500, prompts).sample


@row("parts", "VAE encoder")
def _encode(bench: Bench) -> Call:
    pixels = bench.rand(1, 3, *bench.pipe.target_size).to(bench.dtype)
    return lambda: bench.pipe.vae.encode(pixels).latent_dist.mode()


@row("parts", "VAE decoder")
def _decode(bench: Bench) -> Call:
    latents = bench.latents().to(bench.dtype)
    return lambda: bench.pipe.vae.decode(latents).sample


@row("parts", "VAE decoder, batch of 4", against="VAE decoder", images=4)
def _decode_batch(bench: Bench) -> Call:
    latents = bench.latents(4).to(bench.dtype)
    return lambda: bench.pipe.vae.decode(latents).sample


@row("parts", "VAE decoder, batch of 4, slicing", against="VAE decoder, batch of 4", same_work=True, images=4)
def _decode_sliced(bench: Bench) -> Call:
    vae, latents = sharing_weights(bench.pipe.vae), bench.latents(4).to(bench.dtype)
    vae.enable_slicing()
    return lambda: vae.decode(latents).sample


@row("parts", "VAE decoder, tiles of half the size", against="VAE decoder", tolerance=math.inf)
def _decode_tiled(bench: Bench) -> Call:
    vae, latents = sharing_weights(bench.pipe.vae), bench.latents().to(bench.dtype)
    vae.enable_tiling()
    vae.tile_latent_min_size = max(latents.shape[2:]) // 2
    vae.tile_sample_min_size = vae.tile_latent_min_size * bench.pipe.vae_scale_factor
    return lambda: vae.decode(latents).sample


@row("parts", "pose map: Gaussians on the whole map")
def _gaussians(bench: Bench) -> Call:
    pose = example_poses()[0]
    return lambda: torch.from_numpy(published_way.evaluate_gaussians(pose, bench.pose_size))


@row("parts", "pose map: ours, with its skeleton", against="pose map: Gaussians on the whole map")
def _pose_map(bench: Bench) -> Call:
    pose = example_poses()[0]
    return lambda: torch.from_numpy(render_pose_map(pose, bench.pose_size)[3:])


@row("files", "source image from a JPEG: PIL and NumPy")
def _open_source(bench: Bench) -> Call:
    height, width = bench.pipe.source_encoder.image_size

    def read() -> torch.Tensor:
        image = PIL.Image.open(bench.jpegs[0]).convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(image) / np.float32(127.5) - 1).permute(2, 0, 1)[None]

    return read


@row("files", "source image from a JPEG: ours", against="source image from a JPEG: PIL and NumPy", tolerance=None)
def _read_source(bench: Bench) -> Call:
    return lambda: bench.pipe.source_image_processor.preprocess(bench.jpegs[0])


@row("files", "StableDiffusionPipeline.from_pretrained")
def _load_host(bench: Bench) -> Call:
    bench.host.save_pretrained(bench.folder / "host")
    return lambda: StableDiffusionPipeline.from_pretrained(bench.folder / "host", **NO_TEXT) and None


@row("files", "CFLDPipeline.from_pretrained", against="StableDiffusionPipeline.from_pretrained", tolerance=None)
def _load(bench: Bench) -> Call:
    bench.pipe.save_pretrained(bench.folder / "cfld")
    return lambda: CFLDPipeline.from_pretrained(bench.folder / "cfld") and None


def _generate(bench: Bench, ahead: Callable[..., Any]) -> Call:
    """The command for 8 files in one pose, two at a time, with a model that is loaded already."""
    options = {"model": "loaded", "batch-size": 2, "seed": 0, "steps": bench.steps, "device": bench.device}
    options |= {"pose": "sample", "output": bench.folder / "generated.png"}
    command = ["generate", *(f"--{name}={value}" for name, value in options.items()), "--image", *bench.jpegs]
    patch = unittest.mock.patch.multiple(generate, _ahead=ahead, load_pipeline=lambda args: bench.pipe)

    def run() -> None:
        with patch, contextlib.redirect_stderr(io.StringIO()) as log:
            if main(command):
                raise RuntimeError(log.getvalue().splitlines()[-1])

    return run


@row("files", "generate, files read and written in turn", images=8)
def _generate_in_turn(bench: Bench) -> Call:
    return _generate(bench, map)


@row(
    "files",
    "generate",
    against="generate, files read and written in turn",
    images=8,
    tolerance=None,
)
def _generate_ahead(bench: Bench) -> Call:
    return _generate(bench, generate._ahead)


def _training_pairs(bench: Bench) -> list[PosePair]:
    poses, paths = example_poses(), bench.jpegs
    return [
        PosePair(source, target, poses[0].rescale((256, 176)), poses[1].rescale((256, 176)), "source", "target")
        for source, target in itertools.pairwise(paths)
    ]


def _read_all(dataset: Any) -> Call:
    return lambda: torch.stack([dataset[index]["source_image"] for index in range(len(dataset))])


@row("training", "example: published way", images=7)
def _read_published(bench: Bench) -> Call:
    return _read_all(published_way.PairReader(_training_pairs(bench)))


@row("training", "example: ours", against="example: published way", images=7)
def _read_ours(bench: Bench) -> Call:
    return _read_all(PosePairDataset(_training_pairs(bench), image_shape=None))


@row("training", "example: ours, cached latents", against="example: published way", images=7)
def _read_cached(bench: Bench) -> Call:
    return _read_all(PosePairDataset(_training_pairs(bench), image_shape=None, load_pixel_values=False))


def _training_step(
    bench: Bench,
    predict: Callable[..., torch.Tensor] | None,
    cached: bool,
    module: CFLDTrainingModule | None = None,
    fused: bool | None = None,
    vae: AutoencoderKL | None = None,
) -> Call:
    """One pair, and so two samples: the source's reconstruction and the transfer."""
    module, vae = module or bench.training, vae or bench.float32_pipe.vae
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0, fused=fused)
    scheduler = bench.float32_pipe.scheduler
    latents, noise = bench.latents(4).chunk(2)
    source, poses = bench.sources() * 2 - 1, bench.poses(2)
    pixels = bench.rand(2, 3, *bench.pipe.target_size) * 2 - 1
    timesteps, drop_mask = torch.tensor([[300, 700], [0, 1]], device=bench.device)
    moments = encode_moments(vae, pixels)

    @torch.enable_grad()
    def step() -> torch.Tensor:
        z = sample_latents(vae, moments if cached else encode_moments(vae, pixels), latents)
        noisy_latents = scheduler.add_noise(z, noise, timesteps)
        inputs = (source, poses, noisy_latents, timesteps, drop_mask.bool())
        if predict is None:
            with module.training_attention():
                loss = cfld_loss(module(*inputs), noise)
                loss.backward()
        else:
            loss = cfld_loss(predict(module, *inputs), noise)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


@row("training", "step: published way")
def _train_published(bench: Bench) -> Call:
    return _training_step(bench, published_way.predict_for_training, cached=False)


@row("training", "step: ours", against="step: published way")
def _train(bench: Bench) -> Call:
    return _training_step(bench, None, cached=False)


@row("training", "step: ours, cached latents", against="step: published way")
def _train_cached(bench: Bench) -> Call:
    return _training_step(bench, None, cached=True)


@row("training", "step: ours, fused AdamW", against="step: published way")
def _train_fused(bench: Bench) -> Call:
    return _training_step(bench, None, cached=False, fused=True)


@row("training", "step: ours, channels_last", against="step: published way")
def _train_channels_last(bench: Bench) -> Call:
    parts = copy.deepcopy((bench.training, bench.float32_pipe.vae))
    module, vae = (part.to(memory_format=torch.channels_last) for part in parts)
    return _training_step(bench, None, cached=False, module=module, vae=vae)


@row("training", "step: ours, compiled blocks and VAE, channels_last", against="step: published way", same_work=True)
def _train_compiled(bench: Bench) -> Call:
    torch.compiler.reset()
    parts = copy.deepcopy((bench.training, bench.float32_pipe.vae))
    module, vae = (part.to(memory_format=torch.channels_last) for part in parts)
    module.unet.compile_repeated_blocks(fullgraph=True)
    vae.encoder.compile()
    return _training_step(bench, None, cached=False, module=module, vae=vae)


@row("training", "step: ours, bfloat16 autocast", against="step: published way", tolerance=math.inf)
def _train_autocast(bench: Bench) -> Call:
    step = _training_step(bench, None, cached=False)

    def run() -> torch.Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return step()

    return run


for _name, _program, _against in (
    ("import torch", ("-c", "import torch"), None),
    ("import diffusers", ("-c", "import diffusers"), None),
    ("import diffusers_cfld", ("-c", "import diffusers_cfld"), "import diffusers"),
    ("diffusers-cfld --help", ("-m", "diffusers_cfld", "--help"), "import torch"),
    ("import StableDiffusionPipeline", ("-c", "from diffusers import StableDiffusionPipeline"), None),
    (
        "import CFLDPipeline",
        ("-c", "from diffusers_cfld import CFLDPipeline"),
        "import StableDiffusionPipeline",
    ),
    ("diffusers-cfld demo", ("-m", "diffusers_cfld", "demo"), "import torch"),
):

    @row("start-up", _name, against=_against, tolerance=None)
    def _start(bench: Bench, program: tuple[str, ...] = _program) -> Call:
        command = [sys.executable, *program]
        return lambda: subprocess.run(command, check=True, capture_output=True, cwd=bench.folder) and None
