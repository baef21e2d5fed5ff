#!/usr/bin/env python
"""Pack a data set into shards that `train_cfld.py` can stream, from a network disk or the Hub for instance.

    python write_shards.py --train_data_dir deepfashion --output_dir shards

Can be interrupted and run again. `hf upload --repo-type dataset NAME shards` then puts them on the Hub, where
`StreamedPosePairs("hf://datasets/NAME")` reads them.
"""

import argparse
import logging
import sys

from diffusers_cfld.data import SkipReport, load_pairs, write_shards


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data_dir", required=True, help="Folder that `diffusers_cfld.data.load_pairs` reads.")
    parser.add_argument("--dataset_format", default="auto", choices=["auto", "deepfashion", "market1501", "folder"])
    parser.add_argument("--split", default=None, help="'train' or 'test' where the data set has these.")
    parser.add_argument("--output_dir", required=True, help="Where the shards go.")
    parser.add_argument("--pairs_per_shard", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="Pairs are shuffled with it before they are packed.")
    parser.add_argument("--no_shuffle", action="store_true", help="Keep the order of the pairs.")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Write the shards."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = SkipReport()
    try:
        pairs = load_pairs(args.train_data_dir, args.dataset_format, args.split, report=report)
        index = write_shards(
            pairs,
            args.output_dir,
            pairs_per_shard=args.pairs_per_shard,
            seed=None if args.no_shuffle else args.seed,
            report=report,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"write_shards: error: {error}")
    print(f"The shards are listed in {index}. {report.summary()}")


if __name__ == "__main__":
    main(parse_args())
