"""Measure how few evaluations of the U-Net the small model's images need, on people that it was not trained on.

    python benchmarks/quality.py [--output DIR] [--settings REGEX] [--pairs N] [--bfloat16]

Each setting's images are kept in the folder and its figures in `results.json` there as soon as they are known, so that
a run that was stopped goes on where it was. `docs/performance.md` says what the figures mean and what they were.
Needs `examples/small_model/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
import torch.nn.functional as F
from diffusers import hooks
from run import count_flops, describe_machine
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_cfld import Appearance, CFLDPipeline, PoseFeatures
from diffusers_cfld.io_utils import write_file
from diffusers_cfld.small_model import load_small_model

sys.path.append(str(Path(__file__).parents[1] / "examples" / "small_model"))
from drawn_figures import DrawnFigures, draw_arms, draw_parts
from measure_recognition import judge

PUBLISHED, SLOW = "published way", "DDIM, 50 steps"


@dataclass(frozen=True)
class Setting:
    """What is measured: a scheduler, arguments of the call, and what is changed in the U-Net meanwhile."""

    name: str
    scheduler: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)  # of the scheduler
    call: dict[str, Any] = field(default_factory=dict)
    change: Callable[[CFLDPipeline], Any] | None = None  # returns a context manager
    evaluations: float | None = None  # if not those that were counted


@dataclass
class Pairs:
    """What images are made of and compared with: N pairs."""

    people: DrawnFigures
    sources: np.ndarray  # (N, H, W, 3), uint8
    truths: np.ndarray  # (N, H, W, 3), uint8
    appearance: Appearance
    pose: PoseFeatures


@contextmanager
def reuse_deep_features(pipe: CFLDPipeline, every: int) -> Iterator[None]:
    """Evaluate all but the outermost blocks only in every n-th step, as DeepCache does (arXiv:2312.00858)."""
    unet, calls = pipe.unet, 0
    deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    kept: dict[Any, Any] = {}

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def wrap(block: Any, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if (calls - 1) % every == 0:
                kept[block] = forward(*args, **kwargs)
            result = kept[block]
            if not isinstance(result, tuple):
                return result
            if (calls - 1) % every == 0:
                kept[block] = (result[0].clone(), *result[1:])  # the U-Net adds residuals to it in place
            return (result[0].clone(), *result[1:])

        return call

    handle = unet.register_forward_pre_hook(count)
    for block in deep:
        block.forward = wrap(block, block.forward)
    yield
    handle.remove()
    for block in deep:
        del block.forward


@contextmanager
def merge_tokens(pipe: CFLDPipeline, share: float) -> Iterator[None]:
    """Merge the most similar tokens for the self-attentions of the finest level (ToMe, arXiv:2303.17604)."""
    blocks = torch.nn.ModuleList([pipe.unet.down_blocks[0], pipe.unet.up_blocks[-1]])
    finest = [module for name, module in blocks.named_modules() if name.endswith("attn1")]

    def wrap(forward: Any) -> Any:
        def call(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            (batch, count, width), unit = tokens.shape, F.normalize(tokens.float(), dim=-1)
            best, into = (unit[:, 1::2] @ unit[:, ::2].mT).max(dim=-1)  # (batch, count / 2), of odd tokens
            order = 1 + 2 * best.argsort(dim=-1, descending=True)
            merged, kept = order.split([round(share * count), count // 2 - round(share * count)], dim=-1)
            owner = 2 * into.gather(1, merged // 2)
            spread = partial(torch.Tensor.expand, size=(-1, -1, width))
            index = torch.cat([torch.arange(0, count, 2).expand(batch, -1), kept], dim=1)
            sums = tokens.scatter_reduce(
                1, spread(owner[..., None]), tokens.gather(1, spread(merged[..., None])), "mean"
            )
            out = forward(sums.gather(1, spread(index[..., None])), *args, **kwargs)
            full = torch.zeros_like(tokens, dtype=out.dtype).scatter(1, spread(index[..., None]), out)
            return full.scatter(1, spread(merged[..., None]), full.gather(1, spread(owner[..., None])))

        return call

    for module in finest:
        module.forward = wrap(module.forward)
    yield
    for module in finest:
        del module.forward


@contextmanager
def apply_hook(pipe: CFLDPipeline, apply: Any, config: Any) -> Iterator[None]:
    """Apply one of diffusers' caches to the U-Net."""
    apply(pipe.unet, config(pipe))
    yield
    hooks.HookRegistry.check_if_exists_or_initialize(pipe.unet).reset_stateful_hooks()
    for module in pipe.unet.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in list(registry.hooks if registry else []):
            registry.remove_hook(name, recurse=False)


