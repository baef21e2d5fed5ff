"""Stock ControlNets and T2I-Adapters beside the pose adapter, and U-Nets that take the guidance scale as an input."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from testing_utils import (
    UNET_CONFIG,
    fill,
    relative_error,
    scheduler_config,
    tiny_components,
    tiny_image,
    tiny_pipeline,
    tiny_pose,
)

from diffusers_cfld import CFLDInpaintPipeline, CFLDPipeline, Keypoints, hybrid_granularity_attention

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"
THREE_BRANCHES = {"pose_guidance_scale": 2.0, "appearance_guidance_scale": 3.0}
NETWORK = {
    **{name: UNET_CONFIG[name] for name in UNET_CONFIG if name != "sample_size"},
    "conditioning_embedding_out_channels": (4, 4, 4, 4),
}


def make_controlnet(salt="controlnet", **config):
    return fill(ControlNetModel(**{**NETWORK, **config}), salt)


def make_adapter(salt="adapter", **config):
    defaults = {"channels": [*UNET_CONFIG["block_out_channels"]], "num_res_blocks": 1}
    return fill(T2IAdapter(**{**defaults, **config}), salt)


def extend(pipe, cls=CFLDPipeline, **components):
    made = cls.from_pipe(pipe, scheduler=DDIMScheduler(**scheduler_config()), **components)
    made.set_progress_bar_config(disable=True)
    return made


def watch(model):
    """The keyword arguments of each of a model's forwards, and the handle to stop."""
    calls = []
    return calls, model.register_forward_pre_hook(lambda _m, args, kwargs: calls.append(kwargs), with_kwargs=True)


@pytest.fixture(scope="module")
def plain():
    return extend(tiny_pipeline())


@pytest.fixture(scope="module")
def encoded(plain):
    return {"appearance": plain.encode_appearance(tiny_image()), "pose": plain.encode_pose(tiny_pose())}


@pytest.fixture(scope="module")
def controlnet():
    return make_controlnet()


@pytest.fixture(scope="module")
def adapter():
    return make_adapter()


@pytest.fixture(scope="module")
def pipe(plain, controlnet, adapter):
    return extend(plain, controlnet=controlnet, adapter=adapter)


@pytest.fixture(scope="module")
def run(encoded):
    def run(pipe, **arguments):
        defaults = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe(**{**defaults, **encoded, **arguments}).images

    return run


CONTROL, SKETCH = tiny_image(7, size=128), tiny_image(8, size=128)
BOTH = {"control_image": CONTROL, "adapter_image": SKETCH}


# What they add


def test_a_new_controlnet_and_scales_of_zero_change_nothing(run, plain, pipe):
    expected = run(plain)
    new = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    torch.testing.assert_close(
        run(extend(plain, controlnet=new), control_image=CONTROL), expected, atol=1e-6, rtol=1e-6
    )
    calls, handle = watch(pipe.controlnet)
    off = {"controlnet_conditioning_scale": 0, "adapter_conditioning_scale": 0.0}
    assert torch.equal(run(pipe, **BOTH, **off), expected)
    handle.remove()
    assert not calls  # nothing is computed for nothing
    assert relative_error(run(pipe, **BOTH, adapter_conditioning_scale=0.0), expected) > 0.01
    assert relative_error(run(pipe, **BOTH, controlnet_conditioning_scale=0), expected) > 0.01


