"""One person in many poses: the source is encoded once, frames are saved as they are made, and runs can be resumed."""

import PIL.Image

from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.sequences import render_sequence, write_animation
from diffusers_cfld.small_model import SAMPLING_OPTIONS, example_poses, example_sources, load_small_model

keys = example_poses()
poses = [keys[3].lerp(keys[0], number / 7) for number in range(8)]  # or load_pose_sequence("walk.jsonl")
poses += poses[-2:0:-1]  # and back
frames = list(
    render_sequence(
        load_small_model(),
        poses,
        "animation-frames",
        image=example_sources()[0],
        **SAMPLING_OPTIONS,
    )
)
write_animation(frames, "animation.gif", frames_per_second=8)
rows = [[pose.draw() for pose in poses[:8]], [PIL.Image.open(frame) for frame in frames[:8]]]
contact_sheet(rows).save("animate.png")
