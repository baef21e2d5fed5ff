"""Training examples per second and worker, compared with reading them one by one as the published code does.

For every item, the published code parses the keypoints from text and evaluates 18 Gaussians on the full map for each
of the two poses; here it draws no skeleton, which is in its favour. Ours has parsed the keypoints before and stamps
Gaussians. Both decode two images and return the sizes of the published training: source 256x256, images 512x512,
poses 256x256. With cached latents, only the source is decoded.

Images are JPEGs of 1101x750 pixels, as in the data set's high-resolution archive, filled with smooth noise.

    python benchmarks/data_loading.py [--items N] [--workers N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from pose_map import STANDING, evaluate_gaussians
from torch.utils.data import DataLoader, Dataset

from diffusers_cfld import Keypoints
from diffusers_cfld.data import PosePair, PosePairDataset, collate_pose_pairs, init_worker

NUM_IMAGES = 32
BATCH = 4


class PublishedWay(Dataset[dict[str, Any]]):
    """Read everything from its file, for every item."""

    def __init__(self, pairs: list[PosePair], columns: tuple[str, str]) -> None:
        self.pairs, self.columns = pairs, columns

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Open, resize and draw."""
        pair = self.pairs[index]
        item: dict[str, Any] = {"index": index, "skipped": []}
        source, target = (PIL.Image.open(path).convert("RGB") for path in (pair.source, pair.target))
        for name, image, side in (
            ("source_pixel_values", source, 512),
            ("target_pixel_values", target, 512),
            ("source_image", source, 256),
        ):
            resized = image.resize((side, side), PIL.Image.Resampling.BICUBIC)
            item[name] = torch.from_numpy(np.asarray(resized) / np.float32(127.5) - 1).permute(2, 0, 1)
        for name in ("source_pose_map", "target_pose_map"):
            y, x = (json.loads(column) for column in self.columns)
            heat_maps = evaluate_gaussians(Keypoints.from_deepfashion(y, x), (256, 256)).astype(np.float32)
            item[name] = torch.from_numpy(np.concatenate([np.zeros((3, 256, 256), np.float32), heat_maps]))
        return item


def write_images(folder: Path) -> list[str]:
    """Write smooth noise of the size of the archive's images."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(NUM_IMAGES):
        noise = random.integers(0, 256, (22, 15, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        PIL.Image.fromarray(noise).resize((750, 1101), PIL.Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def read_all(dataset: Dataset[dict[str, Any]], workers: int) -> float:
    """Read every item once; return the seconds, without the start of the workers and their first batches."""
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate_pose_pairs, worker_init_fn=init_worker
    )
    batches = iter(loader)
    for _ in range(max(1, workers)):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    count = args.items - BATCH * max(1, args.workers)
    if count <= 0:
        parser.error(f"--items must be more than the {args.items - count} with which the workers begin.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder))
        pairs = [
            PosePair(paths[i % NUM_IMAGES], paths[(i + 1) % NUM_IMAGES], STANDING, STANDING, "source", "target")
            for i in range(args.items)
        ]
        columns = (json.dumps(STANDING.xy[:, 1].tolist()), json.dumps(STANDING.xy[:, 0].tolist()))
        datasets = {
            "published way": PublishedWay(pairs, columns),
            "ours": PosePairDataset(pairs),
            "ours, cached latents": PosePairDataset(pairs, load_pixel_values=False),
        }
        ours, published = datasets["ours"][0], datasets["published way"][0]
        for name in ("source_image", "target_pixel_values"):
            difference = (ours[name] - published[name]).abs().mean().item()
            if ours[name].shape != published[name].shape or difference > 0.01:
                raise SystemExit(f"`{name}` differs by {difference:.3f}.")
        seconds: dict[str, list[float]] = {name: [] for name in datasets}
        for _ in range(args.rounds):
            for name, dataset in datasets.items():
                seconds[name].append(read_all(dataset, args.workers))
    rates = {name: count / statistics.median(times) / max(1, args.workers) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:7.1f} items a second and worker ({rate / rates['published way']:.1f}x)")


if __name__ == "__main__":
    main()