@torch.no_grad()
def test_the_result_is_that_of_diffusers_own_call_in_every_branch(run, encoded, pipe):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    scales = {"controlnet_conditioning_scale": 0.7, "adapter_conditioning_scale": 1.3}
    unpadded = extend(pipe, frame_height=None, frame_width=None)
    actual = run(unpadded, latents=latents, **BOTH, **scales, **THREE_BRANCHES)
    appearance, pose = encoded["appearance"], list(encoded["pose"].residuals.values())
    biases = {name: bias.flatten(2).transpose(1, 2) for name, bias in appearance.query_biases.items()}
    added = [1.3 * residual for residual in pipe.adapter(SKETCH)]
    prompt, null = appearance.prompt_embeds, appearance.null_prompt_embeds
    none = [torch.zeros_like(residual) for residual in pose]
    branches = [(null, none, {}), (null, pose, {}), (prompt, pose, biases)]
    scheduler = DDIMScheduler(**scheduler_config())
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        predictions = []
        for embeds, residuals, query_biases in branches:
            down, mid = pipe.controlnet(latents, t, embeds, CONTROL, conditioning_scale=0.7, return_dict=False)
            with hybrid_granularity_attention(pipe.unet, query_biases):
                predictions.append(
                    pipe.unet(
                        latents,
                        t,
                        embeds,
                        down_block_additional_residuals=down,
                        mid_block_additional_residual=mid,
                        down_intrablock_additional_residuals=[
                            *(ours + theirs for ours, theirs in zip(residuals, added[:3], strict=True)),
                            added[3].clone(),
                        ],
                    ).sample
                )
        e_null, e_pose, e_full = predictions
        guided = e_null + 2.0 * (e_pose - e_null) + 3.0 * (e_full - e_pose)
        latents = scheduler.step(guided, t, latents).prev_sample
    torch.testing.assert_close(actual, latents, atol=1e-4, rtol=1e-4)


def test_they_act_between_start_and_end(run, pipe):
    calls, handle = watch(pipe.controlnet)
    interval = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    run(pipe, num_inference_steps=4, **BOTH, **interval)
    handle.remove()
    assert [call["conditioning_scale"] for call in calls] == [1.0, 1.0]


def test_several_have_a_scale_and_an_interval_each(run, plain, pipe, controlnet, adapter):
    expected = run(pipe, **BOTH)
    others = [make_controlnet("other"), make_adapter("other")]
    several = extend(plain, controlnet=[controlnet, others[0]], adapter=[adapter, others[1]])
    images = {"control_image": [CONTROL, SKETCH], "adapter_image": [SKETCH, CONTROL]}
    both = run(several, **images)
    assert relative_error(both, expected) > 0.01
    off = {"controlnet_conditioning_scale": [1.0, 0.0], "adapter_conditioning_scale": [1, 0]}
    torch.testing.assert_close(run(several, **images, **off), expected, atol=1e-5, rtol=1e-5)
    nested = {name: [value] for name, value in images.items()}  # a list for each pair
    assert torch.equal(run(several, **nested), both)
    calls, handle = watch(several.controlnet)
    run(several, **images, control_guidance_start=[0.0, 0.5])
    handle.remove()
    assert [call["conditioning_scale"] for call in calls] == [[1.0, 0.0], [1.0, 1.0]]


def test_a_batch_equals_its_images_made_alone(run, plain, pipe):
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    images, poses, control = tiny_image(0, 2), tiny_pose(0, 2), tiny_image(7, 2, 128)
    appearance, pose = plain.encode_appearance(images), plain.encode_pose(poses)
    options = {"adapter_image": SKETCH, **THREE_BRANCHES}
    pairs = {"appearance": appearance, "pose": pose, "control_image": control, "num_images_per_prompt": 2}
    batch = run(pipe, latents=latents, micro_batch_size=3, **pairs, **options)
    for number in (1, 2):
        row = number // 2
        alone = {"appearance": appearance[row], "pose": pose[row], "control_image": control[row]}
        alone = run(pipe, latents=latents[[number]], **alone, **options)
        torch.testing.assert_close(batch[[number]], alone, atol=1e-4, rtol=1e-4)


