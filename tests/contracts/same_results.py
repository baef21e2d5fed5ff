"""Results of the pipelines, sequences and training at fixed inputs, to compare two states of the library.

`python tests/contracts/same_results.py` stores those of the code that it runs on in `tests/data/same_results.npz`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler
from example_scripts import load_example
from miniature_sets import NAMES, save_image, write_lists
from testing_utils import (
    SOURCE_ENCODER_CONFIG,
    fill,
    tiny_components,
    tiny_image,
    tiny_pipeline,
    tiny_pose,
)

from diffusers_cfld import CFLDInpaintPipeline, CFLDPipeline, SwinImageEncoder
from diffusers_cfld.inversion import invert, reconstruct
from diffusers_cfld.sequences import render_sequence
from diffusers_cfld.small_model import example_poses, example_source_poses, example_sources, load_small_model

STORED = Path(__file__).parents[1] / "data" / "same_results.npz"


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def picture(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pose_transfer() -> dict[str, np.ndarray]:
    pipe = tiny_pipeline()
    results = {}
    (results["two_branches"],) = pipe(
        tiny_image(), tiny_pose(), num_inference_steps=3, generator=generators(0)[0], output_type="np"
    ).images
    results["three_branches"] = pipe(
        tiny_image(batch_size=2),
        tiny_pose(batch_size=2),
        num_inference_steps=2,
        pose_guidance_scale=2.0,
        appearance_guidance_scale=3.0,
        num_images_per_prompt=2,
        generator=generators(0, 1, 2, 3),
        output_type="np",
    ).images
    results["other_size"] = pipe(
        tiny_image(),
        tiny_pose(),
        height=96,
        width=64,
        num_inference_steps=2,
        guidance_scale=1.0,
        guidance_rescale=0.0,
        generator=generators(4)[0],
        output_type="latent",
    ).images.numpy()
    results["micro_batches"] = pipe(
        tiny_image(),
        tiny_pose(batch_size=3),
        num_inference_steps=2,
        micro_batch_size=2,
        generator=generators(0, 1, 2),
        output_type="np",
    ).images
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    results["resized"] = np.asarray(
        pipe(
            picture(90, 60), example_poses()[0], num_inference_steps=2, latents=torch.ones(1, 4, 16, 16),
            guidance_rescale=0.5, output_size=(128, 88),
        ).images[0]
    )  # fmt: skip
    small = load_small_model()
    small.set_progress_bar_config(disable=True)
    results["small_model"] = np.asarray(
        small(
            example_sources()[0], example_poses()[1], num_inference_steps=2, guidance_scale=1.5,
            generator=generators(0)[0],
        ).images[0]
    )  # fmt: skip
    return results


def edits() -> dict[str, np.ndarray]:
    pipe = CFLDInpaintPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    reference = picture(256, 176, seed=1)
    masks = [np.zeros((256, 176), dtype=np.uint8) for _ in range(2)]
    masks[0][60:160, 40:120] = 255
    masks[1][140:220, 60:150] = 255
    options = {"image": reference, "pose": example_poses()[0], "num_inference_steps": 3}
    one = pipe(**options, mask_image=masks[0], source_image=tiny_image(), generator=generators(0)[0]).images[0]
    two = pipe(
        **options,
        mask_image=masks,
        source_image=[tiny_image()[0], tiny_image(1)[0]],
        strength=0.7,
        num_images_per_prompt=2,
        generator=generators(1)[0],
        output_type="latent",
    ).images
    return {"edit_of_one_region": np.asarray(one), "edit_of_two_regions": two.numpy()}


def inversion() -> dict[str, np.ndarray]:
    pipe = tiny_pipeline()
    source, pose = example_sources()[0], example_source_poses()[0]
    latents = invert(pipe, source, pose, num_inference_steps=3)
    back = reconstruct(pipe, latents, pose, image=source, num_inference_steps=3, output_type="np").images
    return {"inverted": latents.numpy(), "reconstructed": back}


def sequence() -> dict[str, np.ndarray]:
    first, second = example_poses()[:2]
    poses = [first.lerp(second, number / 2) for number in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        frames = render_sequence(
            tiny_pipeline(), poses, folder, image=example_sources()[0], num_inference_steps=2, micro_batch_size=2
        )
        return {"frames": np.stack([np.asarray(PIL.Image.open(path)) for path in frames])}


def training() -> dict[str, np.ndarray]:
    """Loss and rates of two steps of the trainer on two pairs, and how far each part moved."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script = load_example("train_cfld")
    components = tiny_components()
    components["source_encoder"] = fill(
        SwinImageEncoder(**SOURCE_ENCODER_CONFIG, drop_path_rate=0.0), "source_encoder"
    )
    with tempfile.TemporaryDirectory() as name:
        start, data, output = Path(name, "start"), Path(name, "data"), Path(name, "output")
        CFLDPipeline(**components).save_pretrained(start)
        write_lists(data, NAMES[:2])
        for seed, image in enumerate(NAMES[:2]):
            save_image(data / "train_highres" / image, seed)
        options = {
            "pretrained_model_name_or_path": start,
            "train_data_dir": data,
            "output_dir": output,
            "train_batch_size": 2,
            "max_train_steps": 3,
            "lr_warmup_steps": 2,
            "lr_decay_epochs": 2,
            "learning_rate": 1e-3,
            "adam_epsilon": 1.0,  # so that a step follows the gradient, not its sign
            "dataloader_num_workers": 0,
        }
        script.main(script.parse_args([f"--{name}={value}" for name, value in options.items()]))
        (events,) = output.glob("logs/**/events.*.0")
        accumulator = EventAccumulator(str(events)).Reload()
        return {
            name: np.array([event.value for event in accumulator.Scalars(name)])[:, None] for name in ("loss", "lr")
        }


def all_results() -> dict[str, np.ndarray]:
    results = {**pose_transfer(), **edits(), **inversion(), **sequence(), **training()}
    # Every third pixel shows a difference as well, and keeps the file small.
    return {name: array[..., ::3, ::3, :] if array.shape[-1] == 3 else array for name, array in results.items()}


if __name__ == "__main__":
    np.savez_compressed(STORED, cpu=torch.backends.cpu.get_cpu_capability(), **all_results())
