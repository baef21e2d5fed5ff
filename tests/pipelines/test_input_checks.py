"""What does not fit is told in one sentence before anything is computed, in every way of calling."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, HeunDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from testing_utils import UNET_CONFIG, fill, tiny_components, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import (
    Appearance,
    CFLDInpaintPipeline,
    CFLDPipeline,
    Keypoints,
    PoseAdapter,
    SwinImageEncoder,
    render_pose_map,
)
from diffusers_cfld.inversion import invert, reconstruct
from diffusers_cfld.pipelines.input_checks import check_ip_adapter_inputs


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def call(pipe, **changes):
    options = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 1, "output_type": "latent"}
    return pipe(**{**options, **changes}).images


def keypoints():
    points = np.random.default_rng(0).uniform((20, 20), (150, 230), (18, 2))
    return Keypoints.from_array(points, size=(256, 176))


@pytest.fixture(scope="module")
def reference():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 176, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_tuple_of_generators_is_a_list_of_them(pipe):
    def draw(container):
        return container(torch.Generator().manual_seed(seed) for seed in (0, 1))

    poses = torch.cat([tiny_pose(0), tiny_pose(1)])
    expected = call(pipe, pose=poses, generator=draw(list))
    assert torch.equal(call(pipe, pose=poses, generator=draw(tuple)), expected)
    for wrong in (0, [0, 1], "0"):
        with pytest.raises(TypeError, match=r"`generator` must be a `torch\.Generator` or a list of them"):
            call(pipe, generator=wrong)


def test_an_appearance_of_another_model_or_of_nobody(pipe):
    appearance = pipe.encode_appearance(tiny_image())
    with pytest.raises(ValueError, match="There must be at least one image and one pose, got 0 and 1"):
        call(pipe, image=None, appearance=appearance[0:0])
    prompts = (appearance.prompt_embeds[..., :-1], appearance.null_prompt_embeds[..., :-1])
    with pytest.raises(ValueError, match=r"appearance is of another model: its prompts are \d+ wide"):
        call(pipe, image=None, appearance=Appearance(*prompts, appearance.query_biases))


def test_embeddings_without_adapter_or_of_wrong_shape(pipe):
    with pytest.raises(TypeError, match="must be a list with one tensor per IP-Adapter"):
        call(pipe, ip_adapter_image_embeds=[[1.0]])
    for wrong in ([], [torch.zeros(2, 8)]):
        with pytest.raises(ValueError, match="must hold 3-D or 4-D tensors"):
            check_ip_adapter_inputs(SimpleNamespace(encoder_hid_proj=0), None, None, wrong)
    with pytest.raises(ValueError, match="`ip_adapter_image` needs an IP-Adapter with its image encoder"):
        call(pipe, ip_adapter_image=tiny_image())


@pytest.mark.parametrize(
    ("absent", "changes", "message"),
    [
        ("unet", {}, "The pipeline has no unet; load one"),
        ("source_encoder", {}, "The pipeline has no source_encoder; load one"),
        (None, {"height": 0}, "`height` and `width` must be positive multiples of 8, got 0 and"),
        (None, {"height": 512.0}, "`height` must be a whole number, got 512.0"),
        (None, {"num_inference_steps": 0}, "`num_inference_steps` must be at least 1, got 0"),
    ],
)
def test_other_calls_check_before_they_compute(reference, absent, changes, message, monkeypatch):
    components = {**tiny_components(), **({absent: None} if absent else {})}
    plain, edit = CFLDPipeline(**components), CFLDInpaintPipeline(**components)
    monkeypatch.setattr(CFLDPipeline, "_encode_reference", None)
    pose = keypoints()
    mask = Image.new("L", reference.size, 255)
    calls = (
        lambda: plain(image=reference, pose=pose, **changes),
        lambda: invert(plain, reference, pose, **changes),
        lambda: edit(image=reference, mask_image=mask, source_image=reference, pose=pose, **changes),
    )
    for some_call in calls:
        with pytest.raises((ValueError, TypeError), match=message):
            some_call()


def test_a_picture_needs_the_autoencoder(pipe, reference):
    without = CFLDPipeline(**{**pipe.components, "vae": None})
    with pytest.raises(ValueError, match="has no vae, which the person's picture has to pass"):
        invert(without, reference, keypoints(), num_inference_steps=1)


def test_the_tiny_autoencoder_inverts_and_is_shared(pipe, reference):
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    counts = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    vae = fill(AutoencoderTiny(**blocks, **counts, latent_channels=4))
    other = CFLDPipeline(**{**pipe.components, "vae": vae})
    other.set_progress_bar_config(disable=True)
    shared = CFLDInpaintPipeline.from_pipe(other)
    shared.set_progress_bar_config(disable=True)
    assert shared.vae is vae
    assert invert(other, reference, keypoints(), num_inference_steps=1).shape == (1, 4, 16, 16)
    mask = Image.new("L", reference.size, 255)
    edited = shared(
        image=reference, mask_image=mask, source_image=reference, pose=keypoints(), num_inference_steps=1
    ).images[0]
    assert edited.size == reference.size


def test_micro_batches_of_the_inpaint_pipeline(pipe):
    edit = CFLDInpaintPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    poses = torch.cat([tiny_pose(seed) for seed in range(3)])
    options = {"image": tiny_image(), "num_inference_steps": 1, "output_type": "pt"}
    whole = reconstruct(edit, latents, poses, **options).images
    parts = reconstruct(edit, latents, poses, **options, micro_batch_size=np.int64(2)).images
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_pose_maps_of_a_unet_with_an_odd_side():
    components = tiny_components()
    components["unet"] = fill(UNet2DConditionModel(**{**UNET_CONFIG, "sample_size": (16, 11)}))
    pipe = CFLDPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.target_size == (128, 88)
    made = pipe(image=tiny_image(), pose=keypoints(), num_inference_steps=1, output_type="pt").images
    assert made.shape == (1, 3, 128, 88)


def test_a_missing_variant_in_shards_is_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    with pytest.raises(OSError, match=r"has its weights in a variant only: pass `variant='fp16'`\.$"):
        CFLDPipeline.from_pretrained(tmp_path)


def test_an_appearance_as_image_in_micro_batches(pipe):
    appearance = pipe.encode_appearance(tiny_image(0, 3))
    latents = torch.randn(3, 4, 16, 16, generator=torch.manual_seed(0))
    one, many = (call(pipe, image=appearance, latents=latents, micro_batch_size=size) for size in (2, None))
    assert one.shape == many.shape
    assert torch.allclose(one, many, atol=1e-4)


@pytest.mark.parametrize("frame", [(256, None), (None, 176), (0, 176), ("256", 176), (256.0, 176)])
def test_a_frame_is_two_numbers_or_none(pipe, frame):
    with pytest.raises(ValueError, match="must be two whole numbers of at least 1, or both None"):
        CFLDPipeline(**pipe.components, frame_height=frame[0], frame_width=frame[1])
    with pytest.raises(ValueError, match="go together, got `frame_height` alone"):
        CFLDPipeline.from_pretrained("nowhere", frame_height=512)
    with pytest.raises(ValueError, match="go together, got `frame_width` alone"):
        CFLDPipeline.from_pipe(pipe, frame_width=512)


def test_a_frame_of_numpy_can_be_saved(pipe, tmp_path):
    made = CFLDPipeline(**pipe.components, frame_height=np.int64(256), frame_width=np.int64(176))
    made.save_config(tmp_path)
    assert made.image_shape == (256, 176)


def test_an_appearance_with_biases_for_other_layers_is_named(pipe):
    appearance = pipe.encode_appearance(tiny_image())
    assert pipe.appearance_encoder.layer_widths == {
        name: bias.shape[1] for name, bias in appearance.query_biases.items()
    }
    fewer = dict(list(appearance.query_biases.items())[:-1])
    wider = {name: torch.cat([bias, bias], 1) for name, bias in appearance.query_biases.items()}
    for biases in ({}, fewer, wider):
        other = Appearance(appearance.prompt_embeds, appearance.null_prompt_embeds, biases)
        with pytest.raises(ValueError, match=r"appearance is of another model: its query biases .* Encode it with"):
            call(pipe, image=None, appearance=other)


@pytest.mark.parametrize("name", ["guidance_rescale", "eta"])
@pytest.mark.parametrize(
    ("value", "error"), [(None, TypeError), ("1", TypeError), (1.5, ValueError), (-1, ValueError)]
)
def test_fractions_are_checked(pipe, name, value, error):
    with pytest.raises(error, match=f"`{name}` must be "):
        call(pipe, **{name: value})


def test_components_that_cannot_work_together_are_named():
    parts = tiny_components()
    adapter = PoseAdapter.from_config(parts["pose_adapter"].config, pose_channels=3)
    with pytest.raises(ValueError, match=r"pose_adapter's pose_channels must .* 21, got 3"):
        CFLDPipeline(**{**parts, "pose_adapter": adapter})
    size = 2 * parts["source_encoder"].config.image_size
    encoder = SwinImageEncoder.from_config(parts["source_encoder"].config, image_size=size)
    with pytest.raises(ValueError, match=r"feature_size must be that of the source_encoder's coarsest map"):
        CFLDPipeline(**{**parts, "source_encoder": encoder})


def test_what_a_pose_needs_is_named(pipe):
    parts = {**pipe.components, "pose_adapter": None}
    with pytest.raises(ValueError, match="has no pose_adapter; load one"):
        CFLDPipeline(**parts).encode_pose(keypoints())


def test_a_null_prompt_of_another_batch_is_named(pipe):
    def change(pipe, step, timestep, tensors):
        return {"null_prompt_embeds": torch.zeros(3, *tensors["null_prompt_embeds"].shape[1:])}

    options = {"num_inference_steps": 2, "callback_on_step_end": change, "guidance_scale": 2.0}
    with pytest.raises(ValueError, match="`null_prompt_embeds` its shape"):
        call(pipe, **options, callback_on_step_end_tensor_inputs=["null_prompt_embeds"])
    assert call(pipe, callback_on_step_end_tensor_inputs=None).shape[0] == 1


def test_a_map_for_a_reference_that_is_padded_is_refused(pipe):
    inpaint = CFLDInpaintPipeline.from_pipe(pipe)
    reference, mask = Image.new("RGB", (256, 400), "red"), Image.new("L", (256, 400), "white")
    pose = Keypoints.from_array(keypoints().xy, size=(400, 256))
    options = {"image": reference, "mask_image": mask, "source_image": tiny_image(), "num_inference_steps": 1}
    with pytest.raises(ValueError, match="got a pose map, which is not padded"):
        inpaint(pose=torch.from_numpy(render_pose_map(pose, (64, 64))), **options)
    assert len(inpaint(pose=pose, **options).images) == 1


def test_own_timesteps_of_a_scheduler_of_second_order(pipe, reference):
    inpaint = CFLDInpaintPipeline.from_pipe(pipe)
    inpaint.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    mask = Image.new("L", reference.size, "white")
    options = {"image": reference, "mask_image": mask, "source_image": tiny_image(), "pose": keypoints()}
    for strength in (0.5, 1.0):
        assert len(inpaint(**options, timesteps=[900, 700, 500, 300, 100], strength=strength).images) == 1


def test_models_are_recorded_by_their_short_name_without_our_pipelines():
    code = (
        "import sys; from diffusers_cfld import PoseAdapter;"
        "from diffusers.pipelines import pipeline_loading_utils as u;"
        "assert 'diffusers_cfld.pipelines.pipeline_cfld' not in sys.modules;"
        "assert 'diffusers_cfld' in u.LOADABLE_CLASSES"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
