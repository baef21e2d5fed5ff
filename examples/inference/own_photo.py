"""Any photo as the source: crop it to the person, at 256:176, and align the target pose to the person's body."""

import numpy as np
import PIL.Image
import torch

from diffusers_cfld import Keypoints, align_pose, fit_photo
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_poses, example_source_poses, example_sources, load_small_model

# Instead of PIL.Image.open("holiday.jpg"): a wide photo with a person in it, and the person's joints.
person, body = example_sources()[2], example_source_poses()[2]
photo = person.crop((0, 0, 1, 256)).resize((560, 256))  # the wall
photo.paste(person, (330, 0))
body = Keypoints(body.xy + np.array([330, 0]), body.visible, size=(256, 560))

fitted = fit_photo(photo, body)
pose = example_poses()[3]
aligned = align_pose(pose, fitted.keypoints)
pipe = load_small_model()
result = pipe(image=fitted.image, pose=aligned, num_inference_steps=20, generator=torch.manual_seed(0)).images[0]

thumbnail = PIL.Image.new("RGB", (176, 256), "white")
thumbnail.paste(photo.resize((176, 80)), (0, 88))
images = [thumbnail, fitted.keypoints.draw(background=fitted.image).resize((176, 256)), pose.draw(), aligned.draw()]
labels = ["photo", "fitted to the person", "target pose", "on this body", "result"]
contact_sheet([[*images, result]], [labels]).save("own_photo.png")
