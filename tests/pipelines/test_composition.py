"""What users of diffusers add to a pipeline goes on working with the query biases on, and leaves no trace."""

import importlib
import threading
from contextlib import contextmanager

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers.callbacks import IPAdapterScaleCutoffCallback
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0, SlicedAttnProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.import_utils import is_torchsde_available
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from testing_utils import (
    image_embeds,
    load_ip_adapter,
    lora_state_dict,
    relative_error,
    scheduler_config,
    tiny_components,
    tiny_conditions,
    tiny_image,
    tiny_pipeline,
    tiny_pose,
)
from transformers import CLIPTextConfig, CLIPTextModel

from diffusers_cfld import Appearance, CFLDPipeline

COMPONENTS = ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter", "unet", "vae")
# Schedulers that are tried in every run; the others are slow tests.
COMMON_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
# Scales with which Eq. 7 needs one, two and three evaluations of the U-Net.
BRANCHES = {
    1: {"guidance_scale": 1.0},
    2: {"guidance_scale": 2.0},
    3: {"pose_guidance_scale": 2.0, "appearance_guidance_scale": 3.0},
}


WHOLE = {"image": tiny_image(), "pose": tiny_pose()}


def run(pipe, **arguments):
    """Two deterministic steps, without the final decoding; with `WHOLE`, also of the encoders."""
    defaults = {
        **tiny_conditions(),
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    if "image" in arguments:
        del defaults["appearance"]
    return pipe(**{**defaults, **arguments}).images


def assert_clearly_different(a, b):
    assert relative_error(a, b) > 0.01


def assert_biases_matter(pipe, biased, **arguments):
    image = arguments.pop("image", None)
    appearance = tiny_conditions()["appearance"] if image is None else pipe.encode_appearance(image)
    zeros = {name: torch.zeros_like(bias) for name, bias in appearance.query_biases.items()}
    appearance = Appearance(appearance.prompt_embeds, appearance.null_prompt_embeds, zeros)
    assert_clearly_different(biased, run(pipe, appearance=appearance, **arguments))


@contextmanager
def assert_processors_unchanged(unet):
    before = dict(unet.attn_processors)
    yield
    after = unet.attn_processors
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.fixture
def pipe():
    """A pipeline of the test's own, whose layers must have got their processors back in the end."""
    pipe = tiny_pipeline()
    yield pipe
    names = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
    assert "HybridGranularityAttnProcessor" not in names


@pytest.fixture(scope="module")
def plain():
    """What the pipeline gives before a test adds anything."""
    pipe = tiny_pipeline()
    with assert_processors_unchanged(pipe.unet):
        latents = run(pipe, **WHOLE)
    assert_biases_matter(pipe, latents, **WHOLE)
    return latents


# LoRA


@pytest.fixture(scope="module")
def loras():
    return lora_state_dict(0), lora_state_dict(1)


def test_lora_from_a_state_dict(pipe, plain, loras):
    pipe.load_lora_weights(loras[0], adapter_name="a")
    with assert_processors_unchanged(pipe.unet):
        full = run(pipe)
    assert_clearly_different(full, plain)
    assert_biases_matter(pipe, full)
    half = run(pipe, cross_attention_kwargs={"scale": 0.5})
    assert_clearly_different(half, full)
    assert_clearly_different(half, plain)
    # Scale 0 is without it, but for added zeros.
    torch.testing.assert_close(run(pipe, cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-4, rtol=1e-4)
    # The scale of one call does not stay.
    assert torch.equal(run(pipe), full)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe), plain)


def test_lora_changes_the_query_before_the_bias_is_added(pipe, loras):
    """Q = LoRA(W_q) h + B: a LoRA merged into the weights by hand gives the same."""
    merged = tiny_pipeline()
    modules = dict(merged.unet.named_modules())
    for key, down in loras[0].items():
        if ".lora_A." in key:
            name = key.removeprefix("unet.").split(".lora_A.")[0]
            modules[name].weight.data += loras[0][key.replace(".lora_A.", ".lora_B.")] @ down
    pipe.load_lora_weights(loras[0])
    torch.testing.assert_close(run(pipe, **BRANCHES[3]), run(merged, **BRANCHES[3]), atol=1e-4, rtol=1e-4)


