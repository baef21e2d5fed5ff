import pytest
import torch

from diffusers_cfld.training import drop_conditions, sample_condition_drop_mask

MASK = torch.tensor([False, True, False])


def conditions():
    generator = torch.Generator().manual_seed(0)
    return {
        "prompt_embeds": torch.randn(3, 4, 8, generator=generator),
        "null_prompt_embeds": torch.randn(1, 4, 8, generator=generator),
        "pose_residuals": (torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 5, 2, 2, generator=generator)),
        "query_biases": {
            "a": torch.randn(3, 6, 7, generator=generator),
            "b": torch.randn(3, 2, 3, generator=generator),
        },
    }


def tensors(arguments):
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            yield value
        else:
            yield from value.values() if isinstance(value, dict) else value


def test_the_mask_drops_the_asked_for_fraction():
    generator = torch.Generator().manual_seed(0)
    mask = sample_condition_drop_mask(20_000, 0.2, generator)
    assert mask.dtype == torch.bool
    assert mask.float().mean() == pytest.approx(0.2, abs=0.01)
    assert not sample_condition_drop_mask(1000, 0.0, generator).any()
    assert sample_condition_drop_mask(1000, 1.0, generator).all()


def test_the_mask_repeats_with_its_generator():
    first = sample_condition_drop_mask(64, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(first, sample_condition_drop_mask(64, 0.5, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, sample_condition_drop_mask(64, 0.5, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("dropped_conditions", ["all", "prompt"])
def test_only_masked_samples_lose_what_is_asked_for(dropped_conditions):
    given = conditions()
    before = [tensor.clone() for tensor in tensors(given)]
    result = drop_conditions(MASK, **given, dropped_conditions=dropped_conditions)
    assert torch.equal(result.prompt_embeds[1], given["null_prompt_embeds"][0])
    assert torch.equal(result.prompt_embeds[[0, 2]], given["prompt_embeds"][[0, 2]])
    pairs = [*zip(result.pose_residuals, given["pose_residuals"], strict=True)]
    pairs += [(result.query_biases[name], bias) for name, bias in given["query_biases"].items()]
    for tensor, original in pairs:
        assert torch.equal(tensor[[0, 2]], original[[0, 2]])
        assert torch.equal(tensor[1], torch.zeros_like(original[1]) if dropped_conditions == "all" else original[1])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors(given), before, strict=True))


def test_nothing_dropped_is_bit_equal():
    given = conditions()
    result = drop_conditions(torch.zeros(3, dtype=torch.bool), **given)
    assert torch.equal(result.prompt_embeds, given["prompt_embeds"])
    assert all(map(torch.equal, result.pose_residuals, given["pose_residuals"]))
    assert all(torch.equal(result.query_biases[name], bias) for name, bias in given["query_biases"].items())


@pytest.mark.parametrize("mask", [[False] * 3, [True] * 3, [False, True, False]])
def test_every_input_gets_a_gradient_whatever_is_dropped(mask):
    given = conditions()
    for tensor in tensors(given):
        tensor.requires_grad_()
    result = drop_conditions(torch.tensor(mask), **given)
    sum(tensor.sum() for tensor in tensors(result._asdict())).backward()
    assert all(tensor.grad is not None for tensor in tensors(given))
    assert given["null_prompt_embeds"].grad.unique().item() == sum(mask)
    assert torch.equal(given["prompt_embeds"].grad[:, 0, 0], (~torch.tensor(mask)).float())


def test_a_dropped_sample_cannot_pass_on_nan():
    given = conditions()
    given["prompt_embeds"][1] = given["pose_residuals"][0][1] = given["query_biases"]["a"][1] = float("nan")
    result = drop_conditions(MASK, **given)
    assert all(tensor.isfinite().all() for tensor in tensors(result._asdict()))


def test_errors():
    given = conditions()
    with pytest.raises(ValueError, match=r"must be a fraction in \[0, 1\], got 20"):
        sample_condition_drop_mask(1, 20)
    with pytest.raises(ValueError, match="`dropped_conditions` must be 'all' or 'prompt', got 'pose'"):
        drop_conditions(MASK, **given, dropped_conditions="pose")
    with pytest.raises(ValueError, match=r"must be bool of shape \(3,\), one per prompt, got torch.float32"):
        drop_conditions(MASK.float(), **given)
    with pytest.raises(ValueError, match=r"must be bool of shape \(3,\), .* of shape \(2,\)"):
        drop_conditions(MASK[:2], **given)
    with pytest.raises(ValueError, match=r"`query_biases` must have as many samples as `prompt_embeds`, 3, got \[2\]"):
        drop_conditions(MASK, **{**given, "query_biases": {"a": torch.zeros(2, 6, 7)}})