def test_prompts_of_a_callback_reach_the_controlnet(run, pipe):
    def forget(_pipe, _step, _timestep, tensors):
        return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

    calls, handle = watch(pipe.controlnet)
    options = {"callback_on_step_end": forget, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    run(pipe, **BOTH, **options, guidance_scale=1.0)
    handle.remove()
    first, second = (call["encoder_hidden_states"] for call in calls)
    assert first.abs().max() > 0
    assert second.abs().max() == 0


# The frame


@pytest.mark.parametrize("size", [(64, 176), (88, 176), (176, 64), (128, 88), (64, 64)], ids=str)
def test_a_control_image_is_where_keypoints_measured_on_it_are(run, pipe, size):
    joint = np.array([size[1] * 0.75, size[0] * 0.25])
    image = np.zeros((*size, 3), dtype=np.uint8)
    x, y = joint.astype(int)
    image[y - 3 : y + 4, x - 3 : x + 4] = 255
    pose = Keypoints(np.tile(joint, (18, 1)), np.ones(18, dtype=bool), size=size)
    expected = pipe.pose_processor.choose_crop(size).move(pose).rescale((128, 128)).xy[0]
    for form in (PIL.Image.fromarray(image), image / np.float32(255)):
        calls, handle = watch(pipe.controlnet)
        run(pipe, control_image=form, adapter_image=SKETCH, num_inference_steps=1)
        handle.remove()
        seen = calls[0]["controlnet_cond"]
        assert seen.shape == (2, 3, 128, 128)
        weight = (seen[0, 0] - seen[0, 0].median()).clamp(min=0).double()
        rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
        center = [float((weight * axis).sum() / weight.sum()) for axis in (columns, rows)]
        assert np.abs(np.array(center) - expected).max() < 2


def test_an_image_of_the_generated_size_arrives_as_it_is(run, plain, controlnet):
    pipe = extend(
        plain, controlnet=controlnet, adapter=make_adapter(in_channels=1), frame_height=None, frame_width=None
    )
    image = PIL.Image.fromarray((255 * SKETCH[0, 0].numpy()).round().astype(np.uint8))  # greyscale
    nets, net_handle = watch(pipe.controlnet)
    seen = []
    handle = pipe.adapter.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    run(pipe, control_image=CONTROL, adapter_image=image, num_inference_steps=1)
    handle.remove()
    net_handle.remove()
    torch.testing.assert_close(nets[0]["controlnet_cond"], CONTROL.repeat(2, 1, 1, 1), atol=1e-6, rtol=0)
    expected = torch.from_numpy(np.asarray(image) / np.float32(255))[None, None]
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)


# Editing


def test_editing_crops_the_control_image_like_its_reference(plain, pipe):
    edit = extend(pipe, CFLDInpaintPipeline)
    image = PIL.Image.fromarray((255 * tiny_image(1, size=96)[0]).byte().permute(1, 2, 0).numpy())
    control = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    mask = PIL.Image.new("L", image.size, 255)
    options = {
        "image": [image, control],
        "mask_image": [[mask, mask], mask],
        "source_image": tiny_image(0, 3),
        "pose": [Keypoints(np.full((18, 2), 40.0), np.ones(18, dtype=bool), size=(96, 96))] * 2,
        "num_inference_steps": 1,
        "output_type": "latent",
    }
    calls, handle = watch(edit.controlnet)
    edit(**options, control_image=[control.resize((48, 48)), image], adapter_image=[image, image])
    handle.remove()
    seen = calls[0]["controlnet_cond"].chunk(2)[0]  # one branch: two regions of the first reference, one of the second
    views = plain.source_image_processor.preprocess([control.resize((48, 48)).resize((96, 96)), image], (128, 128))
    torch.testing.assert_close(seen, views[[0, 0, 1]] / 2 + 0.5, atol=1e-6, rtol=0)
    with pytest.raises(
        ValueError, match=r"one for each reference, with the reference's aspect ratio, got \[\(48, 96\)"
    ):
        edit(**options, control_image=[image.resize((96, 48)), image], adapter_image=[image, image])


# Loading and saving


def test_they_are_saved_with_the_pipeline(run, plain, pipe, controlnet, adapter, tmp_path):
    several = extend(plain, adapter=[adapter, adapter])
    several.controlnet = controlnet  # assigned, as is usual
    several.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]
    assert index["adapter"] == ["diffusers", "MultiAdapter"]
    loaded = CFLDPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    arguments = {"control_image": CONTROL, "adapter_image": [SKETCH, SKETCH], "adapter_conditioning_scale": 0.5}
    torch.testing.assert_close(run(loaded, **arguments), run(pipe, **BOTH), atol=1e-5, rtol=1e-5)
    nets = CFLDPipeline.from_pretrained(tmp_path, adapter=None, controlnet=None)
    assert nets.controlnet is None
    assert nets.adapter is None
    assert {"controlnet", "adapter"}.isdisjoint(json.loads(nets.to_json_string()))


