"""Put a person into another pose: `python pose_transfer.py [MODEL]`, by default with the bundled small model."""

import sys

import torch
from diffusers import DPMSolverMultistepScheduler

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model

photo = example_sources()[0]  # or PIL.Image.open("person.jpg"), cropped to 256:176
pose = example_poses()[3].mirror()  # or Keypoints.load("pose.json")
pipe = CFLDPipeline.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else load_small_model()
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
result = pipe(
    image=photo,
    pose=pose,
    num_inference_steps=20,
    generator=torch.Generator().manual_seed(0),
).images[0]
result.save("pose_transfer.png")
