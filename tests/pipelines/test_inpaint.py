"""Appearance editing: what is outside of a mask stays, what is inside follows its source."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
)
from testing_utils import image_embeds, load_ip_adapter, tiny_conditions, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld import CFLDInpaintPipeline, CFLDPipeline
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model

SIZE = (256, 176)


@pytest.fixture(scope="module")
def pipe():
    pipe = CFLDInpaintPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def reference():
    return picture(*SIZE, seed=1)


@pytest.fixture(scope="module")
def quick(pipe):
    """Options of `edit` for tests of what masks and references look like: nothing is encoded, one evaluation."""
    conditions = {"appearance": pipe.encode_appearance(tiny_image()), "pose": pipe.encode_pose(tiny_pose())}
    return {**conditions, "source_image": None, "num_inference_steps": 1, "guidance_scale": 1.0}


def picture(height, width, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rectangle(size=SIZE, box=(40, 60, 120, 160), value=255):
    mask = PIL.Image.new("L", size[::-1])
    mask.paste(value, box)
    return mask


def edit(pipe, **options):
    arguments = {
        "mask_image": rectangle(),
        "pose": tiny_pose(),
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
    }
    if "source_image" not in options:
        arguments["appearance"] = tiny_conditions()["appearance"]
    arguments.update(options)
    return pipe(**{name: value for name, value in arguments.items() if value is not None}).images


def with_scheduler(pipe, scheduler):
    """Another pipeline with the same models."""
    pipe = CFLDInpaintPipeline(**{**pipe.components, "scheduler": scheduler.from_config(pipe.scheduler.config)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def changed(result, reference):
    return (np.asarray(result) != np.asarray(reference.convert("RGB"))).any(axis=2)


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler],
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_outside_of_the_mask_every_pixel_is_the_references(pipe, reference, scheduler, strength):
    pipe = with_scheduler(pipe, scheduler)
    (result,) = edit(pipe, image=reference, strength=strength)
    assert result.size == reference.size
    inside = np.asarray(rectangle()) > 0
    assert not changed(result, reference)[~inside].any()
    assert changed(result, reference)[inside].mean() > 0.9


def test_a_full_mask_is_plain_pose_transfer(pipe, reference):
    white = PIL.Image.new("L", reference.size, 255)
    plain = CFLDPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    latents = edit(pipe, image=reference, mask_image=white, output_type="latent")
    options = {"image": tiny_image(), "pose": tiny_pose(), "num_inference_steps": 2}
    expected = plain(**options, generator=torch.Generator().manual_seed(0), output_type="latent").images
    torch.testing.assert_close(latents, expected)
    (result,) = edit(pipe, image=reference, mask_image=white)
    picture = plain(**options, height=128, generator=torch.Generator().manual_seed(0)).images[0]
    expected = np.asarray(picture.resize(reference.size, PIL.Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(np.asarray(result, dtype=int) - expected).max() <= 1


def test_guidance_acts_in_its_interval(pipe, reference, quick):
    batches = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
    options = {**quick, "num_inference_steps": 2, "guidance_scale": 2.0, "guidance_interval": (0.5, 1)}
    edit(pipe, image=reference, **options)
    hook.remove()
    assert batches == [1, 2]


def test_the_latents_outside_are_the_references_own(pipe, reference):
    latents = edit(pipe, image=reference, output_type="latent")
    expected = pipe.encode_reference_image(reference, *pipe.target_size)
    # The mask's bounding cells may change; far from it nothing does.
    assert torch.allclose(latents[:, :, :2], expected[:, :, :2], atol=1e-5)
    assert torch.allclose(latents[:, :, -4:], expected[:, :, -4:], atol=1e-5)
    assert not torch.allclose(latents, expected, atol=1e-2)


def test_the_region_follows_its_source(pipe, reference):
    one = edit(pipe, image=reference, source_image=tiny_image(0))[0]
    other = edit(pipe, image=reference, source_image=tiny_image(0, 2)[1:])[0]
    assert np.array_equal(one, edit(pipe, image=reference, source_image=tiny_image(0))[0])
    assert (np.asarray(one) != np.asarray(other)).any()
    appearance = pipe.encode_appearance(tiny_image(0))
    assert np.array_equal(one, edit(pipe, image=reference, source_image=None, appearance=appearance)[0])


def test_several_regions_take_several_sources(pipe, reference):
    masks = [rectangle(box=(0, 0, 176, 120)), rectangle(box=(0, 136, 176, 256))]
    sources = [tiny_image(0, 2)[:1], tiny_image(0, 2)[1:]]
    both = edit(pipe, image=reference, mask_image=masks, source_image=sources)[0]
    assert not changed(both, reference)[121:135].any()
    # The same noise in both regions: each is what it would be for one source alone, but for what the other region
    # does to it through the U-Net.
    swapped = edit(pipe, image=reference, mask_image=masks[::-1], source_image=sources[::-1])[0]
    assert np.abs(np.asarray(both, dtype=int) - np.asarray(swapped, dtype=int)).max() <= 1
    one_source = edit(pipe, image=reference, mask_image=masks, source_image=[sources[0]] * 2)[0]
    assert (np.asarray(both) != np.asarray(one_source)).any()

    # Two masks that tile one, with one source, are that mask. One generator draws other noise for several regions.
    tiles = [rectangle(box=(40, 60, 120, 110)), rectangle(box=(40, 110, 120, 160))]
    seeds = lambda: [torch.Generator().manual_seed(0)]  # noqa: E731
    options = {"image": reference, "feather": 0}
    tiled = edit(pipe, **options, mask_image=tiles, source_image=[tiny_image()] * 2, generator=seeds())[0]
    whole = edit(pipe, **options, generator=seeds())[0]
    assert np.abs(np.asarray(tiled, dtype=int) - np.asarray(whole, dtype=int)).max() <= 1


def test_regions_that_overlap_share_and_show_nothing_of_the_reference(pipe):
    black, white = PIL.Image.new("RGB", SIZE[::-1]), PIL.Image.new("L", SIZE[::-1], 255)
    twice = edit(pipe, image=black, mask_image=[white, white], source_image=[tiny_image()] * 2, output_type="np")[0]
    options = {"generator": [torch.Generator().manual_seed(0)]}
    once = edit(pipe, image=black, mask_image=white, output_type="np", **options)[0]
    assert abs(twice.mean() - once.mean()) < 0.1 * once.mean()
    ramp = np.linspace(0, 1, SIZE[1], dtype=np.float32)[None].repeat(SIZE[0], axis=0)
    both = edit(
        pipe, image=black, mask_image=[ramp, 1 - ramp], source_image=[tiny_image()] * 2, output_type="np", feather=0
    )[0]
    assert abs(both[:, 80:100].mean() - once[:, 80:100].mean()) < 0.1 * once.mean()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_several_results(pipe, reference, eta):
    generators = lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]  # noqa: E731
    options = {"image": reference, "num_images_per_prompt": 2, "eta": eta}
    first, second = edit(pipe, **options, generator=generators(0, 1))
    assert (np.asarray(first) != np.asarray(second)).any()
    alone = edit(pipe, image=reference, eta=eta, generator=generators(1))[0]
    assert np.abs(np.asarray(second, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    masks = [rectangle(box=(0, 0, 88, 256)), rectangle(box=(88, 0, 176, 256))]
    results = edit(
        pipe, **options, mask_image=masks, source_image=[tiny_image()] * 2, generator=generators(0, 1), feather=0
    )
    white = PIL.Image.new("L", reference.size, 255)
    whole = edit(pipe, **options, mask_image=white, generator=generators(0, 1))
    for one, other in zip(results, whole, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_strength_keeps_what_was_in_the_region(reference):
    pipe = CFLDInpaintPipeline.from_pipe(load_small_model())
    pipe.set_progress_bar_config(disable=True)
    first, second = example_sources()[:2]
    pose = example_poses()[0]
    white = PIL.Image.new("L", first.size, 255)
    latents = pipe.encode_reference_image(first, *pipe.target_size)
    distances = [
        (edit(pipe, image=first, mask_image=white, source_image=second, pose=pose, strength=strength,
              num_inference_steps=10, output_type="latent") - latents).abs().mean()
        for strength in (0.1, 0.5, 1.0)
    ]  # fmt: skip
    assert distances[0] < distances[1] < distances[2]


def test_the_edge_is_feathered_inwards(pipe, reference):
    black = PIL.Image.new("RGB", reference.size)
    hard = np.asarray(edit(pipe, image=black, feather=0)[0], dtype=float)
    soft = np.asarray(edit(pipe, image=black, feather=8)[0], dtype=float)
    assert not soft[np.asarray(rectangle()) == 0].any()
    row = slice(60, 160)
    np.testing.assert_array_equal(soft[row, 52:108][10:-10], hard[row, 52:108][10:-10])
    assert (soft[row, 40] <= 0.2 * hard[row, 40] + 1).all()
    assert (soft[row, 44] <= 0.65 * hard[row, 44] + 1).all()


def test_soft_masks_blend(pipe, reference):
    black = PIL.Image.new("RGB", reference.size)
    (full,) = edit(pipe, image=black, feather=0, output_type="np")
    (half,) = edit(pipe, image=black, mask_image=rectangle(value=51), feather=0, output_type="np")
    inside = np.asarray(rectangle()) > 0
    assert half[inside].mean() < 0.3 * full[inside].mean()
    assert half[inside].max() > 0


def test_all_forms_of_masks_and_references(pipe, reference, quick, tmp_path):
    mask = rectangle()
    expected = np.asarray(edit(pipe, **quick, image=reference)[0])
    array = np.asarray(mask)
    forms = [mask.convert("RGB"), mask.convert("1"), array, array > 0, array / 255.0, torch.from_numpy(array / 255.0)]
    forms += [np.stack([array] * 3, axis=-1), [mask], array[None], (torch.tensor(array) > 0)[None], array[..., None]]
    labels = (array > 0).astype(np.uint8)
    forms += [labels, PIL.Image.fromarray(labels), torch.tensor(labels, dtype=torch.int64), torch.tensor(array)]
    forms += [torch.tensor(array)[None, None]]
    for form in forms:
        assert np.array_equal(edit(pipe, **quick, image=reference, mask_image=form)[0], expected)
    mask.save(tmp_path / "mask.png")
    reference.save(tmp_path / "reference.png")
    paths = {"image": tmp_path / "reference.png", "mask_image": [str(tmp_path / "mask.png")]}
    assert np.array_equal(edit(pipe, **quick, **paths)[0], expected)
    sources = [edit(pipe, image=reference, source_image=one)[0] for one in (reference, [str(paths["image"])])]
    assert np.array_equal(*sources)
    pixels = np.asarray(reference)
    tensor = torch.from_numpy(pixels / 255.0).permute(2, 0, 1)
    for form in (pixels, pixels / 255.0, tensor, tensor[None], [reference], reference.convert("RGBA")):
        assert np.array_equal(edit(pipe, **quick, image=form)[0], expected)
    # A mask of another size and the same shape is resized.
    (resized,) = edit(pipe, **quick, image=reference, mask_image=mask.resize((352, 512), PIL.Image.Resampling.NEAREST))
    assert np.mean(np.asarray(resized) != expected) < 0.1
    for output_type in ("np", "pt"):
        images = edit(pipe, **quick, image=reference, output_type=output_type)
        image = images[0] if output_type == "np" else images[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(image, expected / 255.0, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 500), (90, 31), (600, 200)])
def test_a_reference_of_any_shape(pipe, size):
    reference = picture(*size)
    height, width = size
    mask = rectangle(size, (width // 4, height // 4, width // 2, height // 2))
    (result,) = edit(pipe, image=reference, mask_image=mask, pose=pipe.encode_pose(tiny_pose()))
    assert result.size == reference.size
    inside = np.asarray(mask) > 0
    assert not changed(result, reference)[~inside].any()
    assert changed(result, reference)[inside].any()


def test_the_references_pose_is_found(pipe, reference):
    seen = []

    def estimator(image):
        seen.append(image.size)
        return [example_poses()[0]]

    finder = CFLDInpaintPipeline.from_pipe(pipe)
    finder.set_progress_bar_config(disable=True)
    finder.pose_estimator = estimator
    found = edit(finder, image=reference, pose=None)[0]
    assert np.array_equal(found, edit(pipe, image=reference, pose=example_poses()[0])[0])
    assert seen == [reference.size]
    finder.pose_estimator = lambda image: []
    with pytest.raises(ValueError, match="Nobody was found in the image"):
        edit(finder, image=reference, pose=None)


def test_a_picture_as_pose_stays_where_it_is(pipe, reference):
    """The reference itself as the pose: the person is not brought into the frame, which would move them."""
    finder = CFLDInpaintPipeline.from_pipe(pipe)
    finder.set_progress_bar_config(disable=True)
    finder.pose_estimator = lambda image: [example_poses()[0]]
    expected = edit(pipe, image=reference, pose=example_poses()[0])[0]
    assert np.array_equal(edit(finder, image=reference, pose=reference)[0], expected)


@pytest.mark.parametrize("pose_side", [64, 128])
@pytest.mark.parametrize("side", [64, 128])
def test_a_pose_of_the_references_shape_is_placed_as_the_reference_is(pipe, side, pose_side):
    """Pictures of the pose map's own size, 64x64 here, are squashed and other squares padded, as pictures as poses."""
    reference = picture(side, side)
    pose = example_poses()[0].rescale((side, side))
    mask = rectangle((side, side), (side // 4, side // 4, side // 2, side // 2))
    here, there = (
        edit(pipe, image=reference, mask_image=mask, pose=given, output_type="np")
        for given in (pose, pose.rescale((pose_side, pose_side)))
    )
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_source_may_be_its_appearance(pipe, reference):
    appearance = pipe.encode_appearance(tiny_image())
    options = {"image": reference, "output_type": "np"}
    np.testing.assert_array_equal(
        edit(pipe, source_image=appearance, **options), edit(pipe, source_image=tiny_image(), **options)
    )


def test_a_reference_of_the_pose_maps_own_size_is_squashed_as_its_pose_is(pipe):
    config = pipe.pose_processor.config
    reference = picture(config["height"], config["width"])
    frame = pipe.pose_processor.choose_crop((config["height"], config["width"]))
    assert frame.is_whole_image
    white = PIL.Image.new("L", reference.size, 255)
    (result,) = edit(pipe, image=reference, mask_image=white)
    plain = CFLDPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    options = {"height": 128, "num_inference_steps": 2, "generator": torch.manual_seed(0)}
    made = plain(image=tiny_image(), pose=tiny_pose(), **options).images[0]
    expected = np.asarray(made.resize(reference.size, PIL.Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(np.asarray(result, dtype=int) - expected).max() <= 1


def test_from_pipe_keeps_what_belongs_to_the_pipeline():
    plain = tiny_pipeline().to(torch.bfloat16)
    plain.pose_estimator = lambda image: []
    pipe = CFLDInpaintPipeline.from_pipe(plain)
    assert plain.dtype == pipe.dtype == torch.bfloat16
    assert pipe.pose_estimator is plain.pose_estimator
    assert CFLDInpaintPipeline.from_pipe(plain, dtype=torch.float32).dtype == torch.float32


def test_from_pipe_leaves_every_components_precision():
    plain = tiny_pipeline()
    plain.unet.to(torch.bfloat16)
    pipe = CFLDInpaintPipeline.from_pipe(plain)
    assert pipe.unet is plain.unet
    assert (plain.unet.dtype, plain.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipe.to(torch.float64).vae.dtype == torch.float64


@pytest.mark.parametrize("scheduler", [KDPM2DiscreteScheduler, HeunDiscreteScheduler])
def test_second_order_schedulers_see_the_right_noise_outside_of_the_mask(pipe, reference, scheduler):
    pipe = with_scheduler(pipe, scheduler)
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append((args[0][:, :, :2].std(), args[1])))
    edit(pipe, image=reference, num_inference_steps=6, mask_image=rectangle(box=(40, 200, 120, 240)))
    hook.remove()
    alphas = pipe.scheduler.alphas_cumprod
    latents = pipe.encode_reference_image(reference, *pipe.target_size)[:, :, :2]
    for deviation, timestep in seen[::2]:
        alpha = alphas[round(float(timestep))]
        assert deviation == pytest.approx((alpha * latents.var() + 1 - alpha).sqrt().item(), rel=0.2)


def test_offloaded_one_after_another(reference):
    from accelerate import cpu_offload

    options = {"image": reference, "source_image": tiny_image()}
    expected = np.asarray(edit(CFLDInpaintPipeline.from_pipe(tiny_pipeline()), **options)[0], dtype=int)
    pipe = CFLDInpaintPipeline.from_pipe(tiny_pipeline())
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    result = np.asarray(edit(pipe, **options)[0], dtype=int)
    assert np.abs(result - expected).max() <= 1


def test_callbacks_and_a_pipeline_that_is_used_again(pipe, reference):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append((step, tuple(tensors["latents"].shape)))
        return {}

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("stop")

    masks = [rectangle(), rectangle(box=(0, 0, 30, 30))]
    edit(
        pipe,
        image=reference,
        mask_image=masks,
        source_image=[tiny_image()] * 2,
        callback_on_step_end=callback,
        num_inference_steps=3,
        strength=0.7,
    )
    assert [step for step, _ in steps] == [0, 1]
    assert steps[0][1][0] == 2
    with pytest.raises(RuntimeError, match="stop"):
        edit(pipe, image=reference, callback_on_step_end=fail)
    assert len(edit(pipe, image=reference)) == 1


def test_saved_and_loaded(pipe, reference, tmp_path):
    pipe.save_pretrained(tmp_path)
    expected = np.asarray(edit(pipe, image=reference)[0])
    for loader in (CFLDInpaintPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is CFLDInpaintPipeline
        loaded.set_progress_bar_config(disable=True)
        assert np.array_equal(edit(loaded, image=reference, source_image=tiny_image())[0], expected)
    assert type(CFLDPipeline.from_pretrained(tmp_path)) is CFLDPipeline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "Pass the reference as `image`"),
        ({"mask_image": None}, "the region to change as `mask_image`"),
        ({"source_image": None}, "exactly one of `source_image` and `appearance`"),
        ({"pose": None}, "`pose` is missing: pass the reference's own pose"),
        ({"strength": 0}, "`strength` must be above 0 and at most 1, got 0"),
        ({"strength": 1.1}, "`strength` must be"),
        ({"feather": -1}, "`feather` must be a number of pixels >= 0"),
        ({"mask_image": []}, "the region to change as `mask_image`"),
        ({"mask_image": rectangle(value=0)}, "be white where the reference should change, got 0 to 0"),
        ({"mask_image": [rectangle(), rectangle(value=0)]}, "be white where"),
        (
            {"mask_image": rectangle((100, 100), (10, 10, 20, 20))},
            "reference's aspect ratio, that of 256x176 pixels, got shape \\(100, 100\\)",
        ),
        ({"mask_image": np.full(SIZE, 2.0)}, "A mask must hold values in"),
        ({"mask_image": np.zeros((*SIZE, 3))}, "must have one channel and its reference's aspect ratio"),
        ({"mask_image": [rectangle()] * 2}, "one source for each mask, got 1 sources and \\[2\\] masks"),
        ({"image": [picture(*SIZE)] * 2}, "With 2 references, masks and poses must be lists"),
        ({"pose": [tiny_pose()] * 2}, "must be a single pose, that of the person in the image, got 2"),
        (
            {"pose": example_poses()[0].rescale((300, 400))},
            "measured on an image of 300x400 .* but this image is",
        ),
        ({"image": np.full((256, 176, 3), 3.0)}, r"must hold values in \[0, 1\]"),
        ({"height": 100}, "positive multiples of"),
        ({"output_type": "tensor"}, "`output_type` must be 'pil', 'np', 'pt' or 'latent', got 'tensor'"),
        (
            {
                "mask_image": [rectangle()] * 2,
                "source_image": [tiny_image()] * 2,
                "generator": [torch.Generator()] * 3,
            },
            "a list with one per image, got 3 for 1",
        ),
    ],
)
def test_what_cannot_be_edited_is_named(pipe, reference, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipe, **{"image": reference, **options})


def test_references_without_three_channels(pipe, reference, quick):
    grey = np.asarray(reference.convert("L"))
    expected = edit(pipe, **quick, image=reference.convert("L"))[0]
    for form in (grey, grey[..., None], grey / 255.0, torch.from_numpy(grey / 255.0)[None]):
        assert edit(pipe, **quick, image=form)[0] == expected
    alpha = np.dstack([np.asarray(reference), np.asarray(rectangle())])
    assert edit(pipe, **quick, image=alpha)[0] == edit(pipe, **quick, image=PIL.Image.fromarray(alpha))[0]


def test_given_noise_is_that_of_all_regions(pipe, reference):
    options = {"image": reference, "mask_image": [rectangle(), rectangle(box=(0, 150, 80, 250))], "generator": None}
    options |= {"source_image": [tiny_image(), tiny_image(1)]}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    pictures = []
    for latents in (noise, noise, -noise):
        pictures += edit(pipe, **{**options, "generator": torch.manual_seed(0)}, latents=latents)
    assert pictures[0] == pictures[1] != pictures[2]
    with pytest.raises(ValueError, match=r"`latents` must have shape \(1, 4, 16, 16\), got \(2, 4, 16, 16\)"):
        edit(pipe, **options, latents=noise.repeat(2, 1, 1, 1))


def test_an_ip_adapter_acts_in_the_regions(reference):
    plain = tiny_pipeline()
    load_ip_adapter(plain)
    pipe = CFLDInpaintPipeline.from_pipe(plain)
    pipe.set_progress_bar_config(disable=True)
    pictures = [edit(pipe, image=reference, ip_adapter_image_embeds=[sign * image_embeds()[0]])[0] for sign in (1, -1)]
    assert pictures[0] != pictures[1]
    for one, options in ((pipe, {}), (plain, {"mask_image": None, "source_image": None})):
        with pytest.raises(ValueError, match="An IP-Adapter is loaded: pass its `ip_adapter_image`"):
            edit(one, image=reference, **options)


def test_a_batch_of_references_equals_single_edits(pipe):
    references = [picture(*SIZE, seed=1), picture(200, 176, seed=2)]
    masks = [[rectangle(), rectangle(box=(0, 180, 90, 250))], rectangle((200, 176))]
    sources = [[tiny_image(0)[0], tiny_image(1)[0]], tiny_image(2)[0]]
    poses = [example_poses()[0], example_poses()[1].rescale((200, 176))]
    seeds = lambda *numbers: [torch.Generator().manual_seed(number) for number in numbers]  # noqa: E731
    options = {"num_images_per_prompt": 2, "strength": 0.7}
    together = edit(
        pipe, image=references, mask_image=masks, source_image=sources, pose=poses, generator=seeds(0, 1, 2, 3),
        **options, micro_batch_size=4,
    )  # fmt: skip
    alone = [
        edit(pipe, image=image, mask_image=mask, source_image=source, pose=pose, generator=seeds(*numbers), **options)
        for image, mask, source, pose, numbers in zip(references, masks, sources, poses, ((0, 1), (2, 3)), strict=True)
    ]
    for one, other in zip(together, [*alone[0], *alone[1]], strict=True):
        assert one.size == other.size
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_what_does_not_fit_a_batch_of_references_is_named(pipe):
    references = [picture(*SIZE, seed=1), picture(200, 176, seed=2)]
    poses = [example_poses()[0], example_poses()[1].rescale((200, 176))]
    sources = [tiny_image(number)[0] for number in range(3)]
    options = {"image": references, "pose": poses, "mask_image": [[rectangle()] * 2, [rectangle((200, 176))]]}
    with pytest.raises(ValueError, match=r"one source for each mask, got \[1, 2\] sources and \[2, 1\] masks"):
        edit(pipe, **options, source_image=[sources[:1], sources[1:]])
    with pytest.raises(ValueError, match="`output_type` must be 'pil' or 'latent' for references of several sizes"):
        edit(pipe, **options, source_image=[sources[:2], sources[2:]], output_type="np")
    with pytest.raises(ValueError, match="one pose for each reference, got 3 for 2"):
        edit(pipe, **{**options, "pose": pipe.encode_pose(example_poses()[:3])}, source_image=sources)
    with pytest.raises(ValueError, match="one pose for each reference, got 2 for 1"):
        edit(pipe, image=references[0], pose=pipe.encode_pose(example_poses()[:2]))
    nested = edit(
        pipe, image=references[:1], mask_image=[[rectangle()]], source_image=[[tiny_image()]], pose=poses[:1]
    )
    assert nested[0] == edit(pipe, image=references[0], pose=poses[0])[0]


def test_masks_of_other_modes(pipe, reference, quick):
    expected = np.asarray(edit(pipe, **quick, image=reference)[0])
    array = np.asarray(rectangle())
    deep = PIL.Image.fromarray(array.astype(np.uint16) * 257)
    floating = PIL.Image.fromarray((array / 255).astype(np.float32))
    transparent = PIL.Image.merge("RGBA", [PIL.Image.new("L", rectangle().size, 255)] * 3 + [rectangle()])
    for mask in (deep, floating, transparent):
        assert np.array_equal(edit(pipe, **quick, image=reference, mask_image=mask)[0], expected)
    faint = PIL.Image.fromarray((array > 0).astype(np.uint16) * 100)
    with pytest.raises(ValueError, match="be white where the reference should change"):
        edit(pipe, **quick, image=reference, mask_image=faint)


def test_a_scheduler_that_adds_no_noise_is_named(reference):
    pipe = CFLDInpaintPipeline.from_pipe(tiny_pipeline())
    pipe.scheduler = IPNDMScheduler()
    with pytest.raises(ValueError, match=r"must have `add_noise`.* but IPNDMScheduler has none"):
        edit(pipe, image=reference)


def test_wrong_types_are_named(pipe, reference):
    with pytest.raises(TypeError, match=r"A mask must be a PIL image, .* got int"):
        edit(pipe, image=reference, mask_image=1)
    with pytest.raises(TypeError, match=r"`image` must be a PIL image, .* got int"):
        edit(pipe, image=1)
    for wrong in ({"mask_image": "nowhere.png"}, {"image": "nowhere.png"}, {"source_image": ["nowhere.png"]}):
        with pytest.raises(FileNotFoundError, match=r"nowhere.png"):
            edit(pipe, **{"image": reference, **wrong})