def test_lora_from_a_file_with_a_text_encoder(pipe, plain, loras, tmp_path):
    text_encoder = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.{projection}.lora_{side}.weight": torch.randn(4, 4)
        for projection in ("q_proj", "k_proj")
        for side in "AB"
    }
    save_file(loras[0], tmp_path / "unet.safetensors")
    save_file({**loras[0], **text_encoder}, tmp_path / "both.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="unet.safetensors")
    expected = run(pipe)
    assert_clearly_different(expected, plain)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name="both.safetensors")
    assert torch.equal(run(pipe), expected)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}


def test_lora_adapters_are_weighted_listed_and_deleted(pipe, plain, loras):
    pipe.load_lora_weights(loras[0], adapter_name="a")
    only_a = run(pipe)
    pipe.load_lora_weights(loras[1], adapter_name="b")
    pipe.set_adapters(["a", "b"], [1.0, 0.0])
    torch.testing.assert_close(run(pipe), only_a, atol=1e-4, rtol=1e-4)
    pipe.set_adapters(["a", "b"], [0.7, 0.6])
    both = run(pipe)
    assert_clearly_different(both, only_a)
    assert_biases_matter(pipe, both)
    assert pipe.get_list_adapters() == {"unet": ["a", "b"]}
    assert pipe.get_active_adapters() == ["a", "b"]
    pipe.set_adapters("a", {"unet": {"up": 0.0, "down": 1.0, "mid": 1.0}})
    assert_clearly_different(run(pipe), only_a)
    pipe.delete_adapters("b")
    assert pipe.get_list_adapters() == {"unet": ["a"]}
    pipe.set_adapters("a")
    assert torch.equal(run(pipe), only_a)
    pipe.disable_lora()
    assert torch.equal(run(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(run(pipe), only_a)


@pytest.mark.parametrize("components", [None, pytest.param(["unet"], marks=pytest.mark.slow)])
def test_lora_fuses_and_unfuses(pipe, plain, loras, components):
    arguments = {} if components is None else {"components": components}
    pipe.load_lora_weights(loras[0])
    loaded = run(pipe)
    pipe.fuse_lora(**arguments)
    assert pipe.num_fused_loras == 1
    with assert_processors_unchanged(pipe.unet):
        fused = run(pipe)
    # Weights rounded once more, twice through the network.
    torch.testing.assert_close(fused, loaded, atol=1e-4, rtol=1e-4)
    assert_biases_matter(pipe, fused)
    pipe.unfuse_lora(**arguments)
    assert pipe.num_fused_loras == 0
    torch.testing.assert_close(run(pipe), loaded, atol=1e-4, rtol=1e-4)
    pipe.fuse_lora(lora_scale=0.5, **arguments)
    half = run(pipe)
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), half, atol=1e-4, rtol=1e-4)
    assert_clearly_different(half, plain)


def test_lora_save_and_load_again(pipe, plain, loras, tmp_path):
    pipe.load_lora_weights(loras[0])
    expected = run(pipe)
    layers = get_peft_model_state_dict(pipe.unet, adapter_name="default_0")
    pipe.save_lora_weights(tmp_path, unet_lora_layers=layers)
    assert load_file(tmp_path / "pytorch_lora_weights.safetensors").keys() == loras[0].keys()
    other = tiny_pipeline()
    other.load_lora_weights(tmp_path)
    assert torch.equal(run(other), expected)
    assert_clearly_different(expected, plain)


# IP-Adapter


@pytest.mark.parametrize("branches", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_ip_adapter(branches):
    pipe = tiny_pipeline()
    scales = BRANCHES[branches]
    plain = run(pipe, **scales)
    load_ip_adapter(pipe)
    arguments = {**scales, "ip_adapter_image_embeds": image_embeds(1 if branches == 1 else 2)}
    with assert_processors_unchanged(pipe.unet):
        adapted = run(pipe, **arguments)
    assert_clearly_different(adapted, plain)
    assert_biases_matter(pipe, adapted, **arguments)
    pipe.set_ip_adapter_scale(0.0)
    assert torch.equal(run(pipe, **arguments), plain)
    pipe.set_ip_adapter_scale(0.5)
    half = run(pipe, **arguments)
    assert_clearly_different(half, adapted)
    assert_clearly_different(half, plain)
    pipe.unload_ip_adapter()
    assert torch.equal(run(pipe, **scales), plain)


@pytest.mark.parametrize(("scale", "count"), [(1.0, 2), (2.0, 1), (2.0, 6)])
def test_ip_adapter_embeddings_in_wrong_number_are_refused(pipe, scale, count):
    load_ip_adapter(pipe)
    with pytest.raises(ValueError, match="`ip_adapter_image_embeds` must hold 1 embeddings per adapter"):
        run(pipe, guidance_scale=scale, ip_adapter_image_embeds=image_embeds(count))


def test_ip_adapter_of_a_batch_equals_single_runs(pipe):
    load_ip_adapter(pipe)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    embeds = torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(2))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    images, poses = tiny_image(batch_size=2), tiny_pose(batch_size=2)
    batch = run(pipe, image=images, pose=poses, latents=latents, ip_adapter_image_embeds=[embeds])
    for i in range(2):
        single = run(
            pipe,
            image=images[i : i + 1],
            pose=poses[i : i + 1],
            latents=latents[i : i + 1],
            ip_adapter_image_embeds=[embeds[[i, i + 2]]],
        )
        torch.testing.assert_close(batch[i : i + 1], single, atol=1e-4, rtol=1e-4)


