#!/usr/bin/env python
"""Teach S and D of the small model to tell drawn people's clothes, before the whole is trained.

The published source encoder starts from ImageNet's labels. Drawn people have labels of their own: the colours,
patterns and cuts that they were drawn from, and which part of them covers each cell of the picture (drawn once more in
one colour for each part). Each cell of S's features has to tell its parts and their colours and patterns; and each
label is read from D's prompt by a cross-attention with a learned query, as the U-Net will read it. What a picture does
not show is not asked for. These heads are thrown away, and the prompts are brought back to the spread that they had
at the start, which the U-Net's keys and values are used to.

`accelerate launch` runs it in several processes. The pictures and coverages are stored once, in the
folder `labels` of the data; interrupted, that goes on where it stopped.
"""

import argparse
import copy
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from diffusers_cfld import CFLDPipeline, PerceptionRefinedDecoder
from diffusers_cfld.data.drawn_figures import DrawnFigures, DrawnIdentity
from diffusers_cfld.data.drawn_parts import PARTS, draw_parts
from diffusers_cfld.data.drawn_people import DrawnPose, Pattern
from diffusers_cfld.io_utils import ResumableArrays
from diffusers_cfld.script_errors import errors_as_one_sentence
from diffusers_cfld.training import Muon, set_learning_rates

CELL = 8  # pixels
COLORS = ("skin", "hair", "upper", "upper_accent", "inner", "lower", "lower_accent", "shoe", "wall", "belt", "hat")
# The part whose cells show a colour.
OWNERS = ("skin", "hair", "upper", "upper", "inner", "lower", "lower", "shoe", "wall", "upper", "hair")
PATTERNS = get_args(Pattern)
CLASSES = {
    "upper_pattern": PATTERNS,
    "lower_pattern": PATTERNS,
    "kind": ("top", "shirt", "jacket", "dress"),
    "lower_kind": ("trousers", "skirt"),
    "hair_style": ("short", "bob", "long", "bun", "ponytail", "afro", "bald", "cap", "beanie"),
    "print": ("none", "disc", "diamond", "bar", "star"),
    "shoe_kind": ("sneaker", "boot", "sandal"),
    "upper_accent": ("darker", "lighter"),
    "lower_accent": ("darker", "lighter"),
    "neckline": ("round", "v", "boat", "turtle", "collar"),
    "tucked": (False, True),
    "floor": (False, True),
}
# The parts that show a class, and those that show a length, with the mean and the spread of the drawn people.
CLASS_OWNERS = (*("upper", "lower") * 2, "hair", "upper", "shoe", *("upper", "lower") * 2, "shoe")
LENGTHS = {
    "upper_period": ("upper", 0.16, 0.0058),
    "lower_period": ("lower", 0.16, 0.0058),
    "sleeve": ("upper", 1.17, 0.75),
    "hem": ("upper", 1.33, 0.54),
    "lower_hem": ("lower", 2.5, 0.56),
    "sleeve_width": ("upper", 0.009, 0.006),
    "ease": ("upper", 0.0105, 0.0043),
    "lower_width": ("lower", 0.02, 0.015),
    "limb": ("skin", 1.0, 0.1),
    "shoulder": ("upper", 0.104, 0.006),
    "waist": ("upper", 0.076, 0.009),
    "breadth": ("upper", 0.09, 0.007),
    "hair_length": ("hair", 0.22, 0.046),
    "fringe": ("hair", 0.5, 0.29),
}
SMALLEST_SHARE = 0.006  # of a picture that has to show a part for its labels to be asked for


