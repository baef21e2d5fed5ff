"""What the commands `generate`, `animate` and `interpolate` read: source images and poses."""

from __future__ import annotations

import argparse
import logging
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from ..small_model import example_poses, example_source_poses, example_sources
from .options import SIZE, add_model_options, add_sampling_options, color, naming

if TYPE_CHECKING:
    import PIL.Image

    from ..pipelines.pipeline_cfld import CFLDPipeline
    from ..pose.keypoints import Keypoints
    from ..pose_estimation import PoseEstimator
    from ..processors.cropping import CropWindow

logger = logging.getLogger(__name__)

SAMPLE = "sample"
"""In place of a file: the drawn person or the pose that comes with the package."""


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of source images, sampling and model.

    Args:
        parser: Parser of a command with `--image`.
    """
    group = parser.add_argument_group("your own images and poses")
    add = group.add_argument
    person = group.add_mutually_exclusive_group()
    person.add_argument(
        "--source-pose", nargs="+", metavar="F", help="pose of the person in each --image, to crop it to the person"
    )
    person.add_argument(
        "--source-box",
        nargs=4,
        type=float,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="box of the person in each --image instead, in pixels",
    )
    add(
        "--source-frame",
        **SIZE,
        help="size in pixels of the image that --source-pose was measured on (default: the size in the file; without "
        "one, 256 176 for CSV rows and the size of --image for other files)",
    )
    add("--source-row", metavar="NAME", help="name of the image to read if --source-pose has several")
    add("--source-person", type=int, metavar="N", help="which person to read if --source-pose has several, from 0")
    add(
        "--background",
        type=color,
        metavar="COLOR",
        help="colour beyond the edges of the image (default: the colour of the edges) and behind transparent parts "
        "(default: white)",
    )
    add("--align", action="store_true", help="give target poses the proportions and place of the person in --image")
    add("--pose-estimator", choices=("vitpose", "rtmpose"), help="finds the poses in images, for --image and --pose")
    add("--pose-weights", metavar="F", help="the estimator's weights: folder or Hub id (ViTPose), ONNX file (RTMPose)")
    add("--detector-weights", metavar="F", help="weights of a person detector, for images with several people")
    add_sampling_options(parser)
    add_model_options(parser)


def add_pose_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files of target poses are read.

    Args:
        parser: Parser of a command with `--pose` or `--poses`.
    """
    parser.add_argument(
        "--pose-frame",
        **SIZE,
        help="size in pixels of the image that the keypoints were measured on (default: the size in the file; without "
        "one, 256 176 for arrays and CSV rows; OpenPose files need one); if its aspect ratio is not the model's, the "
        "poses are cropped to the person",
    )
    parser.add_argument(
        "--pose-person", type=int, metavar="N", help="which person to read if there are several, from 0"
    )


class Target(NamedTuple):
    """A target pose, as it was measured."""

    keypoints: Keypoints
    is_estimated: bool


