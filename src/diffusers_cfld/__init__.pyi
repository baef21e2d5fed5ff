# The public names. At run time they are read from here too, and imported when they are first used.

# diffusers takes a class of this package for a model if it derives from the `ModelMixin` that it finds here.
from diffusers.models.modeling_utils import ModelMixin as ModelMixin

from ._version import __version__ as __version__
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