def test_ip_adapter_masks(pipe):
    load_ip_adapter(pipe)
    arguments = {"ip_adapter_image_embeds": image_embeds()}
    mask = torch.zeros(1, 1, 128, 128)
    everywhere = run(pipe, **arguments)
    nowhere = run(pipe, **arguments, cross_attention_kwargs={"ip_adapter_masks": [mask]})
    mask[..., :64] = 1
    masked = run(pipe, **arguments, cross_attention_kwargs={"ip_adapter_masks": [mask]})
    assert_clearly_different(masked, everywhere)
    assert_clearly_different(masked, nowhere)


def test_ip_adapter_and_lora(pipe, loras):
    load_ip_adapter(pipe)
    arguments = {"ip_adapter_image_embeds": image_embeds()}
    adapted = run(pipe, **arguments)
    pipe.load_lora_weights(loras[0])
    both = run(pipe, **arguments)
    assert_clearly_different(both, adapted)
    assert_biases_matter(pipe, both, **arguments)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe, **arguments), adapted)


def test_ip_adapter_cutoff_callback_reaches_every_layer(pipe):
    load_ip_adapter(pipe)
    callback = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    run(pipe, ip_adapter_image_embeds=image_embeds(), callback_on_step_end=callback)
    adapters = [p for p in pipe.unet.attn_processors.values() if isinstance(p, IPAdapterAttnProcessor2_0)]
    assert len(adapters) == 10
    assert [adapter.scale for adapter in adapters] == [[0.0]] * 10


# Attention and U-Net options


@pytest.mark.parametrize("slice_size", ["auto", pytest.param("max", marks=pytest.mark.slow)])
def test_attention_slicing(pipe, plain, slice_size):
    pipe.enable_attention_slicing(slice_size)
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {SlicedAttnProcessor}
    with assert_processors_unchanged(pipe.unet):
        sliced = run(pipe)
    torch.testing.assert_close(sliced, plain, atol=1e-4, rtol=1e-4)
    assert_biases_matter(pipe, sliced)
    pipe.disable_attention_slicing()
    torch.testing.assert_close(run(pipe), plain, atol=1e-4, rtol=1e-4)


def test_fused_projections(pipe, plain):
    pipe.fuse_qkv_projections()
    assert all(type(p).__name__.startswith("Fused") for p in pipe.unet.attn_processors.values())
    with assert_processors_unchanged(pipe.unet):
        fused = run(pipe)
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)
    assert_biases_matter(pipe, fused)
    pipe.unfuse_qkv_projections()
    assert torch.equal(run(pipe), plain)


def test_freeu(pipe, plain):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    with assert_processors_unchanged(pipe.unet):
        freed = run(pipe)
    assert_clearly_different(freed, plain)
    assert_biases_matter(pipe, freed)
    pipe.disable_freeu()
    assert torch.equal(run(pipe), plain)


@pytest.mark.slow
@pytest.mark.parametrize("branches", BRANCHES)
def test_compiled_blocks_in_the_pipeline(pipe, branches):
    torch._dynamo.reset()
    scales = BRANCHES[branches]
    expected = [run(pipe, image=tiny_image(seed), **scales) for seed in range(2)]
    assert_biases_matter(pipe, expected[0], **scales)
    pipe.unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(run(pipe, image=tiny_image(0), **scales), expected[0], atol=1e-5, rtol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True), assert_processors_unchanged(pipe.unet):
        torch.testing.assert_close(run(pipe, image=tiny_image(1), **scales), expected[1], atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "unet.compile"])
