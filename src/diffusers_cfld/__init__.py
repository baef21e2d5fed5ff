"""CFLD (Coarse-to-Fine Latent Diffusion, CVPR 2024) for diffusers: put a person into another pose.

Beside diffusers itself, names are imported when they are first used, because diffusers' pipelines, transformers and
timm take seconds to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._registration import add_pipelines_to_diffusers
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin as ModelMixin

    from .models.appearance_encoder import AppearanceEncoder as AppearanceEncoder
    from .models.appearance_encoder import AppearanceEncoderOutput as AppearanceEncoderOutput
    from .models.attention_processor import HybridGranularityAttnProcessor as HybridGranularityAttnProcessor
    from .models.attention_processor import hybrid_granularity_attention as hybrid_granularity_attention
    from .models.attention_processor import query_bias_to_tokens as query_bias_to_tokens
    from .models.pose_adapter import PoseAdapter as PoseAdapter
    from .models.pose_adapter import PoseAdapterOutput as PoseAdapterOutput
    from .models.prompt_decoder import PerceptionRefinedDecoder as PerceptionRefinedDecoder
    from .models.prompt_decoder import PerceptionRefinedDecoderOutput as PerceptionRefinedDecoderOutput
    from .models.source_encoder import SwinImageEncoder as SwinImageEncoder
    from .models.source_encoder import SwinImageEncoderOutput as SwinImageEncoderOutput
    from .pipelines.pipeline_cfld import CFLDPipeline as CFLDPipeline
    from .pipelines.pipeline_cfld_inpaint import CFLDInpaintPipeline as CFLDInpaintPipeline
    from .pipelines.pipeline_output import Appearance as Appearance
    from .pipelines.pipeline_output import CFLDPipelineOutput as CFLDPipelineOutput
    from .pipelines.pipeline_output import PoseFeatures as PoseFeatures
    from .pose.alignment import align_pose as align_pose
    from .pose.keypoints import Keypoints as Keypoints
    from .processors.cropping import fit_keypoints as fit_keypoints
    from .processors.cropping import fit_photo as fit_photo
    from .processors.pose_map import PoseProcessor as PoseProcessor
    from .processors.pose_map import render_pose_map as render_pose_map
    from .processors.source_image import SourceImageProcessor as SourceImageProcessor

_MODULES = {
    "Appearance": ".pipelines.pipeline_output",
    "AppearanceEncoder": ".models.appearance_encoder",
    "AppearanceEncoderOutput": ".models.appearance_encoder",
    "CFLDInpaintPipeline": ".pipelines.pipeline_cfld_inpaint",
    "CFLDPipeline": ".pipelines.pipeline_cfld",
    "CFLDPipelineOutput": ".pipelines.pipeline_output",
    "HybridGranularityAttnProcessor": ".models.attention_processor",
    "Keypoints": ".pose.keypoints",
    "PerceptionRefinedDecoder": ".models.prompt_decoder",
    "PerceptionRefinedDecoderOutput": ".models.prompt_decoder",
    "PoseAdapter": ".models.pose_adapter",
    "PoseAdapterOutput": ".models.pose_adapter",
    "PoseFeatures": ".pipelines.pipeline_output",
    "PoseProcessor": ".processors.pose_map",
    "SourceImageProcessor": ".processors.source_image",
    "SwinImageEncoder": ".models.source_encoder",
    "SwinImageEncoderOutput": ".models.source_encoder",
    "align_pose": ".pose.alignment",
    "fit_keypoints": ".processors.cropping",
    "fit_photo": ".processors.cropping",
    "hybrid_granularity_attention": ".models.attention_processor",
    "query_bias_to_tokens": ".models.attention_processor",
    "render_pose_map": ".processors.pose_map",
}

__all__ = [
    "Appearance",
    "AppearanceEncoder",
    "AppearanceEncoderOutput",
    "CFLDInpaintPipeline",
    "CFLDPipeline",
    "CFLDPipelineOutput",
    "HybridGranularityAttnProcessor",
    "Keypoints",
    "PerceptionRefinedDecoder",
    "PerceptionRefinedDecoderOutput",
    "PoseAdapter",
    "PoseAdapterOutput",
    "PoseFeatures",
    "PoseProcessor",
    "SourceImageProcessor",
    "SwinImageEncoder",
    "SwinImageEncoderOutput",
    "__version__",
    "align_pose",
    "fit_keypoints",
    "fit_photo",
    "hybrid_granularity_attention",
    "query_bias_to_tokens",
    "render_pose_map",
]


def __getattr__(name: str) -> Any:
    if name == "ModelMixin":  # diffusers' loader matches components by this attribute of their package
        value = import_module("diffusers.models.modeling_utils").ModelMixin
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


add_pipelines_to_diffusers()
