"""`diffusers-cfld convert`: convert the published checkpoint to a pipeline folder or back, or Swin weights."""

from __future__ import annotations

import argparse
import inspect
import sys
from typing import Any

from .options import DTYPES

# The options that choose a conversion, each with its function; the function's arguments are the other options.
_CONVERSIONS = {"checkpoint": "convert_checkpoint", "to_original": "convert_to_original", "swin": "convert_swin"}


def add_convert_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `convert` command.

    Args:
        subparsers: Subparsers of the main parser.

    Returns:
        The parser of the command; its default for `run` is [`run`].
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="convert the published checkpoint into a pipeline folder, or back",
        description=(
            "Convert the published CFLD checkpoint into a folder for CFLDPipeline.from_pretrained (--checkpoint), "
            "such a folder back into the published layout (--to-original), or Swin weights into a source encoder "
            "(--swin)."
        ),
    )
    modes = parser.add_mutually_exclusive_group(required=True)
    add = parser.add_argument
    modes.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="folder with pytorch_model.bin, pytorch_model_1.bin and, if sizes are not as published, config.yaml",
    )
    add("--base", metavar="DIR_OR_HUB_ID", help="Stable Diffusion 1.5, needed with --checkpoint")
    modes.add_argument("--to-original", action="store_true", help="write the published layout from --model")
    add("--model", metavar="DIR", help="local pipeline folder, needed with --to-original")
    modes.add_argument("--swin", metavar="FILE", help="Swin weights (.safetensors, .pth, .bin) in either layout")
    add("--swin-model", metavar="NAME", help="timm name of the architecture (default: swin_base_patch4_window12_384)")
    add("--image-size", type=int, metavar="N", help="side of the source image in pixels (default: 256)")
    add("--window-size", type=int, metavar="N", help="side of the attention window in tokens (default: 16)")
    add("--output", metavar="DIR", help="folder to write")
    add("--dtype", choices=DTYPES, help="data type of the written weights (default: unchanged)")
    add("--variant", metavar="NAME", help="variant in the names of the weight files, e.g. fp16")
    add("--overwrite", action="store_true", help="replace the output folder if an earlier conversion wrote it")
    add("--token", help="Hub token for --base")
    add("--revision", help="Hub revision of --base")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_convert_parser`].

    Returns:
        0; failures raise.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: Options contradict each other, or the conversion failed; the message says what to do.
    """
    import torch

    from ..conversion import convert

    given = {name: value for name, value in vars(args).items() if value is not None and value is not False}
    del given["run"]
    mode = next(name for name in _CONVERSIONS if name in given)
    function = getattr(convert, _CONVERSIONS[mode])
    parameters = inspect.signature(function).parameters.values()
    missing = [one.name for one in parameters if one.default is one.empty and one.name not in given]
    if missing:
        raise ValueError(f"{_flags([mode])} also needs {_flags(missing)}.")
    arguments = {one.name: given.pop(one.name) for one in parameters if one.name in given}
    foreign = sorted(given.keys() - {mode})
    if foreign:
        raise ValueError(f"{_flags([mode])} does not take {_flags(foreign)}.")
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, args.dtype)
    function(**arguments)
    sys.stdout.write(f"Wrote {args.output}\n")
    return 0


def _flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
