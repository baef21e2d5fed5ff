"""Appearances as values: interpolated, averaged, taken apart and put together."""

import numpy as np
import pytest
import torch
from testing_utils import tiny_image

from diffusers_cfld import Appearance, PoseFeatures
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model


@pytest.fixture(scope="module")
def pipe():
    pipe = load_small_model()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def appearances(pipe):
    return [pipe.encode_appearance(source) for source in example_sources()[:2]]


def assert_same(one, other):
    torch.testing.assert_close(one.prompt_embeds, other.prompt_embeds)
    assert one.query_biases.keys() == other.query_biases.keys()
    for name, bias in one.query_biases.items():
        torch.testing.assert_close(bias, other.query_biases[name])


def sample(pipe, appearance):
    return pipe(
        appearance=appearance,
        pose=example_poses()[0],
        num_inference_steps=2,
        output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in range(len(appearance))],
    ).images


def test_lerp_goes_from_one_to_the_other(pipe, appearances):
    one, other = appearances
    assert_same(one.lerp(other, 0), one)
    assert_same(one.lerp(other, 1), other)
    middle = one.lerp(other, 0.3)
    torch.testing.assert_close(middle.prompt_embeds, 0.7 * one.prompt_embeds + 0.3 * other.prompt_embeds)
    for name, bias in middle.query_biases.items():
        torch.testing.assert_close(bias, 0.7 * one.query_biases[name] + 0.3 * other.query_biases[name])
    results = [sample(pipe, one.lerp(other, weight)) for weight in (0.0, 0.5, 1.0)]
    ends = np.abs(results[0] - results[2]).mean()
    assert 0 < np.abs(results[0] - results[1]).mean() < ends
    assert 0 < np.abs(results[1] - results[2]).mean() < ends


def test_prompts_and_biases_have_weights_of_their_own(appearances):
    one, other = appearances
    coarse = one.lerp(other, 0, prompt_weight=1)
    torch.testing.assert_close(coarse.prompt_embeds, other.prompt_embeds)
    fine = one.lerp(other, 1, prompt_weight=0)
    torch.testing.assert_close(fine.prompt_embeds, one.prompt_embeds)
    for name in one.query_biases:
        torch.testing.assert_close(coarse.query_biases[name], one.query_biases[name])
        torch.testing.assert_close(fine.query_biases[name], other.query_biases[name])
    assert_same(one.lerp(other, 0.5, bias_weight=0.5), one.lerp(other, 0.5))


def test_mean(appearances):
    one, other = appearances
    assert_same(Appearance.mean([one, other]), one.lerp(other, 0.5))
    assert_same(Appearance.mean([one, other], weights=[3, 1]), one.lerp(other, 0.25))
    assert_same(Appearance.mean([one, one, one]), one)
    assert_same(Appearance.mean([Appearance.cat([one, other])]), one.lerp(other, 0.5))


def test_batches_are_put_together_and_taken_apart(pipe, appearances):
    both = Appearance.cat(appearances)
    assert len(both) == 2
    for index, single in enumerate(appearances):
        assert_same(both[index], single)
        assert_same(both[index - 2], single)
    assert_same(both[:], both)
    assert_same(both[[1, 0, 1]][1:], both)
    assert_same(pipe.encode_appearance(example_sources()[:2]), both)
    # One against a batch.
    assert_same(both.lerp(appearances[0], 0.5)[1], appearances[1].lerp(appearances[0], 0.5))
    np.testing.assert_allclose(sample(pipe, both)[1], sample(pipe, both[1])[0], atol=1e-5)
    with pytest.raises(IndexError, match="Index 2 is out of range for a batch of 2"):
        both[2]


def test_pose_features_are_taken_apart(pipe):
    features = pipe.encode_pose(example_poses())
    assert len(features) == 4
    single = pipe.encode_pose(example_poses()[2])
    assert isinstance(features[2], PoseFeatures)
    for name, residual in single.residuals.items():
        torch.testing.assert_close(features[2].residuals[name], residual, rtol=1e-4, atol=1e-4)
    assert len(features[1:3]) == 2


def test_weights_of_a_mean_must_fit(appearances):
    for weights in ([1], [1, -1]):
        with pytest.raises(ValueError, match="one number per appearance and a positive sum"):
            Appearance.mean(appearances, weights=weights)


def test_nothing_encoded_requires_grad(pipe):
    appearance, features = pipe.encode_appearance(tiny_image()), pipe.encode_pose(example_poses()[0])
    tensors = [appearance.prompt_embeds, appearance.null_prompt_embeds, *appearance.query_biases.values()]
    assert any(parameter.requires_grad for parameter in pipe.appearance_encoder.parameters())
    assert not any(tensor.requires_grad for tensor in [*tensors, *features.residuals.values()])