def describe(person: DrawnIdentity) -> tuple[list[float], list[int], list[float], list[float]]:
    """Colours (3 each) in [0, 1]; classes, -1 where there is nothing; which colours there are; lengths in spreads."""
    clothes, hair = person.clothes, person.hair
    is_dress, has_hat = clothes.kind == "dress", hair.style in ("cap", "beanie")
    colors = {
        "skin": person.body.skin,
        "hair": None if hair.style == "bald" else hair.color,
        "upper": clothes.upper.color,
        "upper_accent": None if clothes.upper.pattern == "plain" else clothes.upper.accent,
        "inner": clothes.inner if clothes.kind == "jacket" else None,
        "lower": None if is_dress else clothes.lower.color,
        "lower_accent": None if is_dress or clothes.lower.pattern == "plain" else clothes.lower.accent,
        "shoe": clothes.shoe,
        "wall": person.background[0],
        "belt": clothes.belt,
        "hat": hair.hat if has_hat else None,
    }
    accents = [
        None if fabric.pattern == "plain" else ("darker", "lighter")[sum(fabric.accent) > sum(fabric.color)]
        for fabric in (clothes.upper, clothes.lower)
    ]
    classes = {
        "upper_pattern": clothes.upper.pattern,
        "lower_pattern": None if is_dress else clothes.lower.pattern,
        "kind": clothes.kind,
        "lower_kind": None if is_dress else clothes.lower_kind,
        "hair_style": hair.style,
        "print": clothes.print_shape,
        "shoe_kind": clothes.shoe_kind,
        "upper_accent": accents[0],
        "lower_accent": None if is_dress else accents[1],
        "neckline": clothes.neckline,
        "tucked": None if is_dress else clothes.tucked,
        "floor": person.floor,
    }
    lengths = {
        "upper_period": clothes.upper.period,
        "lower_period": clothes.lower.period,
        "sleeve": clothes.sleeve,
        "hem": clothes.hem,
        "lower_hem": clothes.lower_hem,
        "sleeve_width": clothes.sleeve_width,
        "ease": clothes.ease,
        "lower_width": clothes.lower_width,
        "limb": person.body.limb,
        "shoulder": person.body.shoulder,
        "waist": person.body.waist,
        "breadth": person.body.breadth,
        "hair_length": hair.length,
        "fringe": hair.fringe,
    }
    return (
        [value / 255 for name in COLORS for value in (colors[name] or (0, 0, 0))],
        [-1 if value is None else CLASSES[name].index(value) for name, value in classes.items()],
        [float(colors[name] is not None) for name in COLORS],
        [(lengths[name] - mean) / spread for name, (_, mean, spread) in LENGTHS.items()],
    )


