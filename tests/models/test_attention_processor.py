"""The query biases on a stock U-Net: exact, always taken off again, and in nobody's way."""

import gc
import itertools
import logging
import threading
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)
from testing_utils import UNET_CONFIG, fill, ip_adapter, relative_error
from torch._dynamo.testing import CompileCounterWithBackend

from diffusers_cfld import HybridGranularityAttnProcessor, hybrid_granularity_attention, query_bias_to_tokens

# The tiny U-Net has ten transformer blocks, of which CFLD biases those of the last three up blocks.
BIASED = {
    f"up_blocks.{block}.attentions.{attention}.transformer_blocks.0.attn2": (tokens, channels)
    for block, tokens, channels in ((1, 16, 32), (2, 64, 24), (3, 256, 16))
    for attention in range(2)
}
FIRST = next(iter(BIASED))
SHALLOW = {f"up_blocks.1.attentions.{index}.transformer_blocks.0.attn2": (256, 32) for index in range(2)}
PROCESSORS = [AttnProcessor2_0, AttnProcessor, lambda: SlicedAttnProcessor(2), FusedAttnProcessor2_0]
PROCESSOR_IDS = ["scaled-dot-product", "eager", "sliced", "fused"]


def tiny_unet():
    return fill(UNet2DConditionModel(**UNET_CONFIG), "unet")


def shallow_unet():
    """Transformer blocks of only two widths, to be compiled; those of `SHALLOW` have 32 channels."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=48,
    )
    return fill(unet, "unet")


def tiny_inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, 16, 16, generator=generator),
        "timestep": torch.tensor(300),
        "encoder_hidden_states": torch.randn(batch, 4, 48, generator=generator),
    }


def tiny_biases(batch=2, seed=0, layers=BIASED):
    generator = torch.Generator().manual_seed(seed)
    return {name: 3 * torch.randn(batch, *shape, generator=generator) for name, shape in layers.items()}


def tiny_residuals(batch=2):
    generator = torch.Generator().manual_seed(7)
    shapes = ((16, 16), (24, 8), (32, 4))
    return [0.5 * torch.randn(batch, channels, side, side, generator=generator) for channels, side in shapes]


def layer(unet, name=FIRST):
    return unet.get_submodule(name)


def assert_clearly_different(biased, plain):
    assert relative_error(biased, plain) > 0.02


@contextmanager
def assert_unchanged(unet):
    before = dict(unet.attn_processors)
    yield
    after = unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


@contextmanager
def assert_silent():
    """No Python warning and no log record of level WARNING, from any logger."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    # Libraries may stop their records before the root logger.
    loggers = [logging.getLogger(name) for name in (None, "diffusers", "transformers", "peft", "diffusers_cfld")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in caught] == []


@pytest.fixture(scope="module")
def shared_unet():
    return tiny_unet()


@pytest.fixture
def unet(shared_unet):
    """The module's U-Net, for tests that leave it as it was."""
    with assert_unchanged(shared_unet):
        yield shared_unet


@pytest.fixture(autouse=True)
def _clean_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def cross_attention(make_processor):
    torch.manual_seed(0)
    attn = Attention(query_dim=32, cross_attention_dim=48, heads=4, dim_head=8).eval()
    processor = make_processor()
    if isinstance(processor, FusedAttnProcessor2_0):
        attn.fuse_projections()
    attn.set_processor(processor)
    return attn


# One layer


@pytest.mark.parametrize("make_processor", PROCESSORS, ids=PROCESSOR_IDS)
@torch.no_grad()
def test_without_bias_bit_equal_to_inner(make_processor):
    attn = cross_attention(make_processor)
    hidden_states, prompt = torch.randn(2, 16, 32), torch.randn(2, 4, 48)
    expected = attn(hidden_states, encoder_hidden_states=prompt)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor))
    assert torch.equal(attn(hidden_states, encoder_hidden_states=prompt), expected)