def anneal(start: float, end: float) -> dict[str, Any]:
    """Arguments of a call that change both guidance scales linearly from the first step to the last."""

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = start + (end - start) * (step + 1) / max(1, pipe.num_timesteps - 1)
        return {}

    return {"guidance_scale": start, "callback_on_step_end": change}


def list_settings() -> list[Setting]:
    """Settings in the order of what they tell."""
    ddim, dpm = "DDIMScheduler", "DPMSolverMultistepScheduler"
    settings = [
        # Equal scales: two branches give the result of the three that the published code evaluates.
        Setting(PUBLISHED, "DDPMScheduler", 50, call={"guidance_scale": 2.0}, evaluations=150),
        Setting(SLOW, ddim, 50),
    ]
    solvers: dict[str, tuple[str, dict[str, Any], list[int]]] = {
        "DDIM": (ddim, {}, [2, 3, 4, 6, 8, 12, 20]),
        "DPM++ 2M": (dpm, {}, [2, 3, 4, 6, 8, 12, 20]),
        "UniPC": ("UniPCMultistepScheduler", {}, [2, 3, 4, 6, 8, 20]),
        "LCM": ("LCMScheduler", {}, [2, 4, 8]),
        "TCD": ("TCDScheduler", {}, [2, 4, 8]),
        "Heun": ("HeunDiscreteScheduler", {}, [2, 3, 4]),
        "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}, [4, 8]),
        "DPM++ SDE": (dpm, {"algorithm_type": "sde-dpmsolver++"}, [4, 8, 20]),
        "Euler": ("EulerDiscreteScheduler", {}, [4, 8]),
        "DEIS": ("DEISMultistepScheduler", {}, [4, 8]),
        "DDPM": ("DDPMScheduler", {}, [8, 20]),
    }
    for name, (scheduler, options, steps) in solvers.items():
        call = {"eta": 0.3} if name == "TCD" else {}
        settings += [Setting(f"{name}, {count} steps", scheduler, count, options, call) for count in steps]
    for scale in (1.0, 1.25, 2.0):
        settings += [
            Setting(f"DDIM, {count} steps, scale {scale:g}", ddim, count, call={"guidance_scale": scale})
            for count in ((4, 8, 20) if scale == 1 else (4, 8))
        ]
    intervals = [(0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.25, 1.0), (0.0, 0.75)]
    for count in (8, 20):
        for interval in intervals if count == 8 else [(0.0, 0.5), (0.5, 1.0)]:
            name = f"DDIM, {count} steps, guidance from {interval[0]:g} to {interval[1]:g}"
            settings.append(Setting(name, ddim, count, call={"guidance_interval": interval}))
    for scales in ((2.0, 1.0), (1.0, 2.0)):
        name = f"DDIM, 8 steps, scale from {scales[0]:g} to {scales[1]:g}"
        settings.append(Setting(name, ddim, 8, call=anneal(*scales)))
    for count, every in ((8, 2), (20, 4)):
        change = partial(reuse_deep_features, every=every)
        settings.append(Setting(f"DDIM, {count} steps, deep features every {every}", ddim, count, change=change))
    for share in (0.25, 0.5):
        change = partial(merge_tokens, share=share)
        settings.append(Setting(f"DDIM, 8 steps, {share:.0%} of tokens merged", ddim, 8, change=change))
    caches = {
        "PyramidAttentionBroadcast": lambda pipe: hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            cross_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: 500,
        ),
        "FirstBlockCache": lambda pipe: hooks.FirstBlockCacheConfig(threshold=0.1),
        "FasterCache": lambda pipe: hooks.FasterCacheConfig(
            current_timestep_callback=lambda: 500, tensor_format="BCHW"
        ),
        "TaylorSeerCache": lambda pipe: hooks.TaylorSeerCacheConfig(),
        "MagCache": lambda pipe: hooks.MagCacheConfig(num_inference_steps=8, mag_ratios=torch.ones(8)),
    }
    for name, config in caches.items():
        apply = getattr(hooks, "apply_" + re.sub("(?<=[a-z])(?=[A-Z](?!eer))", "_", name).lower())
        change = partial(apply_hook, apply=apply, config=config)
        settings.append(Setting(f"DDIM, 8 steps, {name}", ddim, 8, change=change))
    return settings


