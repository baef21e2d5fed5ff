#!/usr/bin/env python
"""Write what every cell of the drawn pictures shows, for `train_cfld.py --alignment_maps` and `--loss_weight_maps`.

Every picture is drawn once more with one colour for each kind of thing. A cell of 8 x 8 pixels has the shares of nine
kinds in its 16 blocks of 2 x 2 pixels. Each of its quarters that shows clothes has its place along and across the
trunk: in statures, as the phases of patterns that repeat after 0.16 and 0.32 of one, and as the products of two
phases, of which checks, diagonals and dots are made. The places on the cloth are the same along and across the limb
or the skirt where one covers it, as patterns are drawn, and of patterned cloth they are also phases of its own
period. Besides, a cell has the pattern and the colours of the clothes that it shows, and its blocks have the
differences in colour that the pattern makes, and the shares of each arm's skin and sleeve.

The weights are for `--loss_weight_maps`, which takes no other map beside them: clothes inside the figure's outline and
arms count up to five times as much as the rest. By the detail weights, garments whose pattern shows count up to nine
times, and what is worn under a jacket up to thirteen times as much.

Interrupted, the same command goes on where it stopped.
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_cfld.data.drawn_figures import DrawnFigures, DrawnIdentity, DrawnPose
from diffusers_cfld.data.drawn_parts import ARMS, draw_arms, draw_parts, draw_places
from diffusers_cfld.data.drawn_people import Color, Pattern
from diffusers_cfld.data.figure_painting import trunk_axes
from diffusers_cfld.data.figure_skeleton import FRAME, HIPS, place_skeleton
from diffusers_cfld.io_utils import ResumableArrays, write_file
from diffusers_cfld.script_errors import errors_as_one_sentence

KINDS = ("wall", "skin", "hair", "upper", "upper_accent", "lower", "lower_accent", "shoe", "inner")
GARMENTS = ("upper", "lower")
CLOTHES = ("upper", "upper_accent", "lower", "lower_accent")
CELL, QUARTER, BLOCK = 8, 4, 2  # pixels
PERIODS = (0.16, 0.32)  # statures; the mean of the patterns', and twice that: rows of dots alternate
PATTERNS = get_args(Pattern)


def fold(maps: np.ndarray, side: int) -> np.ndarray:
    """Make the squares of `side` pixels of a map channels, (K, H, W) to (K * side**2, H / side, W / side)."""
    return torch.nn.functional.pixel_unshuffle(torch.from_numpy(maps), side).numpy()


def pool(maps: np.ndarray, side: int) -> np.ndarray:
    """Mean over the squares of `side` pixels, (K, H, W) to (K, H / side, W / side)."""
    return fold(maps, side).reshape(len(maps), side**2, maps.shape[1] // side, -1).mean(1)


def describe_shares(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Shares of the kinds in each block."""
    return fold(pool(is_kind, BLOCK), CELL // BLOCK)


def describe_places(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Places along and across the trunk, their waves and the products of these, of each quarter that shows clothes."""
    is_clothed = pool(is_kind[[KINDS.index(name) for name in CLOTHES]], QUARTER).sum(0) > 0.25
    height, width = is_clothed.shape
    skeleton = place_skeleton(person, pose)
    axes = trunk_axes(person.body, skeleton.points[1], skeleton.points[HIPS], skeleton.unit, skeleton.turns[1])
    y = (np.arange(height) + 0.5) * FRAME[0] / height
    x = (np.arange(width) + 0.5) * FRAME[1] / width
    offsets = np.stack(np.meshgrid(x, y), axis=-1) - axes.origin
    along, across = (offsets @ axis / (axis @ axis) for axis in (axes.along, axes.across))
    waves_along, waves_across, products = wave_along_and_across(along, across, PERIODS, PERIODS)
    places = np.stack([along, across, *waves_along, *waves_across, *products]).astype(np.float32)
    return fold(places * is_clothed, CELL // QUARTER)


def describe_cloth_places(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Places on the cloth, their waves and the products of these, also of the pattern's own period."""
    places = draw_places(person, pose, is_kind.shape[1:])
    is_cloth = ~np.isnan(places[..., 0])
    along, across = np.moveaxis(np.nan_to_num(places), 2, 0)
    maps = [along, across, *chain(*wave_along_and_across(along, across, PERIODS, PERIODS))]
    own = np.zeros((len(maps) - 4, *along.shape), np.float32)  # without the places and the waves across two periods
    for name in GARMENTS:
        fabric = getattr(person.clothes, name)
        if fabric.pattern not in ("plain", "block"):
            is_own = take_garment(is_kind, name).any(0)
            periods = (fabric.period, 2 * fabric.period)
            own += is_own * np.stack([*chain(*wave_along_and_across(along, across, periods, periods[:1]))])
    return fold(pool((np.concatenate([np.stack(maps), own]) * is_cloth).astype(np.float32), QUARTER), CELL // QUARTER)


def describe_patterns(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Each pattern's share of the cells, for the upper and for the lower garment."""
    maps = []
    for name in GARMENTS:
        is_pattern = np.array([getattr(person.clothes, name).pattern == pattern for pattern in PATTERNS])
        maps.append(cover_garment(is_kind, name) * is_pattern[:, None, None])
    return np.concatenate(maps)


def describe_colors(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Ground and accent colours of both garments, and that below a jacket, times their shares of the cells."""
    clothes, maps = person.clothes, []
    for name in GARMENTS:
        fabric = getattr(clothes, name)
        has_accent = fabric.pattern != "plain" or (name == "upper" and clothes.print_shape != "none")
        for color in (fabric.color, fabric.accent if has_accent else fabric.color):
            maps.append(cover_garment(is_kind, name) * scale_color(color))
    maps.append(pool(is_kind[[KINDS.index("inner")]], CELL) * scale_color(clothes.inner))
    return np.concatenate(maps)


def describe_contrasts(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """By what the accents differ in colour from their ground, in each block."""
    contrasts = np.zeros((3, *is_kind.shape[1:]), np.float32)
    for name in GARMENTS:
        fabric = getattr(person.clothes, name)
        is_accent = is_kind[KINDS.index(f"{name}_accent")]
        contrasts += is_accent * (scale_color(fabric.accent) - scale_color(fabric.color))
    return fold(pool(contrasts, BLOCK), CELL // BLOCK)


def describe_arms(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """Shares of the right and of the left arm's skin and sleeve in each block."""
    is_arm = draw_arms(person, pose, is_kind.shape[1:]) == np.arange(1, len(ARMS))[:, None, None]
    return fold(pool(is_arm.astype(np.float32), BLOCK), CELL // BLOCK)


def describe_weights(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """1, and up to 4 more by the share of arms and of clothes that are at least a block away from the wall."""
    is_inside = find_inside(is_kind)
    clothes = pool(is_kind[[KINDS.index(name) for name in (*CLOTHES, "inner")]], BLOCK).sum(0) * is_inside
    arms = pool((draw_arms(person, pose, is_kind.shape[1:]) > 0).astype(np.float32)[None], BLOCK)[0]
    return 1 + 4 * pool(np.minimum(clothes + arms, 1)[None], CELL // BLOCK)


def describe_detail_weights(person: DrawnIdentity, pose: DrawnPose, is_kind: np.ndarray) -> np.ndarray:
    """The weights, and up to 4 more for garments that show an accent, 8 for what is worn under a jacket."""
    details = 8 * is_kind[KINDS.index("inner")]
    for name in GARMENTS:
        garment = take_garment(is_kind, name)
        details += 4 * garment.sum(0) * garment[1].any()
    inside = pool(details[None], BLOCK) * find_inside(is_kind)
    return describe_weights(person, pose, is_kind) + pool(inside, CELL // BLOCK)


def wave_along_and_across(
    along: np.ndarray, across: np.ndarray, periods_along: Sequence[float], periods_across: Sequence[float]
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Sines and cosines along and across, and the products of each along with those of the first period across."""
    waves_along, waves_across = (
        [wave(2 * np.pi * place / period) for period in periods for wave in (np.sin, np.cos)]
        for place, periods in ((along, periods_along), (across, periods_across))
    )
    return waves_along, waves_across, [one * other for one in waves_along for other in waves_across[:2]]


def find_inside(is_kind: np.ndarray) -> np.ndarray:
    """Whether each block is at least a block away from the wall."""
    walls = torch.from_numpy(pool(is_kind[[KINDS.index("wall")]], BLOCK))
    return torch.nn.functional.max_pool2d(walls, kernel_size=3, stride=1, padding=1).numpy()[0] <= 0.25


def take_garment(is_kind: np.ndarray, name: str) -> np.ndarray:
    """Whether each pixel shows a garment's ground, and whether its accent, (2, height, width)."""
    return is_kind[[KINDS.index(name), KINDS.index(f"{name}_accent")]]


def cover_garment(is_kind: np.ndarray, name: str) -> np.ndarray:
    """Share of a garment with its accents in each cell, (1, h, w)."""
    return pool(take_garment(is_kind, name).sum(0, keepdims=True), CELL)


def scale_color(color: Color) -> np.ndarray:
    return np.array(color, dtype=np.float32)[:, None, None] / 255


# Each takes who and how, and whether each pixel shows each kind, (kinds, height, width); it returns (K, h, w).
MAPS = {
    "shares": describe_shares,
    "places": describe_places,
    "cloth_places": describe_cloth_places,
    "patterns": describe_patterns,
    "colors": describe_colors,
    "contrasts": describe_contrasts,
    "arms": describe_arms,
    "weights": describe_weights,
    "detail_weights": describe_detail_weights,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data_dir", required=True, help="Folder that DrawnFigures.write_folder wrote.")
    parser.add_argument("--output_dir", required=True, help="Folder for maps.npy and names.json.")
    parser.add_argument("--height", type=int, default=128, help="Of the pictures in training, pixels.")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument(
        "--maps", nargs="+", choices=MAPS, default=["shares", "places"], help="Which of them are written."
    )
    parser.add_argument("--num_workers", type=int, default=2)
    return parser.parse_args(arguments)


def describe(person: DrawnIdentity, pose: DrawnPose, size: tuple[int, int], names: Sequence[str]) -> np.ndarray:
    """The maps of a picture, one group after the other, (K, h, w), float16."""
    is_kind = (draw_parts(person, pose, size, KINDS) == np.arange(len(KINDS))[:, None, None]).astype(np.float32)
    return np.concatenate([MAPS[name](person, pose, is_kind) for name in names]).astype(np.float16)


def describe_person(number: int, people: DrawnFigures, size: tuple[int, int], names: Sequence[str]) -> np.ndarray:
    person, poses = people.identity(number), range(people.poses_per_identity)
    return np.stack([describe(person, people.pose(number, pose), size, names) for pose in poses])


def main(args: argparse.Namespace) -> None:
    people, size = DrawnFigures.from_folder(args.train_data_dir), (args.height, args.width)
    if any(length % CELL for length in size):
        raise SystemExit(f"--height and --width must be multiples of {CELL}, got {size[0]} and {size[1]}.")
    folder, poses = Path(args.output_dir), people.poses_per_identity
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(describe_person, people=people, size=size, names=args.maps)
    shape = (people.num_identities * poses, *work(0).shape[1:])
    maps = ResumableArrays([folder / "maps.npy"], [shape], np.float16, [people.settings, size, args.maps])
    numbers = range(maps.num_done // poses, people.num_identities)
    with multiprocessing.Pool(args.num_workers) as workers:
        for found in tqdm(workers.imap(work, numbers, 20), initial=numbers.start, total=numbers.stop, desc="People"):
            for described in found:
                maps.append(described, note_every=100 * poses)
    maps.finish()
    names = [people.image_name(number, pose) for number in range(people.num_identities) for pose in range(poses)]
    write_file(folder / "names.json", json.dumps(names).encode())


if __name__ == "__main__":
    with errors_as_one_sentence():
        main(parse_args())