def coverage(person: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> np.ndarray:
    """Share of each part in each cell, (h, w, 7), uint8 of 255."""
    parts = draw_parts(person, pose, size)
    height, width, _ = coverage_shape(size)
    shares = (parts[..., None] == np.arange(len(PARTS))).reshape(height, CELL, width, CELL, len(PARTS)).mean((1, 3))
    return (shares * 255).astype(np.uint8)


def coverage_shape(size: tuple[int, int]) -> tuple[int, int, int]:
    return size[0] // CELL, size[1] // CELL, len(PARTS)


def load_person(
    number: int, people: DrawnFigures, folder: Path, num_poses: int, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and coverages of a person's first poses."""
    found = []
    for pose in range(num_poses):
        picture = PIL.Image.open(folder / people.image_name(number, pose)).convert("RGB")
        pixels = np.asarray(picture.resize(size[::-1], PIL.Image.Resampling.BICUBIC))
        found.append((pixels, coverage(people.identity(number), people.pose(number, pose), size)))
    return found


def load_pictures(args: argparse.Namespace, people: DrawnFigures, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Pictures (N, height, width, 3) and coverages (N, h, w, 7), uint8, person by person; stored by the first call."""
    root = Path(args.train_data_dir)
    # Of other people, or as another version drew them, they must not be taken for these.
    version = hashlib.sha256(json.dumps(people.settings, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{args.poses_per_identity}-{size[0]}x{size[1]}-{version}"
    files = [root / "labels" / f"{kind}-{name}.npy" for kind in ("pictures", "coverages")]
    if not all(file.exists() for file in files):
        load = partial(load_person, people=people, folder=root, num_poses=args.poses_per_identity, size=size)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        number, shapes = people.num_identities * args.poses_per_identity, ((*size, 3), coverage_shape(size))
        arrays = ResumableArrays(files, [(number, *shape) for shape in shapes], np.uint8, people.settings)
        numbers = range(arrays.num_done // args.poses_per_identity, people.num_identities)
        with multiprocessing.Pool(args.num_workers) as pool:
            for person in pool.imap(load, numbers, 20):
                for picture, shares in person:
                    arrays.append(picture, shares, note_every=100 * args.poses_per_identity)
        arrays.finish()
    return tuple(np.load(file, mmap_mode="r") for file in files)


def visible_labels(
    shares: torch.Tensor, classes: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leave out what a picture does not show.

    Args:
        shares: (B, 7, h, w), of each part in each cell.
        classes: (B, 12), -1 where a person has no such thing.
        seen: (B, 11), 1 for the colours that a person wears.

    Returns:
        Classes and `seen` of what is visible, and (B, 14) of the lengths, 1 where they are.
    """
    is_visible = shares.mean((2, 3)) > SMALLEST_SHARE
    classes = classes.masked_fill(~is_visible[:, [PARTS.index(name) for name in CLASS_OWNERS]], -1)
    seen = seen * is_visible[:, [PARTS.index(name) for name in OWNERS]]
    is_length_visible = is_visible[:, [PARTS.index(name) for name, _, _ in LENGTHS.values()]].float()
    is_length_visible[:, :2] *= classes[:, :2] > 0  # periods of plain fabrics
    return classes, seen, is_length_visible


def color_errors(told: torch.Tensor, colors: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    """Mean squared errors of colours, where the two of a regular pattern may be told in either order at half the cost.

    A wrong order costs half of what the same colours of other garments would: who cannot see which of two colours is
    the accent is to tell both, and not their mean twice.

    Args:
        told: (B, 11, 3, ...).
        colors: (B, 11, 3), in [0, 1].
        patterns: (B, 2), indices of the upper and the lower garment's pattern.

    Returns:
        (B, 11, ...).
    """
    colors = colors.reshape(*colors.shape, *[1] * (told.ndim - 3))
    errors = (told - colors).square().mean(2)
    for index, name in enumerate(("upper", "lower")):
        pair = [COLORS.index(name), COLORS.index(f"{name}_accent")]
        exchanged = (told[:, pair] - colors[:, pair[::-1]]).square().mean(2)
        is_regular = (patterns[:, index] > 0) & (patterns[:, index] != PATTERNS.index("block"))
        is_exchanged = exchanged.sum(1) < errors[:, pair].sum(1)
        is_exchanged = is_exchanged & is_regular.reshape(-1, *[1] * (told.ndim - 3))
        best = torch.where(is_exchanged[:, None], (exchanged + errors[:, pair]) / 2, errors[:, pair])
        errors = errors.index_copy(1, torch.tensor(pair, device=told.device), best)
    return errors


def vary(
    pictures: torch.Tensor, coverages: torch.Tensor, labels: list[torch.Tensor], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Mirror half of the pictures, and exchange red, green and blue in half, whatever they were, in labels too.

    Few thousand people are learned by heart otherwise. Nothing that is asked for knows left from right.

    Args:
        pictures: (B, height, width, 3), uint8.
        coverages: (B, h, w, 7), uint8.
        labels: The columns of `describe`.
        generator: On the CPU, of the choices.

    Returns:
        New tensors in the same shapes; labels other than colours as they are.
    """
    number, device = len(pictures), pictures.device
    is_mirrored = (torch.rand(number, generator=generator) < 0.5).to(device)[:, None, None, None]
    order = torch.rand(number, 3, generator=generator).argsort(1)
    order[torch.rand(number, generator=generator) < 0.5] = torch.arange(3)
    order = order.to(device)
    pictures = torch.where(is_mirrored, pictures.flip(2), pictures)
    pictures = pictures.gather(3, order[:, None, None].expand(pictures.shape))
    colors = labels[0].unflatten(1, (-1, 3))
    colors = colors.gather(2, order[:, None].expand(colors.shape)).flatten(1)
    return pictures, torch.where(is_mirrored, coverages.flip(2), coverages), [colors, *labels[1:]]


class CellHeads(nn.Module):
    """Tells for every cell its parts, their colours and their patterns."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(width, len(PARTS), 1) for width in channels[1:3])
        self.colors = nn.Conv2d(channels[2], 3 * len(COLORS), 1)
        self.patterns = nn.Conv2d(channels[2], 2 * len(PATTERNS), 1)

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        shares: torch.Tensor,
        colors: torch.Tensor,
        seen: torch.Tensor,
        patterns: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses of parts, colours and patterns; shares are (B, 7, 2h, 2w) of the finer map's cells."""
        coarse = F.avg_pool2d(shares, 2)
        part_loss = sum(
            -(share * F.log_softmax(head(features), dim=1)).sum(1).mean()
            for head, features, share in zip(self.parts, feature_maps[1:3], (shares, coarse), strict=True)
        )
        owners = [PARTS.index(name) for name in OWNERS]
        weights = coarse[:, owners] * seen[:, :, None, None]
        weights = weights * (weights > 0.1)
        errors = color_errors(self.colors(feature_maps[2]).unflatten(1, (-1, 3)), colors, patterns) * weights
        color_loss = (errors.sum((0, 2, 3)) / weights.sum((0, 2, 3)).clamp(min=1e-3)).mean()
        pattern_loss = torch.zeros(())
        for index, part in enumerate(("upper", "lower")):
            weight = coarse[:, PARTS.index(part)]
            weight = weight * (weight > 0.2) * (patterns[:, index] >= 0)[:, None, None]
            target = patterns[:, index].clamp(min=0)[:, None, None].expand(weight.shape)
            scores = self.patterns(feature_maps[2]).chunk(2, dim=1)[index]
            errors = F.cross_entropy(scores, target, reduction="none") * weight
            pattern_loss = pattern_loss + errors.sum() / weight.sum().clamp(min=1e-3) / 2
        return part_loss, color_loss, pattern_loss


class LabelHeads(nn.Module):
    """Reads every label from the prompt with a query of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widths = [3] * len(COLORS) + [len(names) for names in CLASSES.values()] + [1] * len(LENGTHS)
        self.queries = nn.Parameter(torch.randn(1, len(self.widths), dim))
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, width))
            for width in self.widths
        )

    def forward(self, prompt_embeds: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return colours (B, 11, 3), a list of class scores (B, n), lengths (B, 14)."""
        read = self.attention(self.queries.expand(len(prompt_embeds), -1, -1), prompt_embeds, prompt_embeds)[0]
        outputs = [head(read[:, index]) for index, head in enumerate(self.heads)]
        first, last = len(COLORS), len(COLORS) + len(CLASSES)
        return torch.stack(outputs[:first], dim=1), outputs[first:last], torch.cat(outputs[last:], dim=1)


class LabelTraining(nn.Module):
    """S, D and the heads as one module, whose output is the losses of a batch."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.label_heads, self.cell_heads = LabelHeads(decoder.config.dim), CellHeads(encoder.feature_channels)

    def forward(
        self, pictures: torch.Tensor, coverages: torch.Tensor, labels: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Compute the loss, its parts for the log, and how often a class that could be seen was told right.

        Args:
            pictures: (B, height, width, 3), uint8.
            coverages: (B, h, w, 7), uint8.
            labels: The columns of `describe`.
        """
        colors, classes, seen, lengths = labels
        colors, shares = colors.float().unflatten(1, (-1, 3)), coverages.permute(0, 3, 1, 2).float() / 255
        classes, seen, is_length_visible = visible_labels(shares, classes, seen.float())
        feature_maps = list(self.encoder(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).feature_maps.values())
        part_loss, cell_color_loss, pattern_loss = self.cell_heads(feature_maps, shares, colors, seen, classes[:, :2])
        told_colors, scores, told_lengths = self.label_heads(self.decoder(feature_maps[-1]).prompt_embeds)
        errors = color_errors(told_colors, colors, classes[:, :2]) * seen
        color_loss = (errors.sum(0) / seen.sum(0).clamp(min=1)).mean()
        # A batch in which none has a class gives 0 / 0.
        class_losses = torch.stack(
            [F.cross_entropy(score, classes[:, i], ignore_index=-1) for i, score in enumerate(scores)]
        ).nan_to_num()
        length_losses = F.smooth_l1_loss(told_lengths, lengths.float(), reduction="none") * is_length_visible
        length_losses = length_losses.sum(0) / is_length_visible.sum(0).clamp(min=1)
        length_loss = length_losses.mean()
        parts = {"colors": color_loss, "classes": class_losses.mean(), "lengths": length_loss, "parts": part_loss}
        parts |= {"cell_colors": cell_color_loss, "patterns": pattern_loss}
        loss = 20 * (color_loss + cell_color_loss) + class_losses.mean() + class_losses[[0, 1, 7, 8]].sum()
        loss = loss + 2 * (length_loss + part_loss) + pattern_loss + length_losses[:2].sum() / 2
        right = {name: (scores[i].argmax(1) == classes[:, i])[classes[:, i] >= 0] for i, name in enumerate(CLASSES)}
        return loss, {name: value.detach() for name, value in parts.items()}, right


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder of the pipeline to start from.")
    parser.add_argument("--train_data_dir", required=True, help="Folder that DrawnFigures.write_folder wrote.")
    parser.add_argument("--output_dir", required=True, help="Folder of the pipeline with the trained S and D.")
    parser.add_argument("--poses_per_identity", type=int, default=6, help="Pictures of each person that are used.")
    parser.add_argument("--num_test_identities", type=int, default=200, help="Last people, who are only tested on.")
    parser.add_argument("--train_batch_size", type=int, default=24, help="Pictures of a step in each process.")
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3, help="Of S and D; of the heads half of it.")
    parser.add_argument("--checkpointing_steps", type=int, default=400, help="Test and save each so many steps.")
    parser.add_argument(
        "--resume_from_checkpoint", choices=["latest"], default=None, help="Continue the run of --output_dir."
    )
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that draw the labels.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def schedule(step: int, num_steps: int) -> float:
    """Rate's factor: fifty steps of warm-up, and a linear decay in the second half."""
    return min(1.0, (step + 1) / 50) * min(1.0, 2 * (1 - step / num_steps) + 0.02)


@torch.no_grad()
def measure(module: LabelTraining, load_batch: Callable, indices: torch.Tensor) -> str:
    losses, right = [], {name: [] for name in CLASSES}
    for chosen in indices.split(100):
        _, parts, is_right = module(*load_batch(chosen))
        losses.append(torch.stack(list(parts.values())))
        for name, values in is_right.items():
            right[name].append(values.float())
    shares = ", ".join(f"{name} {torch.cat(values).mean():.3f}" for name, values in right.items())
    return f"told right of people never trained on: {shares}; {describe_losses(losses)}"


def describe_losses(losses: list[torch.Tensor]) -> str:
    colors, classes, lengths, parts, cell_colors, patterns = torch.stack(losses).mean(0).tolist()
    return (
        f"read from the prompt: colours off by {colors**0.5:.3f} rms, classes {classes:.3f}, lengths {lengths:.4f}; "
        f"told by cells: parts {parts:.3f}, colours off by {cell_colors**0.5:.3f} rms, patterns {patterns:.3f}"
    )


@torch.no_grad()
def scale_prompts(decoder: PerceptionRefinedDecoder, factor: float) -> None:
    """Multiply D's prompts by a number and change nothing else; the null prompt stays.

    All that is added to D's stream is multiplied. Its layers see the stream through layer norms, which undo that.
    """
    decoder.query_embeds.mul_(factor)
    decoder.query_position_embeds.mul_(factor)
    for block in decoder.blocks:
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[-1]):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)


@torch.no_grad()
def prompt_spread(module: LabelTraining, pictures: torch.Tensor) -> float:
    """Standard deviation of all numbers of some pictures' prompts."""
    module.eval()
    feature_map = module.encoder(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).sample
    spread = module.decoder(feature_map).prompt_embeds.std().item()
    module.train()
    return spread


def save_checkpoint(accelerator: Accelerator, step: int, folder: Path) -> None:
    """Write a checkpoint in place of the last; by all processes."""
    begun = folder / "checkpoint-begun"
    if accelerator.is_main_process:
        shutil.rmtree(begun, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(begun))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = list(folder.glob("checkpoint-[0-9]*"))
        os.replace(begun, folder / f"checkpoint-{step}")
        for checkpoint in older:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def save_pipeline(accelerator: Accelerator, pipe: CFLDPipeline, prompt_factor: float, folder: Path) -> None:
    """Write the pipeline with what S and D have learned; by all processes."""
    if accelerator.is_main_process:
        learning = pipe.prompt_decoder
        pipe.prompt_decoder = copy.deepcopy(learning)
        scale_prompts(pipe.prompt_decoder, prompt_factor)
        pipe.save_pretrained(folder)
        pipe.prompt_decoder = learning
    accelerator.wait_for_everyone()


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    # The null prompt stays as it is.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    root, folder = Path(args.train_data_dir), Path(args.output_dir)
    people = DrawnFigures.from_folder(root)
    if not 1 <= args.poses_per_identity <= people.poses_per_identity:
        raise SystemExit(
            f"--poses_per_identity must be from 1 to the {people.poses_per_identity} of {root}, got "
            f"{args.poses_per_identity}."
        )
    if not 1 <= args.num_test_identities < people.num_identities:
        raise SystemExit(
            f"--num_test_identities must be from 1 to less than the {people.num_identities} people of {root}, got "
            f"{args.num_test_identities}."
        )
    torch.manual_seed(args.seed)
    pipe = CFLDPipeline.from_pretrained(args.pretrained_model_name_or_path)
    module = LabelTraining(pipe.source_encoder, pipe.prompt_decoder).train().to(accelerator.device)
    with accelerator.main_process_first():
        pictures, coverages = load_pictures(args, people, pipe.source_encoder.image_size)
    descriptions = [describe(people.identity(number)) for number in range(people.num_identities)]
    labels = [torch.tensor(column) for column in zip(*descriptions, strict=True)]
    num_trained = (people.num_identities - args.num_test_identities) * args.poses_per_identity
    if accelerator.is_main_process:
        logging.info("%d pictures to train on, %d to test on.", num_trained, len(pictures) - num_trained)

    def load_batch(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        arrays = [torch.from_numpy(array[chosen.numpy()]).to(accelerator.device) for array in (pictures, coverages)]
        return *arrays, [column[chosen // args.poses_per_identity].to(accelerator.device) for column in labels]

    few_pictures = load_batch(torch.arange(num_trained, len(pictures))[:100])[0]
    start_spread = prompt_spread(module, few_pictures)
    heads = [*module.label_heads.parameters(), *module.cell_heads.parameters()]
    groups = [
        {"params": [*module.encoder.parameters(), *module.decoder.parameters()]},
        {"params": heads, "orthogonalize": False, "lr": args.learning_rate / 2},
    ]
    optimizer = Muon(groups, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule, num_steps=args.max_train_steps))
    trained, optimizer = accelerator.prepare(module, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    first, start, told = 0, time.monotonic(), []
    checkpoints = list(folder.glob("checkpoint-[0-9]*"))
    if checkpoints and not args.resume_from_checkpoint:
        raise SystemExit(f"{folder} has a checkpoint: use --resume_from_checkpoint latest, or another --output_dir.")
    if checkpoints:
        first, newest = max((int(checkpoint.name.split("-")[1]), str(checkpoint)) for checkpoint in checkpoints)
        rates = scheduler.base_lrs
        accelerator.load_state(newest)
        # The rates are this command's, not the checkpoint's.
        set_learning_rates(optimizer, scheduler, rates)
    for step in range(first + 1, args.max_train_steps + 1):
        seed = np.random.SeedSequence([args.seed, step, accelerator.process_index]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        batch = load_batch(torch.randint(num_trained, (args.train_batch_size,), generator=generator))
        loss, parts, _ = trained(*vary(*batch, generator))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        told.append(torch.stack(list(parts.values())))
        if step % 50 == 0 and accelerator.is_main_process:
            rate = (step - first) / (time.monotonic() - start)
            logging.info("step %d: %s; %.2f steps/s", step, describe_losses(told[-50:]), rate)
        if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
            if not all(torch.isfinite(weight).all() for weight in module.parameters()):
                raise SystemExit(f"The weights broke within {step} steps: go on at a lower rate from {folder}.")
            module.eval()
            if accelerator.is_main_process:
                tested = torch.arange(num_trained, len(pictures), 2)
                logging.info("step %d: %s", step, measure(module, load_batch, tested))
            save_checkpoint(accelerator, step, folder)
            save_pipeline(accelerator, pipe, start_spread / prompt_spread(module, few_pictures), folder)
            module.train()
    if first >= args.max_train_steps:
        # Killed after the last checkpoint, the run may have left no pipeline, or half of one.
        save_pipeline(accelerator, pipe, start_spread / prompt_spread(module, few_pictures), folder)
    accelerator.end_training()


if __name__ == "__main__":
    with errors_as_one_sentence():
        main(parse_args())