def test_compiled_unet_in_the_pipeline(pipe, in_place):
    torch._dynamo.reset()
    expected = [run(pipe, image=tiny_image(seed)) for seed in range(2)]
    if in_place:
        pipe.unet.compile(fullgraph=True, backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(pipe, image=tiny_image(0)), expected[0], atol=1e-5, rtol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(run(pipe, image=tiny_image(1)), expected[1], atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


def test_vae_slicing_and_tiling(pipe):
    arguments = {"image": tiny_image(batch_size=2), "pose": tiny_pose(batch_size=2), "output_type": "pt"}
    expected = run(pipe, **arguments)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(run(pipe, **arguments), expected, atol=1e-5, rtol=1e-5)
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 12, 96
    tiled = run(pipe, **arguments)
    assert tiled.shape == expected.shape
    assert tiled.isfinite().all()
    assert not torch.equal(tiled, expected)
    pipe.vae.disable_tiling()
    assert torch.equal(run(pipe, **arguments), expected)


# Schedulers


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(scheduler.name, marks=() if scheduler.name in COMMON_SCHEDULERS else pytest.mark.slow)
        for scheduler in KarrasDiffusionSchedulers
    ],
)
def test_every_karras_scheduler(pipe, name):
    if name == "DPMSolverSDEScheduler" and not is_torchsde_available():
        pytest.skip("DPMSolverSDEScheduler needs torchsde")
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy", reason="LMSDiscreteScheduler needs scipy")
    scheduler_class = getattr(diffusers, name)
    pipe.scheduler = scheduler_class.from_config(scheduler_config())
    updates = []
    latents = run(
        pipe,
        **BRANCHES[1],
        num_inference_steps=4,
        callback_on_step_end=lambda _pipe, i, _t, tensors: updates.append(i) or tensors,
    )
    assert latents.shape == (1, 4, 16, 16)
    assert latents.isfinite().all()
    assert updates == list(range(pipe.num_timesteps))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_velocity_prediction_runs(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config({**scheduler_config(), "prediction_type": "v_prediction"})
    assert run(pipe).isfinite().all()


# Nothing is left behind


def test_processors_are_untouched_after_a_call_and_after_an_exception(pipe, plain):
    mine = AttnProcessor()
    pipe.unet.up_blocks[3].attentions[1].transformer_blocks[0].attn2.set_processor(mine)

    def fail(_pipe, _step, _timestep, _tensors):
        raise KeyError("in the callback")

    with assert_processors_unchanged(pipe.unet), pytest.raises(KeyError, match="in the callback"):
        run(pipe, callback_on_step_end=fail)
    with assert_processors_unchanged(pipe.unet):
        # AttnProcessor is scaled dot-product attention in other roundings.
        torch.testing.assert_close(run(pipe), plain, atol=1e-4, rtol=1e-4)


def test_processors_are_untouched_after_an_exception_in_the_unet(pipe, plain):
    with assert_processors_unchanged(pipe.unet), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.unet.conv_out, "forward", lambda: None)
        with pytest.raises(TypeError):
            run(pipe)
    assert torch.equal(run(pipe), plain)


def test_second_thread_is_refused_or_right(pipe, plain):
    """A thread that comes between two evaluations of the U-Net may run; it may not get or leave a wrong result."""
    other = CFLDPipeline(**{**pipe.components, "scheduler": DDPMScheduler(**scheduler_config())})
    other.set_progress_bar_config(disable=True)
    arguments = {"image": tiny_image(3), "pose": tiny_pose(3)}
    solo, outcomes = run(other, **arguments), []

    def target():
        try:
            outcomes.append(torch.equal(run(other, **arguments), solo))
        except RuntimeError as error:
            outcomes.append("another thread" in str(error))

    def callback(_pipe, step, _timestep, tensors):
        if step == 0:
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(timeout=60)
        return tensors

    with assert_processors_unchanged(pipe.unet):
        assert torch.equal(run(pipe, callback_on_step_end=callback), plain)
    assert outcomes == [True]


