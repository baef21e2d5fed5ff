"""The models of CFLD: what is trained, and the attention processor that carries it into the stock U-Net."""

from .._registration import add_models_to_diffusers

# Here too, so that other pipelines than ours record the models by their short name.
add_models_to_diffusers()
