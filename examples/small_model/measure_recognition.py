#!/usr/bin/env python
"""Count what a small model gets right in its images of drawn people it was not trained on.

Each image is compared with the true one, whose parts are known pixel by pixel. These are right if

- colours: the mean colour of every garment's ground and accent, and of what is worn under an open jacket, is within
  100 of the true one (of 765, see `color_distance`);
- patterns: the accent of a pattern differs from its ground by at least half of the true contrast;
- sleeves: every visible piece of skin or sleeve of either arm looks more like itself than like the other.

The edge of a part is ignored if at least eight pixels remain without it. Parts of fewer than 14 pixels, arms of fewer
than 12 and patterns with fewer than 15 of ground or accent are not judged. Each pair counts in both directions.
"""

import argparse

import numpy as np
from drawn_figures import ARMS, PARTS, PATTERN_ACCENTS, DrawnFigures, color_distance, draw_arms, draw_parts
from evaluate_small_model import create_parser, generate, load_pipeline, resize
from scipy.ndimage import binary_erosion

COLORED = ("upper", "lower", "inner", *PATTERN_ACCENTS)
LEAST_PIXELS, LEAST_SEEN, LEAST_ARM, LEAST_OTHER = 8, 14, 12, 6
FARTHEST_COLOR, LEAST_CONTRAST = 100, 0.5


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    return create_parser(__doc__.splitlines()[0]).parse_args(arguments)


def shrink(mask: np.ndarray) -> np.ndarray | None:
    """Return a part without its edge, or with it if little else is left, or None if too little is left."""
    inside = binary_erosion(mask)
    if inside.sum() >= LEAST_PIXELS:
        return np.asarray(inside)
    return mask if mask.sum() >= LEAST_SEEN else None


def share_of_way(color: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Return how far a colour is on the way from one to another: 0 at the first, 1 at the other."""
    way = end - start
    return float((color - start) @ way / (way @ way))


def judge_colors(image: np.ndarray, truth: np.ndarray, parts: np.ndarray) -> dict[str, float]:
    """Return the distance of each garment's mean colour from the true one."""
    masks = {name: shrink(parts == PARTS.index(name)) for name in COLORED}
    return {
        name: color_distance(image[mask].mean(0), truth[mask].mean(0))
        for name, mask in masks.items()
        if mask is not None
    }


def judge_patterns(image: np.ndarray, truth: np.ndarray, parts: np.ndarray) -> list[float]:
    """Return the contrast of each garment's pattern as a share of the true one."""
    contrasts = []
    for accent in PATTERN_ACCENTS:
        masks = [parts == PARTS.index(name) for name in (accent.removesuffix("_accent"), accent)]
        if min(mask.sum() for mask in masks) > LEAST_SEEN:
            ground, pattern = (truth[mask].mean(0) for mask in masks)
            made = image[masks[1]].mean(0) - image[masks[0]].mean(0)
            contrasts.append(share_of_way(ground + made, ground, pattern))
    return contrasts


def judge_sleeves(image: np.ndarray, truth: np.ndarray, parts: np.ndarray, arms: np.ndarray) -> list[float]:
    """Return, for each piece of skin or sleeve, how far its colour is on the way to that of the other."""
    shares = []
    for index, arm in enumerate(ARMS[1:], start=1):
        mask = shrink(arms == index)
        other = parts == PARTS.index("upper" if arm.endswith("skin") else "skin")
        if mask is None or mask.sum() < LEAST_ARM or other.sum() < LEAST_OTHER:
            continue
        own, others = truth[mask].mean(0), truth[other].mean(0)
        if np.linalg.norm(own - others) >= 50:
            shares.append(share_of_way(image[mask].mean(0), own, others))
    return shares


def judge(image: np.ndarray, truth: np.ndarray, parts: np.ndarray, arms: np.ndarray) -> dict[str, bool]:
    """Return what is right in an image (height, width, 3), leaving out what the true one does not show."""
    image, truth = image.astype(float), truth.astype(float)
    colors = judge_colors(image, truth, parts)
    contrasts = judge_patterns(image, truth, parts)
    shares = judge_sleeves(image, truth, parts, arms)
    verdict = {"colours": max(colors.values(), default=0) < FARTHEST_COLOR}
    if contrasts:
        verdict["patterns"] = min(contrasts) > LEAST_CONTRAST
    if shares:
        verdict["sleeves"] = max(shares) < 0.5
    return {**verdict, "all of it": all(verdict.values())}


def main(args: argparse.Namespace) -> None:
    pipe = load_pipeline(args)
    people = DrawnFigures(args.num_pairs, 2, (256, 176), first_identity=args.first_identity)
    pairs = list(people)
    sources, poses = [pair["source_image"] for pair in pairs], [pair["target_keypoints"] for pair in pairs]
    verdicts = []
    for index, image in enumerate(generate(pipe, sources, poses, args)):
        number, _, target = people.locate(index)
        figure = people.identity(number), people.pose(number, target)
        size = image.shape[:2]
        truth = resize(pairs[index]["target_image"], size)
        verdicts.append(judge(image, truth, draw_parts(*figure, size), draw_arms(*figure, size)))
    print("| | images that show it | right |\n|---|---|---|")
    for name in ("colours", "patterns", "sleeves", "all of it"):
        right = [verdict[name] for verdict in verdicts if name in verdict]
        print(f"| {name} | {len(right)} | {100 * np.mean(right):.0f} % |" if right else f"| {name} | 0 | |")


if __name__ == "__main__":
    main(parse_args())
