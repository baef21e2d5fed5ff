import pytest
import torch
from diffusers import DDPMScheduler
from testing_utils import SOURCE_ENCODER_CONFIG, fill, relative_error, tiny_components, tiny_image, tiny_pose

from diffusers_cfld import CFLDPipeline, SwinImageEncoder
from diffusers_cfld.training import CFLDTrainingModule, cfld_loss

PAIRS = 2


@pytest.fixture(scope="module")
def components():
    return tiny_components()


@pytest.fixture
def module(components):
    # Without stochastic depth, so that steps compare.
    source_encoder = fill(SwinImageEncoder(**SOURCE_ENCODER_CONFIG, drop_path_rate=0.0), "source_encoder")
    module = CFLDTrainingModule(
        components["unet"],
        source_encoder,
        components["prompt_decoder"],
        components["appearance_encoder"],
        components["pose_adapter"],
    )
    module.set_trainable()
    module.zero_grad()
    yield module.train()
    module.disable_gradient_checkpointing()
    module.zero_grad()


def inputs(seed=0, pairs=PAIRS, latent_size=(16, 16)):
    generator = torch.Generator().manual_seed(seed)
    height, width = latent_size
    return {
        "source_image": tiny_image(seed, pairs) * 2 - 1,
        "pose_map": tiny_pose(seed, 2 * pairs)[:, :, : 4 * height, : 4 * width],
        "noisy_latents": torch.randn(2 * pairs, 4, height, width, generator=generator),
        "timesteps": torch.randint(0, 1000, (2 * pairs,), generator=generator),
        "condition_drop_mask": torch.arange(2 * pairs) == 1,
    }


def loss_of(module, batch):
    noise_pred = module(**batch)
    return cfld_loss(noise_pred, torch.zeros_like(noise_pred))


def gradients(module):
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
    module.zero_grad()
    return grads


def assert_same_gradients(actual, expected, tolerance=1e-5):
    assert set(actual) == set(expected)
    scales = {}
    for name, gradient in expected.items():
        part = name.split(".")[0]
        scales[part] = max(scales.get(part, 0.0), gradient.abs().max().item())
    for name, gradient in expected.items():
        # Against the largest gradient of the part: exact zeros come out as rounding.
        assert (actual[name] - gradient).abs().max() <= tolerance * scales[name.split(".")[0]], name


