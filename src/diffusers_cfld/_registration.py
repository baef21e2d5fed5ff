"""Make diffusers' loaders know this package.

diffusers only loads pipeline components of libraries in its `LOADABLE_CLASSES`; a third-party component loads from a
folder but not from the Hub (huggingface/diffusers#6563). With the entry, `model_index.json` also records the short
`["diffusers_cfld", "PoseAdapter"]` instead of a module path, so that modules can move.
"""

import diffusers
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils

PACKAGE = __name__.split(".")[0]


def register_with_diffusers(pipeline_class: type[DiffusionPipeline]) -> None:
    """Register the package's models and one of its pipelines.

    Args:
        pipeline_class: Made known to diffusers by its name, so that `DiffusionPipeline.from_pretrained` finds the
            class that a saved pipeline names.
    """
    # The loader looks the base class up as an attribute of the package; `diffusers_cfld.ModelMixin` is there for it.
    pipeline_loading_utils.LOADABLE_CLASSES.setdefault(PACKAGE, {"ModelMixin": ["save_pretrained", "from_pretrained"]})
    if not hasattr(diffusers, pipeline_class.__name__):
        setattr(diffusers, pipeline_class.__name__, pipeline_class)
