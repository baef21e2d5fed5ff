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

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands.

    Returns:
        A parser whose namespace has `run`, the function that executes the command and returns its exit code.
    """
    parser = argparse.ArgumentParser(
        prog="diffusers-cfld", description="Put a person into another pose with CFLD, on top of diffusers."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_demo_parser(subparsers)
    add_generate_parser(subparsers)
    add_animate_parser(subparsers)
    add_interpolate_parser(subparsers)
    add_convert_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; default those of the process.

    Returns:
        0 on success, 1 when an input cannot be used (one sentence on standard error says why), 130 when interrupted;
        argparse itself exits with 2 on wrong usage.
    """
    args = build_parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("diffusers_cfld")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return int(args.run(args))
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"diffusers-cfld: error: {_one_line(error)}\n")
        return EXIT_ERROR
    except Exception as error:  # a defect of ours or of a library: still one line, unless the traceback is asked for
        if os.environ.get("DIFFUSERS_CFLD_TRACEBACK"):
            raise
        sys.stderr.write(
            f"diffusers-cfld: error: unexpected {type(error).__name__}: {_one_line(error)} "
            "(set DIFFUSERS_CFLD_TRACEBACK=1 to see where)\n"
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("diffusers-cfld: interrupted\n")
        return EXIT_INTERRUPTED
    finally:
        logger.removeHandler(handler)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
