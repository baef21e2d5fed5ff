"""CFLD (Coarse-to-Fine Latent Diffusion, CVPR 2024) for diffusers: put a person into another pose.

The public names are listed in `__init__.pyi`, for type checkers and for this module. Each is imported only when it is
first used, because diffusers, transformers and timm take seconds to load.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_modules = {
    name.name: "." * statement.level + str(statement.module)
    for statement in _stub.body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}

__all__ = sorted(_modules.keys() - {"ModelMixin"})  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_modules[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
