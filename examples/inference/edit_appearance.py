"""Other people's clothes (Sec. 4.6): give two regions of a reference the appearance of two other people."""

import torch
from PIL import Image, ImageChops, ImageFilter

from diffusers_cfld import CFLDInpaintPipeline
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_source_poses, example_sources, load_small_model

sources, poses = example_sources(), example_source_poses()
reference, pose = sources[2], poses[2]
shoulders, hips = round(pose.xy[1, 1]) - 4, round(pose.xy[8, 1]) - 2
wall = reference.crop((0, 0, 1, 256)).resize(reference.size)
difference = ImageChops.difference(reference, wall).convert("L").point(lambda value: 255 * (value > 20))
figure = difference.filter(ImageFilter.MaxFilter(5))  # with a margin
masks = [Image.new("L", reference.size) for _ in range(2)]
for mask, box in zip(masks, ((0, shoulders, 176, hips), (0, hips, 176, 256)), strict=True):
    mask.paste(figure.crop(box), box)  # the upper part, the lower part
pipe = CFLDInpaintPipeline.from_pipe(load_small_model())
options = {"image": reference, "pose": pose, "num_inference_steps": 20}
upper, both = (
    pipe(
        mask_image=masks[:count], source_image=sources[:count], generator=torch.manual_seed(0), **options
    ).images[0]
    for count in (1, 2)
)  # fmt: skip
images = [reference, masks[0], sources[0], upper, masks[1], sources[1], both]
labels = ["reference", "region 1", "source 1", "region 1 edited", "region 2", "source 2", "both edited"]
contact_sheet([images], [labels]).save("edit_appearance.png")
