"""`diffusers-cfld generate`: photos and poses in, pictures out."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .running import best_device, check_picture_name, save_image, seeded_generators

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from ..pipelines.pipeline_cfld import CFLDPipeline

logger = logging.getLogger(__name__)

_DTYPES = ("float32", "float16", "bfloat16")


def add_generate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        subparsers: Of the parser of all commands.
    """
    parser = subparsers.add_parser(
        "generate",
        help="put the person of a photo into another pose",
        description="Put the person of a photo into another pose. With several images and poses, one image goes with "
        "all poses, one pose with all images, and as many images as poses go in pairs.",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="pipeline folder or Hub id")
    parser.add_argument("--image", required=True, nargs="+", metavar="F", help="source photo(s)")
    parser.add_argument(
        "--pose",
        required=True,
        nargs="+",
        metavar="F",
        help="target pose(s): OpenPose JSON (18 or 25 joints), a CSV row of the field, or an array in .npy",
    )
    parser.add_argument(
        "--pose-frame",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the picture that the keypoints were measured on, if not what the file says; "
        "files that say nothing are read as 256x176",
    )
    parser.add_argument("--pose-row", metavar="NAME", help="which row of a CSV file with several")
    parser.add_argument("--pose-person", type=int, metavar="N", help="which person of an OpenPose file, from 0")
    parser.add_argument(
        "--output",
        default="output.png",
        metavar="F",
        help="where the picture goes (default %(default)s); several get a number before the suffix",
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="denoising steps (default %(default)s)")
    parser.add_argument("--scheduler", metavar="NAME", help="scheduler class of diffusers, e.g. DDIMScheduler")
    parser.add_argument("--seed", type=int, metavar="N", help="first seed; picture i takes seed + i")
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures for each pair")
    parser.add_argument("--guidance-scale", type=float, default=2.0, metavar="X", help="both weights (default 2.0)")
    parser.add_argument("--pose-guidance-scale", type=float, metavar="X", help="weight of the pose alone")
    parser.add_argument("--appearance-guidance-scale", type=float, metavar="X", help="weight of the source alone")
    parser.add_argument("--height", type=int, metavar="H", help="height in pixels, a multiple of 8")
    parser.add_argument("--width", type=int, metavar="W", help="width in pixels, a multiple of 8")
    parser.add_argument(
        "--output-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="final resize; the field's is 256 176"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="pairs at once (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="skip pairs whose pictures are there already")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--dtype", choices=_DTYPES, help="default float16 on a GPU, float32 on a CPU")
    parser.add_argument("--variant", metavar="V", help="weights variant, e.g. fp16")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit on the Hub")
    parser.add_argument("--token", metavar="T", help="Hub token of a private model")
    parser.add_argument("--local-files-only", action="store_true", help="never ask the Hub")
    parser.add_argument("--offload", action="store_true", help="keep models on the CPU until each is needed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute the command.

    Args:
        args: Parsed arguments of [`add_generate_parser`].

    Returns:
        0; failures raise.

    Raises:
        ImportError: `--scheduler` needs a package that is not installed.
        OSError: A file cannot be read or written, or the model is not found.
        ValueError: An argument is out of range or a file does not hold what it should.
    """
    from ..keypoints import Keypoints

    _check_arguments(args)
    # Cheap to read and likely to be wrong: before the model is loaded.
    frame = tuple(args.pose_frame) if args.pose_frame else None
    images = [_open_image(path) for path in args.image]
    poses = [Keypoints.load(path, size=frame, person=args.pose_person, row=args.pose_row) for path in args.pose]
    num_pairs = max(len(images), len(poses))
    outputs = _output_paths(Path(args.output), num_pairs * args.num_images)
    batches = []
    for start in range(0, num_pairs, args.batch_size):
        pairs = range(start, min(start + args.batch_size, num_pairs))
        paths = outputs[start * args.num_images : pairs.stop * args.num_images]
        if not (args.resume and all(path.is_file() for path in paths)):
            batches.append((pairs, paths))
    if not batches:
        logger.info("Nothing to do: every picture is there.")
        return 0

    pipe = _load_pipeline(args)
    # One source for all poses, or one pose for all sources, is encoded once.
    appearance = pipe.encode_appearance(images[0]) if len(images) == 1 else None
    pose_features = pipe.encode_pose(poses[0]) if len(poses) == 1 else None
    for pairs, paths in batches:
        (pictures,) = pipe(
            image=None if appearance is not None else [images[i] for i in pairs],
            pose=pose_features if pose_features is not None else [poses[i] for i in pairs],
            appearance=appearance,
            height=args.height,
            width=args.width,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            pose_guidance_scale=args.pose_guidance_scale,
            appearance_guidance_scale=args.appearance_guidance_scale,
            num_images_per_prompt=args.num_images,
            generator=seeded_generators(args.seed, pairs.start * args.num_images, len(paths)),
            output_size=tuple(args.output_size) if args.output_size else None,
            return_dict=False,
        )
        for image, path in zip(pictures, paths, strict=True):
            save_image(image, path)
            logger.info("%s", path)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if len(args.image) != len(args.pose) and 1 not in (len(args.image), len(args.pose)):
        raise ValueError(
            "--image and --pose must name as many files as each other, or one of them a single file, got "
            f"{len(args.image)} and {len(args.pose)}."
        )
    for name in ("steps", "num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must be at least 0 and below 2**63, got {args.seed}.")
    check_picture_name(args.output)


def _open_image(path: str) -> PIL.Image.Image:
    import PIL.Image

    try:
        image = PIL.Image.open(path)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"--image names {path!r}, which does not exist.") from None
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise OSError(f"--image names {path!r}, which cannot be read as a picture: {error}") from error
    return image


def _output_paths(output: Path, count: int) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [output]
    digits = len(str(count - 1))
    return [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]


def _load_pipeline(args: argparse.Namespace) -> CFLDPipeline:
    import diffusers
    import torch

    from ..pipelines.pipeline_cfld import CFLDPipeline

    device = args.device or best_device()
    dtype = getattr(torch, args.dtype) if args.dtype else _default_dtype(device)
    scheduler = None
    if args.scheduler:
        scheduler = getattr(diffusers, args.scheduler, None)
        if not hasattr(scheduler, "set_timesteps"):
            raise ValueError(
                f"--scheduler must be a scheduler class of diffusers, e.g. DDIMScheduler, got {args.scheduler!r}."
            )
    if Path(args.model).is_dir() and not (Path(args.model) / "model_index.json").is_file():
        raise OSError(
            f"--model names the folder {args.model!r}, which is not a pipeline: it has no model_index.json. Convert a "
            "published checkpoint with `diffusers-cfld convert`."
        )
    options = {name: value for name in ("variant", "revision", "token") if (value := getattr(args, name)) is not None}
    try:
        pipe = CFLDPipeline.from_pretrained(args.model, dtype=dtype, local_files_only=args.local_files_only, **options)
    except (OSError, ValueError, TypeError, KeyError) as error:
        # diffusers keeps the reason of a failed download in the cause.
        raise OSError(f"--model names {args.model!r}, which cannot be loaded: {error.__cause__ or error}") from error
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    if args.offload and device.startswith("cpu"):
        raise ValueError("--offload needs a GPU to load the models onto, got --device cpu.")
    try:
        if args.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} cannot be used here: {error}") from error
    return pipe


def _default_dtype(device: str) -> torch.dtype:
    import torch

    return torch.float32 if device.startswith("cpu") else torch.float16