def test_second_thread_is_refused_during_an_evaluation_of_the_unet(pipe):
    other = CFLDPipeline(**{**pipe.components, "scheduler": DDPMScheduler(**scheduler_config())})
    other.set_progress_bar_config(disable=True)
    inside, done, outcomes = threading.Event(), threading.Event(), []

    def wait(_module, _arguments):
        if threading.current_thread() is first and not done.is_set():
            inside.set()
            done.wait(timeout=60)

    def target():
        outcomes.append(run(pipe))

    handle = pipe.unet.conv_in.register_forward_pre_hook(wait)
    first = threading.Thread(target=target)
    with assert_processors_unchanged(pipe.unet):
        first.start()
        assert inside.wait(timeout=60)
        with pytest.raises(RuntimeError, match="another thread"):
            run(other)
        done.set()
        first.join(timeout=60)
        handle.remove()
    assert torch.equal(outcomes[0], run(tiny_pipeline()))


# Two pipelines with one U-Net


def stable_diffusion(pipe):
    config = CLIPTextConfig(
        vocab_size=10, hidden_size=48, intermediate_size=48, num_hidden_layers=1, num_attention_heads=3
    )
    torch.manual_seed(0)
    sd = StableDiffusionPipeline(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=DDIMScheduler(**scheduler_config()),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    sd.set_progress_bar_config(disable=True)
    return sd


def run_sd(sd, **arguments):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        prompt = sd.text_encoder(torch.tensor([[1, 2, 3, 4]])).last_hidden_state
        negative = sd.text_encoder(torch.tensor([[1, 1, 1, 1]])).last_hidden_state
    return sd(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=128,
        width=128,
        num_inference_steps=2,
        generator=generator,
        output_type="latent",
        **arguments,
    ).images


def test_pipelines_that_share_a_unet_take_turns(pipe, plain):
    sd = stable_diffusion(pipe)
    solo = run_sd(stable_diffusion(tiny_pipeline()))
    assert torch.equal(run_sd(sd), solo)
    for _ in range(2):
        assert torch.equal(run(pipe), plain)
        assert torch.equal(run_sd(sd), solo)


def test_another_pipeline_inside_the_callback(pipe, plain):
    sd, outcomes = stable_diffusion(pipe), []
    solo = run_sd(sd)

    def callback(_pipe, _step, _timestep, tensors):
        outcomes.append(run_sd(sd))
        return tensors

    assert torch.equal(run(pipe, callback_on_step_end=callback), plain)
    assert len(outcomes) == 2
    assert all(torch.equal(outcome, solo) for outcome in outcomes)


def test_cfld_inside_the_callback_of_another_pipeline(pipe, plain):
    sd, outcomes = stable_diffusion(pipe), []
    solo = run_sd(sd)

    def callback(_pipe, _step, _timestep, tensors):
        outcomes.append(run(pipe))
        return tensors

    assert torch.equal(run_sd(sd, callback_on_step_end=callback), solo)
    assert len(outcomes) == 2
    assert all(torch.equal(outcome, plain) for outcome in outcomes)


def test_cfld_inside_the_callback_of_cfld(pipe, plain):
    other = CFLDPipeline(**{**pipe.components, "scheduler": DDPMScheduler(**scheduler_config())})
    other.set_progress_bar_config(disable=True)
    arguments = {"image": tiny_image(3), "pose": tiny_pose(3), **BRANCHES[3]}
    solo, outcomes = run(other, **arguments), []
    assert_clearly_different(solo, plain)

    def callback(_pipe, _step, _timestep, tensors):
        outcomes.append(run(other, **arguments))
        return tensors

    assert torch.equal(run(pipe, callback_on_step_end=callback), plain)
    assert len(outcomes) == 2
    assert all(torch.equal(outcome, solo) for outcome in outcomes)


def test_plain_unet_call_inside_the_callback_has_no_biases(pipe):
    sample, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 48)
    outcomes = []

    def callback(_pipe, _step, _timestep, tensors):
        outcomes.append(pipe.unet(sample, 10, prompt).sample)
        return tensors

    run(pipe, callback_on_step_end=callback, **BRANCHES[1])
    with torch.no_grad():
        expected = pipe.unet(sample, 10, prompt).sample
    assert all(torch.equal(outcome, expected) for outcome in outcomes)


def test_from_pipe_both_ways(pipe, plain):
    sd = stable_diffusion(pipe)
    new = {name: getattr(pipe, name) for name in COMPONENTS[:4]}
    back = CFLDPipeline.from_pipe(sd, scheduler=pipe.scheduler, **new)
    back.set_progress_bar_config(disable=True)
    assert back.unet is pipe.unet
    with assert_processors_unchanged(pipe.unet):
        assert torch.equal(run(back, **WHOLE), plain)


