"""The pipeline as a user of diffusers meets it: arguments, batches, saving, callbacks, errors."""

import inspect
import json

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from testing_utils import (
    APPEARANCE_ENCODER_CONFIG,
    fill,
    tiny_components,
    tiny_image,
    tiny_pipeline,
    tiny_pose,
)
from transformers import CLIPTextConfig, CLIPTextModel

from diffusers_cfld import (
    Appearance,
    AppearanceEncoder,
    CFLDPipeline,
    CFLDPipelineOutput,
    Keypoints,
    PerceptionRefinedDecoder,
    PoseAdapter,
    PoseFeatures,
    render_pose_map,
)

KEYPOINTS = Keypoints.from_array(
    [[88, 30], [88, 60], [66, 60], [60, 95], [58, 125], [110, 60], [116, 95], [118, 125], [74, 125], [72, 175]]
    + [[70, 225], [102, 125], [104, 175], [106, 225], [84, 26], [92, 26], [-1, -1], [98, 30]],
    size=(256, 176),
)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def run(pipe, **options):
    arguments = {
        "image": tiny_image(),
        "pose": tiny_pose(),
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    arguments.update(options)
    return pipe(**{name: value for name, value in arguments.items() if value is not None}).images


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_same(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.fixture(scope="module")
def whole_batches(pipe):
    """Calls for a batch, by what they say, and their results."""
    images, poses = tiny_image(0, 3), tiny_pose(0, 3)
    latents = torch.randn(3, 4, 16, 16, generator=torch.manual_seed(0))
    calls = [
        (3, {"pose": poses}),
        (3, {"pose": list(poses)}),
        (6, {"image": images, "pose": pipe.encode_pose(poses), "num_images_per_prompt": 2}),
        (3, {"image": None, "appearance": pipe.encode_appearance(images), "latents": latents}),
    ]
    return [(count, call, run(pipe, **call, generator=generators(*range(count)))) for count, call in calls]


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    """Its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


class TestArguments:
    def test_call_spells_its_arguments_as_diffusers_does(self):
        ours = inspect.signature(CFLDPipeline.__call__).parameters
        theirs = inspect.signature(StableDiffusionPipeline.__call__).parameters
        text_only = {"prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "clip_skip", "kwargs"}
        shared = [name for name in theirs if name not in text_only]
        assert [name for name in ours if name in shared] == shared
        for name in ("num_inference_steps", "num_images_per_prompt", "eta", "output_type", "return_dict"):
            assert ours[name].default == theirs[name].default
        assert ours["guidance_scale"].default == 2.0

    def test_each_condition_changes_the_result(self, pipe):
        base = run(pipe)
        for changed in (
            {"image": tiny_image(1)},
            {"pose": tiny_pose(1)},
            {"guidance_scale": 1.0},
            {"pose_guidance_scale": 3.0},
            {"appearance_guidance_scale": 3.0},
            {"generator": torch.Generator().manual_seed(1)},
            {"guidance_rescale": 0.7},
        ):
            assert not torch.allclose(base, run(pipe, **changed), atol=1e-2), changed

    def test_guidance_scale_sets_both_weights(self, pipe):
        base = run(pipe, guidance_scale=3.0)
        assert torch.equal(base, run(pipe, pose_guidance_scale=3.0, appearance_guidance_scale=3.0))
        assert torch.equal(base, run(pipe, guidance_scale=3.0, pose_guidance_scale=3.0))
        assert not torch.equal(base, run(pipe, guidance_scale=3.0, pose_guidance_scale=1.0))

    @pytest.mark.parametrize(
        ("scales", "evaluated"),
        [((2.0, 2.0), 2), ((1.0, 2.0), 2), ((1.0, 1.0), 1), ((1.5, 3.0), 3), ((2.0, 0.0), 2), ((1.0, 0.0), 1)],
    )
    def test_the_unet_sees_as_few_branches_as_the_scales_need(self, pipe, scales, evaluated):
        batches = []
        hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
        try:
            run(pipe, pose_guidance_scale=scales[0], appearance_guidance_scale=scales[1])
        finally:
            hook.remove()
        assert batches == [evaluated] * 2

    def test_outside_its_interval_guidance_takes_one_evaluation_and_does_nothing(self, pipe):
        def turn_off(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.0
            return {}

        batches = []
        hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
        try:
            guided = run(pipe, guidance_scale=3.0, guidance_interval=(0.0, 0.5), guidance_rescale=0.7)
        finally:
            hook.remove()
        assert batches == [2, 1]
        callback = {"callback_on_step_end": turn_off}
        assert torch.equal(guided, run(pipe, guidance_scale=3.0, guidance_rescale=0.7, **callback))
        assert torch.equal(run(pipe), run(pipe, guidance_interval=(0, 1)))

    def test_source_and_pose_are_encoded_once_a_call(self, pipe):
        calls = []
        models = (pipe.source_encoder, pipe.prompt_decoder, pipe.appearance_encoder, pipe.pose_adapter)
        hooks = [model.register_forward_hook(lambda model, *_: calls.append(type(model).__name__)) for model in models]
        try:
            run(pipe, num_inference_steps=4, pose_guidance_scale=3.0)
        finally:
            for hook in hooks:
                hook.remove()
        assert sorted(calls) == sorted(type(model).__name__ for model in models)

    def test_zero_appearance_scale_ignores_the_source(self, pipe):
        assert torch.equal(
            run(pipe, appearance_guidance_scale=0.0), run(pipe, appearance_guidance_scale=0.0, image=tiny_image(1))
        )

    def test_same_generator_same_result_and_default_sizes(self, pipe):
        first = run(pipe, output_type="pt")
        assert torch.equal(first, run(pipe, output_type="pt"))
        assert first.shape == (1, 3, 128, 88)
        assert run(pipe).shape == (1, 4, 16, 16)

    def test_latents_replace_the_drawn_noise(self, pipe):
        noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
        pipe = CFLDPipeline(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})
        pipe.set_progress_bar_config(disable=True)
        before = noise.clone()
        assert torch.equal(run(pipe, latents=noise, generator=None), run(pipe))
        assert torch.equal(noise, before)

    def test_custom_timesteps_and_sigmas(self, pipe):
        custom = run(pipe, timesteps=[981, 481], num_inference_steps=50)
        assert pipe.num_timesteps == 2
        assert custom.isfinite().all()
        euler = CFLDPipeline(
            **{**pipe.components, "scheduler": EulerDiscreteScheduler.from_config(pipe.scheduler.config)}
        )
        euler.set_progress_bar_config(disable=True)
        assert run(euler, sigmas=[10.0, 2.0, 0.5, 0.0], num_inference_steps=50).isfinite().all()
        assert euler.num_timesteps == 3

    def test_eta_reaches_ddim(self, pipe):
        ddim = CFLDPipeline(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})
        ddim.set_progress_bar_config(disable=True)
        assert not torch.equal(run(ddim, eta=1.0), run(ddim, eta=0.0))
        assert torch.equal(run(pipe, eta=1.0), run(pipe, eta=0.0))

    def test_output_types_show_one_picture(self, pipe):
        tensor = run(pipe, output_type="pt")
        array = run(pipe, output_type="np")
        (image,) = run(pipe, output_type="pil")
        assert tensor.min() >= 0
        assert tensor.max() <= 1
        np.testing.assert_allclose(array[0], tensor[0].permute(1, 2, 0).numpy(), atol=1e-6)
        assert isinstance(image, PIL.Image.Image)
        np.testing.assert_allclose(np.asarray(image), array[0] * 255, atol=0.51)

    def test_tuple_and_output_class(self, pipe):
        arguments = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 1, "output_type": "latent"}
        output = pipe(**arguments, generator=torch.manual_seed(0))
        (images,) = pipe(**arguments, generator=torch.manual_seed(0), return_dict=False)
        assert isinstance(output, CFLDPipelineOutput)
        assert torch.equal(output.images, images)

    @pytest.mark.parametrize("vae_class", [AutoencoderTiny, AsymmetricAutoencoderKL])
    def test_other_autoencoders_decode(self, pipe, vae_class):
        blocks = {
            AutoencoderTiny: {
                "encoder_block_out_channels": (8, 8, 8, 8),
                "decoder_block_out_channels": (8, 8, 8, 8),
                "num_encoder_blocks": (1, 1, 1, 1),
                "num_decoder_blocks": (1, 1, 1, 1),
                "latent_channels": 4,
            },
            AsymmetricAutoencoderKL: {
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "down_block_out_channels": (8, 8, 8, 8),
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "up_block_out_channels": (8, 8, 8, 8),
                "norm_num_groups": 4,
            },
        }
        vae = fill(vae_class(**blocks[vae_class]))
        other = CFLDPipeline(**{**pipe.components, "vae": vae})
        other.set_progress_bar_config(disable=True)
        assert run(other, output_type="pt").shape == (1, 3, 128, 88)

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ({}, (128, 88)),  # made at 128x128, of people at 256x176
            ({"height": 128, "width": 128}, (128, 128)),
            ({"height": 64}, (64, 128)),  # as in diffusers, the other side is the U-Net's own
            ({"width": 64}, (128, 64)),
            ({"output_size": (128, 128)}, (128, 128)),
            ({"height": 64, "output_size": (40, 30)}, (40, 30)),
        ],
    )
    def test_people_keep_their_proportions_unless_a_size_is_given(self, pipe, sizes, expected):
        assert run(pipe, output_type="pt", num_inference_steps=1, **sizes).shape[2:] == expected

    def test_every_type_of_image_has_these_proportions_and_latents_are_as_the_model_makes_them(self, pipe):
        options = {"image": tiny_image(0, 2), "pose": tiny_pose(0, 2), "num_inference_steps": 1}
        assert [image.size for image in run(pipe, output_type="pil", **options)] == [(88, 128)] * 2
        assert run(pipe, output_type="np", **options).shape == (2, 128, 88, 3)
        assert run(pipe, output_type="latent", **options).shape == (2, 4, 16, 16)

    def test_training_images_of_several_shapes_leave_the_models_own(self):
        pipe = CFLDPipeline(**tiny_components(), frame_height=None, frame_width=None)
        assert pipe.default_output_size == pipe.target_size

    def test_output_size_is_the_fields_final_resize(self, pipe):
        full = run(pipe, output_type="pt", height=128)
        small = run(pipe, output_type="pt", output_size=(64, 44))
        expected = torch.nn.functional.interpolate(full, size=(64, 44), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(small, expected)
        assert run(pipe, output_type="pil", output_size=(64, 44))[0].size == (44, 64)

    @pytest.mark.parametrize(("height", "width"), [(128, 88), (192, 128), (120, 200), (64, 64)])
    def test_other_sizes_resize_biases_and_residuals(self, pipe, height, width):
        images = run(pipe, height=height, width=width, output_type="pt")
        assert images.shape == (1, 3, height, width)
        assert not torch.allclose(images, run(pipe, height=height, width=width, output_type="pt", image=tiny_image(1)))
        assert not torch.allclose(images, run(pipe, height=height, width=width, output_type="pt", pose=tiny_pose(1)))

    def test_pose_maps_of_other_sizes(self, pipe):
        assert run(pipe, pose=tiny_pose(size=96)).shape == (1, 4, 16, 16)

    def test_keypoints_and_their_map_agree(self, pipe):
        pose_map = torch.from_numpy(render_pose_map(KEYPOINTS, (64, 64)))
        expected = run(pipe, pose=pose_map)
        assert torch.equal(run(pipe, pose=KEYPOINTS), expected)
        assert torch.equal(run(pipe, pose=KEYPOINTS.to_openpose()), expected)
        assert torch.equal(run(pipe, pose=np.where(KEYPOINTS.visible[:, None], KEYPOINTS.xy, -1)), expected)


class TestBatches:
    def test_a_batch_equals_single_calls_with_the_same_generators(self, pipe):
        batch = run(pipe, image=tiny_image(0, 3), pose=tiny_pose(0, 3), generator=generators(0, 1, 2))
        images, poses = tiny_image(0, 3), tiny_pose(0, 3)
        for i in range(3):
            single = run(pipe, image=images[i], pose=poses[i], generator=generators(i))
            assert_same(batch[i : i + 1], single)

    @pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 3.0), (1.0, 1.0)])
    def test_several_images_per_pair_stand_together(self, pipe, scales):
        options = {"pose_guidance_scale": scales[0], "appearance_guidance_scale": scales[1]}
        images, poses = tiny_image(0, 2), tiny_pose(0, 2)
        batch = run(
            pipe, image=images, pose=poses, num_images_per_prompt=2, generator=generators(*range(4)), **options
        )
        for i in range(4):
            single = run(pipe, image=images[i // 2], pose=poses[i // 2], generator=generators(i), **options)
            assert_same(batch[i : i + 1], single)

    def test_one_image_with_many_poses_and_many_images_with_one_pose(self, pipe):
        poses = tiny_pose(0, 3)
        broadcast = run(pipe, pose=poses, generator=generators(0, 1, 2))
        # One source encoded alone and three in a batch agree to rounding.
        assert_same(
            broadcast, run(pipe, image=tiny_image().expand(3, -1, -1, -1), pose=poses, generator=generators(0, 1, 2))
        )
        images = tiny_image(0, 3)
        broadcast = run(pipe, image=images, generator=generators(0, 1, 2))
        assert_same(
            broadcast,
            run(pipe, image=images, pose=tiny_pose().expand(3, -1, -1, -1), generator=generators(0, 1, 2)),
        )

    def test_lists_of_images_and_poses(self, pipe):
        images, poses = tiny_image(0, 2), tiny_pose(0, 2)
        expected = run(pipe, image=images, pose=poses, generator=generators(0, 1))
        assert torch.equal(run(pipe, image=list(images), pose=list(poses), generator=generators(0, 1)), expected)
        assert torch.equal(
            run(pipe, image=[images[:1], images[1:]], pose=[poses[:1], poses[1:]], generator=generators(0, 1)),
            expected,
        )
        pil = [
            PIL.Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in images
        ]
        assert run(pipe, image=pil, pose=[KEYPOINTS, KEYPOINTS.mirror()]).shape[0] == 2

    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_micro_batches_give_the_same_result(self, pipe, whole_batches, size):
        for count, call, expected in whole_batches:
            assert_same(run(pipe, **call, generator=generators(*range(count)), micro_batch_size=size), expected)

    def test_micro_batches_encode_a_single_source_once(self, pipe, monkeypatch):
        calls = []
        encode = pipe.encode_appearance
        monkeypatch.setattr(pipe, "encode_appearance", lambda image, size: calls.append(1) or encode(image, size))
        for output_type in ("pil", "np", "pt"):
            images = run(pipe, pose=[KEYPOINTS] * 3, micro_batch_size=1, output_type=output_type)
            assert len(images) == 3
        assert len(calls) == 3

    def test_encoded_conditions_give_the_same_result(self, pipe):
        appearance = pipe.encode_appearance(tiny_image())
        pose = pipe.encode_pose(tiny_pose())
        assert isinstance(appearance, Appearance)
        assert isinstance(pose, PoseFeatures)
        assert torch.equal(run(pipe, image=None, appearance=appearance, pose=pose), run(pipe))
        assert pipe.encode_appearance(appearance) is appearance
        assert pipe.encode_pose(pose) is pose
        encoder = CFLDPipeline(**{**pipe.components, "unet": None})
        assert encoder.encode_pose(pose) is pose

    def test_encoded_conditions_are_not_modified(self, pipe):
        appearance, pose = pipe.encode_appearance(tiny_image()), pipe.encode_pose(tiny_pose())
        tensors = [appearance.prompt_embeds, *appearance.query_biases.values(), *pose.residuals.values()]
        before = [tensor.clone() for tensor in tensors]
        run(pipe, image=None, appearance=appearance, pose=pose, num_images_per_prompt=2, pose_guidance_scale=3.0)
        assert all(torch.equal(left, right) for left, right in zip(tensors, before, strict=True))


class TestCallbacks:
    def test_declared_tensors_arrive_and_returned_ones_are_used(self, pipe):
        seen = []

        def zero_at_the_end(pipe, step, timestep, tensors):
            seen.append((step, set(tensors)))
            if step == pipe.num_timesteps - 1:
                tensors["latents"] = torch.zeros_like(tensors["latents"])
            return tensors

        names = pipe._callback_tensor_inputs
        result = run(pipe, callback_on_step_end=zero_at_the_end, callback_on_step_end_tensor_inputs=names)
        assert result.abs().max() == 0
        assert seen == [(0, set(names)), (1, set(names))]

    def test_a_scale_changed_in_a_callback_takes_effect(self, pipe):
        batches = []
        hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))

        def no_guidance(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.0
            return tensors

        try:
            changed = run(pipe, callback_on_step_end=no_guidance)
        finally:
            hook.remove()
        assert batches == [2, 1]
        assert not torch.equal(changed, run(pipe))

    def test_a_prompt_changed_in_a_callback_takes_effect(self, pipe):
        def forget(pipe, step, timestep, tensors):
            return {"prompt_embeds": torch.zeros_like(tensors["prompt_embeds"])}

        changed = run(pipe, callback_on_step_end=forget, callback_on_step_end_tensor_inputs=["prompt_embeds"])
        assert not torch.equal(changed, run(pipe))

    def test_changes_in_place_take_effect_and_stay_in_the_call(self, pipe):
        appearance = pipe.encode_appearance(tiny_image())
        prompt, weight = appearance.prompt_embeds.clone(), pipe.prompt_decoder.null_prompt_embeds.clone()
        names = ["prompt_embeds", "null_prompt_embeds"]

        def forget(pipe, step, timestep, tensors):
            for tensor in tensors.values():
                tensor.zero_()
            return tensors

        base = run(pipe, image=None, appearance=appearance)
        options = {"callback_on_step_end": forget, "callback_on_step_end_tensor_inputs": names}
        assert not torch.equal(run(pipe, image=None, appearance=appearance, **options), base)
        assert torch.equal(appearance.prompt_embeds, prompt)
        assert torch.equal(pipe.prompt_decoder.null_prompt_embeds, weight)
        assert not torch.equal(run(pipe, **options), base)
        assert torch.equal(run(pipe), base)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_diffusers_cutoff_callback_turns_guidance_off_for_one_image(self, pipe, wrapped):
        def cut_off(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.0 if step >= 1 else pipe._guidance_scale
            return tensors

        callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
        callback = MultiPipelineCallbacks([callback]) if wrapped else callback
        options = {"num_inference_steps": 4}
        expected = run(pipe, callback_on_step_end=cut_off, **options)
        assert not torch.equal(expected, run(pipe, **options))
        assert torch.equal(run(pipe, callback_on_step_end=callback, **options), expected)
        with pytest.raises(
            ValueError, match="must keep the 2 samples of `prompt_embeds`, got 1: `SDCFGCutoffCallback`"
        ):
            run(pipe, image=tiny_image(0, 2), callback_on_step_end=callback, **options)

    def test_numbers_of_numpy_are_numbers(self, pipe):
        options = {"height": np.int64(64), "width": np.int32(96), "num_inference_steps": np.int64(2)}
        made = run(pipe, **options, guidance_scale=np.float32(1.5), num_images_per_prompt=np.int64(1))
        expected = run(pipe, height=64, width=96, num_inference_steps=2, guidance_scale=1.5)
        assert_same(made, expected)

    def test_interrupt_stops_early(self, pipe):
        steps = []

        def stop(pipe, step, timestep, tensors):
            steps.append(step)
            pipe._interrupt = step == 1
            return tensors

        run(pipe, num_inference_steps=5, callback_on_step_end=stop)
        assert steps == [0, 1]
        assert torch.equal(run(pipe), run(pipe))

    def test_progress_bar_counts_the_steps(self, capsys):
        pipe = tiny_pipeline()
        pipe.set_progress_bar_config(disable=False)
        run(pipe, num_inference_steps=3)
        assert "3/3" in capsys.readouterr().err


class TestSaving:
    def test_save_and_load_gives_the_same_pixels(self, pipe, saved):
        loaded = CFLDPipeline.from_pretrained(saved)
        assert np.array_equal(run(loaded, output_type="np"), run(pipe, output_type="np"))

    def test_the_on_disk_format_is_the_frozen_one(self, saved):
        index = json.loads((saved / "model_index.json").read_text())
        assert index.pop("_diffusers_version") == diffusers.__version__
        assert index == {
            "_class_name": "CFLDPipeline",
            "appearance_encoder": ["diffusers_cfld", "AppearanceEncoder"],
            "feature_extractor": [None, None],
            "frame_height": 256,
            "frame_width": 176,
            "image_encoder": [None, None],
            "pose_adapter": ["diffusers_cfld", "PoseAdapter"],
            "prompt_decoder": ["diffusers_cfld", "PerceptionRefinedDecoder"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "source_encoder": ["diffusers_cfld", "SwinImageEncoder"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }

    @pytest.mark.parametrize("frame", [(128, 64), (None, None)])
    def test_the_photos_shape_is_saved(self, tmp_path, frame):
        pipe = CFLDPipeline(**tiny_components(), frame_height=frame[0], frame_width=frame[1])
        pipe.save_pretrained(tmp_path)
        for loader in (CFLDPipeline, DiffusionPipeline):
            loaded = loader.from_pretrained(tmp_path)
            assert (loaded.config.frame_height, loaded.config.frame_width) == frame
            expected = None if frame[0] is None else frame
            assert loaded.source_image_processor.config.image_shape == expected
            assert loaded.pose_processor.config.image_shape == expected
        assert CFLDPipeline.from_pipe(loaded).pose_processor.config.image_shape == expected

    def test_diffusion_pipeline_finds_the_class(self, saved):
        loaded = DiffusionPipeline.from_pretrained(saved)
        assert type(loaded) is CFLDPipeline

    def test_variant_shards_and_dtype(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
        assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
        loaded = CFLDPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.bfloat16)
        assert {model.dtype for model in loaded.components.values() if isinstance(model, torch.nn.Module)} == {
            torch.bfloat16
        }
        with pytest.raises((ValueError, OSError), match="variant"):
            CFLDPipeline.from_pretrained(tmp_path, variant="fp8")

    def test_dtype_dict(self, saved):
        loaded = CFLDPipeline.from_pretrained(
            saved, dtype={"unet": torch.bfloat16, "pose_adapter": torch.float16, "default": torch.float32}
        )
        assert loaded.unet.dtype == torch.bfloat16
        assert loaded.pose_adapter.dtype == torch.float16
        assert loaded.prompt_decoder.dtype == torch.float32
        loaded.set_progress_bar_config(disable=True)
        assert run(loaded, output_type="pt").isfinite().all()

    def test_bfloat16_runs_close_to_float32(self):
        exact, rough = tiny_pipeline(), tiny_pipeline().to(torch.bfloat16)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        expected = run(exact, latents=noise, num_inference_steps=1)
        actual = run(rough, latents=noise, num_inference_steps=1)
        assert actual.dtype == torch.bfloat16
        assert (actual.float() - expected).norm() < 0.1 * expected.norm()

    @pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"low_cpu_mem_usage": False}], ids=str)
    def test_loading_options(self, pipe, saved, options):
        loaded = CFLDPipeline.from_pretrained(saved, **options)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(run(loaded), run(pipe))

    def test_a_component_can_be_replaced_while_loading(self, pipe, saved):
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        assert CFLDPipeline.from_pretrained(saved, scheduler=scheduler).scheduler is scheduler

    def test_from_pipe_shares_components_both_ways(self, pipe):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=10, hidden_size=48, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
            )
        )
        stable = StableDiffusionPipeline(
            vae=pipe.vae,
            text_encoder=text_encoder,
            tokenizer=None,
            unet=pipe.unet,
            scheduler=pipe.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        ours = ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
        back = CFLDPipeline.from_pipe(stable, **{name: pipe.components[name] for name in ours})
        assert back.unet is pipe.unet
        back.set_progress_bar_config(disable=True)
        assert torch.equal(run(back), run(pipe))
        assert CFLDPipeline.from_pipe(pipe).unet is pipe.unet

    def test_to_float16_and_back_casts_every_model(self):
        pipe = tiny_pipeline().to(torch.float16)
        models = [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
        assert {model.dtype for model in models} == {torch.float16}


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"image": None}, ValueError, "exactly one of `image` and `appearance`"),
            ({"appearance": "x"}, ValueError, "exactly one of"),
            ({"image": None, "appearance": "x"}, TypeError, "must come from `encode_appearance`, got str"),
            ({"pose": None}, ValueError, "`pose` is missing"),
            ({"image": []}, ValueError, "`image` is an empty list"),
            ({"pose": []}, ValueError, "`pose` is empty"),
            ({"pose": "somebody"}, ValueError, r"A pose must be .*'somebody'"),
            ({"pose": np.full((18, 2), np.nan)}, ValueError, "All 18 joints are missing"),
            ({"pose": np.full((18, 2), np.inf)}, ValueError, "Joint 'nose' .* is far outside the image"),
            ({"pose": np.full((18, 2), -1.0)}, ValueError, "All 18 joints are missing"),
            ({"pose": np.ones((16, 2))}, ValueError, r"got numbers of shape \(16, 2\)"),
            ({"pose": torch.zeros(1, 20, 64, 64)}, ValueError, "21"),
            ({"pose": torch.zeros(1, 21, 60, 64)}, ValueError, "multiples of 16"),
            ({"height": 100}, ValueError, "multiples of 8, got 100 and 128"),
            ({"height": 128.0}, ValueError, "multiples of 8, got 128.0 and 128"),
            ({"guidance_scale": None}, ValueError, "`guidance_scale` must be a finite number >= 0, got None"),
            ({"width": -8}, ValueError, "multiples of 8"),
            ({"ip_adapter_image_embeds": [torch.zeros(1, 4)]}, ValueError, "call `load_ip_adapter`"),
            ({"output_type": "jpg"}, ValueError, "'pil', 'np', 'pt' or 'latent', got 'jpg'"),
            ({"output_size": (256, 176), "output_type": "latent"}, ValueError, "None for `output_type=.latent.`"),
            ({"output_size": (0, 176), "output_type": "pt"}, ValueError, "must be .height, width."),
            ({"guidance_scale": -1.0}, ValueError, "`guidance_scale` must be a finite number >= 0, got -1"),
            ({"appearance_guidance_scale": -2.0}, ValueError, "`appearance_guidance_scale` must be"),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, r"must be some of .* got \['noise'\]"),
            ({"generator": [torch.Generator()] * 2}, ValueError, "got 2 for 1 images"),
            ({"latents": torch.zeros(1, 4, 8, 8)}, ValueError, r"\(1, 4, 16, 16\), got \(1, 4, 8, 8\)"),
            (
                {"image": torch.zeros(2, 3, 8, 8), "pose": torch.zeros(3, 21, 64, 64)},
                ValueError,
                "2 images and 3 poses",
            ),
            ({"ip_adapter_image": torch.zeros(1, 3, 8, 8)}, ValueError, "call `load_ip_adapter`"),
            ({"output_size": 256, "output_type": "pt"}, ValueError, "in whole pixels.* got 256"),
        ],
    )
    def test_bad_input_gets_one_sentence(self, pipe, options, error, message):
        arguments = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 1, "output_type": "latent"}
        with pytest.raises(error, match=message) as caught:
            pipe(**{**arguments, **options})
        assert "\n" not in str(caught.value)

    def test_components_that_do_not_fit_are_refused(self):
        components = tiny_components()
        other = fill(PerceptionRefinedDecoder(num_queries=4, dim=64, num_attention_heads=4, num_layers=1))
        with pytest.raises(ValueError, match="prompt_decoder's dim must equal the unet's cross_attention_dim, got 64"):
            CFLDPipeline(**{**components, "prompt_decoder": other})

    @pytest.mark.parametrize(
        ("name", "other", "message"),
        [
            ("vae", lambda: AutoencoderKL(latent_channels=16, block_out_channels=(32,)), "vae's latent_channels"),
            (
                "appearance_encoder",
                lambda: AppearanceEncoder(**{**APPEARANCE_ENCODER_CONFIG, "feature_channels": (16, 32, 32)}),
                "appearance_encoder's feature_channels",
            ),
            (
                "appearance_encoder",
                lambda: AppearanceEncoder(**APPEARANCE_ENCODER_CONFIG, feature_stages=(2, 3, 9)),
                "channels of the source_encoder's stages, got",
            ),
            ("pose_adapter", lambda: PoseAdapter(block_out_channels=(64, 64, 128)), "pose_adapter's block_out"),
        ],
    )
    def test_each_mismatch_is_said_at_once(self, name, other, message):
        with pytest.raises(ValueError, match=message):
            CFLDPipeline(**{**tiny_components(), name: other()})

    def test_a_missing_component_and_a_foreign_scheduler_are_named(self):
        components = tiny_components()
        with pytest.raises(ValueError, match="has no `vae`"):
            run(CFLDPipeline(**{**components, "vae": None}), output_type="pt")
        assert run(CFLDPipeline(**{**components, "vae": None})).shape == (1, 4, 16, 16)
        with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler"):
            run(CFLDPipeline(**{**components, "scheduler": FlowMatchEulerDiscreteScheduler()}))

    def test_a_folder_that_is_no_pipeline_is_named(self, tmp_path):
        with pytest.raises(OSError, match=r"model_index\.json"):
            CFLDPipeline.from_pretrained(tmp_path)
