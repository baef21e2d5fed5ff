"""Examples are scripts, not a package: they are imported from their files."""

import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, next(EXAMPLES.glob(f"*/{name}.py")))
    module = importlib.util.module_from_spec(spec)
    # Where worker processes look for what they are to run.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
