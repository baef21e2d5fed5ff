"""Options of the commands that make images: their types, and the pipeline and arguments that they lead to."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..small_model import SAMPLING_OPTIONS, SMALL_MODEL

if TYPE_CHECKING:
    from ..pipelines.pipeline_cfld import CFLDPipeline

DTYPES = ("float32", "float16", "bfloat16")
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Short names of diffusers' schedulers, each with the class and the options that make it."""
SIZE: dict[str, Any] = {"nargs": 2, "type": int, "metavar": ("HEIGHT", "WIDTH")}
"""Arguments of `add_argument` for options that take a size."""


def positive_int(text: str) -> int:
    """Read a whole number of at least 1.

    Args:
        text: An option's value.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: It is less than 1.
        ValueError: It is not a whole number.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def positive_float(text: str) -> float:
    """Read a number above 0.

    Args:
        text: An option's value.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: It is not above 0.
        ValueError: It is not a number.
    """
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def color(text: str) -> str:
    """Check the name of a colour.

    Args:
        text: An option's value.

    Returns:
        The name, unchanged.

    Raises:
        ValueError: Pillow does not know it.
    """
    from PIL import ImageColor

    ImageColor.getrgb(text)
    return text


def image_path(text: str) -> Path:
    """Check the name of an image to write.

    Args:
        text: An option's value.

    Returns:
        The path.

    Raises:
        argparse.ArgumentTypeError: It does not have the suffix of an image.
    """
    import PIL.Image

    path = Path(text)
    if PIL.Image.registered_extensions().get(path.suffix.lower()) not in PIL.Image.SAVE:
        raise argparse.ArgumentTypeError(f"must end in .png, .jpg or another suffix of images, got {text!r}")
    return path


def lora(text: str) -> tuple[str, float]:
    """Split a LoRA from its weight.

    Args:
        text: Value of `--lora`.

    Returns:
        The file, folder or Hub id, and the weight, which is 1 if there is none.
    """
    place, _, weight = text.rpartition(":")
    try:
        return place or text, float(weight) if place else 1.0
    except ValueError:
        return text, 1.0


@contextmanager
def naming(option: str, hint: str = "") -> Iterator[None]:
    """Put the name of an option before the message of errors about its value.

    Args:
        option: Name of the option, perhaps with its value.
        hint: Other options that may help, to be added to the message.

    Raises:
        OSError: In place of an `OSError` raised inside the block.
        ValueError: In place of a `ValueError` raised inside the block.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{option}: {error}") from error
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{option}: {error}{hint and f' (See {hint}.)'}") from error


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add `--device`.

    Args:
        parser: A command's parser, or a group in it.
    """
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs, and where.

    Args:
        parser: A command's parser.
    """
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", metavar="DIR_OR_ID", help="pipeline folder or Hub id (default: the small model of drawn figures)")
    add_device_option(group)
    add("--dtype", choices=DTYPES, help="default float16 on a GPU, float32 on a CPU")
    add("--variant", metavar="V", help="variant of the weights, e.g. fp16")
    add(
        "--lora",
        type=lora,
        action="append",
        metavar="F[:WEIGHT]",
        help="LoRA of Stable Diffusion 1.5: .safetensors file, folder or Hub id (weight: default 1); repeatable",
    )
    add("--revision", metavar="R", help="branch, tag or commit on the Hub")
    add("--token", metavar="T", help="Hub token for a private model")
    add("--local-files-only", action="store_true", help="use only local files, never the Hub")
    add("--offload", action="store_true", help="keep each part of the model on the CPU until it is needed")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling.

    Args:
        parser: A command's parser.
    """
    steps, scale = SAMPLING_OPTIONS["num_inference_steps"], SAMPLING_OPTIONS["guidance_scale"]
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=positive_int, metavar="N", help=f"denoising steps (default 50; {steps} for the small model)")
    add("--scheduler", metavar="NAME", help=f"{', '.join(SCHEDULERS)}, or a scheduler class of diffusers")
    add(
        "--guidance-scale",
        type=float,
        metavar="X",
        help=f"both scales: 1.5 to 3 is useful, 1 turns guidance off (default 2.0; {scale:g} for the small model)",
    )
    add("--pose-guidance-scale", type=float, metavar="X", help="guidance scale of the pose")
    add("--appearance-guidance-scale", type=float, metavar="X", help="guidance scale of the appearance")
    add(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("START", "STOP"),
        help="guide only between these fractions of the steps, which saves time at the others (default 0 1)",
    )
    add("--height", type=int, metavar="H", help="height to generate, in pixels, a multiple of 8")
    add("--width", type=int, metavar="W", help="width to generate, in pixels, a multiple of 8")
    add(
        "--output-size",
        **SIZE,
        help="resize results to this, e.g. 256 176 (default: to the aspect ratio of the training images, unless you "
        "set --height or --width)",
    )


def sampling_arguments(args: argparse.Namespace, pipe: CFLDPipeline) -> dict[str, Any]:
    """Turn the options of [`add_sampling_options`] into arguments of the pipeline's call.

    Args:
        args: Parsed arguments, including those of [`add_model_options`].
        pipe: The pipeline.

    Returns:
        Keyword arguments. For the small model, options that are not given have values that suit it.
    """
    names = ["guidance_scale", "pose_guidance_scale", "appearance_guidance_scale", "guidance_interval"]
    names += ["height", "width", "output_size"]
    given = {"num_inference_steps": args.steps, **{name: getattr(args, name) for name in names}}
    return {
        **(SAMPLING_OPTIONS if args.model is None else {}),
        **{name: value for name, value in given.items() if value is not None},
    }


def choose_device(name: str | None) -> str:
    """Choose where a pipeline runs.

    Args:
        name: Value of `--device`; None for the fastest kind of device that there is.

    Returns:
        An available device.

    Raises:
        ValueError: There is no such device.
    """
    import torch

    if name is None:
        fastest = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if fastest is None else fastest.type
    with naming(f"--device {name} cannot be used here"):
        torch.empty(0, device=name)
    return name


def choose_scheduler(name: str) -> tuple[Any, dict[str, Any]]:
    """Find a scheduler.

    Args:
        name: Value of `--scheduler`.

    Returns:
        The class, and the options that it is made with.

    Raises:
        ValueError: There is no such scheduler.
    """
    import diffusers

    class_name, options = SCHEDULERS.get(name.lower().replace("_", "-"), (name, {}))
    scheduler = getattr(diffusers, class_name, None)
    if not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"--scheduler must name a scheduler class of diffusers or be one of {', '.join(SCHEDULERS)}, got {name!r}."
        )
    return scheduler, options


def load_loras(pipe: CFLDPipeline, args: argparse.Namespace) -> None:
    """Load the LoRAs that the options name.

    Args:
        pipe: The pipeline.
        args: Parsed options of [`add_model_options`].

    Raises:
        OSError: A LoRA is not found, or is none for this model.
    """
    weights: dict[str, float] = {}
    for place, weight in args.lora or []:
        name = re.sub(r"\W", "_", f"{place}_{weight:g}")  # recorded beside an animation's frames
        options = {"token": args.token, "local_files_only": args.local_files_only, "use_safetensors": True}
        if place.endswith(".safetensors") and not Path(place).is_file():
            raise FileNotFoundError(f"--lora {place}: there is no such file.")
        try:
            pipe.load_lora_weights(place, adapter_name=name, **options)
        except Exception as error:  # of safetensors, peft, the Hub and others
            raise OSError(f"--lora {place}: it cannot be loaded: {error}") from error
        weights[name] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def load_pipeline(args: argparse.Namespace) -> CFLDPipeline:
    """Load the model that the options name.

    Args:
        args: Parsed options of [`add_model_options`] and [`add_sampling_options`].

    Returns:
        The pipeline, on its device and with its scheduler and LoRAs.

    Raises:
        OSError: The model or a LoRA is not found or cannot be loaded.
        ValueError: There is no such device or scheduler.
    """
    import torch

    from ..pipelines.pipeline_cfld import CFLDPipeline

    device = choose_device(args.device)
    if args.offload and device == "cpu":
        raise ValueError("--offload needs a GPU, but this would run on the CPU: leave it out.")
    scheduler, options = choose_scheduler(args.scheduler) if args.scheduler else (None, {})
    model, variant = (args.model, args.variant) if args.model else (SMALL_MODEL, "fp16")
    try:
        pipe = CFLDPipeline.from_pretrained(
            model,
            dtype=getattr(torch, args.dtype or ("float32" if device == "cpu" else "float16")),
            variant=variant,
            revision=args.revision,
            token=args.token,
            local_files_only=args.local_files_only,
        )
    except Exception as error:
        # If a download failed, diffusers gives the reason as the cause of its error.
        failure = "it cannot be loaded" if Path(model).is_dir() else "there is no such folder or model on the Hub"
        reason = f"{failure}: {error.__cause__ or error}"
        variants = {file.name.split(".")[1].split("-")[0] for file in Path(model).glob("unet/*model.*.safetensors")}
        if variants and not variant:
            reason = f"it only has variants of the weights: pass --variant {' or '.join(sorted(variants))}."
        raise OSError(f"--model {model}: {reason}") from error
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    load_loras(pipe, args)
    if args.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe
