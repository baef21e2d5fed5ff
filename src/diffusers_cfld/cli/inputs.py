"""Options of the commands that say where poses come from and how photos and poses are fitted to the model."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .options import open_image

if TYPE_CHECKING:
    import PIL.Image

    from ..pipelines.pipeline_cfld import CFLDPipeline
    from ..pose.keypoints import Keypoints
    from ..pose_estimation import PoseEstimator
    from ..processors.cropping import CropWindow

logger = logging.getLogger(__name__)


def add_pose_options(parser: argparse.ArgumentParser) -> None:
    """Add the options.

    Args:
        parser: Of a command with `--image`.
    """
    group = parser.add_argument_group("own photos and poses")
    group.add_argument(
        "--source-pose",
        nargs="+",
        metavar="F",
        help="the person's pose in each --image; crops the photo to the person",
    )
    group.add_argument(
        "--source-frame",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the picture that --source-pose was measured on, if not what the file says; without it "
        "CSV rows are read as 256x176 and other files that say nothing as of the photo's own size",
    )
    group.add_argument("--source-row", metavar="NAME", help="which row of a CSV file with several, as --source-pose")
    group.add_argument("--source-person", type=int, metavar="N", help="which person of an OpenPose file, likewise")
    group.add_argument(
        "--source-box",
        nargs=4,
        type=float,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="where the person is in --image, in pixels, instead",
    )
    group.add_argument(
        "--background",
        metavar="COLOR",
        help="beyond the photo's edges (default: as they are) and behind its transparent parts (default: white)",
    )
    group.add_argument(
        "--align",
        action="store_true",
        help="give the target poses the proportions and place of the person in --image (needs the source's pose)",
    )
    group.add_argument(
        "--pose-estimator",
        choices=("vitpose", "rtmpose"),
        help="find poses in pictures: those given as poses, and those of --image where they are needed",
    )
    group.add_argument(
        "--pose-weights", metavar="F", help="of the estimator: ViTPose's folder or Hub id, RTMPose's ONNX file"
    )
    group.add_argument(
        "--detector-weights", metavar="F", help="of a person detector before it, for pictures with several people"
    )


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files of target poses are read.

    Args:
        parser: Of a command with `--pose`.
    """
    parser.add_argument(
        "--pose-frame",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the picture that the keypoints were measured on, if not what the file says; "
        "without it arrays and CSV rows are read as 256x176 and OpenPose files have to say it; poses on another shape "
        "than the model's photos are brought into it, around the person",
    )
    parser.add_argument("--pose-row", metavar="NAME", help="which row of a CSV file with several")
    parser.add_argument("--pose-person", type=int, metavar="N", help="which person of an OpenPose file, from 0")


def load_estimator(args: argparse.Namespace) -> PoseEstimator | None:
    """Load the estimator that the options name.

    Args:
        args: Parsed options of [`add_pose_options`].

    Returns:
        The estimator, or None.

    Raises:
        ImportError: A library is missing.
        OSError: Its weights are not there.
        ValueError: The options do not go together.
    """
    if args.pose_estimator is None:
        if args.pose_weights or args.detector_weights:
            raise ValueError("--pose-weights and --detector-weights need --pose-estimator.")
        return None
    if not args.pose_weights:
        raise ValueError(f"--pose-estimator {args.pose_estimator} needs --pose-weights.")
    if args.pose_estimator == "rtmpose":
        from ..pose_estimation import RTMPoseEstimator

        return RTMPoseEstimator(args.pose_weights, args.detector_weights)
    from ..pose_estimation import ViTPoseEstimator

    try:
        return ViTPoseEstimator.from_pretrained(
            args.pose_weights, args.detector_weights, local_files_only=args.local_files_only
        )
    except OSError as error:
        names = f"--pose-weights {args.pose_weights!r}"
        names += f" or --detector-weights {args.detector_weights!r}" if args.detector_weights else ""
        raise OSError(f"{names} cannot be loaded: {error}") from error


