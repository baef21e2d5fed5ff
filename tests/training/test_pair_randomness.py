import pytest
import torch

from diffusers_cfld.training import sample_pair_randomness

SHAPE = (4, 8, 6)


def draw(indices, seed=0, epoch=0):
    return sample_pair_randomness(indices, SHAPE, seed=seed, epoch=epoch)


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


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"indices": [8]}])
def test_seed_epoch_and_index_all_matter(other):
    random, changed = draw([7]), draw(**{"indices": [7], **other})
    for name, tensor in random._asdict().items():
        assert not torch.equal(tensor, getattr(changed, name)), name


def test_a_repeated_pair_gets_other_numbers():
    once, thrice = draw([7, 3]), draw([7, 3, 7, 7])
    for name, tensor in thrice._asdict().items():
        repeated = tensor.unflatten(0, (2, 4))
        assert torch.equal(repeated[:, :2], getattr(once, name).unflatten(0, (2, 2))), name
        for first, second in ((0, 2), (0, 3), (2, 3)):
            assert not torch.equal(repeated[:, first], repeated[:, second]), name


def test_a_pairs_numbers_have_nothing_in_common():
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


def test_moving():
    assert {tensor.device.type for tensor in draw([1]).to("meta")} == {"meta"}


@pytest.mark.parametrize("wrong", [{"indices": []}, {"indices": [-1]}, {"seed": -1}, {"epoch": -1}])
def test_errors(wrong):
    with pytest.raises(ValueError, match="at least one index"):
        draw(**{"indices": [0], **wrong})
