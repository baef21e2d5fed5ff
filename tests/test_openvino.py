"""The U-Net in OpenVINO gives the results of PyTorch; `.ci/run` installs OpenVINO for this."""

import pytest
import torch
from testing_utils import lora_state_dict, relative_error, tiny_image, tiny_pipeline, tiny_pose

from diffusers_cfld.openvino import use_openvino

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def pipes():
    plain, fast = tiny_pipeline(), tiny_pipeline()
    use_openvino(fast.unet)
    return plain, fast


def generate(pipe, **options):
    torch.manual_seed(0)
    options = {"num_inference_steps": 2, "image": tiny_image(), "pose": tiny_pose(), **options}
    return pipe(output_type="latent", generator=torch.Generator().manual_seed(0), **options).images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"appearance_guidance_scale": 3.0},
        {"appearance_guidance_scale": 0.0, "pose_guidance_scale": 0.0},
        {"cross_attention_kwargs": {"scale": 0.5}},
    ],
    ids=["default", "another batch", "nothing to convert", "in PyTorch"],
)
def test_results_are_those_of_pytorch(pipes, options):
    plain, fast = pipes
    assert relative_error(generate(fast, **options), generate(plain, **options)) < 1e-5


@pytest.mark.slow
def test_a_lora_and_another_size_are_noticed(pipes):
    plain, fast = pipes
    before = generate(fast)
    for pipe in pipes:
        pipe.load_lora_weights(lora_state_dict(0))
    with_lora = generate(fast)
    assert relative_error(with_lora, generate(plain)) < 1e-5
    assert relative_error(with_lora, before) > 1e-3
    for pipe in pipes:
        pipe.unload_lora_weights()
    size = {"height": 72, "width": 88}
    assert relative_error(generate(fast, **size), generate(plain, **size)) < 1e-5


def test_a_unet_in_bfloat16_is_refused():
    unet = tiny_pipeline().unet.bfloat16()
    with pytest.raises(ValueError, match=r"float32 on the CPU, got torch.bfloat16"):
        use_openvino(unet)
