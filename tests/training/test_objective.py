import pytest
import torch

from diffusers_cfld.training import cfld_loss, drop_conditions, loss_terms

MASK = torch.tensor([False, True, False])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_published_mean():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    torch.testing.assert_close(cfld_loss(noise_pred, target), ((noise_pred - target) ** 2).mean())


def test_the_weight_of_the_reconstruction():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    reconstruction, transfer = (
        (part[0] - part[1]).square().mean() for part in ((noise_pred[:3], target[:3]), (noise_pred[3:], target[3:]))
    )
    weighted = cfld_loss(noise_pred, target, reconstruction_weight=0.5)
    torch.testing.assert_close(weighted, (0.5 * reconstruction + transfer) / 2)
    # Without it the transfer's samples are the whole batch.
    alone = cfld_loss(noise_pred[3:], target[3:], reconstruction_weight=0)
    torch.testing.assert_close(alone, transfer / 2)
    # For the tracker, the terms are not weighted.
    terms = loss_terms(noise_pred, target, reconstruction_weight=0.5)
    torch.testing.assert_close(terms, {"reconstruction_loss": reconstruction, "transfer_loss": transfer})
    assert loss_terms(noise_pred[3:], target[3:], reconstruction_weight=0).keys() == {"transfer_loss"}


def test_samples_are_weighed():
    noise_pred, target = randn(4, 4, 8, 8, seed=1), randn(4, 4, 8, 8, seed=2)
    weights = torch.tensor([0.0, 0.0, 4.0, 0.0])
    loss = cfld_loss(noise_pred, target, sample_weights=weights)
    torch.testing.assert_close(loss, (noise_pred[2] - target[2]).square().mean())


def test_the_loss_of_half_precision_is_computed_in_float32():
    noise_pred, target = (300 * randn(2, 4, 8, 8, seed=s) for s in (1, 2))  # squares overflow float16
    half = noise_pred.half()
    loss = cfld_loss(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ((half.float() - target) ** 2).mean())


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dropping_keeps_the_dtype(dtype):
    given = {name: _cast(value, dtype) for name, value in conditions().items()}
    result = drop_conditions(MASK, **given)
    assert {tensor.dtype for tensor in tensors(result._asdict())} == {dtype}


def _cast(value, dtype):
    if isinstance(value, dict):
        return {name: tensor.to(dtype) for name, tensor in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) else tuple(tensor.to(dtype) for tensor in value)
