"""What the commands that make pictures have in common."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..image_utils import unsquash_size
from ..io_utils import write_file
from ..small_model import SAMPLING_OPTIONS

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from ..pipelines.pipeline_cfld import CFLDPipeline

DTYPES = ("float32", "float16", "bfloat16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs, and where.

    Args:
        parser: Of a command.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="DIR_OR_ID", help="pipeline folder or Hub id (default: the small model of drawn figures)"
    )
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    group.add_argument("--dtype", choices=DTYPES, help="default float16 on a GPU, float32 on a CPU")
    group.add_argument("--variant", metavar="V", help="weights variant, e.g. fp16")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit on the Hub")
    group.add_argument("--token", metavar="T", help="Hub token of a private model")
    group.add_argument("--local-files-only", action="store_true", help="never ask the Hub")
    group.add_argument("--offload", action="store_true", help="keep models on the CPU until each is needed")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the denoising.

    Args:
        parser: Of a command.
    """
    small_steps, small_scale = SAMPLING_OPTIONS["num_inference_steps"], SAMPLING_OPTIONS["guidance_scale"]
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--steps", type=int, metavar="N", help=f"denoising steps (default 50; with the small model {small_steps})"
    )
    group.add_argument("--scheduler", metavar="NAME", help="scheduler class of diffusers, e.g. DDIMScheduler")
    group.add_argument(
        "--guidance-scale",
        type=float,
        metavar="X",
        help=f"both weights (default 2.0; with the small model {small_scale:g})",
    )
    group.add_argument("--pose-guidance-scale", type=float, metavar="X", help="weight of the pose alone")
    group.add_argument("--appearance-guidance-scale", type=float, metavar="X", help="weight of the source alone")
    group.add_argument("--height", type=int, metavar="H", help="height in pixels, a multiple of 8")
    group.add_argument("--width", type=int, metavar="W", help="width in pixels, a multiple of 8")
    group.add_argument(
        "--output-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="final resize, e.g. 256 176 (default: the generated height in the shape of the training photos, so that "
        "nobody is stretched; none if --height or --width is given)",
    )


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Turn the options of [`add_sampling_options`] into arguments of the pipeline.

    Args:
        args: Parsed, together with those of [`add_model_options`].

    Returns:
        Keyword arguments. What is not given is the pipeline's default, or what suits the small model if that runs.

    Raises:
        ValueError: A number is out of range.
    """
    check_at_least(args, steps=1)
    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    defaults = SAMPLING_OPTIONS if args.model is None else {}
    return {
        **defaults,
        **{name: value for name, value in given.items() if value is not None},
        "height": args.height,
        "width": args.width,
        "pose_guidance_scale": args.pose_guidance_scale,
        "appearance_guidance_scale": args.appearance_guidance_scale,
        "output_size": None,
    }


def output_size(pipe: CFLDPipeline, args: argparse.Namespace) -> tuple[int, int] | None:
    """Choose the size of the pictures.

    Args:
        pipe: The pipeline.
        args: Parsed options of [`add_sampling_options`].

    Returns:
        (height, width): as asked for; else the generated height at the shape of the photos of the training, which the
        pipeline squashes; None where a generated size is asked for.
    """
    if args.output_size:
        return tuple(args.output_size)
    frame = pipe.image_shape
    if args.height or args.width or frame is None:
        return None
    return unsquash_size(pipe.target_size, frame)


def best_device() -> str:
    """Choose the fastest kind of device.

    Returns:
        "cuda", "mps" or "cpu".
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_pipeline(args: argparse.Namespace) -> CFLDPipeline:
    """Load the model that the options name.

    Args:
        args: Parsed options of [`add_model_options`] and [`add_sampling_options`].

    Returns:
        The pipeline, on its device and with its scheduler.

    Raises:
        OSError: The model is not found or cannot be loaded.
        ValueError: The scheduler or the device is none.
    """
    import diffusers
    import torch

    from ..pipelines.loading import find_only_variants
    from ..pipelines.pipeline_cfld import CFLDPipeline
    from ..small_model import SMALL_MODEL

    device = args.device or best_device()
    if args.offload and device.startswith("cpu"):
        reason = f"got --device {args.device}" if args.device else "there is none here"
        raise ValueError(f"--offload needs a GPU to load the models onto, {reason}.")
    default_dtype = torch.float32 if device.startswith("cpu") else torch.float16
    dtype = getattr(torch, args.dtype) if args.dtype else default_dtype
    scheduler = None
    if args.scheduler:
        scheduler = getattr(diffusers, args.scheduler, None)
        if not hasattr(scheduler, "set_timesteps"):
            raise ValueError(
                f"--scheduler must be a scheduler class of diffusers, e.g. DDIMScheduler, got {args.scheduler!r}."
            )
    model = str(SMALL_MODEL) if args.model is None else args.model
    if Path(model).is_dir() and not (Path(model) / "model_index.json").is_file():
        raise OSError(
            f"--model names the folder {model!r}, which is not a pipeline: it has no model_index.json. Convert a "
            "published checkpoint with `diffusers-cfld convert`."
        )
    options = {name: value for name in ("variant", "revision", "token") if (value := getattr(args, name)) is not None}
    if args.model is None:
        if options:
            raise ValueError(f"--{next(iter(options))} is for --model, which is not given.")
        options = {"variant": "fp16"}
    try:
        pipe: CFLDPipeline = CFLDPipeline.from_pretrained(
            model, dtype=dtype, local_files_only=args.local_files_only, **options
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        names = [] if "variant" in options else find_only_variants(model)
        if names:
            raise OSError(
                f"--model names {model!r}, which has its weights in a variant only: pass --variant "
                f"{' or '.join(names)}."
            ) from error
        # diffusers keeps the reason of a failed download in the cause.
        raise OSError(f"--model names {model!r}, which cannot be loaded: {error.__cause__ or error}") from error
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return place(pipe, device, offload=args.offload)


def place(pipe: CFLDPipeline, device: str, *, offload: bool = False) -> CFLDPipeline:
    """Bring a pipeline to where it shall run.

    Args:
        pipe: The pipeline.
        device: Value of `--device`.
        offload: Bring its models there one at a time.

    Returns:
        The pipeline itself.

    Raises:
        ValueError: There is no such device.
    """
    try:
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} cannot be used here: {error}") from error
    return pipe


def check_at_least(args: argparse.Namespace, **bounds: int) -> None:
    """Check whole numbers before any work is done.

    Args:
        args: Parsed; what is None was not given, which is fine.
        **bounds: The least that an option may be, by its name.

    Raises:
        ValueError: One is less.
    """
    for name, bound in bounds.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {bound}, got {value}.")


def check_seed(seed: int | None) -> None:
    """Check a seed before any work is done.

    Args:
        seed: As given; None is fine.

    Raises:
        ValueError: It is out of range.
    """
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be at least 0 and below 2**63, got {seed}.")


def seeded_generators(seed: int | None, first: int, count: int) -> list[torch.Generator] | None:
    """Make the generators of some pictures, so that each has its own noise, whatever batch it is made in.

    Args:
        seed: Of picture 0; None leaves everything to chance.
        first: Number of the first picture.
        count: How many.

    Returns:
        One generator for each picture, picture i with seed + i; None without a seed.
    """
    import torch

    if seed is None:
        return None
    return [torch.Generator().manual_seed(seed + first + i) for i in range(count)]


def open_image(path: str, option: str = "--image") -> PIL.Image.Image:
    """Open a picture that an option names.

    Args:
        path: The file.
        option: For the error.

    Returns:
        The picture, loaded and upright.

    Raises:
        OSError: It does not exist or is no picture.
        ValueError: Its EXIF data are damaged.
    """
    from ..image_utils import load_image

    try:
        return load_image(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{option} names {path!r}, which does not exist.") from None
    except OSError as error:
        raise OSError(f"{option} names {path!r}, which cannot be read as a picture: {error.__cause__}") from error
    except ValueError as error:
        raise ValueError(f"{option} names {path!r}: {error}") from error


def check_picture_name(path: str) -> None:
    """Check an output's name before any work is done.

    Args:
        path: The picture that will be written.

    Raises:
        ValueError: No format has this suffix.
    """
    import PIL.Image

    if PIL.Image.registered_extensions().get(Path(path).suffix.lower()) not in PIL.Image.SAVE:
        raise ValueError(f"--output must end like a picture, e.g. .png or .jpg, got {path!r}.")


def save_image(image: PIL.Image.Image, path: Path) -> None:
    """Write a picture, so that an interruption leaves no half of it.

    Args:
        image: The picture.
        path: Where; the suffix decides the format, see [`check_picture_name`].

    Raises:
        OSError: It cannot be written.
    """
    import PIL.Image

    content = io.BytesIO()
    image.save(content, format=PIL.Image.registered_extensions()[path.suffix.lower()])
    write_file(path, content.getvalue())