@pytest.mark.parametrize("make_processor", PROCESSORS, ids=PROCESSOR_IDS)
@pytest.mark.parametrize("bias_batch", [1, 2])
@torch.no_grad()
def test_bias_equals_equation_4(make_processor, bias_batch):
    attn = cross_attention(make_processor)
    hidden_states, prompt = torch.randn(2, 16, 32), torch.randn(2, 4, 48)
    bias = torch.randn(bias_batch, 16, 32)

    def heads(x):
        return x.unflatten(2, (4, 8)).transpose(1, 2)

    query = heads(attn.to_q(hidden_states) + bias)
    key = heads(F.linear(prompt, attn.to_k.weight))
    value = heads(F.linear(prompt, attn.to_v.weight))
    weights = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=-1)
    expected = attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))

    plain = attn(hidden_states, encoder_hidden_states=prompt)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, bias))
    biased = attn(hidden_states, encoder_hidden_states=prompt)
    # Sums in another order: a few float32 roundings of values below 1.
    torch.testing.assert_close(biased, expected, atol=1e-5, rtol=1e-5)
    assert_clearly_different(biased, plain)


@torch.no_grad()
def test_zero_bias_is_bit_equal():
    attn = cross_attention(AttnProcessor2_0)
    hidden_states, prompt = torch.randn(2, 16, 32), torch.randn(2, 4, 48)
    expected = attn(hidden_states, encoder_hidden_states=prompt)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, torch.zeros(1, 16, 32)))
    assert torch.equal(attn(hidden_states, encoder_hidden_states=prompt), expected)


@torch.no_grad()
def test_bias_is_added_in_the_query_dtype():
    attn = cross_attention(AttnProcessor2_0).to(torch.bfloat16)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, torch.randn(1, 16, 32)))
    hidden_states = torch.randn(2, 16, 32, dtype=torch.bfloat16)
    out = attn(hidden_states, encoder_hidden_states=torch.randn(2, 4, 48, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


@torch.no_grad()
def test_residual_connection_and_group_norm_of_the_layer_still_apply():
    torch.manual_seed(0)
    attn = Attention(query_dim=32, heads=4, dim_head=8, norm_num_groups=8, residual_connection=True).eval()
    image = torch.randn(2, 32, 4, 4)
    expected = attn(image)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, torch.zeros(1, 16, 32)))
    assert torch.equal(attn(image), expected)


@torch.no_grad()
def test_attention_mask_reaches_the_inner_processor():
    attn = cross_attention(AttnProcessor2_0)
    hidden_states, prompt = torch.randn(2, 16, 32), torch.randn(2, 4, 48)
    bias = torch.randn(2, 16, 32)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, bias))
    mask = torch.zeros(2, 1, 4)
    mask[:, :, 2:] = -1e4
    masked = attn(hidden_states, encoder_hidden_states=prompt, attention_mask=mask)
    torch.testing.assert_close(masked, attn(hidden_states, encoder_hidden_states=prompt[:, :2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 15, 32), (2, 16, 31), (3, 16, 32), (16, 32)])
@torch.no_grad()
def test_bias_of_wrong_shape_names_both_shapes(shape):
    attn = cross_attention(AttnProcessor2_0)
    attn.set_processor(HybridGranularityAttnProcessor(attn.processor, torch.zeros(shape)))
    with pytest.raises(ValueError, match="query_bias") as error:
        attn(torch.randn(2, 16, 32), encoder_hidden_states=torch.randn(2, 4, 48))
    assert str(shape) in str(error.value)
    assert "(2, 16, 32)" in str(error.value)


def test_query_bias_to_tokens_is_row_by_row_and_exact_at_its_own_size():
    bias = torch.arange(2 * 3 * 2 * 4, dtype=torch.float32).reshape(2, 3, 2, 4)
    tokens = query_bias_to_tokens(bias, (2, 4))
    assert tokens.shape == (2, 8, 3)
    assert torch.equal(tokens[1, 5], bias[1, :, 1, 1])
    resized = query_bias_to_tokens(bias, (4, 6))
    expected = F.interpolate(bias, size=(4, 6), mode="bilinear", align_corners=False)
    assert torch.equal(resized[0, 8], expected[0, :, 1, 2])


# The context manager


@torch.no_grad()
def test_block_biases_the_unet_and_leaves_no_trace(unet):
    inputs = tiny_inputs()
    plain = unet(**inputs).sample
    with hybrid_granularity_attention(unet, tiny_biases()) as processors:
        assert processors.keys() == BIASED.keys()
        assert all(layer(unet, name).processor is processor for name, processor in processors.items())
        biased = unet(**inputs).sample
    assert_clearly_different(biased, plain)
    assert torch.equal(unet(**inputs).sample, plain)