def test_a_folder_without_them_loads_them_as_arguments(plain, controlnet, adapter, tmp_path):
    plain.save_pretrained(tmp_path)
    assert {"controlnet", "adapter"}.isdisjoint(json.loads((tmp_path / "model_index.json").read_text()))
    loaded = CFLDPipeline.from_pretrained(tmp_path, controlnet=[controlnet, controlnet], adapter=adapter)
    assert type(loaded.controlnet) is MultiControlNetModel
    assert loaded.adapter is adapter
    assert CFLDInpaintPipeline.from_pipe(loaded).controlnet is loaded.controlnet
    assert type(CFLDPipeline.from_pipe(loaded, adapter=[adapter, adapter]).adapter) is MultiAdapter


def test_offloaded_and_in_other_precisions(run, plain):
    accelerate = importlib.import_module("accelerate")
    pipe = extend(tiny_pipeline(), controlnet=make_controlnet(), adapter=make_adapter())
    expected = run(pipe, **BOTH)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            accelerate.cpu_offload(component, torch.device("cpu"), offload_buffers=len(component._parameters) > 0)
    assert torch.equal(run(pipe, **BOTH), expected)
    pipe = extend(plain, controlnet=make_controlnet().to(torch.bfloat16), adapter=make_adapter().to(torch.bfloat16))
    rough = run(pipe, **BOTH)
    assert rough.dtype == torch.float32
    assert 0 < relative_error(rough, expected) < 0.1


