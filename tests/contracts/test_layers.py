"""The layers of the package: who may import whom, without circles, in files that one reads in one sitting.

Imports inside functions count; those for types alone do not.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "diffusers_cfld"

# From the bottom up. A module imports from its own package and from layers below.
LAYERS = [
    {"_version", "io_utils", "image_utils"},
    {"pose", "models"},
    {"processors", "pose_estimation"},
    {"pipelines"},
    {"inspection", "inversion", "openvino", "sequences", "small_model", "conversion", "training", "data"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())
del MODULES["__init__"]  # the public face imports from everywhere, when asked


def imports(name, path):
    """Modules of the package that a module imports when it runs."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            for alias in node.names:
                module = f"{base}.{alias.name}" if base else alias.name
                found.add(module if module in MODULES else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found & MODULES.keys() - {name}


GRAPH = {name: imports(name, path) for name, path in MODULES.items()}


def test_modules_import_only_downwards():
    wrong = []
    for name, imported in GRAPH.items():
        for other in imported:
            rooms = name.split(".")[0], other.split(".")[0]
            if rooms[0] != rooms[1] and HEIGHT.get(rooms[1], 0) >= HEIGHT.get(rooms[0], 9):
                wrong.append((name, other))
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        raise AssertionError(error.args[1]) from None


def test_files_stay_readable_in_one_sitting():
    names = {str(path.relative_to(SOURCE)) for path in MODULES.values() if len(path.read_text().splitlines()) > 700}
    assert names == set()


def test_modules_keep_no_state():
    """Except for the guard of the attention processors."""
    stateful = set()
    for path in MODULES.values():
        for node in ast.parse(path.read_text()).body:
            value = getattr(node, "value", None) if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            is_empty = ast.unparse(value) in ("{}", "[]") if value is not None else False
            called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
            if is_empty or called in ("Lock", "RLock", "ContextVar", "local", "set", "dict", "list", "defaultdict"):
                stateful.add(str(path.relative_to(SOURCE)))
    assert stateful - {"models/attention_processor.py"} == set()
