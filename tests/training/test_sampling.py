import pytest
import torch
from testing_utils import load_reference

from diffusers_cfld.training import cubic_timesteps, sample_pair_randomness

SHAPE = (4, 8, 6)


def draw(indices, seed=0, epoch=0):
    return sample_pair_randomness(indices, SHAPE, seed=seed, epoch=epoch)


def test_cubic_timesteps_are_the_published_ones():
    golden = load_reference("train")
    uniform = golden["train.cubic.u"]
    before = uniform.clone()
    assert torch.equal(cubic_timesteps(uniform), golden["train.cubic.t"])
    assert torch.equal(uniform, before)


def test_cubic_timesteps_favour_high_noise():
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    timesteps = cubic_timesteps(uniform, 1000)
    assert timesteps.dtype == torch.int64
    assert 0 <= timesteps.min() <= timesteps.max() < 1000
    # E[1 - u^3] = 3/4 and the median is 1 - 1/8; flooring takes off half a step.
    assert timesteps.double().mean() == pytest.approx(749.5, abs=5)
    assert timesteps.median() == pytest.approx(875, abs=5)
    assert cubic_timesteps(torch.tensor([0.0, 1.0]), 10).tolist() == [9, 0]


def test_a_batch_is_made_of_its_pairs_whatever_the_split():
    whole = draw([5, 3, 11, 0])
    halves = [draw([5, 3]), draw(torch.tensor([11, 0]))]
    for name, tensor in whole._asdict().items():
        # Sources first: (2B, ...) is (2, B, ...).
        parts = torch.cat([getattr(half, name).unflatten(0, (2, 2)) for half in halves], dim=1)
        assert torch.equal(tensor.unflatten(0, (2, 4)), parts), name


def test_shapes_and_ranges():
    random = draw(range(64))
    assert random.posterior_noise.shape == random.noise.shape == (128, *SHAPE)
    assert random.timestep_uniform.shape == random.drop_uniform.shape == (128,)
    for uniform in (random.timestep_uniform, random.drop_uniform):
        assert 0 <= uniform.min() < 0.1
        assert 0.9 < uniform.max() < 1
    for noise in (random.posterior_noise, random.noise):
        assert noise.mean().abs() < 0.02
        assert noise.std() == pytest.approx(1, abs=0.02)
    assert {tensor.device.type for tensor in random.to("meta")} == {"meta"}


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"indices": [8]}])
def test_seed_epoch_and_index_all_matter(other):
    random, changed = draw([7]), draw(**{"indices": [7], **other})
    for name, tensor in random._asdict().items():
        assert not torch.equal(tensor, getattr(changed, name)), name


def test_the_numbers_of_a_pair_have_nothing_in_common():
    random = draw([7])
    assert not torch.equal(random.noise, random.posterior_noise)
    for tensor in random:
        source, target = tensor
        assert not torch.equal(source, target)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw([1])
    assert torch.equal(torch.rand(3), expected)