def prepare(pipe: CFLDPipeline, count: int) -> Pairs:
    """Draw the first pairs that `examples/small_model/evaluate_small_model.py` compares, and encode them."""
    people = DrawnFigures(count, 2, (256, 176), first_identity=6000)
    items = [people[2 * number] for number in range(count)]
    sources, truths = (np.stack([item[name] for item in items]) for name in ("source_image", "target_image"))
    shown = pipe.default_output_size[::-1]
    truths = np.stack([PIL.Image.fromarray(image).resize(shown, PIL.Image.Resampling.BICUBIC) for image in truths])
    appearance = pipe.encode_appearance([PIL.Image.fromarray(image) for image in sources])
    return Pairs(people, sources, truths, appearance, pipe.encode_pose([item["target_keypoints"] for item in items]))


@torch.no_grad()
def encode_features(pipe: CFLDPipeline, images: np.ndarray) -> list[torch.Tensor]:
    """Activations of the VAE's encoder after its first layer and each block, of unit length in each cell."""
    found: list[torch.Tensor] = []
    encoder = pipe.vae.encoder
    handles = [
        module.register_forward_hook(lambda module, args, output: found.append(F.normalize(output, dim=1)))
        for module in (encoder.conv_in, *encoder.down_blocks, encoder.mid_block)
    ]
    # Of the size that it was trained with; the images have the people's own proportions.
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    encoder(F.interpolate(pixels, pipe.target_size, mode="bicubic", antialias=True))
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def generate(pipe: CFLDPipeline, setting: Setting, pairs: Pairs, autocast: bool) -> tuple[np.ndarray, float]:
    """Make the images (N, H, W, 3) of a setting; also return the operations of the U-Net for one of them."""
    previous, count = pipe.scheduler, len(pairs.truths)
    pipe.scheduler = getattr(diffusers, setting.scheduler).from_config(previous.config, **setting.options)
    with ExitStack() as stack:
        stack.callback(setattr, pipe, "scheduler", previous)
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=autocast))
        if setting.change is not None:
            stack.enter_context(setting.change(pipe))
        counter = stack.enter_context(count_flops())
        latents = pipe(
            appearance=pairs.appearance,
            pose=pairs.pose,
            num_inference_steps=setting.steps,
            generator=[torch.Generator().manual_seed(number) for number in range(count)],
            output_type="latent",
            **{"guidance_scale": 1.5, **setting.call},
        ).images
    decoded = pipe.decode_latents(latents.float(), pipe.default_output_size)
    images = np.stack(pipe.image_processor.postprocess(decoded, "pil", do_denormalize=[False] * count))
    return images, counter.get_total_flops() / count


def compare(images: np.ndarray, others: np.ndarray) -> list[float]:
    """PSNR of each image, in dB."""
    return [float(peak_signal_noise_ratio(*two)) for two in zip(others, images, strict=True)]


