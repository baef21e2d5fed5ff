import pytest
import torch
from testing_utils import load_reference

from diffusers_cfld.training import (
    cubic_timesteps,
    sample_timesteps_cubic,
    sample_timesteps_uniform,
    uniform_timesteps,
)

SAMPLERS = [sample_timesteps_cubic, sample_timesteps_uniform]


def test_cubic_timesteps_are_the_published_ones():
    golden = load_reference("train")
    uniform = golden["train.cubic.u"]
    before = uniform.clone()
    assert torch.equal(cubic_timesteps(uniform), golden["train.cubic.t"])
    assert torch.equal(uniform, before)


def test_cubic_timesteps_favour_high_noise():
    timesteps = sample_timesteps_cubic(20_000, 1000, torch.Generator().manual_seed(0)).double()
    # E[1 - u^3] = 3/4 and the median is 1 - 1/8; flooring takes off half a step.
    assert timesteps.mean() == pytest.approx(749.5, abs=5)
    assert timesteps.median() == pytest.approx(875, abs=5)


def test_uniform_timesteps_stay_in_range():
    timesteps = uniform_timesteps(torch.tensor([0.0, 0.0999, 0.1, 0.9999, 1.0]), 10)
    assert timesteps.tolist() == [0, 0, 1, 9, 9]


def test_uniform_timesteps_are_uniform():
    timesteps = sample_timesteps_uniform(20_000, 10, torch.Generator().manual_seed(0))
    counts = timesteps.bincount(minlength=10)
    assert counts.shape == (10,)
    assert (counts - 2000).abs().max() < 200


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_repeats_and_moves_on(sampler):
    generator = torch.Generator().manual_seed(1)
    first, second = sampler(64, 1000, generator), sampler(64, 1000, generator)
    again = sampler(64, 1000, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert first.dtype == torch.int64
    assert first.shape == (64,)
    assert 0 <= first.min() <= first.max() < 1000


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_a_generator_the_global_one_is_used(sampler):
    torch.manual_seed(0)
    first = sampler(8, 1000)
    torch.manual_seed(0)
    assert torch.equal(first, sampler(8, 1000))
    assert sampler(8, 1000, device="meta").device.type == "meta"
    assert sampler(8, 1000, torch.Generator(), "meta").device.type == "meta"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_errors(sampler):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        sampler(0, 1000)
    with pytest.raises(ValueError, match="`num_train_timesteps` must be at least 1, got 0"):
        sampler(1, 0)
