"""Put a person into another pose: `python pose_transfer.py MODEL_DIR_OR_ID`. Needs scikit-image for its photo."""

import sys
from pathlib import Path

import PIL.Image
import torch
from diffusers import DPMSolverMultistepScheduler
from skimage import data

from diffusers_cfld import CFLDPipeline, Keypoints

photo = PIL.Image.fromarray(data.astronaut())  # public domain, NASA
pose = Keypoints.load(Path(__file__).with_name("astronaut_pose.json")).mirror()  # placed by hand, legs missing
pipe = CFLDPipeline.from_pretrained(sys.argv[1])
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
result = pipe(image=photo, pose=pose, num_inference_steps=steps, generator=torch.Generator().manual_seed(0)).images[0]
result.save("pose_transfer.png")