# Memory and precision


def test_offload_sequence_names_every_component():
    sequence = CFLDPipeline.model_cpu_offload_seq.split("->")
    models = [name for name in tiny_components() if name not in ("scheduler", "feature_extractor")]
    assert sorted(sequence) == sorted([*models, "adapter"])
    assert set(COMPONENTS) <= set(sequence)
    for first, second in (
        ("source_encoder", "prompt_decoder"),
        ("prompt_decoder", "appearance_encoder"),
        ("appearance_encoder", "pose_adapter"),
        ("pose_adapter", "unet"),
        ("image_encoder", "unet"),
        ("adapter", "unet"),
        ("unet", "vae"),
    ):
        assert sequence.index(first) < sequence.index(second)


def test_hooked_like_sequential_offload(pipe):
    """What `enable_sequential_cpu_offload` does to each component, with the CPU as the device."""
    accelerate = importlib.import_module("accelerate")
    expected = run(pipe, **WHOLE, output_type="pt")
    for name in COMPONENTS:
        component = getattr(pipe, name)
        accelerate.cpu_offload(component, torch.device("cpu"), offload_buffers=len(component._parameters) > 0)
        assert all(parameter.is_meta for parameter in component.parameters())
    with assert_processors_unchanged(pipe.unet):
        assert torch.equal(run(pipe, **WHOLE, output_type="pt"), expected)
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())


def test_hooked_like_model_offload(pipe):
    """What `enable_model_cpu_offload` does, with the CPU as the device: hooks on every component and freeing."""
    accelerate = importlib.import_module("accelerate")
    expected = run(pipe, **WHOLE, output_type="pt")
    hook = None
    pipe._all_hooks = []
    for name in pipe.model_cpu_offload_seq.split("->"):
        if isinstance(getattr(pipe, name), torch.nn.Module):
            _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)
            pipe._all_hooks.append(hook)
    assert torch.equal(run(pipe, **WHOLE, output_type="pt"), expected)


@pytest.mark.parametrize(
    "adapter", [pytest.param(False, marks=pytest.mark.slow, id="plain"), pytest.param(True, id="ip-adapter")]
)
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload(pipe, offload_type, adapter):
    arguments = {**WHOLE, "output_type": "pt", **BRANCHES[1]}
    if adapter:
        load_ip_adapter(pipe)
        arguments["ip_adapter_image_embeds"] = image_embeds(1)
    expected = run(pipe, **arguments)
    for name in COMPONENTS:
        groups = {} if offload_type == "leaf_level" else {"num_blocks_per_group": 1}
        apply_group_offloading(
            getattr(pipe, name),
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=offload_type,
            **groups,
        )
    with assert_processors_unchanged(pipe.unet):
        assert torch.equal(run(pipe, **arguments), expected)


@pytest.mark.parametrize("name", COMPONENTS)
def test_layerwise_casting(pipe, name):
    expected = run(pipe, **WHOLE, output_type="pt", **BRANCHES[1])
    getattr(pipe, name).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in getattr(pipe, name).parameters()}
    images = run(pipe, **WHOLE, output_type="pt", **BRANCHES[1])
    assert images.shape == expected.shape
    assert images.isfinite().all()
    assert not torch.equal(images, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(pipe, plain, dtype):
    pipe.to(dtype)
    assert {getattr(pipe, name).dtype for name in COMPONENTS} == {dtype}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = run(pipe, **WHOLE, latents=noise)
    assert latents.dtype == dtype
    assert latents.shape == plain.shape
    assert latents.isfinite().all()
    assert_biases_matter(pipe, latents, **WHOLE, latents=noise)
    assert pipe.decode_latents(latents).isfinite().all()


def test_one_component_in_another_precision(pipe, plain):
    for name in ("source_encoder", "appearance_encoder"):
        getattr(pipe, name).to(torch.bfloat16)
    latents = run(pipe, **WHOLE)
    assert latents.dtype == torch.float32
    # Rounded to 8 bits of mantissa on the way to the biases.
    assert relative_error(latents, plain) < 0.3


def test_pipeline_loads_in_bfloat16(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = CFLDPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert {getattr(loaded, name).dtype for name in COMPONENTS} == {torch.bfloat16}
    assert run(loaded, **WHOLE, output_type="pt").isfinite().all()
