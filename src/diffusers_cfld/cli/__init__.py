"""The command line: `diffusers-cfld` and `python -m diffusers_cfld`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from .animate import add_animate_parser
from .convert import add_convert_parser
from .demo import add_demo_parser
from .generate import add_generate_parser
from .interpolate import add_interpolate_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands.

    Returns:
        A parser; in the parsed arguments, `run` is the function that executes the command and returns its exit code.
    """
    parser = argparse.ArgumentParser(
        prog="diffusers-cfld", description="Put a person into another pose with CFLD, on top of diffusers."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_demo_parser, add_generate_parser, add_animate_parser, add_interpolate_parser, add_convert_parser):
        add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0 on success, 1 on failure (one sentence on standard error says why; if the environment variable
        `DIFFUSERS_CFLD_TRACEBACK` is set, the error is raised instead), 130 if interrupted. On wrong usage, argparse
        itself exits with 2.
    """
    args = build_parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("diffusers_cfld")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        sys.stderr.write("diffusers-cfld: interrupted\n")
        return 130
    except Exception as error:
        if os.environ.get("DIFFUSERS_CFLD_TRACEBACK"):
            raise
        sentence = " ".join(str(error).split())
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError)):  # a bug in our code or in a library
            sentence = f"unexpected {type(error).__name__}: {sentence} (set DIFFUSERS_CFLD_TRACEBACK=1 to see where)"
        sys.stderr.write(f"diffusers-cfld: error: {sentence}\n")
        return 1
    finally:
        logger.removeHandler(handler)
