"""The models of CFLD: the four that are trained, and the attention processor that joins them to the stock U-Net."""

from diffusers.pipelines import pipeline_loading_utils

# With this entry diffusers also loads our components from the Hub (huggingface/diffusers#6563), and `model_index.json`
# records them as ["diffusers_cfld", "PoseAdapter"], without module paths, so that modules may move.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault(
    "diffusers_cfld", {"ModelMixin": ["save_pretrained", "from_pretrained"]}
)