@torch.no_grad()
def test_every_one_of_the_nine_layers_counts(unet):
    inputs = tiny_inputs()
    plain = unet(**inputs).sample
    for name, bias in tiny_biases().items():
        with hybrid_granularity_attention(unet, {name: bias}):
            assert relative_error(unet(**inputs).sample, plain) > 1e-3


@torch.no_grad()
def test_none_adds_nothing_until_a_bias_is_assigned(unet):
    inputs, biases = tiny_inputs(), tiny_biases()
    plain = unet(**inputs).sample
    with hybrid_granularity_attention(unet, biases):
        biased = unet(**inputs).sample
    with hybrid_granularity_attention(unet, dict.fromkeys(BIASED)) as processors:
        assert torch.equal(unet(**inputs).sample, plain)
        for name, processor in processors.items():
            processor.query_bias = biases[name]
        assert torch.equal(unet(**inputs).sample, biased)


def test_processors_come_back_after_an_exception(unet):
    with pytest.raises(KeyError), hybrid_granularity_attention(unet, tiny_biases()):
        raise KeyError("in the block")


def test_an_interrupt_while_the_biases_are_put_on_leaves_none(unet, monkeypatch):
    before, calls = unet.attn_processors, itertools.count(1)

    def interrupt_the_fifth(attn, name, value):
        if next(calls) == 5:
            raise KeyboardInterrupt
        torch.nn.Module.__setattr__(attn, name, value)

    monkeypatch.setattr(Attention, "__setattr__", interrupt_the_fifth)
    with pytest.raises(KeyboardInterrupt), hybrid_granularity_attention(unet, tiny_biases()):
        pass
    assert unet.attn_processors == before


def test_processors_come_back_after_an_exception_in_the_forward(unet):
    biases = tiny_biases()
    biases[next(reversed(biases))] = torch.zeros(2, 3, 32)
    with pytest.raises(ValueError, match="query_bias"), hybrid_granularity_attention(unet, biases):
        unet(**tiny_inputs())


def test_decorated_generator_that_is_closed_early_restores(unet):
    def steps():
        with hybrid_granularity_attention(unet, tiny_biases()):
            yield 1
            yield 2

    generator = steps()
    next(generator)
    generator.close()


@torch.no_grad()
def test_nested_blocks_replace_and_come_back(unet):
    inputs, outer, inner = tiny_inputs(), tiny_biases(seed=1), tiny_biases(seed=2)
    with hybrid_granularity_attention(unet, outer):
        expected_outer = unet(**inputs).sample
    with hybrid_granularity_attention(unet, inner):
        expected_inner = unet(**inputs).sample
    some = {name: inner[name] for name in list(inner)[:4]}
    with hybrid_granularity_attention(unet, {**outer, **some}):
        expected_some = unet(**inputs).sample
    assert_clearly_different(expected_outer, expected_inner)

    with hybrid_granularity_attention(unet, outer):
        assert torch.equal(unet(**inputs).sample, expected_outer)
        with hybrid_granularity_attention(unet, inner):
            assert torch.equal(unet(**inputs).sample, expected_inner)
            with hybrid_granularity_attention(unet, outer):
                assert torch.equal(unet(**inputs).sample, expected_outer)
            assert torch.equal(unet(**inputs).sample, expected_inner)
        assert torch.equal(unet(**inputs).sample, expected_outer)
        with hybrid_granularity_attention(unet, some):
            assert torch.equal(unet(**inputs).sample, expected_some)
        with pytest.raises(KeyError), hybrid_granularity_attention(unet, inner):
            raise KeyError("in the inner block")
        assert torch.equal(unet(**inputs).sample, expected_outer)


def test_processor_set_inside_the_block_survives():
    unet, mine = tiny_unet(), AttnProcessor()
    others = {name: layer(unet, name).processor for name in list(BIASED)[1:]}
    with hybrid_granularity_attention(unet, tiny_biases()):
        layer(unet).set_processor(mine)
    assert layer(unet).processor is mine
    assert all(layer(unet, name).processor is processor for name, processor in others.items())


def test_processor_set_inside_nested_blocks_survives():
    unet, mine = tiny_unet(), AttnProcessor()
    with hybrid_granularity_attention(unet, tiny_biases()), hybrid_granularity_attention(unet, tiny_biases()):
        layer(unet).set_processor(mine)
    assert layer(unet).processor is mine


