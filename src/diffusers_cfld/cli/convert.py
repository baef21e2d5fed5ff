"""`diffusers-cfld convert`: convert the published checkpoint to a pipeline folder or back, or Swin weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from .options import DTYPES

_SWIN_MODEL = "swin_base_patch4_window12_384"
_SWIN_IMAGE_SIZE = 256
_SWIN_WINDOW_SIZE = 16

# For each of the three conversions, the options that it needs and those that it also takes.
_MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "checkpoint": (("base", "output"), ("dtype", "variant", "overwrite", "token", "revision")),
    "to_original": (("model", "output"), ("variant", "overwrite")),
    "swin": (("output",), ("swin_model", "image_size", "window_size", "dtype", "variant", "overwrite")),
}


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
    modes.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="folder with pytorch_model.bin, pytorch_model_1.bin and, if sizes are not as published, config.yaml",
    )
    parser.add_argument("--base", metavar="DIR_OR_HUB_ID", help="Stable Diffusion 1.5, needed with --checkpoint")
    modes.add_argument("--to-original", action="store_true", help="write the published layout from --model")
    parser.add_argument("--model", metavar="DIR", help="local pipeline folder, needed with --to-original")
    modes.add_argument("--swin", metavar="FILE", help="Swin weights (.safetensors, .pth, .bin) in either layout")
    parser.add_argument("--swin-model", metavar="NAME", help=f"timm name of the architecture (default: {_SWIN_MODEL})")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help=f"side of the source image in pixels (default: {_SWIN_IMAGE_SIZE})"
    )
    parser.add_argument(
        "--window-size",
        type=int,
        metavar="N",
        help=f"side of the attention window in tokens (default: {_SWIN_WINDOW_SIZE})",
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the written weights (default: unchanged)")
    parser.add_argument("--variant", metavar="NAME", help="variant in the names of the weight files, e.g. fp16")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder if an earlier conversion wrote it"
    )
    parser.add_argument("--token", help="Hub token for --base")
    parser.add_argument("--revision", help="Hub revision of --base")
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
    mode = _choose_mode(args)

    import torch

    from ..conversion import convert

    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    output_options = {"variant": args.variant, "overwrite": args.overwrite}
    if mode == "checkpoint":
        hub_options = {"token": args.token, "revision": args.revision}
        convert.convert_checkpoint(
            args.checkpoint, args.base, args.output, dtype=dtype, **output_options, **hub_options
        )
    elif mode == "to_original":
        convert.convert_to_original(args.model, args.output, **output_options)
    else:
        convert.convert_swin(
            args.swin,
            args.output,
            model_name=args.swin_model or _SWIN_MODEL,
            image_size=_SWIN_IMAGE_SIZE if args.image_size is None else args.image_size,
            window_size=_SWIN_WINDOW_SIZE if args.window_size is None else args.window_size,
            dtype=dtype,
            **output_options,
        )
    sys.stdout.write(f"Wrote {args.output}\n")
    return 0


def _choose_mode(args: argparse.Namespace) -> str:
    """Choose the conversion, and check that the options fit it."""
    known = {name for needed, optional in _MODES.values() for name in (*needed, *optional)}
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    mode = next(mode for mode in _MODES if mode in given)
    needed, optional = _MODES[mode]
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"{_flags([mode])} also needs {_flags(missing)}.")
    foreign = sorted((given & known) - {*needed, *optional})
    if foreign:
        raise ValueError(f"{_flags([mode])} does not take {_flags(foreign)}.")
    return mode


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
