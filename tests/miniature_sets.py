"""Miniature data sets in the layouts of DeepFashion and Market-1501."""

import json

import numpy as np
import PIL.Image

HEADER = "name:keypoints_y:keypoints_x\n"
NAMES = [f"fashionWOMENTees_Tanksid0000000{person}0{shot}_{shot}front.jpg" for person in (1, 2) for shot in (1, 2, 3)]


def save_image(path, seed, size=(32, 22)):
    """A smooth random image, (height, width) pixels, that differs from its mirror image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).resize(size[::-1], PIL.Image.Resampling.BICUBIC).save(path)
    return path


def columns(seed, frame=(256, 176), missing=(3, 17)):
    """The (y, x) lists of one pose."""
    random = np.random.default_rng([9, seed])
    y, x = (random.integers(5, length - 5, 18).tolist() for length in frame)
    for joint in missing:
        y[joint] = x[joint] = -1
    return y, x


def write_lists(folder, names=NAMES, prefix="fasion-resize", split="train", frame=(256, 176)):
    """Lists in which every image is paired with the next; returns the pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(names, [*names[1:], names[0]], strict=True))
    (folder / f"{prefix}-pairs-{split}.csv").write_text("from,to\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    lines = []
    for seed, name in enumerate(names):
        y, x = columns(seed, frame)
        lines.append(f"{name}: {json.dumps(y)}: {json.dumps(x)}\n")
    (folder / f"{prefix}-annotation-{split}.csv").write_text(HEADER + "".join(lines))
    return pairs


def write_deepfashion(folder):
    """Six images in six pairs, as `load_deepfashion_pairs` reads them."""
    write_lists(folder)
    for seed, name in enumerate(NAMES):
        save_image(folder / "train_highres" / name, seed)
    return folder