@pytest.mark.parametrize("name", ["up_blocks.7.attentions.0.transformer_blocks.0.attn2", "conv_in", "", "typo"])
def test_unknown_layer_name(unet, name):
    with pytest.raises(ValueError, match="not an attention layer") as error:
        hybrid_granularity_attention(unet, {**tiny_biases(), name: torch.zeros(1)}).__enter__()
    assert repr(name) in str(error.value)


def test_biases_are_freed_on_exit(unet):
    biases = tiny_biases()
    references = [weakref.ref(bias) for bias in biases.values()]
    with hybrid_granularity_attention(unet, biases):
        pass
    del biases
    gc.collect()
    assert all(reference() is None for reference in references)


def test_the_given_mapping_and_tensors_are_not_changed(unet):
    biases = tiny_biases()
    copies = {name: bias.clone() for name, bias in biases.items()}
    with torch.no_grad(), hybrid_granularity_attention(unet, biases):
        unet(**tiny_inputs())
    assert biases.keys() == copies.keys()
    assert all(torch.equal(biases[name], copies[name]) for name in copies)


def test_state_dict_does_not_change_inside_the_block(unet):
    keys = list(unet.state_dict())
    with hybrid_granularity_attention(unet, tiny_biases()):
        assert list(unet.state_dict()) == keys


# Threads


def run_in_thread(function):
    """Run in another thread, and return its result or its exception."""
    outcome = []

    def target():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(timeout=60)
    return outcome[0]


def assert_one_sentence(error):
    assert isinstance(error, RuntimeError), error
    assert "another thread" in str(error)
    assert str(error).count(".") == 1
    assert str(error).endswith(".")


@torch.no_grad()
def test_second_thread_is_refused_and_may_try_again(unet):
    inputs, biases = tiny_inputs(), tiny_biases(seed=1)
    with hybrid_granularity_attention(unet, biases):
        expected = unet(**inputs).sample

    @torch.no_grad()
    def other():
        with hybrid_granularity_attention(unet, biases):
            return unet(**inputs).sample

    with hybrid_granularity_attention(unet, tiny_biases(seed=2)) as processors:
        before = unet(**inputs).sample
        assert_one_sentence(run_in_thread(other))
        # The refused thread changed nothing.
        assert all(layer(unet, name).processor is processor for name, processor in processors.items())
        assert torch.equal(unet(**inputs).sample, before)
    assert torch.equal(run_in_thread(other), expected)


@torch.no_grad()
def test_plain_call_of_another_thread_is_refused(unet):
    inputs = tiny_inputs()
    plain = unet(**inputs).sample

    @torch.no_grad()
    def other():
        return unet(**inputs).sample

    with hybrid_granularity_attention(unet, tiny_biases()):
        assert_one_sentence(run_in_thread(other))
    assert torch.equal(run_in_thread(other), plain)


def test_plain_call_of_another_thread_with_gradients_is_refused(unet):
    inputs = tiny_inputs()
    with hybrid_granularity_attention(unet, tiny_biases()):
        assert_one_sentence(run_in_thread(lambda: unet(**inputs).sample))


