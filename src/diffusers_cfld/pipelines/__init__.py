"""The pipelines of CFLD: pose transfer, and pose transfer inside a mask."""

import diffusers

from .pipeline_cfld import CFLDPipeline
from .pipeline_cfld_inpaint import CFLDInpaintPipeline

# `DiffusionPipeline.from_pretrained` looks up the class named in a saved folder as an attribute of diffusers.
for _pipeline in (CFLDPipeline, CFLDInpaintPipeline):
    if not hasattr(diffusers, _pipeline.__name__):
        setattr(diffusers, _pipeline.__name__, _pipeline)
