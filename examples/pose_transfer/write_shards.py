#!/usr/bin/env python
"""Pack a data set into tar files (shards) that `train_cfld.py` streams, for example from a network disk or the Hub.

    python write_shards.py --train_data_dir deepfashion --output_dir shards

The shards follow WebDataset's convention: members are `{key}.source.jpg`, `{key}.target.jpg` and `{key}.json`, where
the key is the number of the pair. After an interruption, run the same command again: shards that exist are kept. For
other data or options, choose another folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset as wds
from stream_pairs import SHARD_INDEX
from tqdm.auto import tqdm

from diffusers_cfld.data import MAX_IN_A_ROW, PosePair, SkipReport, UnreadableDataError, load_pairs
from diffusers_cfld.io_utils import replacing, write_file


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data_dir", required=True, help="Folder that `diffusers_cfld.data.load_pairs` reads.")
    parser.add_argument("--dataset_format", default="auto", choices=["auto", "deepfashion", "market1501", "folder"])
    parser.add_argument("--split", help="'train' or 'test', if the data set has these.")
    parser.add_argument("--output_dir", required=True, help="Folder for the shards.")
    parser.add_argument("--pairs_per_shard", type=int, default=1000, help="Pairs in a shard.")
    parser.add_argument("--seed", type=int, default=0, help="Seed for shuffling the pairs.")
    parser.add_argument("--no_shuffle", action="store_true", help="Keep the order of the pairs.")
    return parser.parse_args(arguments)


def write_shards(
    pairs: Sequence[PosePair],
    output_dir: str | os.PathLike[str],
    *,
    pairs_per_shard: int = 1000,
    seed: int | None = 0,
    report: SkipReport | None = None,
) -> Path:
    """Write pairs into tar files.

    Images are copied byte for byte, once for each pair that they are in; a pair with a missing image is left out. Each
    shard is written completely or not at all, and shards that exist are kept. `shards.json`, written last, says how
    many pairs each has.

    Args:
        pairs: The pairs.
        output_dir: Folder for the shards; created if it does not exist.
        pairs_per_shard: Pairs in a shard, >= 1; the last one may have fewer.
        seed: Seed for shuffling the pairs, since a stream is shuffled only within a buffer; None keeps their order.
        report: Report to which missing images are added; by default they are logged.

    Returns:
        Path of `shards.json`.

    Raises:
        UnreadableDataError: 32 images in a row are missing, or all of them.
        OSError: A file cannot be written.
    """
    report = SkipReport() if report is None else report
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    order = range(len(pairs)) if seed is None else np.random.default_rng(seed).permutation(len(pairs)).tolist()
    shards = []
    missing: list[tuple[str, str]] = []
    for number, first in enumerate(tqdm(range(0, len(pairs), pairs_per_shard), unit="shard", disable=None)):
        file = folder / f"pairs-{number:06d}.tar"
        if not file.exists():
            _write_shard(file, [(key, pairs[key]) for key in order[first : first + pairs_per_shard]], missing, report)
        if file.exists():
            with tarfile.open(file) as archive:
                count = sum(name.endswith(".json") for name in archive.getnames())
            shards.append({"name": file.name, "num_pairs": count})
    if not shards:
        raise UnreadableDataError.after(missing)
    write_file(folder / SHARD_INDEX, json.dumps({"shards": shards}, indent=1).encode() + b"\n")
    return folder / SHARD_INDEX


def _write_shard(
    file: Path, numbered_pairs: list[tuple[int, PosePair]], missing: list[tuple[str, str]], report: SkipReport
) -> None:
    """Write a shard, unless all of its pairs are missing; `missing` collects the images missing in a row so far."""
    count = 0
    with replacing(file) as partial:
        with partial.open("wb") as stream, wds.TarWriter(stream, encoder=False, mtime=0) as writer:
            for number, pair in numbered_pairs:
                try:
                    source, target = Path(pair.source).read_bytes(), Path(pair.target).read_bytes()
                except OSError as error:
                    missing.append((str(error.filename), f"cannot be read ({error.strerror})"))
                    report.update(missing[-1:])
                    if len(missing) == MAX_IN_A_ROW:
                        raise UnreadableDataError.after(missing) from error
                    continue
                missing.clear()
                count += 1
                description = {
                    "index": number,
                    "source": pair.source_name,
                    "target": pair.target_name,
                    "source_keypoints": pair.source_keypoints.to_openpose(),
                    "target_keypoints": pair.target_keypoints.to_openpose(),
                }
                writer.write(
                    {
                        "__key__": f"{number:09d}",
                        f"source{Path(pair.source).suffix.lower()}": source,
                        f"target{Path(pair.target).suffix.lower()}": target,
                        "json": json.dumps(description).encode(),
                    }
                )
        if not count:
            partial.unlink()


def main(args: argparse.Namespace) -> None:
    """Write the shards."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = SkipReport()
    try:
        pairs = load_pairs(args.train_data_dir, args.dataset_format, args.split, report=report)
        seed = None if args.no_shuffle else args.seed
        index = write_shards(pairs, args.output_dir, pairs_per_shard=args.pairs_per_shard, seed=seed, report=report)
    except (ValueError, OSError) as error:
        sys.exit(f"write_shards.py: error: {error}")
    print(f"The shards are listed in {index}. {report.summary()}")


if __name__ == "__main__":
    main(parse_args())