def test_racing_threads_are_either_right_or_refused(unet):
    inputs = tiny_inputs(batch=1)
    expected = []
    with torch.no_grad():
        for seed in range(3):
            with hybrid_granularity_attention(unet, tiny_biases(1, seed)):
                expected.append(unet(**inputs).sample)
    outcomes = []
    barrier = threading.Barrier(3)

    @torch.no_grad()
    def race(seed):
        biases = tiny_biases(1, seed)
        barrier.wait()
        for _ in range(6):
            try:
                with hybrid_granularity_attention(unet, biases):
                    outcomes.append(torch.equal(unet(**inputs).sample, expected[seed]))
            except RuntimeError as error:
                outcomes.append("another thread" in str(error))

    threads = [threading.Thread(target=race, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert outcomes == [True] * 18


def test_two_threads_with_a_unet_each(unet):
    other, inputs, biases = tiny_unet(), tiny_inputs(), tiny_biases()

    @torch.no_grad()
    def run(module):
        with hybrid_granularity_attention(module, biases):
            return module(**inputs).sample

    with hybrid_granularity_attention(unet, biases):
        result = run_in_thread(lambda: run(other))
    assert torch.equal(result, run(unet))


# Training


def gradients(unet, biases, checkpointing):
    unet.zero_grad()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    biases = {name: bias.clone().requires_grad_() for name, bias in biases.items()}
    try:
        with hybrid_granularity_attention(unet, biases):
            loss = unet(**tiny_inputs(), down_intrablock_additional_residuals=tiny_residuals()).sample.square().mean()
            loss.backward()
        weights = {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}
    finally:
        unet.disable_gradient_checkpointing()
        unet.eval()
        unet.zero_grad()
    return loss.item(), weights, {name: bias.grad for name, bias in biases.items()}


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    loss, weights, biases = gradients(unet, tiny_biases(), checkpointing=False)
    loss_ckpt, weights_ckpt, biases_ckpt = gradients(unet, tiny_biases(), checkpointing=True)
    assert loss_ckpt == loss
    for name, bias in biases.items():
        assert bias.abs().max() > 0
        torch.testing.assert_close(biases_ckpt[name], bias, atol=1e-7, rtol=1e-5)
    for name, weight in weights.items():
        # Same operations in the same order, replayed.
        torch.testing.assert_close(weights_ckpt[name], weight, atol=1e-7, rtol=1e-5, msg=name)
    _, unbiased, _ = gradients(unet, {name: 0 * bias for name, bias in tiny_biases().items()}, checkpointing=True)
    assert_clearly_different(unbiased[f"{FIRST}.to_k.weight"], weights[f"{FIRST}.to_k.weight"])


def test_backward_on_another_thread_with_checkpointing(unet):
    """Autograd's own threads replay the forward on a GPU; here a thread of ours runs `backward`."""
    expected = gradients(unet, tiny_biases(), checkpointing=False)[1]
    unet.enable_gradient_checkpointing()
    unet.train()
    with hybrid_granularity_attention(unet, tiny_biases()):
        loss = unet(**tiny_inputs(), down_intrablock_additional_residuals=tiny_residuals()).sample.square().mean()
        assert run_in_thread(loss.backward) is None
    unet.disable_gradient_checkpointing()
    unet.eval()
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-7, rtol=1e-5, msg=name)
    unet.zero_grad()


def test_gradient_of_a_bias_is_that_of_the_loss(unet):
    """Against a difference quotient along the gradient, in float64."""
    unet = tiny_unet().double().requires_grad_(False)
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in tiny_inputs(batch=1).items()
    }
    biases = {name: bias.double() for name, bias in tiny_biases(1).items()}
    name = FIRST

    def loss(bias):
        with hybrid_granularity_attention(unet, {**biases, name: bias}):
            return unet(**inputs).sample.square().mean()

    bias = biases[name].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(bias), bias)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        quotient = (loss(bias + 1e-4 * direction) - loss(bias - 1e-4 * direction)) / 2e-4
    assert quotient.item() == pytest.approx(gradient.norm().item(), rel=1e-5)


# Compilation