def test_it_computes_what_the_pipeline_computes(module, components):
    """A step's prediction is the full branch of the pipeline where nothing is dropped, else the null branch."""
    module.eval()
    batch = {**inputs(pairs=1), "condition_drop_mask": torch.tensor([False, True])}
    batch["timesteps"][:] = 981
    batch["noisy_latents"][1] = batch["noisy_latents"][0]
    with torch.no_grad(), module.training_attention():
        noise_pred = module(**batch)
    scheduler = DDPMScheduler.from_config(components["scheduler"].config)
    pipe = CFLDPipeline(**{**components, "source_encoder": module.source_encoder, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    predictions = []
    step = pipe.scheduler.step

    def record(prediction, *args, **kwargs):
        predictions.append(prediction)
        return step(prediction, *args, **kwargs)

    pipe.scheduler.step = record
    for i, scale in enumerate((1.0, 0.0)):
        pipe(
            image=batch["source_image"] / 2 + 0.5,
            pose=batch["pose_map"][i : i + 1],
            latents=batch["noisy_latents"][i : i + 1],
            timesteps=[981],
            pose_guidance_scale=scale,
            appearance_guidance_scale=scale,
            output_type="latent",
        )
    assert relative_error(noise_pred, torch.cat(predictions)) < 1e-5


def test_every_parameter_that_trains_gets_a_gradient_and_no_other(module):
    for mask in (None, torch.tensor([True, True])):
        with module.training_attention():
            loss_of(module, {**inputs(pairs=1), "condition_drop_mask": mask}).backward()
        for name, parameter in module.named_parameters():
            # Also where it is zero: DDP waits for all of them.
            assert (parameter.grad is not None) == parameter.requires_grad, name
        null_gradient = module.prompt_decoder.null_prompt_embeds.grad.abs().max()
        assert (null_gradient > 0) == (mask is not None)
        module.zero_grad()


def test_gradient_checkpointing_gives_equal_gradients(components):
    """With the stochastic depth of the source encoder, which is replayed as it was."""
    module = CFLDTrainingModule(
        *(components[n] for n in ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter"))
    )
    module.set_trainable()
    module.train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            module.enable_gradient_checkpointing()
            assert all(part.is_gradient_checkpointing for part in module.children())
        torch.manual_seed(0)
        with module.training_attention():
            loss_of(module, inputs(pairs=1)).backward()
        results.append(gradients(module))
    module.disable_gradient_checkpointing()
    assert_same_gradients(results[1], results[0])


@pytest.mark.parametrize("in_one_sum", [False, True])
def test_backward_after_several_forwards(module, in_one_sum):
    """Each backward has the biases of its own forward, not of the last one, also where checkpointing replays it."""
    batches = [inputs(seed, pairs=1) for seed in (0, 1)]
    with module.training_attention():
        for batch in batches:
            loss_of(module, batch).backward()
        expected = gradients(module)
        module.enable_gradient_checkpointing()
        losses = [loss_of(module, batch) for batch in batches]
        for loss in [sum(losses)] if in_one_sum else losses:
            loss.backward()
    assert_same_gradients(gradients(module), expected)


def test_accumulation_2x1_equals_1x2(module):
    batch = inputs(pairs=2)
    with module.training_attention():
        whole = loss_of(module, batch)
        whole.backward()
        expected = gradients(module)
        total = 0.0
        for i in range(2):  # pair i: source i, its reconstruction i and its transfer 2 + i
            rows = [i, 2 + i]
            part = {name: tensor[[i]] if name == "source_image" else tensor[rows] for name, tensor in batch.items()}
            loss = loss_of(module, part) / 2
            loss.backward()
            total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-6)
    assert_same_gradients(gradients(module), expected)


def test_repeated_steps_are_bit_equal_and_touch_no_input(module):
    batch = inputs()
    before = {name: tensor.clone() for name, tensor in batch.items()}
    with torch.no_grad(), module.training_attention():
        first, second = module(**batch), module(**batch)
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in batch.items())


def processors(module):
    return [module.unet.get_submodule(name).processor for name in module.appearance_encoder.layer_names]


def test_processors_go_after_an_error(module):
    own = processors(module)
    with pytest.raises(ZeroDivisionError), module.training_attention():
        module(**inputs())
        _ = 1 / 0
    assert all(map(lambda a, b: a is b, processors(module), own))


def test_forward_and_backward_without_the_processors_are_errors(module):
    with pytest.raises(
        RuntimeError, match=r"Run both the forward and `backward\(\)` inside `with module.training_attention\(\):`"
    ):
        module(**inputs(pairs=1))
    with module.training_attention():
        loss = loss_of(module, inputs(pairs=1))
    with pytest.raises(
        RuntimeError, match=r"Run both the forward and `backward\(\)` inside `with module.training_attention\(\):`"
    ):
        loss.backward()


def test_a_pipeline_may_sample_between_forward_and_backward(module, components):
    pipe = CFLDPipeline(**{**components, "source_encoder": module.source_encoder})
    pipe.set_progress_bar_config(disable=True)

    def sample():
        module.eval()
        generator = torch.Generator().manual_seed(0)
        result = pipe(tiny_image(7), tiny_pose(7), num_inference_steps=1, generator=generator, output_type="latent")
        module.train()
        return result.images

    expected_sample = sample()
    module.enable_gradient_checkpointing()
    with module.training_attention():
        loss_of(module, inputs(pairs=1)).backward()
        expected = gradients(module)
        loss = loss_of(module, inputs(pairs=1))
        assert torch.equal(sample(), expected_sample)
        loss.backward()
    assert_same_gradients(gradients(module), expected)


def test_other_latent_sizes(module):
    batch = inputs(latent_size=(16, 8))
    coarse = {**batch, "pose_map": batch["pose_map"][:, :, ::2, ::2]}
    with torch.no_grad(), module.training_attention():
        for given in (batch, coarse):
            assert module(**given).shape == batch["noisy_latents"].shape


def test_one_pose_per_source(module):
    """Without self-reconstruction the batch is not doubled."""
    batch = inputs()
    targets = {name: tensor if name == "source_image" else tensor[PAIRS:] for name, tensor in batch.items()}
    with torch.no_grad(), module.training_attention():
        torch.testing.assert_close(module(**targets), module(**batch)[PAIRS:], atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_with_frozen_weights_in_bfloat16(module, components):
    batch = inputs(pairs=1)
    with torch.no_grad(), module.training_attention():
        expected = module(**batch)
    frozen = {name: p.data for name, p in module.unet.named_parameters() if not p.requires_grad}
    parameters = dict(module.unet.named_parameters())
    for name, value in frozen.items():
        parameters[name].data = value.bfloat16()
    try:
        with module.training_attention():
            with torch.autocast("cpu", torch.bfloat16):
                noise_pred = module(**batch)
            cfld_loss(noise_pred, torch.zeros_like(noise_pred)).backward()
        assert relative_error(noise_pred.detach(), expected) < 0.1  # 8 bits of mantissa through the whole U-Net
        assert all(gradient.dtype == torch.float32 for gradient in gradients(module).values())
    finally:
        for name, value in frozen.items():
            parameters[name].data = value


def test_ddp_takes_it_as_one_module(module, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with module.training_attention():
            loss_of(module, inputs(pairs=1)).backward()
            expected = gradients(module)
            wrapped = torch.nn.parallel.DistributedDataParallel(module)
            for mask in (None, torch.tensor([True, True]), inputs(pairs=1)["condition_drop_mask"]):
                module.zero_grad()
                # A parameter without a gradient would make the next forward fail.
                loss_of(wrapped, {**inputs(pairs=1), "condition_drop_mask": mask}).backward()
        assert_same_gradients(gradients(module), expected)
    finally:
        distributed.destroy_process_group()


def test_lora_instead_of_keys_and_values(components):
    peft = pytest.importorskip("peft")
    own = tiny_components()
    module = CFLDTrainingModule(
        *(own[n] for n in ("unet", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter"))
    )
    module.set_trainable(unet="none")
    targets = [f"{layer}.{kv}" for layer in module.appearance_encoder.layer_names for kv in ("to_k", "to_v")]
    module.unet.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    module.train()
    with module.training_attention():
        loss_of(module, inputs(pairs=1)).backward()
    with_gradient = [name for name, p in module.unet.named_parameters() if p.grad is not None]
    assert len(with_gradient) == 2 * len(targets)
    assert all("lora" in name for name in with_gradient)


def test_errors(module):
    batch = inputs()
    with module.training_attention():
        with pytest.raises(ValueError, match="got 4 samples, 3 pose maps and 2 sources"):
            module(**{**batch, "pose_map": batch["pose_map"][:3]})
        with pytest.raises(ValueError, match="got 4 samples, 4 pose maps and 3 sources"):
            module(**{**batch, "source_image": tiny_image(0, 3)})
    with pytest.raises(ValueError, match="`train` must be 'kv', 'all' or 'none', got 'q'"):
        module.set_trainable("q")
    with pytest.raises(ValueError, match="`dropped_conditions` must be 'all' or 'prompt', got 'pose'"):
        CFLDTrainingModule(*module.children(), dropped_conditions="pose")
