"""What the denoising loop asks of a GPU, seen on a CPU: no waiting, no copies, the same operations at every step.

Only operations that this package calls itself count; the models' and the schedulers' own are diffusers'.
"""

import sys
from contextlib import contextmanager

import PIL.Image
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, T2IAdapter, UNet2DConditionModel
from testing_utils import UNET_CONFIG, scheduler_config, tiny_image, tiny_pipeline, tiny_pose
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_cfld import Appearance, CFLDInpaintPipeline, CFLDPipeline, PoseFeatures

# The host waits for the device to answer these.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "unique", "masked_select"}
# Tensors made from Python's numbers, copies between devices, and casts.
COPYING = {"lift_fresh", "scalar_tensor", "_to_copy", "copy_"}


class Watch(TorchDispatchMode):
    """Records the operations that the package's own lines call: name, and shape and dtype of the result."""

    def __init__(self):
        super().__init__()
        self.steps = [[]]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        if frame is not None and "/diffusers_cfld/" in frame.f_code.co_filename:
            name = func.overloadpacket.__name__
            output = (tuple(result.shape), result.dtype) if isinstance(result, torch.Tensor) else ()
            self.steps[-1].append((name, *output))
        return result

    @property
    def operations(self):
        return [operation for step in self.steps for operation in step]


@contextmanager
def watched_steps(num_steps):
    """A callback that watches from the end of the first step to the end of the last but one."""
    watch = Watch()

    def callback(_pipe, step, _timestep, tensors):
        if step == 0:
            watch.__enter__()
        elif step < num_steps - 2:
            watch.steps.append([])
        elif step == num_steps - 2:
            watch.__exit__(None, None, None)
        return tensors

    yield callback, watch


def assert_free_of_waiting(watch, dtype):
    names = {operation[0] for operation in watch.operations}
    assert names
    assert not names & WAITING
    assert not names & COPYING
    floats = {kind for _, *output in watch.operations for kind in output[1:] if kind.is_floating_point}
    assert floats <= {dtype}  # nothing is computed in a wider type
    assert len({tuple(step) for step in watch.steps}) == 1


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    adapter = T2IAdapter(channels=[16, 24, 32, 32], num_res_blocks=1)
    pipe = CFLDPipeline.from_pipe(pipe, controlnet=net, adapter=adapter, scheduler=DDIMScheduler(**scheduler_config()))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.bfloat16)


def test_the_watch_sees_what_it_should():
    weight = torch.ones(3)
    with Watch() as watch:
        code = compile("bool(x.sum() > 0); y = torch.tensor([1.0]); z = x.double()", "/x/diffusers_cfld/y.py", "exec")
        exec(code, {"x": weight, "torch": torch})
    assert {"_local_scalar_dense", "lift_fresh", "_to_copy"} <= {operation[0] for operation in watch.operations}


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"guidance_scale": 1.0}], ids=str)
def test_pose_transfer_waits_for_nothing(pipe, options):
    with watched_steps(5) as (callback, watch):
        pipe(
            image=tiny_image(0, 3),
            pose=tiny_pose(),
            control_image=tiny_image(1),
            adapter_image=tiny_image(2),
            num_inference_steps=5,
            output_type="latent",
            callback_on_step_end=callback,
            **{"pose_guidance_scale": 2.0, "appearance_guidance_scale": 3.0, **options},
        )
    assert len(watch.steps) == 3
    assert_free_of_waiting(watch, torch.bfloat16)


def test_editing_waits_for_nothing(pipe):
    image = PIL.Image.new("RGB", (64, 64), (120, 90, 60))
    edit = CFLDInpaintPipeline.from_pipe(pipe, controlnet=None, adapter=None)
    edit.set_progress_bar_config(disable=True)
    with watched_steps(5) as (callback, watch):
        edit(
            image=image,
            mask_image=[PIL.Image.new("L", (64, 64), 255)] * 2,
            source_image=tiny_image(0, 2),
            pose=tiny_pose(),
            num_inference_steps=5,
            output_type="latent",
            callback_on_step_end=callback,
        )
    assert_free_of_waiting(watch, torch.bfloat16)


@pytest.fixture
def in_half_precision():
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
@pytest.mark.usefixtures("in_half_precision")
def test_predictions_on_a_pretended_gpu_stay_there():
    """Tensors without values on a device that is not there: an answer to the host or a copy would raise or show."""
    with FakeTensorMode(), torch.device("cuda"):
        unet = UNet2DConditionModel(**UNET_CONFIG).eval()
        net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        pipe = CFLDPipeline(
            **dict.fromkeys(["vae", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter"]),
            unet=unet,
            scheduler=DDIMScheduler(**scheduler_config()),
            controlnet=net,
        )
        pipe._guidance_scale, pipe._pose_guidance_scale, pipe._appearance_guidance_scale = 2.0, 3.0, None
        pipe._guidance_rescale, pipe._cross_attention_kwargs = 0.7, None
        biases = {
            f"up_blocks.3.attentions.{index}.transformer_blocks.0.attn2": torch.empty(2, 16, 16, 16)
            for index in range(2)
        }
        appearance = Appearance(torch.empty(2, 4, 48), torch.empty(1, 4, 48), biases)
        widths = enumerate(UNET_CONFIG["block_out_channels"][:3])
        pose = PoseFeatures({f"down_blocks.{i}": torch.empty(1, n, 16 >> i, 16 >> i) for i, n in widths})
        conditions = pipe.prepare_conditions(appearance, pose, 128, 128)
        conditions.control_images = [torch.empty(1, 3, 128, 128)]
        conditions.control_scales = [0.5]
        sample, timestep = torch.empty(2, 4, 16, 16), torch.ones((), dtype=torch.int64)
        with Watch() as watch:
            for micro_batch_size in (None, 1):
                conditions.replace_prompts(conditions.prompt_embeds, conditions.null_prompt_embeds)
                noise_pred = pipe.predict_noise(sample, timestep, conditions, micro_batch_size)
                assert noise_pred.device.type == "cuda"
    assert_free_of_waiting(watch, torch.float16)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_every_layer_follows_the_attention_backend_that_is_asked_for(pipe, backend):
    """diffusers' processors for U-Nets call torch's attention, so torch's context chooses, for biased layers too."""
    chosen = []

    class Backends(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name.startswith("_scaled_dot_product"):
                chosen.append(name)
            return func(*args, **(kwargs or {}))

    plain = CFLDPipeline.from_pipe(pipe, controlnet=None, adapter=None)
    plain.set_progress_bar_config(disable=True)
    appearance, pose = plain.encode_appearance(tiny_image()), plain.encode_pose(tiny_pose())
    with sdpa_kernel(backend), Backends():
        plain(appearance=appearance, pose=pose, num_inference_steps=1, output_type="latent")
    is_flash = backend is SDPBackend.FLASH_ATTENTION
    assert sum("flash" in name for name in chosen) == (20 if is_flash else 0)