def check_target_options(args: argparse.Namespace, paths: Sequence[str]) -> None:
    """Refuse options that say how keypoint files are read where all poses are pictures.

    Args:
        args: Parsed options of [`add_target_options`].
        paths: The poses' files.

    Raises:
        ValueError: There is such an option.
    """
    from ..image_utils import is_image

    if all(is_image(Path(path)) for path in paths):
        for name in ("pose_row", "pose_frame"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for keypoint files, but --pose names pictures.")


def read_target(args: argparse.Namespace, path: str, estimator: PoseEstimator | None) -> Keypoints:
    """Read a target pose from a keypoint file or from a picture.

    Args:
        args: Parsed options of [`add_target_options`].
        path: The file.
        estimator: For pictures.

    Returns:
        The pose, as it was measured.

    Raises:
        OSError: The file is not there or is no picture.
        ValueError: It holds no pose, or is a picture without an estimator.
    """
    from ..image_utils import is_image
    from ..pose.estimation import estimate_pose
    from ..pose.keypoints import Keypoints

    if not is_image(Path(path)):
        frame = tuple(args.pose_frame) if args.pose_frame else None
        with naming_options():
            return Keypoints.load(path, size=frame, person=args.pose_person, row=args.pose_row)
    if estimator is None:
        raise ValueError(
            f"--pose names the picture {path!r}: --pose-estimator and --pose-weights must say how its pose is found."
        )
    try:
        return estimate_pose(open_image(path, "--pose"), estimator, args.pose_person or 0)
    except ValueError as error:
        raise ValueError(f"--pose names {path!r}: {error}") from error


def bring_into_frame(poses: list[Keypoints], pipe: CFLDPipeline, path: str | None = None) -> list[Keypoints]:
    """Bring target poses into the model's frame, around the person, where they were measured on another shape.

    Args:
        poses: Of one sequence, all measured on pictures of one size; they share a window.
        pipe: The model.
        path: The file that they come from; people found in pictures are brought into the frame in any case, as the
            pipeline does.

    Returns:
        The poses in their window.
    """
    from ..image_utils import is_image
    from ..processors.cropping import fit_keypoints

    is_framed = pipe.pose_processor.choose_crop(poses[0].size).is_whole_image
    if pipe.image_shape is None or (is_framed and not (path is not None and is_image(Path(path)))):
        return poses
    return fit_keypoints(poses, shape=pipe.image_shape)


@contextmanager
def naming_options(prefix: str = "pose") -> Iterator[None]:
    """Say the options' names in the place of Python's arguments, in errors about keypoint files.

    Args:
        prefix: Of the options.

    Raises:
        ValueError: As came.
    """
    try:
        yield
    except ValueError as error:
        text = re.sub(r"`person=(\d+)` to `(\d+)`", rf"--{prefix}-person \1 to \2", str(error))
        text = re.sub(r"`person=(\d+)`", rf"--{prefix}-person \1", text)
        text = text.replace("`row=` and its name", f"--{prefix}-row and its name")
        text = text.replace("`size=(height, width)`", f"--{prefix}-frame HEIGHT WIDTH")
        raise ValueError(text) from error


def check_source_options(args: argparse.Namespace, num_images: int, estimator: PoseEstimator | None) -> None:
    """Check the options about the source photos before the model is loaded.

    Args:
        args: Parsed options of [`add_pose_options`].
        num_images: How many photos there are.
        estimator: As of [`fit_sources`].

    Raises:
        ValueError: The options do not go together, or `--background` is no colour.
    """
    from ..processors.cropping import parse_color

    if args.background is not None:
        try:
            parse_color(args.background)
        except ValueError as error:
            raise ValueError(str(error).replace("`background`", "--background")) from error
    if args.source_pose and args.source_box:
        raise ValueError("--source-pose and --source-box both say where the person is: leave one out.")
    if args.source_pose and len(args.source_pose) != num_images:
        raise ValueError(f"--source-pose needs a file for each --image, got {len(args.source_pose)} for {num_images}.")
    if args.source_box and num_images != 1:
        raise ValueError(f"--source-box is for a single --image, got {num_images}.")
    if args.align and not args.source_pose and (estimator is None or args.source_box):
        raise ValueError(
            "--align needs the source's pose: give --source-pose, or --pose-estimator to find it, and no --source-box."
        )
    for name in ("source_row", "source_person", "source_frame"):
        if getattr(args, name) is not None and not args.source_pose:
            raise ValueError(f"--{name.replace('_', '-')} needs --source-pose.")


class SourcePhotos(Sequence["PIL.Image.Image"]):
    """The source photos; more than two of them are not kept in memory, but opened anew each time.

    Args:
        paths: Their files.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self._kept: dict[int, PIL.Image.Image] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> PIL.Image.Image:  # type: ignore[override]
        if number in self._kept:
            return self._kept[number]
        photo = open_image(self.paths[number])
        if len(self) <= 2:
            self._kept[number] = photo
        return photo


def fit_sources(
    args: argparse.Namespace, photos: SourcePhotos, estimator: PoseEstimator | None, pipe: CFLDPipeline
) -> list[tuple[CropWindow, Keypoints | None]]:
    """Choose the part of each source photo that the model is to see, as the options say.

    Args:
        args: Parsed options of [`add_pose_options`].
        photos: The photos.
        estimator: Finds the person where no option says where they are, if the photo's shape or `--align` asks for it.
        pipe: The model, whose photos' shape it is.

    Returns:
        For each photo the frame, for [`crop_source`], and the person's pose in it if it is known.

    Raises:
        OSError: A photo cannot be read or a pose file is not there.
        ValueError: A pose was measured on another photo, or nobody is in a photo.
    """
    from ..pose.estimation import estimate_pose
    from ..pose.keypoints import Keypoints
    from ..processors.cropping import DEEPFASHION_SIZE, CropWindow, choose_crop, has_shape

    shape = pipe.image_shape or DEEPFASHION_SIZE
    fitted: list[tuple[CropWindow, Keypoints | None]] = []
    for number, path in enumerate(photos.paths):
        image = photos[number]
        size = (image.height, image.width)
        keypoints = None
        has_frame = pipe.source_image_processor.choose_crop(size).is_whole_image
        if args.source_pose:
            file = args.source_pose[number]
            with naming_options("source"):
                frame = tuple(args.source_frame) if args.source_frame else _frame_of(file, size)
                keypoints = Keypoints.load(file, size=frame, person=args.source_person, row=args.source_row)
            if not has_shape(keypoints.size, size):
                raise ValueError(
                    f"--source-pose {args.source_pose[number]!r} was measured on a picture of {keypoints.size[0]}x"
                    f"{keypoints.size[1]} (height x width), which is not the shape of {path!r}, {size[0]}x{size[1]} "
                    "when upright."
                )
            keypoints = keypoints.rescale(size)
        elif estimator is not None and not args.source_box and (args.align or not has_frame):
            try:
                keypoints = estimate_pose(image, estimator)
            except ValueError as error:
                raise ValueError(f"--image names {path!r}: {error}") from error
        if keypoints is None and args.source_box is None:
            if has_frame:
                fitted.append((CropWindow(0, 0, *size, size), None))
                continue
            logger.info(
                "%s is not of the shape %d:%d and is padded; --source-pose or --source-box crop it.", path, *shape
            )
        photo_frame = choose_crop(size, keypoints, args.source_box, shape=shape)
        fitted.append((photo_frame, None if keypoints is None else photo_frame.move(keypoints)))
    return fitted


def crop_source(args: argparse.Namespace, image: PIL.Image.Image, frame: CropWindow) -> PIL.Image.Image:
    """Cut out of a source photo what the model is to see.

    Args:
        args: Parsed options of [`add_pose_options`].
        image: The photo.
        frame: From [`fit_sources`].

    Returns:
        The photo, cropped and padded to the frame.
    """
    return image if frame.is_whole_image and args.background is None else frame.crop(image, args.background)


def _frame_of(path: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """The photo's size for files that do not say on what they were measured; None for those that do, and for CSV."""
    from ..pose.formats import tells_frame

    suffix = Path(path).suffix.lower()
    if suffix in (".csv", ".txt"):
        return None  # the field's frame
    if suffix != ".json":
        return size
    text = Path(path).read_text(encoding="utf-8-sig") if Path(path).is_file() else ""
    return None if tells_frame(text) else size
