"""Other people's clothes (Sec. 4.6): give two regions of a reference the appearance of two other people."""

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from diffusers_cfld import CFLDInpaintPipeline
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_source_poses, example_sources, load_small_model

sources, poses = example_sources(), example_source_poses()
reference, pose = sources[1], poses[1]

wall = reference.crop((0, 0, 1, 256)).resize(reference.size)
difference = ImageChops.difference(reference, wall).convert("L").point(lambda value: 255 * (value > 14))
figure = difference.filter(ImageFilter.MaxFilter(13))  # with a margin, for wider clothes
# Outlines around the joints, without hands and shoes: from the neck to the hips, and from the hips to the ankles.
upper = [(46, 54), (176, 54), (176, 130), (150, 130), (150, 138), (46, 138)]
lower = [(98, 136), (150, 136), (150, 164), (176, 190), (168, 234), (92, 234)]
masks = [Image.new("L", reference.size) for _ in range(2)]
for mask, outline in zip(masks, (upper, lower), strict=True):
    ImageDraw.Draw(mask).polygon(outline, fill=255)
masks = [ImageChops.multiply(mask, figure) for mask in masks]
pipe = CFLDInpaintPipeline.from_pipe(load_small_model())
images, labels = [reference], ["reference"]
for count, others in ((1, sources[:1]), (2, [sources[0], sources[2]])):
    options = {"image": reference, "mask_image": masks[:count], "source_image": others, "pose": pose}
    edited = pipe(**options, **SAMPLING_OPTIONS, generator=torch.manual_seed(0)).images[0]
    images += [masks[count - 1], others[-1], edited]
    labels += [f"region {count}", f"source {count}", "region 1 edited" if count == 1 else "both edited"]
contact_sheet([images], [labels]).save("edit_appearance.png")
