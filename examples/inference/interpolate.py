"""From one person to another (Fig. 6b): interpolate prompts and query biases, together and separately."""

import torch

from diffusers_cfld import Appearance
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_poses, example_sources, load_small_model

pipe = load_small_model()
first, second = (pipe.encode_appearance(source) for source in example_sources()[:2])
pose = pipe.encode_pose(example_poses()[1])
weights = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
rows = {
    "both": [first.lerp(second, weight) for weight in weights],
    "prompt": [first.lerp(second, 0, prompt_weight=weight) for weight in weights],
    "biases": [first.lerp(second, 0, bias_weight=weight) for weight in weights],
}
images = [
    pipe(
        appearance=Appearance.cat(row),
        pose=pose,
        **SAMPLING_OPTIONS,
        generator=[torch.Generator().manual_seed(0) for _ in row],  # the same noise for all
    ).images
    for row in rows.values()
]
labels = [[f"{name} {weight:.1f}" for weight in weights] for name in rows]
contact_sheet(images, labels).save("interpolate.png")