@pytest.mark.slow
def test_compiled_with_the_unet(run, plain):
    torch._dynamo.reset()
    pipe = extend(tiny_pipeline(), controlnet=make_controlnet(), adapter=make_adapter())
    expected = run(pipe, **BOTH, num_inference_steps=4, control_guidance_end=0.5)
    pipe.unet.compile(fullgraph=True, backend="eager")
    pipe.controlnet = torch.compile(pipe.controlnet, fullgraph=True, backend="eager")
    for recompiling in (True, False):
        with torch._dynamo.config.patch(error_on_recompile=not recompiling):
            compiled = run(pipe, **BOTH, num_inference_steps=4, control_guidance_end=0.5)
        torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapter_image": SKETCH}, "`control_image` is missing: pass an image for the pipeline's `controlnet`"),
        ({"control_image": CONTROL}, r"`adapter_image` is missing.*from_pipe\(pipe, adapter=None\)"),
        ({**BOTH, "controlnet_conditioning_scale": [1.0, 1.0]}, r"a finite number or a list of 1.*got \[1.0, 1.0\]"),
        ({**BOTH, "adapter_conditioning_scale": float("nan")}, "`adapter_conditioning_scale` must be a finite number"),
        ({**BOTH, "control_guidance_start": 0.8, "control_guidance_end": 0.4}, "start < end <= 1, got 0.8 and 0.4"),
        ({**BOTH, "control_image": tiny_image(0, 3)}, "`control_image` must hold 1 images for each model, got 3"),
        ({**BOTH, "control_image": 2 * CONTROL - 1}, r"`control_image`: .* values in \[0, 1\], got -"),
    ],
)
def test_bad_input_gets_one_sentence(run, pipe, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(pipe, **arguments)
    assert "\n" not in str(caught.value)


def test_images_without_models_and_in_wrong_numbers_are_refused(run, plain, controlnet):
    with pytest.raises(ValueError, match="`control_image` is given, but the pipeline has no `controlnet`"):
        run(plain, control_image=CONTROL)
    several = extend(plain, controlnet=[controlnet, controlnet])
    for images in (CONTROL, [CONTROL], [[CONTROL, CONTROL], [CONTROL]]):
        with pytest.raises(ValueError, match="`control_image` must be a list of 2 entries, one for each model"):
            run(several, control_image=images)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "controlnet",
            lambda: make_controlnet(cross_attention_dim=64),
            "controlnet's cross_attention_dim must equal the unet",
        ),
        ("controlnet", lambda: make_controlnet(in_channels=8), "controlnet's in_channels .* got 8 and 4"),
        (
            "controlnet",
            lambda: make_controlnet(layers_per_block=2),
            "controlnet's number of residuals .* got 12 and 8",
        ),
        ("controlnet", lambda: make_controlnet(global_pool_conditions=True), "controlnet's global_pool_conditions"),
        (
            "controlnet",
            lambda: torch.nn.Identity(),
            "`controlnet` must be a ControlNetModel, or a list of them in `from_pipe`, got Identity",
        ),
        ("adapter", lambda: make_adapter(channels=[32, 64]), r"adapter's channels .* got \(32, 64\) and \(16, 24\)"),
        (
            "adapter",
            lambda: make_adapter(adapter_type="full_adapter_xl", downscale_factor=16),
            "downscale_factor .* 16 and 8",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(plain, name, make, message):
    with pytest.raises(ValueError, match=message):
        CFLDPipeline.from_pipe(plain, **{name: make()})


def test_models_that_are_assigned_are_checked_too(run, plain, controlnet):
    pipe = extend(plain)
    for model in ([controlnet, controlnet], make_controlnet(layers_per_block=2)):
        pipe.controlnet = model
        with pytest.raises(ValueError, match=r"a list of them in `from_pipe`, got list|number of residuals"):
            run(pipe, control_image=CONTROL)
        pipe.controlnet = None


# A U-Net that takes the guidance scale as an input


@pytest.fixture(scope="module")
def distilled():
    unet = fill(UNet2DConditionModel(**UNET_CONFIG, time_cond_proj_dim=16), "unet")
    return extend(CFLDPipeline(**{**tiny_components(), "unet": unet}))


@torch.no_grad()
def test_a_distilled_unet_gets_the_embedded_scale_in_one_evaluation(run, encoded, distilled):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    calls, handle = watch(distilled.unet)
    options = {"latents": latents, "num_inference_steps": 1, "num_images_per_prompt": 2}
    actual = run(distilled, guidance_scale=4.0, **options)
    handle.remove()
    assert len(calls) == 1
    embedding = StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor([3.0, 3.0]), 16)
    torch.testing.assert_close(calls[0]["timestep_cond"].expand(2, -1), embedding)
    appearance, pose = encoded["appearance"], encoded["pose"]
    biases = {name: bias.flatten(2).transpose(1, 2) for name, bias in appearance.query_biases.items()}
    scheduler = DDIMScheduler(**scheduler_config())
    scheduler.set_timesteps(1)
    with hybrid_granularity_attention(distilled.unet, biases):
        noise = distilled.unet(
            latents,
            scheduler.timesteps[0],
            appearance.prompt_embeds.expand(2, -1, -1),
            timestep_cond=embedding,
            down_intrablock_additional_residuals=list(pose.residuals.values()),
        ).sample
    expected = scheduler.step(noise, scheduler.timesteps[0], latents).prev_sample
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert relative_error(run(distilled, guidance_scale=1.0, **options), actual) > 1e-3
    with pytest.raises(ValueError, match="takes a single guidance scale as an input"):
        run(distilled, pose_guidance_scale=2.0)


# The recipe


def test_the_recipe_runs(monkeypatch, pipe, plain, encoded):
    text = RECIPES.read_text().split("\n## A ControlNet or T2I-Adapter beside the pose\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.setattr(ControlNetModel, "from_pretrained", lambda name, **options: make_controlnet())
    monkeypatch.setattr(T2IAdapter, "from_pretrained", lambda name, **options: make_adapter())
    few = lambda *args, **options: CFLDPipeline.__call__(*args, **{**options, "num_inference_steps": 1})  # noqa: E731
    names = {
        "pipe": plain,
        "photo": tiny_image(),
        "pose": tiny_pose(),
        "depth": CONTROL,
        "edges": SKETCH,
        "CFLDPipeline": type("Few", (CFLDPipeline,), {"__call__": few}),
    }
    exec(code, names)
    assert names["image"].size[1] == 128
