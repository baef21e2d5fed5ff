"""Look inside the models: attention maps of prompt decoder and U-Net, and the guidance's predictions as images."""

from .attention_maps import AttentionRecorder as AttentionRecorder
from .attention_maps import prompt_attention_maps as prompt_attention_maps
from .attention_maps import record_attention as record_attention
from .guidance_pictures import GuidancePictures as GuidancePictures
from .guidance_pictures import guidance_pictures as guidance_pictures
from .heat_maps import contact_sheet as contact_sheet
from .heat_maps import draw_heat_map as draw_heat_map
