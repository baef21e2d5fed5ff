"""Attention maps and the guidance's predictions: what is shown is what is computed."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from testing_utils import tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.inspection import (
    contact_sheet,
    draw_heat_map,
    guidance_pictures,
    prompt_attention_maps,
    record_attention,
)
from diffusers_cfld.inspection.attention_maps import _attention_probabilities
from diffusers_cfld.inversion import invert


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, **options):
    arguments = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 2, "output_type": "latent"}
    return pipe(**{**arguments, "generator": torch.manual_seed(0), **options}).images


# The prompt decoder --------------------------------------------------------------------------------------------------


def test_prompt_attention_maps_are_the_attention_that_is_computed(pipe, monkeypatch):
    maps = prompt_attention_maps(pipe, tiny_image(0, 2))
    decoder = pipe.prompt_decoder
    assert maps.shape == (2, len(decoder.blocks), decoder.config.num_queries, *decoder.feature_size)
    torch.testing.assert_close(maps.flatten(-2).sum(-1), torch.ones(maps.shape[:3]))
    assert maps.min() >= 0

    # With the block's own values the maps give the block's own output, when there is one head.
    attn = decoder.blocks[1].attn2
    seen = {}

    def keep(module, args, kwargs, output):
        seen["input"], seen["kwargs"], seen["output"] = args[0], kwargs, output

    monkeypatch.setattr(attn, "heads", 1)
    monkeypatch.setattr(attn, "scale", attn.inner_dim**-0.5)
    hook = attn.register_forward_hook(keep, with_kwargs=True)
    maps = prompt_attention_maps(pipe, tiny_image())
    hook.remove()
    with torch.no_grad():
        values = attn.to_v(seen["kwargs"]["encoder_hidden_states"])
        output = attn.to_out[0](maps[:, 1].flatten(-2) @ values)
    torch.testing.assert_close(output, seen["output"], rtol=1e-4, atol=1e-5)


def test_watching_changes_nothing_and_leaves_nothing_behind(pipe):
    before = call(pipe)
    hooks, attributes = sum(len(module._forward_pre_hooks) for module in pipe.unet.modules()), {*vars(pipe)}
    with record_attention(pipe):
        assert torch.equal(call(pipe), before)
    prompt_attention_maps(pipe, tiny_image())
    assert sum(len(module._forward_pre_hooks) for module in pipe.unet.modules()) == hooks
    assert not any(module._forward_pre_hooks for module in pipe.prompt_decoder.modules())
    with pytest.raises(ZeroDivisionError), record_attention(pipe):
        raise ZeroDivisionError
    assert sum(len(module._forward_pre_hooks) for module in pipe.unet.modules()) == hooks
    assert {*vars(pipe)} == attributes


# The U-Net -----------------------------------------------------------------------------------------------------------


def test_unet_maps_of_the_biased_layers(pipe):
    with record_attention(pipe) as recorder:
        call(pipe, pose=tiny_pose(0, 2))
    assert recorder.layer_names == list(pipe.appearance_encoder.layer_names)
    for name in recorder.layer_names:
        maps = recorder.maps(name)
        assert maps.shape[:2] == (2, pipe.prompt_decoder.config.num_queries)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, *maps.shape[2:]))
    mean = recorder.mean_maps((8, 6))
    assert mean.shape == (2, pipe.prompt_decoder.config.num_queries, 8, 6)
    assert recorder.mean_maps().shape[2:] == (16, 16)


def test_unet_maps_are_those_of_the_full_branch_with_its_bias(pipe):
    """One step alone, where each guidance setting evaluates the full branch on the same noise."""
    appearance = pipe.encode_appearance(tiny_image())
    recorded = []
    for scales in ((1.0, 1.0), (2.0, 2.0), (3.0, 1.5)):
        with record_attention(pipe) as recorder:
            call(
                pipe,
                num_inference_steps=1,
                pose_guidance_scale=scales[0],
                appearance_guidance_scale=scales[1],
            )
        recorded.append(recorder.mean_maps())
    torch.testing.assert_close(recorded[1], recorded[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recorded[2], recorded[0], rtol=1e-4, atol=1e-5)

    from diffusers_cfld import Appearance

    without = {name: torch.zeros_like(bias) for name, bias in appearance.query_biases.items()}
    unbiased = Appearance(appearance.prompt_embeds, appearance.null_prompt_embeds, without)
    with record_attention(pipe) as recorder:
        call(pipe, image=None, appearance=unbiased, num_inference_steps=1, guidance_scale=1.0)
    assert (recorder.mean_maps() - recorded[0]).abs().max() > 1e-3


def test_maps_are_the_mean_over_the_steps_and_of_the_last_size(pipe):
    latents = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(1))
    with record_attention(pipe, pipe.appearance_encoder.layer_names[:1]) as recorder:
        call(pipe, latents=latents, guidance_scale=1.0)
        name = recorder.layer_names[0]
        two_steps = recorder.maps(name)
        call(pipe, height=64, width=96, guidance_scale=1.0)
        assert recorder.maps(name).shape[2] * 3 == recorder.maps(name).shape[3] * 2
    with record_attention(pipe, [name]) as recorder:
        call(pipe, latents=latents, guidance_scale=1.0, num_inference_steps=2, callback_on_step_end=stop_after_one)
    assert not torch.allclose(recorder.maps(name), two_steps)


def test_calls_of_other_lengths_are_runs_of_their_own(pipe):
    with record_attention(pipe) as recorder:
        for steps in (1, 3):
            call(pipe, guidance_scale=1.0, num_inference_steps=steps)
        invert(pipe, PIL.Image.new("RGB", (88, 128), "red"), tiny_pose(), num_inference_steps=4)
        call(pipe, guidance_scale=1.0, num_inference_steps=4)
    assert recorder._counts == [1, 3, 4, 4]


def test_a_callback_that_changes_the_guidance_splits_no_run(pipe):
    def change(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return {}

    with record_attention(pipe) as recorder:
        call(pipe, guidance_scale=2.0, num_inference_steps=3, callback_on_step_end=change)
    assert recorder._counts == [3]


def test_a_run_that_begins_without_the_appearance_is_one_of_its_own(pipe):
    """Its first steps have no full branch, and nothing of them is recorded."""

    def begin(pipe, step, timestep, tensors):
        pipe._appearance_guidance_scale = 2.0
        return {}

    options = {"pose_guidance_scale": 2.0, "appearance_guidance_scale": 0.0, "callback_on_step_end": begin}
    with record_attention(pipe) as recorder:
        call(pipe, guidance_scale=2.0, num_inference_steps=3)
        alone = recorder.mean_maps()
        call(pipe, num_inference_steps=3, **options)
    assert len(recorder.mean_maps()) == 2
    assert torch.equal(recorder.mean_maps()[:1], alone)


def test_an_inversion_is_one_run(pipe):
    picture = PIL.Image.new("RGB", (88, 128), "red")
    with record_attention(pipe) as recorder:
        invert(pipe, picture, tiny_pose(), num_inference_steps=3)
        assert len(recorder.mean_maps()) == 1
        invert(pipe, picture, tiny_pose(), num_inference_steps=3)
    assert len(recorder.mean_maps()) == 2


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "unet.compile"])
def test_compiled_models_are_watched_and_shared(in_place):
    torch._dynamo.reset()
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with record_attention(pipe) as recorder:
        call(pipe)
    expected = recorder.mean_maps()
    prompt_maps = prompt_attention_maps(pipe, tiny_image())
    if in_place:
        pipe.unet.compile(backend="eager")
        pipe.prompt_decoder.compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        pipe.prompt_decoder = torch.compile(pipe.prompt_decoder, backend="eager")
    shared = CFLDPipeline.from_pipe(pipe)
    assert shared.unet is pipe.unet
    with record_attention(pipe) as recorder:
        call(pipe)
    torch.testing.assert_close(recorder.mean_maps(), expected)
    torch.testing.assert_close(prompt_attention_maps(pipe, tiny_image()), prompt_maps)
    torch._dynamo.reset()


def stop_after_one(pipe, step, timestep, tensors):
    pipe._interrupt = True
    return {}


def test_pictures_of_several_calls_and_micro_batches_stand_side_by_side(pipe):
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in (0, 1)]  # noqa: E731
    for steps in (1, 3):
        options = {"pose": tiny_pose(0, 2), "num_inference_steps": steps}
        with record_attention(pipe) as together:
            call(pipe, **options, generator=generators())
        with record_attention(pipe) as apart:
            call(pipe, **options, generator=generators(), micro_batch_size=1)
        torch.testing.assert_close(apart.mean_maps(), together.mean_maps(), rtol=1e-3, atol=1e-5)
        with record_attention(pipe) as both:
            call(pipe, **options, generator=generators())
            call(pipe, num_inference_steps=steps)
        assert len(both.mean_maps()) == 3
        torch.testing.assert_close(both.mean_maps()[:2], together.mean_maps())


def test_an_ip_adapters_tokens_are_left_out(pipe):
    name = pipe.appearance_encoder.layer_names[0]
    attn = pipe.unet.get_submodule(name)
    hidden_states, prompt = torch.randn(1, 4, attn.query_dim), torch.randn(1, 3, attn.cross_attention_dim)
    plain = _attention_probabilities(attn, (hidden_states,), {"encoder_hidden_states": prompt})
    adapted = (prompt, [torch.randn(1, 1, 4, attn.cross_attention_dim)])
    assert torch.equal(_attention_probabilities(attn, (hidden_states,), {"encoder_hidden_states": adapted}), plain)


def test_what_cannot_be_recorded_is_named(pipe):
    with pytest.raises(TypeError, match="must be the source image, not an `Appearance`"):
        prompt_attention_maps(pipe, pipe.encode_appearance(tiny_image()))
    with (
        pytest.raises(ValueError, match="must be attention layers of the U-Net, got 'nothing'"),
        record_attention(pipe, ["nothing"]),
    ):
        pass
    with record_attention(pipe) as recorder:
        with pytest.raises(ValueError, match="No attention was recorded"):
            recorder.mean_maps()
        call(pipe, appearance_guidance_scale=0.0)
        with pytest.raises(ValueError, match="an appearance guidance above 0"):
            recorder.maps(recorder.layer_names[0])


# The guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_last_guided_prediction_is_the_result(scheduler, prediction_type):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(
        pipe.scheduler.config, prediction_type=prediction_type, timestep_spacing="trailing", set_alpha_to_one=True
    )
    options = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 3}
    shown = guidance_pictures(pipe, **options, steps=[0, 2], generator=torch.manual_seed(0))
    assert [pictures.step for pictures in shown] == [0, 2]
    assert shown[0].timestep > shown[1].timestep
    if scheduler is not HeunDiscreteScheduler:  # whose last step is not the first evaluation of its last
        expected = pipe(**options, generator=torch.manual_seed(0)).images[0]
        difference = np.asarray(shown[1].guided, dtype=int) - np.asarray(expected, dtype=int)
        assert np.abs(difference).max() <= 2
    arrays = [np.asarray(picture) for picture in (shown[1].null, shown[1].pose, shown[1].full, shown[1].guided)]
    for number, one in enumerate(arrays):
        assert all((one != other).any() for other in arrays[:number])


def test_guidance_pictures_have_the_asked_size_and_default_steps(pipe):
    options = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 5}
    before = vars(pipe).copy()
    shown = guidance_pictures(pipe, **options, output_size=(32, 22), pose_guidance_scale=3.0)
    assert [pictures.step for pictures in shown] == [0, 2, 4]
    assert shown[0].pose.size == (22, 32)
    assert vars(pipe) == before


@pytest.mark.parametrize(
    ("pose_scale", "appearance_scale", "same"), [(1.0, 1.0, "full"), (1.0, 0.0, "pose"), (0.0, 0.0, "null")]
)
def test_branches_that_the_scales_leave_out_are_shown_too(pipe, pose_scale, appearance_scale, same):
    options = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 1, "generator": torch.manual_seed(0)}
    scales = {"pose_guidance_scale": pose_scale, "appearance_guidance_scale": appearance_scale}
    (shown,) = guidance_pictures(pipe, **options, **scales)
    guided = np.asarray(shown.guided, dtype=int)
    differences = {name: np.abs(guided - np.asarray(getattr(shown, name))).max() for name in ("null", "pose", "full")}
    assert {name for name, difference in differences.items() if difference <= 1} == {same}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [2]}, r"`steps` must be numbers from 0 to 1, got \[2\]"),
        ({"pose": tiny_pose(0, 2)}, "one source and one pose, got 2 pairs"),
    ],
)
def test_what_cannot_be_shown_is_named(pipe, options, message):
    arguments = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 2}
    with pytest.raises(ValueError, match=message):
        guidance_pictures(pipe, **{**arguments, **options})


def test_schedulers_without_the_noise_schedule_are_named():
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.EDMEulerScheduler(prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"must have `alphas_cumprod`, .*use another one, such as `DDIMScheduler`"):
        guidance_pictures(pipe, image=tiny_image(), pose=tiny_pose(), num_inference_steps=4)


# Drawing -------------------------------------------------------------------------------------------------------------


def test_a_heat_map_shows_its_most_and_least():
    photo = PIL.Image.new("RGB", (60, 80), (120, 120, 120))
    heat = torch.zeros(4, 3)
    heat[0, 2] = 5.0
    drawn = np.asarray(draw_heat_map(photo, heat, strength=1.0), dtype=int)
    assert drawn.shape == (80, 60, 3)
    most, least = drawn[4, 56], drawn[70, 4]
    assert most[0] > 200 > most[2]  # yellow
    assert least[2] > least[0]  # violet
    assert np.array_equal(draw_heat_map(photo, heat.numpy(), strength=0.0), np.asarray(photo))
    assert len(np.unique(np.asarray(draw_heat_map(photo, torch.ones(2, 2))).reshape(-1, 3), axis=0)) == 1
    with pytest.raises(ValueError, match=r"must have shape \(h, w\) and finite values, got shape \(1, 2, 2\)"):
        draw_heat_map(photo, torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="finite"):
        draw_heat_map(photo, torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"`strength` must be in \[0, 1\], got 2"):
        draw_heat_map(photo, heat, strength=2)


def test_a_contact_sheet_holds_every_image():
    colors = [["red", "green"], ["blue"]]
    rows = [[PIL.Image.new("RGB", (30, 40), color) for color in row] for row in colors]
    sheet = np.asarray(contact_sheet(rows, [["a", "b"], ["c"]]))
    for color in ((255, 0, 0), (0, 128, 0), (0, 0, 255)):
        assert (sheet == color).all(axis=2).sum() == 30 * 40
    assert contact_sheet(rows).height < sheet.shape[0]
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ValueError, match="is shorter than"):
        contact_sheet(rows, [["a"], ["c"]])
