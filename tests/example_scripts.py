"""Examples are scripts, not a package: they are imported from their files."""

import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name):
    path = next(EXAMPLES.glob(f"*/{name}.py"))
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as when it is run: a script may import its neighbours
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Where worker processes look for what they are to run.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
