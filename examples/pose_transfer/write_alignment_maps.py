#!/usr/bin/env python
"""Write what every cell of the drawn pictures shows, for `train_cfld.py --alignment_maps`.

Every picture is drawn once more with one colour for each kind of thing. A cell of 8 x 8 pixels has the shares of nine
kinds in its 16 blocks of 2 x 2 pixels, and, where it shows clothes, its place along and across the trunk, in
statures and as the phases of patterns that repeat after 0.135 and 0.27 of one.
"""

import argparse
import json
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from diffusers_cfld.data.drawn_figures import DrawnFigures, DrawnIdentity, DrawnPose
from diffusers_cfld.data.drawn_parts import draw_parts
from diffusers_cfld.data.figure_painting import trunk_axes
from diffusers_cfld.data.figure_skeleton import FRAME, HIPS, place_skeleton
from diffusers_cfld.file_writing import write_file

KINDS = ("wall", "skin", "hair", "upper", "upper_accent", "lower", "lower_accent", "shoe", "inner")
CLOTHES = ("upper", "upper_accent", "lower", "lower_accent")
CELL, BLOCK = 8, 2  # pixels
PERIODS = (0.135, 0.27)  # statures; the mean of the patterns', and twice that
NUM_MAPS = len(KINDS) * (CELL // BLOCK) ** 2 + 2 + 4 * len(PERIODS)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data_dir", required=True, help="Folder that DrawnFigures.write_folder wrote.")
    parser.add_argument("--output_dir", required=True, help="Folder for maps.npy and names.json.")
    parser.add_argument("--height", type=int, default=128, help="Of the pictures in training, pixels.")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--num_workers", type=int, default=2)
    return parser.parse_args(arguments)


def describe(person: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> np.ndarray:
    """All maps of a picture, (NUM_MAPS, h, w), float16."""
    is_kind = (draw_parts(person, pose, size, KINDS) == np.arange(len(KINDS))[:, None, None]).astype(np.float32)
    height, width, side = size[0] // CELL, size[1] // CELL, CELL // BLOCK
    blocks = is_kind.reshape(len(KINDS), height, side, BLOCK, width, side, BLOCK).mean((3, 6))
    shares = blocks.transpose(0, 2, 4, 1, 3).reshape(-1, height, width)
    is_clothed = blocks[[KINDS.index(name) for name in CLOTHES]].sum(0).mean((1, 3)) > 0.25

    skeleton = place_skeleton(person, pose)
    axes = trunk_axes(person.body, skeleton.points[1], skeleton.points[HIPS], skeleton.unit, skeleton.turns[1])
    y = (np.arange(height) + 0.5) * FRAME[0] / height
    x = (np.arange(width) + 0.5) * FRAME[1] / width
    places = np.stack(np.meshgrid(x, y), axis=-1) - axes.origin
    along, across = (places @ axis / (axis @ axis) for axis in (axes.along, axes.across))
    maps = [along, across]
    for period in PERIODS:
        for place in (along, across):
            angle = 2 * np.pi * place / period
            maps += [np.sin(angle), np.cos(angle)]
    return np.concatenate([shares, np.stack(maps) * is_clothed]).astype(np.float16)


def describe_person(number: int, people: DrawnFigures, size: tuple[int, int]) -> np.ndarray:
    person = people.identity(number)
    return np.stack([describe(person, people.pose(number, pose), size) for pose in range(people.poses_per_identity)])


def main(args: argparse.Namespace) -> None:
    people, size = DrawnFigures.from_folder(args.train_data_dir), (args.height, args.width)
    if any(length % CELL for length in size):
        raise SystemExit(f"--height and --width must be multiples of {CELL}, got {size[0]} and {size[1]}.")
    folder, poses = Path(args.output_dir), people.poses_per_identity
    folder.mkdir(parents=True, exist_ok=True)
    shape = (people.num_identities * poses, NUM_MAPS, size[0] // CELL, size[1] // CELL)
    begun = folder / "maps.begun"
    maps = np.lib.format.open_memmap(begun, "w+", np.float16, shape)
    work = partial(describe_person, people=people, size=size)
    with multiprocessing.Pool(args.num_workers) as pool:
        numbers = range(people.num_identities)
        for number, found in enumerate(tqdm(pool.imap(work, numbers, 20), total=len(numbers), desc="People")):
            maps[number * poses : (number + 1) * poses] = found
    maps.flush()
    begun.rename(folder / "maps.npy")
    names = [people.image_name(number, pose) for number in range(people.num_identities) for pose in range(poses)]
    write_file(folder / "names.json", json.dumps(names).encode())


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
