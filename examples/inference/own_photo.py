"""Any photo as a source: cropped to the person, at 256:176, the target pose on the person's own proportions."""

import numpy as np
import PIL.Image
import torch

from diffusers_cfld import Keypoints, align_pose, fit_photo
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_poses, example_source_poses, example_sources, load_small_model

# In the place of PIL.Image.open("holiday.jpg"): a wide photo with a small person in it, and where the joints are.
person, body = example_sources()[1].resize((132, 192)), example_source_poses()[1].rescale((192, 132))
photo = PIL.Image.new("RGB", (500, 240), person.getpixel((2, 2)))
photo.paste(person, (300, 30))
body = Keypoints(body.xy + np.array([300, 30]), body.visible, size=(240, 500))

fitted = fit_photo(photo, body)
pose = example_poses()[3]
aligned = align_pose(pose, fitted.keypoints)
pipe = load_small_model()
result = pipe(
    image=fitted.image, pose=aligned, num_inference_steps=20, output_size=(256, 176), generator=torch.manual_seed(0)
).images[0]

thumbnail = PIL.Image.new("RGB", (176, 256), "white")
thumbnail.paste(photo.resize((176, 84)), (0, 86))
pictures = [thumbnail, fitted.keypoints.draw(background=fitted.image).resize((176, 256)), pose.draw(), aligned.draw()]
labels = ["photo", "fitted to the person", "target pose", "on this body", "result"]
contact_sheet([[*pictures, result]], [labels]).save("own_photo.png")
