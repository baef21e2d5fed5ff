"""`diffusers-cfld convert`: the published checkpoint to a pipeline folder, back, or Swin weights to an encoder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .options import DTYPES

if TYPE_CHECKING:
    import torch

_SWIN_MODEL = "swin_base_patch4_window12_384"
_SWIN_IMAGE_SIZE = 256
_SWIN_WINDOW_SIZE = 16

# What each of the three conversions needs and what else it takes.
_MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "checkpoint": (("base", "output"), ("dtype", "variant", "overwrite", "token", "revision")),
    "to_original": (("model", "output"), ("variant", "overwrite")),
    "swin": (("output",), ("swin_model", "image_size", "window_size", "dtype", "variant", "overwrite")),
}


def add_convert_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `convert` command.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.

    Returns:
        The command's parser; its `run` default is [`run`].
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
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="folder with pytorch_model.bin, pytorch_model_1.bin and, for other sizes than the published, config.yaml",
    )
    parser.add_argument("--base", metavar="DIR_OR_HUB_ID", help="Stable Diffusion 1.5 for --checkpoint")
    parser.add_argument("--to-original", action="store_true", help="write the published layout from --model")
    parser.add_argument("--model", metavar="DIR", help="local pipeline folder for --to-original")
    parser.add_argument("--swin", metavar="FILE", help="Swin weights (.safetensors, .pth, .bin) in either layout")
    parser.add_argument("--swin-model", metavar="NAME", help=f"timm name of the architecture (default: {_SWIN_MODEL})")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help=f"pixels of the source image's side (default: {_SWIN_IMAGE_SIZE})"
    )
    parser.add_argument(
        "--window-size", type=int, metavar="N", help=f"tokens of the window's side (default: {_SWIN_WINDOW_SIZE})"
    )
    parser.add_argument("--output", metavar="DIR", help="folder to make")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: as they are)")
    parser.add_argument("--variant", metavar="NAME", help="put into the weights' file names, e.g. fp16")
    parser.add_argument("--overwrite", action="store_true", help="replace a former result in the output folder")
    parser.add_argument("--token", help="Hub token for --base")
    parser.add_argument("--revision", help="Hub revision of --base")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert as the arguments say.

    Args:
        args: Parsed by the parser of [`add_convert_parser`].

    Returns:
        0, the exit code of success.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The flags do not go together, or the conversion failed; the message says what to do.
        ImportError: A library that is needed is not installed.
    """
    mode = _check_flags(args)
    if mode == "checkpoint":
        from ..conversion.convert import convert_checkpoint

        convert_checkpoint(
            args.checkpoint,
            args.base,
            args.output,
            dtype=_parse_dtype(args.dtype),
            variant=args.variant,
            overwrite=args.overwrite,
            token=args.token,
            revision=args.revision,
        )
    elif mode == "to_original":
        from ..conversion.convert import convert_to_original

        convert_to_original(args.model, args.output, variant=args.variant, overwrite=args.overwrite)
    else:
        from ..conversion.convert import convert_swin

        convert_swin(
            args.swin,
            args.output,
            model_name=args.swin_model or _SWIN_MODEL,
            image_size=_SWIN_IMAGE_SIZE if args.image_size is None else args.image_size,
            window_size=_SWIN_WINDOW_SIZE if args.window_size is None else args.window_size,
            dtype=_parse_dtype(args.dtype),
            variant=args.variant,
            overwrite=args.overwrite,
        )
    sys.stdout.write(f"Wrote {args.output}\n")
    return 0


def _check_flags(args: argparse.Namespace) -> str:
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    modes = [mode for mode in _MODES if mode in given]
    names = ", ".join(map(_flag, _MODES))
    if len(modes) != 1:
        got = " and ".join(map(_flag, modes)) or "none"
        raise ValueError(f"`convert` needs exactly one of {names}, got {got}.")
    mode = modes[0]
    required, optional = _MODES[mode]
    missing = [_flag(name) for name in required if name not in given]
    if missing:
        raise ValueError(f"`convert {_flag(mode)}` needs {' and '.join(missing)} as well.")
    known = {name for required, optional in _MODES.values() for name in (*required, *optional)}
    foreign = sorted(_flag(name) for name in (given & known) - {*required, *optional})
    if foreign:
        raise ValueError(f"`convert {_flag(mode)}` does not take {', '.join(foreign)}: leave it out.")
    return mode


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parse_dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
