"""From one person to another (Fig. 6b): interpolate prompts and query biases, together and separately."""

import torch

from diffusers_cfld import Appearance
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_poses, example_sources, load_small_model

pipe = load_small_model()
sources = example_sources()[:2]
first, second = (pipe.encode_appearance(source) for source in sources)
pose = pipe.encode_pose(example_poses()[1])
weights = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
rows = {
    "both": [first.lerp(second, weight) for weight in weights],
    "prompt": [first.lerp(second, 0, prompt_weight=weight) for weight in weights],
    "biases": [first.lerp(second, 0, bias_weight=weight) for weight in weights],
}
images = []
for row in rows.values():
    noise = [torch.Generator().manual_seed(0) for _ in row]  # the same for all
    results = pipe(appearance=Appearance.cat(row), pose=pose, generator=noise, **SAMPLING_OPTIONS).images
    images.append([sources[0], *results, sources[1]])
labels = [["first", *(f"{name} {weight:.1f}" for weight in weights), "second"] for name in rows]
contact_sheet(images, labels).save("interpolate.png")
