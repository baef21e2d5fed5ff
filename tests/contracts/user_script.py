"""What a user writes, for `mypy --strict`: names, inputs and results have types."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from typing_extensions import assert_type

from diffusers_cfld import (
    Appearance,
    CFLDInpaintPipeline,
    CFLDPipeline,
    CFLDPipelineOutput,
    Keypoints,
    align_pose,
    fit_photo,
)
from diffusers_cfld.inversion import invert, reconstruct
from diffusers_cfld.sequences import render_sequence
from diffusers_cfld.small_model import example_poses, load_small_model


def main(photo: Image.Image, folder: Path) -> None:
    pipe = load_small_model()
    assert_type(pipe, CFLDPipeline)
    pose = Keypoints.load(folder / "pose.json", size=(1024, 704))
    fitted = fit_photo(photo, pose)
    generator = torch.Generator().manual_seed(0)

    result = pipe(image=fitted.image, pose=pose, num_inference_steps=4, generator=generator)
    assert_type(result, CFLDPipelineOutput[list[Image.Image]])
    result.images[0].save(folder / "result.png")
    assert_type(pipe(image=photo, pose=pose, output_type="np"), CFLDPipelineOutput)
    assert_type(
        pipe(image=[photo, photo], pose=[pose, pose.mirror()], return_dict=False)[0],
        list[Image.Image] | np.ndarray | torch.Tensor,
    )

    appearance = pipe.encode_appearance(photo)
    assert_type(appearance.lerp(appearance, 0.5), Appearance)
    pipe(appearance=appearance, pose=pipe.encode_pose(example_poses()), micro_batch_size=2)
    pipe(image=np.zeros((64, 64, 3)), pose=torch.zeros(1, 21, 64, 64))
    pipe(image=["person.jpg", folder / "other.jpg"], pose=folder / "walk.mp4")
    pipe(image=photo, pose=pose, control_image=[photo, photo], controlnet_conditioning_scale=[0.5, 1.0])

    edit = CFLDInpaintPipeline.from_pipe(pipe)
    assert_type(edit, CFLDInpaintPipeline)
    edit(image="person.jpg", mask_image=[folder / "mask.png"], source_image="https://example.org/a.jpg", pose=pose)
    assert_type(
        edit(image=photo, mask_image=photo, source_image=photo, pose=pose, strength=0.7).images, list[Image.Image]
    )

    latents = invert(pipe, photo, align_pose(pose, example_poses()[0]))
    assert_type(latents, torch.Tensor)
    reconstruct(pipe, latents, pose, image=photo)
    for path in render_sequence(pipe, [pose], folder, image=photo):
        assert_type(path, Path)
