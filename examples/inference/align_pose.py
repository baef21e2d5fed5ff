"""Poses as values: aligned to another body, mirrored, interpolated between two others, read from a drawn skeleton."""

import numpy as np
import torch

from diffusers_cfld import Keypoints, align_pose
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_poses, example_source_poses, example_sources, load_small_model

photo, body, pose = example_sources()[0], example_source_poses()[0], example_poses()[3]
# As if measured on a child: smaller, with legs short for the body, and elsewhere in the image.
legs = np.isin(np.arange(18), (9, 10, 12, 13))[:, None]
child = np.where(legs, 0.7 * (pose.xy - pose.xy[8]) + pose.xy[8], pose.xy) * 0.6 + np.array([60, 90])
target = Keypoints(child, pose.visible, size=pose.size)
aligned = align_pose(target, body)
poses = {
    "target": target,
    "aligned": aligned,
    "mirrored": aligned.mirror(),
    "halfway": aligned.lerp(example_poses()[0], 0.5),
    "from a drawing": Keypoints.from_skeleton(aligned.draw()),
}
pipe, noise = load_small_model(), torch.manual_seed(0)
images = pipe(image=photo, pose=[*poses.values()], num_inference_steps=20, generator=noise).images
rows = [[photo, *(pose.draw() for pose in poses.values())], [body.draw(background=photo), *images]]
contact_sheet(rows, [["source", *poses], ["its pose", *[""] * 5]]).save("align_pose.png")