@pytest.mark.slow
@torch.no_grad()
def test_whole_unet_compiles_to_one_graph(unet):
    inputs = tiny_inputs()
    expected = {}
    for seed in range(3):
        with hybrid_granularity_attention(unet, tiny_biases(seed=seed)):
            expected[seed] = unet(**inputs).sample
    assert_clearly_different(expected[0], expected[1])
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(unet, fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            with hybrid_granularity_attention(compiled, tiny_biases(seed=seed)) as processors:
                # The backend runs the same kernels.
                torch.testing.assert_close(compiled(**inputs).sample, expected[seed], atol=1e-6, rtol=1e-5)
                for name, bias in tiny_biases(seed=0).items():
                    processors[name].query_bias = bias
                torch.testing.assert_close(compiled(**inputs).sample, expected[0], atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@torch.no_grad()
def test_compiled_unet_is_plain_again_outside_the_block():
    unet, inputs, biases = shallow_unet(), tiny_inputs(), tiny_biases(layers=SHALLOW)
    plain = unet(**inputs).sample
    with hybrid_granularity_attention(unet, biases):
        biased = unet(**inputs).sample
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(unet, fullgraph=True, backend=counter)
    for _ in range(3):
        torch.testing.assert_close(compiled(**inputs).sample, plain, atol=1e-6, rtol=1e-5)
        with hybrid_granularity_attention(compiled, biases):
            torch.testing.assert_close(compiled(**inputs).sample, biased, atol=1e-6, rtol=1e-5)
        with hybrid_granularity_attention(compiled, dict.fromkeys(biases)):
            torch.testing.assert_close(compiled(**inputs).sample, plain, atol=1e-6, rtol=1e-5)
    # Without processor, with one, and with one that has no bias.
    assert counter.frame_count == 3


@pytest.mark.parametrize("dynamic", [None, pytest.param(False, marks=pytest.mark.slow)], ids=["default", "static"])
@torch.no_grad()
def test_repeated_blocks_compile_within_the_default_recompile_limit(dynamic):
    unet, inputs = tiny_unet(), tiny_inputs()
    plain = unet(**inputs).sample
    expected = {}
    for seed in range(3):
        with hybrid_granularity_attention(unet, tiny_biases(seed=seed)):
            expected[seed] = unet(**inputs).sample
    assert_clearly_different(expected[0], plain)
    assert sum(".attn2." in name for name in unet.attn_processors) == 10
    counter = CompileCounterWithBackend("eager")
    # With `fullgraph`, going over `torch._dynamo.config.recompile_limit` raises.
    unet.compile_repeated_blocks(fullgraph=True, backend=counter, dynamic=dynamic)
    graphs = []
    for seed in range(3):
        with hybrid_granularity_attention(unet, tiny_biases(seed=seed)):
            torch.testing.assert_close(unet(**inputs).sample, expected[seed], atol=1e-6, rtol=1e-5)
        graphs.append(counter.frame_count)
    assert graphs[0] <= torch._dynamo.config.recompile_limit
    assert graphs == [graphs[0]] * 3
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        hybrid_granularity_attention(unet, tiny_biases(seed=1)),
    ):
        torch.testing.assert_close(unet(**inputs).sample, expected[1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_compiled_blocks_need_as_many_variants_as_without_biases():
    """One for each of the two widths, and once more for a batch of 1, which torch treats apart."""
    unet = shallow_unet()
    settings = [(2, 0), (2, None), (1, 0), (1, None), (3, 1), (2, 2)]  # batch and seed of the biases

    def run(batch, seed):
        biases = dict.fromkeys(SHALLOW) if seed is None else tiny_biases(batch, seed, SHALLOW)
        with hybrid_granularity_attention(unet, biases):
            return unet(**tiny_inputs(batch)).sample

    expected = [run(*setting) for setting in settings]
    counter = CompileCounterWithBackend("eager")
    unet.compile_repeated_blocks(fullgraph=True, backend=counter, dynamic=True)
    with assert_unchanged(unet):
        variants = []
        for setting, one in zip(settings, expected, strict=True):
            torch.testing.assert_close(run(*setting), one, atol=1e-6, rtol=1e-5)
            variants.append(counter.frame_count)
    assert variants == [2, 2, 4, 4, 4, 4]
    assert not any(module._forward_pre_hooks for module in unet.modules())


@torch.no_grad()
def test_in_compiled_blocks_a_bias_may_be_assigned_and_the_batch_change_inside_the_block():
    unet, biases = shallow_unet(), tiny_biases(2, layers=SHALLOW)
    with hybrid_granularity_attention(unet, biases):
        expected = unet(**tiny_inputs(2)).sample
    plain = unet(**tiny_inputs(3)).sample
    unet.compile_repeated_blocks(fullgraph=True, backend="eager", dynamic=True)
    with hybrid_granularity_attention(unet, dict.fromkeys(SHALLOW)) as processors:
        torch.testing.assert_close(unet(**tiny_inputs(3)).sample, plain, atol=1e-6, rtol=1e-5)
        for name, bias in biases.items():
            processors[name].query_bias = bias
        torch.testing.assert_close(unet(**tiny_inputs(2)).sample, expected, atol=1e-6, rtol=1e-5)
        for processor in processors.values():
            processor.query_bias = None
        with torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(unet(**tiny_inputs(3)).sample, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_compiled_training_step_has_the_eager_gradients(unet):
    expected = gradients(unet, tiny_biases(), checkpointing=False)[2]
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    biases = {name: bias.requires_grad_() for name, bias in tiny_biases().items()}
    with hybrid_granularity_attention(compiled, biases):
        residuals = tiny_residuals()
        compiled(**tiny_inputs(), down_intrablock_additional_residuals=residuals).sample.square().mean().backward()
    for name, bias in biases.items():
        torch.testing.assert_close(bias.grad, expected[name], atol=1e-7, rtol=1e-4, msg=name)
    unet.zero_grad()


# Together with others


@torch.no_grad()
def test_controlnet_pose_residuals_and_biases_together(unet):
    torch.manual_seed(1)
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=3).eval()
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.2)
    torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.2)
    inputs = tiny_inputs()
    down, mid = controlnet(**inputs, controlnet_cond=torch.rand(2, 3, 128, 128), return_dict=False)

    def run(control=True, pose=True, biases=True):
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid} if control else {}
        pose = {"down_intrablock_additional_residuals": tiny_residuals()} if pose else {}
        with hybrid_granularity_attention(unet, tiny_biases() if biases else {}):
            return unet(**inputs, **control, **pose).sample

    everything = run()
    for left_out in ("control", "pose", "biases"):
        assert_clearly_different(everything, run(**{left_out: False}))
    # The biases do the same as in a layer-by-layer account: the U-Net with Eq. 4 put into `to_q` itself.
    handles = [
        layer(unet, name).to_q.register_forward_hook(lambda _module, _args, out, bias=bias: out + bias)
        for name, bias in tiny_biases().items()
    ]
    try:
        expected = run(biases=False)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(everything, expected, atol=1e-5, rtol=1e-5)