def judge_images(pipe: CFLDPipeline, images: np.ndarray, pairs: Pairs) -> dict[str, Any]:
    """Compare images with the true ones."""
    verdicts, size = [], images.shape[1:3]
    for number, (image, truth) in enumerate(zip(images, pairs.truths, strict=True)):
        person, _, target = pairs.people.locate(2 * number)
        figure = pairs.people.identity(person), pairs.people.pose(person, target)
        verdicts.append(judge(image, truth, draw_parts(*figure, size), draw_arms(*figure, size))["all of it"])
    features = zip(encode_features(pipe, images), encode_features(pipe, pairs.truths), strict=True)
    similar = [structural_similarity(*two, channel_axis=2) for two in zip(pairs.truths, images, strict=True)]
    return {
        "psnr": compare(images, pairs.truths),
        "ssim": float(np.mean(similar)),
        "feature_distance": float(np.mean([(a - b).square().sum(dim=1).mean().item() for a, b in features])),
        "recognised": float(np.mean(verdicts)),
    }


def measure(pipe: CFLDPipeline, settings: list[Setting], folder: Path, count: int, autocast: bool) -> dict[str, Any]:
    """Measure what has not been measured yet, and return all figures."""
    path = folder / "results.json"
    machine = describe_machine(SimpleNamespace(device=torch.device("cpu")))
    results = json.loads(path.read_text()) if path.exists() else {"machine": machine, "settings": {}}
    if results.setdefault("protocol", [count, autocast]) != [count, autocast]:
        raise SystemExit(f"{folder} has results for other --pairs or --bfloat16: choose another folder.")
    pairs = prepare(pipe, count)
    if "operations" not in results:  # of one evaluation for one image
        one = Setting("", "DDIMScheduler", 1, call={"guidance_scale": 1.0})
        results["operations"] = generate(pipe, one, pairs, autocast)[1]
    for setting in settings:
        if setting.name in results["settings"]:
            continue
        try:
            images, operations = generate(pipe, setting, pairs, autocast)
        except Exception as error:  # of a cache that does not fit this U-Net
            results["settings"][setting.name] = {"error": f"{type(error).__name__}: {error}"}
            pipe = load(folder)
        else:
            np.save(folder / f"{setting.name}.npy", images)
            figures = judge_images(pipe, images, pairs)
            for key, name in (("to_published", PUBLISHED), ("to_slow", SLOW)):
                reference = folder / f"{name}.npy"
                if name != setting.name and reference.exists():
                    figures[key] = float(np.mean(compare(images, np.load(reference))))
            figures["evaluations"] = setting.evaluations or operations / results["operations"]
            results["settings"][setting.name] = figures
        write_file(path, json.dumps(results, indent=1).encode())
        print(format_row(setting.name, results["settings"]), flush=True)
    return results


def format_row(name: str, figures: dict[str, Any]) -> str:
    """One row of the table."""
    row = figures[name]
    if "error" in row:
        return f"| {name} | {row['error']} |"
    gain = np.subtract(row["psnr"], figures.get(PUBLISHED, row)["psnr"])
    between = " | ".join(f"{row[key]:.1f}" if key in row else "" for key in ("to_published", "to_slow"))
    return (
        f"| {name} | {row['evaluations']:.1f} | {np.mean(row['psnr']):.2f} | {gain.mean():+.2f} "
        f"(±{gain.std() / len(gain) ** 0.5:.2f}) | {row['ssim']:.3f} | {row['feature_distance']:.4f} | "
        f"{row['recognised']:.0%} | {between} |"
    )


def load(folder: Path) -> CFLDPipeline:
    """Load the small model."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load_small_model()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("quality"), help="folder of the results")
    parser.add_argument("--settings", default="", help="regular expression of names")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--bfloat16", action="store_true", help="autocast in the U-Net, which takes half the time")
    args = parser.parse_args(arguments)
    settings = [setting for setting in list_settings() if re.search(args.settings, setting.name)]
    columns = ["setting", "evaluations", "PSNR, dB", "gain over published", "SSIM", "features", "recognised"]
    print("| " + " | ".join([*columns, "to published", "to slow"]) + " |")
    print("|---" * 9 + "|")
    measure(load(args.output), settings, args.output, args.pairs, args.bfloat16)


if __name__ == "__main__":
    main()
