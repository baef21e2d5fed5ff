#!/usr/bin/env python
"""Measure what can be recognised in a small model's pictures of drawn people it has never seen.

Everything is compared with the true pictures, whose parts are known pixel by pixel:

- colours: every garment's ground and accent, and what is worn beneath an open jacket, have on the average a colour
  within 100 of the true one (of 765, see `color_distance`);
- patterns: where a pattern's accent belongs the picture differs from the ground by at least half of what it should;
- sleeves: every visible piece of skin and of sleeve of either arm looks more like itself than like the other.

Of a part that covers eight pixels without its edge the edge is left out; of less than 14 pixels with it no colour is
judged, of less than 12 no arm, and no pattern of which ground or accent has less than 15. Each pair counts in both
directions.
"""

import argparse

import numpy as np
from drawn_figures import ARMS, PARTS, PATTERN_ACCENTS, DrawnFigures, color_distance, draw_arms, draw_parts
from evaluate_small_model import add_options, generate, resize
from scipy.ndimage import binary_erosion

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.small_model import SAMPLING_OPTIONS

KINDS = (*PARTS, *PATTERN_ACCENTS)
COLORED = ("upper", "lower", "inner", *PATTERN_ACCENTS)
LEAST_PIXELS, LEAST_SEEN, LEAST_ARM, LEAST_OTHER = 8, 14, 12, 6
FARTHEST_COLOR, LEAST_CONTRAST = 100, 0.5


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--guidance_scale", type=float, default=SAMPLING_OPTIONS["guidance_scale"])
    return parser.parse_args(arguments)


def shrink(mask: np.ndarray) -> np.ndarray | None:
    """A part without its edge; with it where little else is left; None where there is too little to tell."""
    inside = binary_erosion(mask)
    if inside.sum() >= LEAST_PIXELS:
        return np.asarray(inside)
    return mask if mask.sum() >= LEAST_SEEN else None


def share_of_way(color: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """How far a colour is on the way from one to another: 0 at the first, 1 at the other."""
    way = end - start
    return float((color - start) @ way / (way @ way))


def judge_colors(picture: np.ndarray, truth: np.ndarray, parts: np.ndarray) -> dict[str, float]:
    """By how much each garment's mean colour is off."""
    masks = {name: shrink(parts == KINDS.index(name)) for name in COLORED}
    return {
        name: color_distance(picture[mask].mean(0), truth[mask].mean(0))
        for name, mask in masks.items()
        if mask is not None
    }


def judge_patterns(picture: np.ndarray, truth: np.ndarray, parts: np.ndarray) -> list[float]:
    """The contrast of each garment's pattern as a part of what it should be."""
    contrasts = []
    for accent in PATTERN_ACCENTS:
        masks = [parts == KINDS.index(name) for name in (accent.removesuffix("_accent"), accent)]
        if min(mask.sum() for mask in masks) > LEAST_SEEN:
            ground, pattern = (truth[mask].mean(0) for mask in masks)
            made = picture[masks[1]].mean(0) - picture[masks[0]].mean(0)
            contrasts.append(share_of_way(ground + made, ground, pattern))
    return contrasts


def judge_sleeves(picture: np.ndarray, truth: np.ndarray, parts: np.ndarray, arms: np.ndarray) -> list[float]:
    """For each piece of skin or sleeve of an arm how far its colour is on the way to the other's."""
    shares = []
    for index, arm in enumerate(ARMS[1:], start=1):
        mask = shrink(arms == index)
        other = parts == KINDS.index("upper" if arm.endswith("skin") else "skin")
        if mask is None or mask.sum() < LEAST_ARM or other.sum() < LEAST_OTHER:
            continue
        own, others = truth[mask].mean(0), truth[other].mean(0)
        if np.linalg.norm(own - others) >= 50:
            shares.append(share_of_way(picture[mask].mean(0), own, others))
    return shares


def judge(picture: np.ndarray, truth: np.ndarray, parts: np.ndarray, arms: np.ndarray) -> dict[str, bool]:
    """What of a picture (height, width, 3) is right; what the true one does not show is left out."""
    picture, truth = picture.astype(float), truth.astype(float)
    colors = judge_colors(picture, truth, parts)
    contrasts = judge_patterns(picture, truth, parts)
    shares = judge_sleeves(picture, truth, parts, arms)
    verdict = {"colours": max(colors.values(), default=0) < FARTHEST_COLOR}
    if contrasts:
        verdict["patterns"] = min(contrasts) > LEAST_CONTRAST
    if shares:
        verdict["sleeves"] = max(shares) < 0.5
    return {**verdict, "all of it": all(verdict.values())}


def main(args: argparse.Namespace) -> None:
    pipe = CFLDPipeline.from_pretrained(args.model, variant=args.variant)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.target_size
    people = DrawnFigures(args.num_pairs, 2, (256, 176), first_identity=args.first_identity)
    drawn = [people[index] for index in range(len(people))]
    sources, poses = [pair["source_image"] for pair in drawn], [pair["target_keypoints"] for pair in drawn]
    made = generate(pipe, sources, poses, args.guidance_scale, args)
    verdicts = []
    for index, picture in enumerate(made):
        number, _, target = people.locate(index)
        who = people.identity(number), people.pose(number, target)
        truth = resize(drawn[index]["target_image"], size)
        verdicts.append(judge(picture, truth, draw_parts(*who, size, KINDS), draw_arms(*who, size)))
    print("| | pictures that show it | right |\n|---|---|---|")
    for name in ("colours", "patterns", "sleeves", "all of it"):
        right = [verdict[name] for verdict in verdicts if name in verdict]
        print(f"| {name} | {len(right)} | {100 * np.mean(right):.0f} % |" if right else f"| {name} | 0 | |")


if __name__ == "__main__":
    main(parse_args())