def add_lora(unet):
    from peft import LoraConfig

    torch.manual_seed(2)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False))


def add_ip_adapter(unet):
    unet._load_ip_adapter_weights([ip_adapter(unet, seed=3)])


@torch.no_grad()
def test_a_full_pass_says_nothing(unet):
    with assert_silent(), hybrid_granularity_attention(unet, tiny_biases()):
        unet(**tiny_inputs(), down_intrablock_additional_residuals=tiny_residuals())


@torch.no_grad()
def test_a_full_pass_with_a_scaled_lora_says_nothing():
    unet, inputs = tiny_unet(), tiny_inputs()
    add_lora(unet)
    with assert_silent(), hybrid_granularity_attention(unet, tiny_biases()):
        full = unet(**inputs, cross_attention_kwargs={"scale": 1.0}).sample
        half = unet(**inputs, cross_attention_kwargs={"scale": 0.5}).sample
        default = unet(**inputs).sample
    assert torch.equal(full, default)
    assert_clearly_different(half, full)
    assert_clearly_different(unet(**inputs).sample, full)


@torch.no_grad()
def test_a_full_pass_with_ip_adapter_masks_says_nothing():
    unet, inputs = tiny_unet(), tiny_inputs()
    add_ip_adapter(unet)
    embeds = {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 16)]}}
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    with assert_unchanged(unet):
        plain = unet(**inputs, **embeds).sample
        with assert_silent(), hybrid_granularity_attention(unet, tiny_biases()):
            everywhere = unet(**inputs, **embeds).sample
            masked = unet(**inputs, **embeds, cross_attention_kwargs={"ip_adapter_masks": [mask]}).sample
    assert_clearly_different(everywhere, plain)
    assert_clearly_different(masked, everywhere)


def test_weights_of_an_ip_adapter_stay_part_of_the_unet_inside_the_block():
    """Otherwise offloading, which moves the U-Net when it is called, leaves them behind."""
    unet = tiny_unet()
    add_ip_adapter(unet)
    parameters = {id(parameter) for parameter in unet.parameters()}
    with assert_unchanged(unet), hybrid_granularity_attention(unet, tiny_biases()):
        assert {id(parameter) for parameter in unet.parameters()} == parameters
    assert {id(parameter) for parameter in unet.parameters()} == parameters


class _OwnProcessor(AttnProcessor2_0):
    """A user's processor with an argument of its own."""

    seen = ()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, my_arg=None):
        type(self).seen += (my_arg,)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def test_arguments_of_a_users_own_processor_reach_it(caplog):
    unet = fill(UNet2DConditionModel(**UNET_CONFIG))
    unet.set_attn_processor(_OwnProcessor())
    _OwnProcessor.seen = ()
    biases = dict.fromkeys(BIASED)
    with torch.no_grad(), hybrid_granularity_attention(unet, biases), caplog.at_level(logging.WARNING):
        prompt = torch.zeros(1, 4, UNET_CONFIG["cross_attention_dim"])
        unet(torch.zeros(1, 4, 16, 16), 1, prompt, cross_attention_kwargs={"my_arg": 7})
    assert _OwnProcessor.seen == (7,) * 20
    assert not caplog.records
