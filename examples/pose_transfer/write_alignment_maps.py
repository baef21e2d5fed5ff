#!/usr/bin/env python
"""Write what every cell of the drawn pictures shows, for `train_cfld.py --alignment_maps`.

Every picture is drawn once more with one colour for each kind of thing. A cell of 8 x 8 pixels has the shares of nine
kinds in its 16 blocks of 2 x 2 pixels, and, where it shows clothes, its place along and across the trunk, in
statures and as the phases of patterns that repeat after 0.135 and 0.27 of one.
"""

import argparse
import json
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from diffusers_cfld.data.drawn_figures import DrawnFigures, DrawnIdentity, DrawnPose, draw_figure
from diffusers_cfld.data.drawn_people import Fabric
from diffusers_cfld.data.figure_skeleton import FRAME, HIPS, place_skeleton
from diffusers_cfld.file_writing import write_file

# What there is to see, and the colour that stands for it.
KINDS = {
    "wall": (255, 255, 255),
    "skin": (255, 0, 0),
    "hair": (0, 255, 0),
    "upper": (0, 0, 255),
    "upper_accent": (110, 0, 255),
    "lower": (255, 255, 0),
    "lower_accent": (255, 110, 0),
    "shoe": (255, 0, 255),
    "inner": (0, 255, 255),
}
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


def find_kinds(person: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> np.ndarray:
    """Number of the kind that each pixel shows, (height, width)."""
    clothes, colors = person.clothes, dict(KINDS)
    upper = Fabric(colors["upper"], colors["upper_accent"], clothes.upper.pattern, clothes.upper.period)
    lower = Fabric(colors["lower"], colors["lower_accent"], clothes.lower.pattern, clothes.lower.period)
    coded = replace(
        person,
        body=replace(person.body, skin=colors["skin"]),
        hair=replace(person.hair, color=colors["hair"], hat=colors["hair"]),
        background=(colors["wall"], colors["wall"]),
        clothes=replace(
            clothes,
            upper=upper,
            lower=lower,
            inner=colors["inner"],
            shoe=colors["shoe"],
            belt=None,
            print_shape="none",
        ),
    )
    pixels = draw_figure(coded, pose, size)[0].reshape(-1, 3).astype(np.float32)
    # Shading changes a colour's length, not its direction.
    directions = np.array(list(KINDS.values()), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    likeness = pixels @ directions.T
    # An edge between two kinds can have the colour of an accent.
    for fabric, accent in ((upper, "upper_accent"), (lower, "lower_accent")):
        if fabric.pattern == "plain":
            likeness[:, list(KINDS).index(accent)] = 0
    return np.asarray(likeness.argmax(axis=1).reshape(size))


def describe(person: DrawnIdentity, pose: DrawnPose, size: tuple[int, int]) -> np.ndarray:
    """All maps of a picture, (NUM_MAPS, h, w), float16."""
    is_kind = (find_kinds(person, pose, size) == np.arange(len(KINDS))[:, None, None]).astype(np.float32)
    height, width, side = size[0] // CELL, size[1] // CELL, CELL // BLOCK
    blocks = is_kind.reshape(len(KINDS), height, side, BLOCK, width, side, BLOCK).mean((3, 6))
    shares = blocks.transpose(0, 2, 4, 1, 3).reshape(-1, height, width)
    is_clothed = blocks[[list(KINDS).index(name) for name in CLOTHES]].sum(0).mean((1, 3)) > 0.25

    skeleton = place_skeleton(person, pose)
    neck, hips, turn = skeleton.points[1], skeleton.points[HIPS], skeleton.turns[1]
    down = (hips - neck) / max(float(np.linalg.norm(hips - neck)), 1e-6)
    right = np.array([down[1], -down[0]])
    # As the patterns of the trunk are drawn.
    origin = neck + right * skeleton.unit * 0.5 * person.body.depth * np.sin(turn)
    y = (np.arange(height) + 0.5) * FRAME[0] / height
    x = (np.arange(width) + 0.5) * FRAME[1] / width
    places = (np.stack(np.meshgrid(x, y), axis=-1) - origin) / skeleton.unit
    along, across = places @ down, places @ right / max(abs(float(np.cos(turn))), 0.55)
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
    first = people.first_identity
    names = [
        f"images/{first + number:06d}_{pose:02d}.png"
        for number in range(people.num_identities)
        for pose in range(poses)
    ]
    write_file(folder / "names.json", json.dumps(names).encode())


if __name__ == "__main__":
    main(parse_args())
