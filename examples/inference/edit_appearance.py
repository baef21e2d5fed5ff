"""Other people's clothes (Sec. 4.6): two regions of a reference each take the appearance of another photo."""

import PIL.Image
import PIL.ImageDraw
import torch

from diffusers_cfld import CFLDInpaintPipeline
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_source_poses, example_sources, load_small_model

sources, poses = example_sources(), example_source_poses()
reference, pose = sources[2], poses[2]
masks = [PIL.Image.new("L", reference.size) for _ in range(2)]
shoulders, hips = pose.xy[1, 1] - 4, pose.xy[8, 1] - 2
PIL.ImageDraw.Draw(masks[0]).rectangle((0, shoulders, 176, hips), fill=255)  # the upper part
PIL.ImageDraw.Draw(masks[1]).rectangle((0, hips + 1, 176, 256), fill=255)  # the lower part
pipe = CFLDInpaintPipeline.from_pipe(load_small_model())
options = {"image": reference, "pose": pose, "num_inference_steps": 20}
upper, both = (
    pipe(
        mask_image=masks[:count], source_image=sources[:count], generator=torch.manual_seed(0), **options
    ).images[0]
    for count in (1, 2)
)  # fmt: skip
pictures = [reference, masks[0], sources[0], upper, masks[1], sources[1], both]
labels = ["reference", "region 1", "source 1", "region 1 edited", "region 2", "source 2", "both edited"]
contact_sheet([pictures], [labels]).save("edit_appearance.png")
