"""The command line: every option's name, type, default and choices, as the stored list has them."""

import argparse
import json
from pathlib import Path

from diffusers_cfld.cli import build_parser

STORED = Path(__file__).parents[1] / "data" / "command_options.json"


def describe(parser):
    return {
        "/".join(action.option_strings) or action.dest: {
            "type": getattr(action.type, "__name__", None),
            "default": action.default,
            "choices": list(action.choices) if action.choices else None,
            "nargs": action.nargs,
            "required": action.required,
        }
        for action in parser._actions
        if not isinstance(action, (argparse._HelpAction, argparse._VersionAction))
    }


def test_the_options_of_every_command():
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    found = {name: describe(parser) for name, parser in commands.choices.items()}
    # To change an option on purpose: STORED.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(STORED.read_text())
