"""What does not fit is said in one sentence before anything is computed; what is unusual but fits works."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
import torch
from diffusers import AutoencoderTiny, HeunDiscreteScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image, ImageOps
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
from diffusers_cfld.inversion import invert
from diffusers_cfld.pipelines.checks import warn_of_photos
from diffusers_cfld.small_model import SMALL_MODEL, example_sources


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


@pytest.mark.parametrize(
    ("absent", "changes", "message"),
    [
        ("unet", {}, "The pipeline has no `unet`: load one"),
        ("source_encoder", {}, "The pipeline has no `source_encoder`: load one"),
        (None, {"height": 0}, "`height` and `width` must be positive multiples of 8, got 0 and"),
        (None, {"num_inference_steps": 0}, "`num_inference_steps` must be a whole number of at least 1, got 0"),
        (None, {"guidance_interval": (0.5, 0.25)}, r"`guidance_interval` must be \(start, stop\) with .* got \(0.5,"),
        (None, {"guidance_interval": 0.5}, r"`guidance_interval` must be \(start, stop\) with .* got 0.5"),
        (None, {"micro_batch_size": 0}, "`micro_batch_size` must be a whole number of at least 1, got 0"),
    ],
)
def test_both_calls_check_before_they_compute(reference, absent, changes, message):
    components = {**tiny_components(), **({absent: None} if absent else {})}
    with pytest.raises(ValueError, match=message):
        CFLDPipeline(**components)(image=reference, pose=keypoints(), **changes)
    mask = Image.new("L", reference.size, 255)
    with pytest.raises(ValueError, match=message):
        CFLDInpaintPipeline(**components)(
            image=reference, mask_image=mask, source_image=reference, pose=keypoints(), **changes
        )


def test_components_that_cannot_work_together_are_named():
    parts = tiny_components()
    adapter = PoseAdapter.from_config(parts["pose_adapter"].config, pose_channels=3)
    with pytest.raises(ValueError, match=r"pose_adapter's pose_channels must .* got 3 and 21"):
        CFLDPipeline(**{**parts, "pose_adapter": adapter})
    pipe = CFLDPipeline(**parts)
    pipe.pose_adapter = adapter
    with pytest.raises(ValueError, match=r"pose_adapter's pose_channels must .* got 3 and 21"):
        call(pipe)
    size = 2 * parts["source_encoder"].config.image_size
    encoder = SwinImageEncoder.from_config(parts["source_encoder"].config, image_size=size)
    with pytest.raises(ValueError, match=r"feature_size must equal the size of the source_encoder's coarsest map"):
        CFLDPipeline(**{**parts, "source_encoder": encoder})


@pytest.mark.parametrize("frame", [(256, None), (None, 176), (0, 176)])
def test_the_frame_is_two_numbers_or_none(pipe, frame):
    with pytest.raises(ValueError, match="must both be positive numbers or both be None"):
        CFLDPipeline(**pipe.components, frame_height=frame[0], frame_width=frame[1])


def test_an_appearance_with_biases_for_other_layers_is_refused(pipe):
    appearance = pipe.encode_appearance(tiny_image())
    fewer = dict(list(appearance.query_biases.items())[:-1])
    wider = {name: torch.cat([bias, bias], 1) for name, bias in appearance.query_biases.items()}
    for biases in ({}, fewer, wider):
        other = Appearance(appearance.prompt_embeds, appearance.null_prompt_embeds, biases)
        with pytest.raises(ValueError, match="`appearance` was encoded by another model"):
            call(pipe, image=None, appearance=other)


def test_a_map_for_a_reference_that_is_padded_is_refused(pipe):
    inpaint = CFLDInpaintPipeline.from_pipe(pipe)
    reference, mask = Image.new("RGB", (256, 400), "red"), Image.new("L", (256, 400), "white")
    pose = Keypoints.from_array(keypoints().xy, size=(400, 256))
    options = {"image": reference, "mask_image": mask, "source_image": tiny_image(), "num_inference_steps": 1}
    with pytest.raises(
        ValueError, match="is padded to the model's aspect ratio, which is not possible for a pose map"
    ):
        inpaint(pose=torch.from_numpy(render_pose_map(pose, (64, 64))), **options)
    assert len(inpaint(pose=pose, **options).images) == 1


def test_saving_with_a_lora_attached_is_refused(tmp_path):
    pipe = tiny_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    with pytest.raises(ValueError, match="cannot be saved while a LoRA is attached to it"):
        pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    loaded = CFLDPipeline.from_pretrained(tmp_path)
    assert loaded.unet.state_dict().keys() == pipe.unet.state_dict().keys()


def test_saving_whole_weights_over_mapped_shards_leaves_none_of_them(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="1MB")
    assert list(tmp_path.glob("*/*.index.json"))
    loaded = CFLDPipeline.from_pretrained(tmp_path)
    (tmp_path / "unet" / ".tmp1a2b").touch()  # of a save that was killed
    loaded.save_pretrained(tmp_path)
    for name in ("unet", "vae", "pose_adapter"):
        files = sorted(file.name for file in (tmp_path / name).iterdir())
        assert files == ["config.json", "diffusion_pytorch_model.safetensors"], name
    if sys.platform == "linux":  # Windows cannot replace files that are mapped into memory
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert torch.equal(next(CFLDPipeline.from_pretrained(tmp_path).unet.parameters()), next(pipe.unet.parameters()))


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


def test_pose_maps_of_a_unet_with_an_odd_side():
    components = tiny_components()
    components["unet"] = fill(UNet2DConditionModel(**{**UNET_CONFIG, "sample_size": (16, 11)}))
    pipe = CFLDPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.target_size == (128, 88)
    made = pipe(image=tiny_image(), pose=keypoints(), num_inference_steps=1, output_type="pt").images
    assert made.shape == (1, 3, 128, 88)


def test_an_appearance_may_be_the_image(pipe):
    made = [
        call(pipe, image=image, generator=torch.manual_seed(0))
        for image in (tiny_image(0, 3), pipe.encode_appearance(tiny_image(0, 3)))
    ]
    assert torch.equal(*made)


def test_custom_timesteps_of_a_second_order_scheduler(pipe, reference):
    inpaint = CFLDInpaintPipeline.from_pipe(pipe)
    inpaint.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    mask = Image.new("L", reference.size, "white")
    options = {"image": reference, "mask_image": mask, "source_image": tiny_image(), "pose": keypoints()}
    for strength in (0.5, 1.0):
        assert len(inpaint(**options, timesteps=[900, 700, 500, 300, 100], strength=strength).images) == 1


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        (lambda pipe: pipe.scheduler.register_to_config(rescale_betas_zero_snr=True), "divides by zero unless"),
        (lambda pipe: None, "weights of the pose_adapter are not finite"),
    ],
)
def test_a_result_that_is_not_finite_is_no_black_image(break_it, cause):
    pipe = tiny_pipeline()
    torch.nn.init.constant_(pipe.pose_adapter.conv_in.weight, float("nan"))
    break_it(pipe)
    with pytest.raises(ValueError, match=f"not finite and would be a black image.*{cause}"):
        call(pipe, output_type="pil")


def test_weights_that_were_not_in_the_files_are_named():
    pipe = tiny_pipeline()
    pipe.unet.up_blocks[1].resnets[0].conv1.to("meta")  # as diffusers leaves them
    with pytest.raises(ValueError, match=r"`unet` was loaded without its weight 'up_blocks\.1\.resnets\.0\.conv1"):
        call(pipe)


PHOTO = Image.fromarray(skimage.data.astronaut())
DRAWN = example_sources()[0]


def as_jpeg(image, quality=40):
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


@pytest.mark.parametrize(
    ("image", "warns"),
    [
        (PHOTO, True),
        (PHOTO.crop((100, 0, 360, 378)), True),
        (PHOTO.resize((910, 512)).crop((0, 100, 910, 400)), True),  # padded above and below
        ([DRAWN, np.asarray(PHOTO)], True),
        (Image.fromarray(skimage.data.camera()), True),
        (ImageOps.expand(PHOTO, 100, "white"), True),  # as in a shop
        (DRAWN, False),
        (example_sources(), False),
        (as_jpeg(DRAWN), False),
        (as_jpeg(DRAWN.resize((88, 128))).resize((704, 1024)), False),
        (np.asarray(DRAWN) / 255, False),
        (ImageOps.expand(DRAWN.crop((0, 0, 176, 200)), 20, DRAWN.getpixel((0, 0))), False),
    ],
    ids=[
        *("photo", "crop", "padded", "one of two", "grey", "on white"),
        *("drawn", "three", "jpeg", "enlarged jpeg", "array", "framed"),
    ],
)
def test_the_small_model_warns_of_photos_only(image, warns, caplog):
    encoder = SimpleNamespace(config={"_name_or_path": str(SMALL_MODEL / "source_encoder")}, image_size=(128, 96))
    warn_of_photos(SimpleNamespace(source_encoder=encoder), image)
    assert ("looks like a photo" in caplog.text) == warns
    caplog.clear()
    encoder.config["_name_or_path"] = "path/to/cfld/source_encoder"
    warn_of_photos(SimpleNamespace(source_encoder=encoder), image)
    assert not caplog.text


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_a_guidance_scale_of_one_and_less_is_no_guidance(pipe, scale):
    seeds = {"generator": torch.manual_seed(0)}
    expected = call(pipe, pose_guidance_scale=1.0, appearance_guidance_scale=1.0, **seeds)
    assert torch.equal(call(pipe, guidance_scale=scale, generator=torch.manual_seed(0)), expected)
    assert pipe.pose_guidance_scale == pipe.appearance_guidance_scale == 1
    call(pipe, guidance_scale=0, pose_guidance_scale=2.0)
    assert (pipe.pose_guidance_scale, pipe.appearance_guidance_scale) == (2, 1)
