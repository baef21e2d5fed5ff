"""Faithful: a checkpoint in the published format, converted and run, gives what the published code computes.

The golden tensors are the published implementation's, in float32 on a CPU, on weights that depend on their names alone
(`tests/testing_utils_reference.py`): `tiny` at a quarter of the published size, `full` at the published size.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from testing_utils import load_reference, relative_error
from testing_utils_reference import named_normal, write_base, write_checkpoint

from diffusers_cfld import CFLDPipeline, hybrid_granularity_attention, query_bias_to_tokens
from diffusers_cfld.conversion.convert import convert_checkpoint

# The published code's own agreement between machines is about 1e-5; a difference in the computation shows at 1e-3.
TOLERANCE = 2e-5


def converted_pipeline(folder, size):
    convert_checkpoint(write_checkpoint(folder / "ckpt", size), write_base(folder / "base", size), folder / "pipeline")
    pipe = CFLDPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return converted_pipeline(tmp_path_factory.mktemp("reference"), "tiny")


@pytest.fixture(scope="module")
def golden():
    return load_reference("tiny")


@pytest.fixture(scope="module")
def encoded(pipe, golden):
    return pipe.encode_appearance(golden["img_cond"] / 2 + 0.5), pipe.encode_pose(golden["pose"])


def test_source_features(pipe, golden):
    with torch.no_grad():
        feature_maps = pipe.source_encoder(golden["img_cond"]).feature_maps
    for stage in range(1, 5):
        tokens = feature_maps[f"stage{stage}"].flatten(2).transpose(1, 2)
        assert relative_error(tokens, golden[f"swin.{stage}"]) < TOLERANCE


def test_prompts(encoded, golden):
    appearance, _ = encoded
    assert relative_error(appearance.prompt_embeds, golden["prompt.cond"]) < TOLERANCE
    assert torch.equal(appearance.null_prompt_embeds.expand(2, -1, -1), golden["prompt.uncond"])


def test_query_biases(encoded, golden):
    appearance, _ = encoded
    assert len(appearance.query_biases) == 9
    for name, bias in appearance.query_biases.items():
        parts = name.split(".")
        published = golden[f"query_bias.{3 * int(parts[1]) + int(parts[3])}"]
        assert relative_error(query_bias_to_tokens(bias, tuple(bias.shape[2:])), published) < TOLERANCE


def test_pose_residuals(encoded, golden):
    _, pose = encoded
    for i, residual in enumerate(pose.residuals.values()):
        assert relative_error(residual, golden[f"pose_residual.{i}"]) < TOLERANCE


def predictions(pipe, appearance, pose, latents, timestep):
    """The three branches, each on its own."""
    null = appearance.null_prompt_embeds.expand_as(appearance.prompt_embeds)
    biases = {name: query_bias_to_tokens(bias, bias.shape[2:]) for name, bias in appearance.query_biases.items()}
    residuals = list(pose.residuals.values())
    zeros = [torch.zeros_like(residual) for residual in residuals]
    branches = {
        "uncond": (null, zeros, dict.fromkeys(biases)),
        "pose": (null, residuals, dict.fromkeys(biases)),
        "full": (appearance.prompt_embeds, residuals, biases),
    }
    for name, (prompt_embeds, pose_residuals, query_biases) in branches.items():
        with torch.no_grad(), hybrid_granularity_attention(pipe.unet, query_biases):
            prediction = pipe.unet(
                latents,
                timestep,
                encoder_hidden_states=prompt_embeds,
                down_intrablock_additional_residuals=list(pose_residuals),
            ).sample
        yield name, prediction


@pytest.mark.parametrize("timestep", [1, 501, 981])
def test_the_three_predictions(pipe, encoded, golden, timestep):
    for name, prediction in predictions(pipe, *encoded, golden["latents"], timestep):
        assert relative_error(prediction, golden[f"eps.{timestep}.{name}"]) < TOLERANCE


def sample(pipe, golden, **options):
    source = golden["img_cond"] / 2 + 0.5
    return pipe(image=source, pose=golden["pose"], latents=golden["latents"], output_type="latent", **options).images


@pytest.mark.parametrize("scales", ["1.0.1.0", "1.0.2.0", "1.5.3.0", "2.0.1.0", "2.0.2.0"])
def test_ddpm_samples_at_every_pair_of_scales(pipe, golden, scales):
    pose_scale, appearance_scale = float(scales[:3]), float(scales[4:])
    result = sample(
        pipe,
        golden,
        num_inference_steps=5,
        pose_guidance_scale=pose_scale,
        appearance_guidance_scale=appearance_scale,
        generator=torch.Generator().manual_seed(0),
    )
    assert relative_error(result, golden[f"sample.ddpm5.uc_down_full.{scales}"]) < TOLERANCE


def test_ddim_sample(pipe, golden):
    ddim = CFLDPipeline(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})
    ddim.set_progress_bar_config(disable=True)
    result = sample(ddim, golden, num_inference_steps=4)
    assert relative_error(result, golden["sample.ddim4.uc_down_full.2.2"]) < TOLERANCE


def test_published_scheduler_and_its_timesteps(pipe, golden):
    assert type(pipe.scheduler) is DDPMScheduler
    pipe.scheduler.set_timesteps(50)
    assert torch.equal(pipe.scheduler.timesteps, golden["ddpm50.timesteps"])


@pytest.mark.slow
def test_published_size(tmp_path):
    """About 9 GB of disk and 12 GB of memory."""
    golden = load_reference("full")
    pipe = converted_pipeline(tmp_path, "full")
    source = named_normal("img_cond", (1, 3, 256, 256)).clamp(-1, 1)
    pose_map = named_normal("pose", (1, 21, 256, 256)).abs().clamp(0, 1)
    with torch.no_grad():
        feature_maps = pipe.source_encoder(source).feature_maps
    appearance = pipe.encode_appearance(source / 2 + 0.5)
    pose = pipe.encode_pose(pose_map)

    def every97(tensor):
        return tensor.flatten()[::97]

    for stage in range(1, 5):
        tokens = feature_maps[f"stage{stage}"].flatten(2).transpose(1, 2)
        assert relative_error(every97(tokens), golden[f"swin.{stage}.every97"]) < TOLERANCE
    assert relative_error(appearance.prompt_embeds, golden["prompt.cond"]) < TOLERANCE
    assert torch.equal(appearance.null_prompt_embeds, golden["prompt.uncond"])
    for name, bias in appearance.query_biases.items():
        parts = name.split(".")
        published = golden[f"query_bias.{3 * int(parts[1]) + int(parts[3])}.every97"]
        assert relative_error(every97(query_bias_to_tokens(bias, tuple(bias.shape[2:]))), published) < TOLERANCE
    for i, residual in enumerate(pose.residuals.values()):
        assert relative_error(every97(residual), golden[f"pose_residual.{i}.every97"]) < TOLERANCE
    latents = named_normal("latents", (1, 4, 64, 64))
    for name, prediction in predictions(pipe, appearance, pose, latents, 501):
        assert relative_error(prediction, golden[f"eps.501.{name}"]) < TOLERANCE
    image = pipe(image=source / 2 + 0.5, pose=pose_map, num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 512, 512, 3)
    assert np.isfinite(image).all()
