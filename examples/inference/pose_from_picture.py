"""An image as the pose: a drawn skeleton, or with `python pose_from_picture.py VITPOSE IMAGE` an image of a person."""

import sys

import PIL.Image
import torch

from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.pose_estimation import ViTPoseEstimator
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_poses, example_sources, load_small_model

pipe, sources = load_small_model(), example_sources()
if len(sys.argv) > 2:
    pipe.pose_estimator, pose_image = ViTPoseEstimator.from_pretrained(sys.argv[1]), PIL.Image.open(sys.argv[2])
else:
    pose_image = PIL.Image.new("RGB", (600, 400))
    pose_image.paste(example_poses()[2].draw((400, 275)), (250, 0))
results = pipe(image=sources, pose=pose_image, **SAMPLING_OPTIONS, generator=torch.manual_seed(0)).images
shown, empty = (PIL.Image.new("RGB", (176, 256), "white") for _ in range(2))
shown.paste(pose_image.resize((176, 176 * pose_image.height // pose_image.width)))
labels = [["image", "source 1", "source 2", "source 3"], ["", "result 1", "result 2", "result 3"]]
contact_sheet([[shown, *sources], [empty, *results]], labels).save("pose_from_picture.png")
