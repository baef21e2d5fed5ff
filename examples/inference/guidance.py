"""What guidance does: the predictions without conditions, with the pose, with everything, and their combination."""

import torch

from diffusers_cfld.inspection import contact_sheet, guidance_pictures
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model

shown = guidance_pictures(
    load_small_model(),
    image=example_sources()[1],
    pose=example_poses()[3],
    steps=[0, 5, 10, 19],
    num_inference_steps=20,
    guidance_scale=2.0,
    generator=torch.manual_seed(0),
)
names = ("null", "pose", "full", "guided")
rows = [[getattr(step, name).resize((176, 256)) for step in shown] for name in names]
labels = [[f"{name}, step {step.step}" for step in shown] for name in names]
contact_sheet(rows, labels).save("guidance.png")
