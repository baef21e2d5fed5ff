"""DDIM inversion: an image becomes noise, and the noise becomes the image again."""

import inspect

import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from testing_utils import FIGURES, load_reference, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.data import load_folder_pairs
from diffusers_cfld.inversion import invert, reconstruct
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model


def test_the_inversions_timesteps_against_the_published_ones():
    """The published stack evaluates the network one step before today's diffusers; see docs/deviations.md."""
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler.from_config(tiny_pipeline().scheduler.config)
    scheduler.set_timesteps(4)
    published = load_reference("tiny")["inverse4.timesteps"]
    assert torch.equal(scheduler.timesteps - 1000 // 4, published)


@pytest.fixture(scope="module")
def small():
    """The small model, and a drawn person whom it has not seen: image, pose, latents."""
    pipe = load_small_model()
    pipe.set_progress_bar_config(disable=True)
    drawn = load_folder_pairs(FIGURES)[0]
    image = PIL.Image.open(drawn.source)
    pixels = pipe.image_processor.preprocess(image, height=128, width=96)
    with torch.no_grad():
        encoded = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    return pipe, image, drawn.source_keypoints, encoded


def psnr(pipe, one, other):
    with torch.no_grad():
        first, second = (pipe.decode_latents(latents) for latents in (one, other))
    return -10 * torch.log10((first - second).square().mean()).item()


def test_inversion_and_back_gives_the_image_the_better_the_more_steps(small):
    pipe, image, pose, encoded = small
    quality = []
    for steps in (5, 32):
        latents = invert(pipe, image, pose, num_inference_steps=steps)
        options = {"image": image, "num_inference_steps": steps, "output_type": "latent"}
        quality.append(psnr(pipe, encoded, reconstruct(pipe, latents, pose, **options).images))
    assert latents.shape == encoded.shape
    assert 0.5 < latents.std() < 1.5
    assert quality[1] > max(30, quality[0] + 3)
    # Another person's appearance on the same noise is another image in the same pose.
    options = {"image": example_sources()[1], "num_inference_steps": 3, "output_type": "latent"}
    other = reconstruct(pipe, latents, pose, **options).images
    assert psnr(pipe, encoded, other) < 20


def test_both_ways_have_the_same_steps_unless_told_otherwise():
    way, back = (inspect.signature(function).parameters["num_inference_steps"] for function in (invert, reconstruct))
    assert way.default == back.default == 50


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_inversion_does_not_depend_on_how_the_scheduler_was_made(scheduler):
    """A scheduler of its own defaults has other spacings, and says nothing of what only DDIM knows."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    known = {name: pipe.scheduler.config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    pipe.scheduler = scheduler(**known)
    image = PIL.Image.new("RGB", (176, 256), "red")
    latents = invert(pipe, image, tiny_pose(), num_inference_steps=3)
    back = reconstruct(pipe, 3 * latents, tiny_pose(), image=image, num_inference_steps=3, output_type="latent").images
    assert back.abs().max() > 1.5  # nothing is clipped
    assert type(pipe.scheduler) is scheduler


def test_a_scheduler_without_betas_is_named(small):
    pipe = CFLDPipeline(**{**small[0].components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    with pytest.raises(ValueError, match="needs a scheduler with betas, for noise or velocity prediction"):
        invert(pipe, example_sources()[0], example_poses()[0])


def test_inversion_leaves_the_pipeline_as_it_was():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    image = PIL.Image.new("RGB", (300, 200), "red")
    appearance, pose = pipe.encode_appearance(image), pipe.encode_pose(tiny_pose())
    latents = invert(pipe, image, pose, appearance=appearance, num_inference_steps=2, height=64, width=96)
    assert latents.shape[2:] == (8, 12)
    assert pipe.scheduler is scheduler
    images = reconstruct(pipe, latents, pose, appearance=appearance, num_inference_steps=2).images
    assert images[0].size == (96, 64)
    assert pipe.scheduler is scheduler
    with pytest.raises(ValueError, match="either `source_image` or `appearance`"):
        invert(pipe, image, pose, source_image=image, appearance=appearance)


def test_images_come_back_in_their_own_proportions_or_at_the_size_of_the_latents():
    pipe = tiny_pipeline()
    options = {"image": tiny_image(), "num_inference_steps": 1}
    for height, width, expected in ((16, 16, (88, 128)), (16, 11, (88, 128)), (8, 8, (64, 64))):
        result = reconstruct(pipe, torch.randn(1, 4, height, width), tiny_pose(), **options)
        assert result.images[0].size == expected
