#!/usr/bin/env python
"""Save a trained pipeline as it is shipped: in half precision, with the sampler that it is used with."""

import argparse
import json
from pathlib import Path

import diffusers
import torch

from diffusers_cfld import CFLDPipeline


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Folder that train_cfld.py wrote.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--scheduler", default="DDIMScheduler", help="Scheduler class of diffusers.")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    pipe = CFLDPipeline.from_pretrained(args.model, dtype=torch.float16)
    pipe.scheduler = getattr(diffusers, args.scheduler).from_config(pipe.scheduler.config)
    pipe.save_pretrained(args.output_dir, variant="fp16")
    for file in Path(args.output_dir).glob("**/*.json"):
        # Do not ship paths of the machine that the model was trained on.
        content = json.loads(file.read_text())
        content.pop("_name_or_path", None)
        file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(parse_args())