class Inputs:
    """Source images and poses, read and checked before a model is loaded.

    Args:
        args: Parsed options of [`add_common_options`] and [`add_pose_options`], with `image`.

    Attributes:
        sizes: (height, width) of each source image, pixels.
        source_poses: The person's pose in each image, if `--source-pose` gives it.

    Raises:
        ImportError: The library of the estimator is missing.
        OSError: A file cannot be read.
        ValueError: A file does not have the right content, or options contradict each other.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.paths: list[str] = [args.image] if isinstance(args.image, str) else args.image
        # Keeps few images in memory, and reads a single one only once, since it may come through a pipe.
        self.open = lru_cache(maxsize=2)(open_image)
        self.estimator = _load_estimator(args)
        files = args.source_pose or []
        if files and len(files) != len(self.paths):
            raise ValueError(f"--source-pose needs one file per --image, got {len(files)} for {len(self.paths)}.")
        if args.align and not files and (self.estimator is None or args.source_box):
            raise ValueError("--align needs the pose of the person in --image: use --source-pose or --pose-estimator.")
        self.sizes = [(image.height, image.width) for image in map(self.open, self.paths)]
        self.source_poses = [self._read_source_pose(*pair) for pair in zip(files, self.sizes, strict=False)]

    def _read_source_pose(self, file: str, image_size: tuple[int, int]) -> Keypoints:
        from ..pose.keypoints import Keypoints
        from ..processors.cropping import has_shape

        args = self.args
        if file == SAMPLE:
            pose = example_source_poses()[0]
        else:
            size = args.source_frame or _size_unless_said(file, image_size)
            with naming("--source-pose", "--source-frame, --source-person and --source-row"):
                pose = Keypoints.load(file, size=size, person=args.source_person, row=args.source_row)
        if not has_shape(pose.size, image_size):
            raise ValueError(
                f"--source-pose: {file!r} was measured on an image of {pose.size[0]}x{pose.size[1]} (height x width), "
                f"but --image is {image_size[0]}x{image_size[1]} when upright: measure it on an image with the same "
                "aspect ratio."
            )
        return pose.rescale(image_size)

    def read_poses(self, paths: list[str]) -> list[Target]:
        """Read target poses from keypoint files, from images, and from folders and videos of these.

        Args:
            paths: The files and folders; `sample` is a pose that comes with the package.

        Returns:
            The poses, as they were measured.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file has no pose, or is an image of people and there is no estimator.
        """
        import PIL.Image

        from ..image_utils import is_image, load_image
        from ..pose.images import expand_series, find_person, is_series
        from ..pose.keypoints import Keypoints

        args, targets = self.args, []
        for path in paths:
            is_plain = path != SAMPLE and not is_series(path) and not is_image(path)
            hint = "--pose-frame, --pose-person and --pose-row" if is_plain else ""
            with naming("--pose" if is_plain else f"--pose {path}", hint):
                for item in expand_series(path) if is_series(path) else [path]:
                    if item == SAMPLE:
                        targets.append(Target(example_poses()[3], False))
                    elif isinstance(item, PIL.Image.Image) or is_image(item):
                        targets.append(Target(*find_person(load_image(item), self.estimator, args.pose_person)))
                    else:
                        pose = Keypoints.load(item, size=args.pose_frame, person=args.pose_person, row=args.pose_row)
                        targets.append(Target(pose, False))
        return targets

    def digest(self, poses: list[Keypoints]) -> str:
        """Compute the SHA-256 of images and poses.

        Args:
            poses: The target poses.

        Returns:
            Hexadecimal digits.
        """
        import numpy as np

        from ..image_utils import to_rgb
        from ..sequences import digest_arrays

        images = (np.asarray(to_rgb(self.open(path))) for path in self.paths)
        joints = ((pose.size, pose.to_array()) for pose in (*poses, *self.source_poses))
        return digest_arrays(chain(images, *joints))

    def fit_sources(self, pipe: CFLDPipeline) -> list[tuple[CropWindow, Keypoints | None]]:
        """Choose the part of each source image that the model sees.

        Args:
            pipe: The model.

        Returns:
            For each image, the window, for [`crop`], and the person's pose in it if known.

        Raises:
            ValueError: Nobody is found in an image, or `--source-box` does not fit it.
        """
        from ..pose.estimation import estimate_pose
        from ..pose.formats import DEEPFASHION_SIZE
        from ..processors.cropping import choose_crop

        args, shape = self.args, pipe.image_shape or DEEPFASHION_SIZE
        fitted = []
        for number, (path, size) in enumerate(zip(self.paths, self.sizes, strict=True)):
            pose = self.source_poses[number] if self.source_poses else None
            window = pipe.source_image_processor.choose_crop(size)
            with naming(f"--image {path}"):
                if self.estimator and not (pose or args.source_box) and (args.align or not window.is_whole_image):
                    pose = estimate_pose(self.open(path), self.estimator)
                if pose or args.source_box:
                    window = choose_crop(size, pose, args.source_box, shape=shape)
                elif not window.is_whole_image:
                    logger.info("%s is padded to %d:%d; use --source-pose or --source-box to crop it.", path, *shape)
            fitted.append((window, window.move(pose) if pose else None))
        return fitted

    def crop(self, number: int, window: CropWindow) -> PIL.Image.Image:
        """Crop a source image to the part that the model sees.

        Args:
            number: Number of the image.
            window: From [`fit_sources`].

        Returns:
            The image, cropped and padded.
        """
        return window.crop(self.open(self.paths[number]), self.args.background)

    def fit_poses(
        self, pipe: CFLDPipeline, poses: list[Keypoints], body: Keypoints | None, is_estimated: bool = False
    ) -> list[Keypoints]:
        """Align target poses with the source's body, or crop them to the model's aspect ratio, around the person.

        Args:
            pipe: The model.
            poses: The poses of one sequence, all measured on images of one size; they share a window.
            body: The source's pose, from [`fit_sources`].
            is_estimated: Whether an estimator found them; such poses are always cropped, as in the pipeline.

        Returns:
            The poses as the model sees them.
        """
        from ..pose.alignment import align_pose
        from ..processors.cropping import fit_keypoints

        if self.args.align and body:
            return align_pose(poses, body)
        fits = pipe.pose_processor.choose_crop(poses[0].size).is_whole_image and not is_estimated
        return poses if fits or pipe.image_shape is None else fit_keypoints(poses, shape=pipe.image_shape)


def open_image(path: str) -> PIL.Image.Image:
    """Open a source image.

    Args:
        path: The file, a URL, or `sample` for the person that comes with the package.

    Returns:
        The image, upright.

    Raises:
        OSError: The file does not exist or is not an image.
        ValueError: Its EXIF data are damaged.
    """
    from ..image_utils import load_image

    if path == SAMPLE:
        return example_sources()[0]
    with naming("--image"):
        return load_image(path)


def _load_estimator(args: argparse.Namespace) -> PoseEstimator | None:
    if bool(args.pose_estimator) != bool(args.pose_weights) or (args.detector_weights and not args.pose_weights):
        raise ValueError(
            "--pose-estimator and --pose-weights must be given together, and --detector-weights only with them."
        )
    if args.pose_estimator is None:
        return None
    from ..pose_estimation import RTMPoseEstimator, ViTPoseEstimator

    weights = (args.pose_weights, args.detector_weights)
    if args.pose_estimator == "rtmpose":
        return RTMPoseEstimator(*weights)
    with naming("--pose-weights, --detector-weights"):
        return ViTPoseEstimator.from_pretrained(*weights, local_files_only=args.local_files_only)


def _size_unless_said(path: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size of the image for keypoint files that do not contain one; None for the others."""
    from ..pose.reading import has_size, load_images

    try:
        images = load_images(path).values()
    except (OSError, ValueError):  # reported when the pose is read
        return None
    # Lines of annotation files are strings, measured on images of DeepFashion's size.
    return None if any(isinstance(image, str) or has_size(image) for image in images) else size
