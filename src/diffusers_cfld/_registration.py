"""Make diffusers' loaders know this package.

Two things are missing there for a third-party pipeline. `DiffusionPipeline.from_pretrained` looks the class that a
folder names up as an attribute of diffusers. And components load from the Hub only if their library is in
`LOADABLE_CLASSES` (huggingface/diffusers#6563); with the entry, `model_index.json` also records the short
`["diffusers_cfld", "PoseAdapter"]` instead of a module path, so that modules can move.
"""

from importlib import import_module
from typing import Any

import diffusers

PACKAGE = __name__.split(".")[0]


def add_pipelines_to_diffusers() -> None:
    """Make `diffusers.CFLDPipeline` and its kin ours, imported when first asked for, unless diffusers has its own."""

    class DiffusersWithCFLD(type(diffusers)):  # type: ignore[misc]
        @property
        def CFLDPipeline(self) -> Any:
            return import_module(PACKAGE).CFLDPipeline

        @property
        def CFLDInpaintPipeline(self) -> Any:
            return import_module(PACKAGE).CFLDInpaintPipeline

    if "CFLDPipeline" not in dir(diffusers):
        diffusers.__class__ = DiffusersWithCFLD


def add_models_to_diffusers() -> None:
    """Enter the package in diffusers' `LOADABLE_CLASSES`."""
    from diffusers.pipelines import pipeline_loading_utils

    # The loader looks the base class up as an attribute of the package; `diffusers_cfld.ModelMixin` is there for it.
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(PACKAGE, {"ModelMixin": ["save_pretrained", "from_pretrained"]})
