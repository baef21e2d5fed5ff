#!/usr/bin/env python
"""Teach S and D of the small model to tell drawn people's clothes, before the whole is trained.

The published source encoder starts from ImageNet's labels. Drawn people have labels of their own: the colours,
patterns and cuts that they were drawn from, and which part of them covers each cell of the picture (drawn once more in
one colour for each part). Each cell of S's features has to tell its parts and their colours and patterns; and each
label is read from D's prompt by a cross-attention with a learned query, as the U-Net will read it. These heads are
thrown away.
"""

import argparse
import logging
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.data.drawn_figures import DrawnFigures, DrawnIdentity, draw_figure
from diffusers_cfld.data.drawn_people import Fabric, Pattern

# What can cover a cell, and the colour that stands for it.
PARTS = ("wall", "skin", "hair", "upper", "lower", "shoe", "inner")
CODES = ((255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
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
}
LENGTHS = ("sleeve", "hem", "lower_hem", "upper_period", "lower_period")


def describe(person: DrawnIdentity) -> tuple[list[float], list[int], list[float], list[float]]:
    """Colours (3 each) in [0, 1] and which of them can be seen; classes, -1 where there is nothing; lengths."""
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
    classes = {
        "upper_pattern": clothes.upper.pattern,
        "lower_pattern": None if is_dress else clothes.lower.pattern,
        "kind": clothes.kind,
        "lower_kind": None if is_dress else clothes.lower_kind,
        "hair_style": hair.style,
        "print": clothes.print_shape,
        "shoe_kind": clothes.shoe_kind,
    }
    lengths = (clothes.sleeve, clothes.hem, clothes.lower_hem, 10 * clothes.upper.period, 10 * clothes.lower.period)
    return (
        [value / 255 for name in COLORS for value in (colors[name] or (0, 0, 0))],
        [CLASSES[name].index(value) if value else -1 for name, value in classes.items()],
        [float(colors[name] is not None) for name in COLORS],
        list(lengths),
    )


def coverage(person: DrawnIdentity, pose: object, size: tuple[int, int]) -> np.ndarray:
    """Share of each part in each cell, (h, w, 7), uint8 of 255."""
    code = dict(zip(PARTS, CODES, strict=True))
    coded = replace(
        person,
        body=replace(person.body, skin=code["skin"]),
        hair=replace(person.hair, color=code["hair"], hat=code["hair"]),
        background=(code["wall"], code["wall"]),
        clothes=replace(
            person.clothes,
            upper=Fabric(code["upper"], code["upper"]),
            lower=Fabric(code["lower"], code["lower"]),
            inner=code["inner"],
            shoe=code["shoe"],
            belt=None,
            print_shape="none",
        ),
    )
    pixels = draw_figure(coded, pose, size)[0].reshape(-1, 3).astype(np.float32)
    # Shading changes a colour's length, not its direction.
    directions = np.array(CODES, np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    parts = (pixels @ directions.T).argmax(axis=1).reshape(size)
    height, width = size[0] // CELL, size[1] // CELL
    shares = (parts[..., None] == np.arange(len(PARTS))).reshape(height, CELL, width, CELL, len(PARTS)).mean((1, 3))
    return (shares * 255).astype(np.uint8)


def load_person(
    number: int, people: DrawnFigures, folder: Path, num_poses: int, size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and coverages of a person's first poses."""
    found = []
    for pose in range(num_poses):
        picture = PIL.Image.open(folder / f"{people.first_identity + number:06d}_{pose:02d}.png").convert("RGB")
        pixels = np.asarray(picture.resize(size[::-1], PIL.Image.Resampling.BICUBIC))
        found.append((pixels, coverage(people.identity(number), people.pose(number, pose), size)))
    return found


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
        told = self.colors(feature_maps[2]).unflatten(1, (-1, 3))
        errors = (told - colors[..., None, None]).square().mean(2) * weights
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
        """Return colours (B, 11, 3), a list of class scores (B, n), lengths (B, 5)."""
        read = self.attention(self.queries.expand(len(prompt_embeds), -1, -1), prompt_embeds, prompt_embeds)[0]
        outputs = [head(read[:, index]) for index, head in enumerate(self.heads)]
        first, last = len(COLORS), len(COLORS) + len(CLASSES)
        return torch.stack(outputs[:first], dim=1), outputs[first:last], torch.cat(outputs[last:], dim=1)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Folder of the pipeline to start from.")
    parser.add_argument("--train_data_dir", required=True, help="Folder that DrawnFigures.write_folder wrote.")
    parser.add_argument("--output_dir", required=True, help="Folder of the pipeline with the trained S and D.")
    parser.add_argument("--poses_per_identity", type=int, default=3, help="Pictures of each person that are used.")
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--checkpointing_steps", type=int, default=500, help="Write the pipeline each so many steps.")
    parser.add_argument("--num_workers", type=int, default=2, help="Processes that draw the labels.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    torch.manual_seed(args.seed)
    pipe = CFLDPipeline.from_pretrained(args.pretrained_model_name_or_path)
    encoder, decoder = pipe.source_encoder.train(), pipe.prompt_decoder.train()
    label_heads, cell_heads = LabelHeads(decoder.config.dim), CellHeads(encoder.feature_channels)

    root = Path(args.train_data_dir)
    people = DrawnFigures.from_folder(root)
    if not 1 <= args.poses_per_identity <= people.poses_per_identity:
        raise SystemExit(
            f"--poses_per_identity must be from 1 to the {people.poses_per_identity} of {root}, got "
            f"{args.poses_per_identity}."
        )
    load = partial(
        load_person,
        people=people,
        folder=root / "images",
        num_poses=args.poses_per_identity,
        size=encoder.image_size,
    )
    with multiprocessing.Pool(args.num_workers) as pool:
        found = [entry for person in pool.imap(load, range(people.num_identities), chunksize=20) for entry in person]
    pictures, coverages = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*found, strict=True))
    descriptions = [describe(people.identity(number)) for number in range(people.num_identities)]
    labels = [torch.tensor(column) for column in zip(*descriptions, strict=True)]
    logging.info("%d pictures of %d people.", len(pictures), people.num_identities)

    modules = (encoder, decoder, label_heads, cell_heads)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps, pct_start=0.05)
    start, told = time.monotonic(), []
    for step in range(1, args.max_train_steps + 1):
        chosen = torch.randint(len(pictures), (args.train_batch_size,))
        colors, classes, seen, lengths = (column[chosen // args.poses_per_identity] for column in labels)
        colors, seen = colors.float().unflatten(1, (-1, 3)), seen.float()
        pixel_values = pictures[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
        shares = coverages[chosen].permute(0, 3, 1, 2).float() / 255

        feature_maps = list(encoder(pixel_values).feature_maps.values())
        cell_losses = cell_heads(feature_maps, shares, colors, seen, classes[:, :2])
        told_colors, scores, told_lengths = label_heads(decoder(feature_maps[-1]).prompt_embeds)
        color_loss = ((told_colors - colors).square().mean(-1) * seen).sum() / seen.sum()
        class_loss = sum(
            F.cross_entropy(score, classes[:, i], ignore_index=-1) for i, score in enumerate(scores)
        ) / len(scores)
        length_loss = F.smooth_l1_loss(told_lengths, lengths.float())
        part_loss, cell_color_loss, pattern_loss = cell_losses
        loss = 20 * (color_loss + cell_color_loss) + class_loss + length_loss + 2 * part_loss + pattern_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        told.append(torch.stack([color_loss, class_loss, length_loss, *cell_losses]).detach())
        if step % 50 == 0:
            means = torch.stack(told[-50:]).mean(0).tolist()
            logging.info(
                "step %d: read from the prompt: colours off by %.3f rms, classes %.3f, lengths %.3f; told by cells: "
                "parts %.3f, colours off by %.3f rms, patterns %.3f; %.2f steps/s",
                step, means[0] ** 0.5, means[1], means[2], means[3], means[4] ** 0.5, means[5],
                step / (time.monotonic() - start),
            )  # fmt: skip
        if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
            encoder.eval(), decoder.eval()
            pipe.save_pretrained(args.output_dir)
            encoder.train(), decoder.train()


if __name__ == "__main__":
    main(parse_args())
