"""Data sets of pose pairs for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, default_collate

from ..image_utils import as_pair, read_size
from ..pose.formats import DEEPFASHION_SIZE, Size
from ..pose.keypoints import Keypoints
from ..processors.cropping import CropWindow, has_shape, padding_crop
from ..processors.pose_map import render_pose_map
from ..processors.source_image import SourceImageProcessor
from .pairs import PosePair, read_image, read_image_size
from .skip_report import MAX_IN_A_ROW, UnreadableDataError, UnreadableImageError

_MAX_TRIES = 1000
_FLIP_STREAM = 1  # separates these random numbers from others of the same seed

Item = TypeVar("Item")


class PairTransform:
    """Turn a pair into tensors.

    Images of another aspect ratio than `image_shape` are padded to it with the colour of their edges, as the pipeline
    does, and keypoints move along. Keypoints that were measured on an image of another aspect ratio are refused.

    The published code (YanzuoLu/CFLD `datasets/deepfashion.py` @ f2ea2a7) flips only the source image, with
    probability 0.5, so that the left and right sides of a garment cannot be learned. Here this is off by default; see
    docs/deviations.md.

    Args:
        source_size: (height, width) of the source encoder's input, or one number for a square; pixels.
        image_size: (height, width) of the VAE's input, or one number for a square; pixels.
        pose_size: (height, width) of the pose maps, or one number for a square; pixels.
        image_shape: (height, width) with the aspect ratio that images are padded to, the `frame_height` and
            `frame_width` of the pipeline. None: every image is squashed.
        flip_source_prob: Probability in [0, 1] that `source_image` is flipped, and nothing else.
        load_pixel_values: Whether items have `source_pixel_values` and `target_pixel_values`, the VAE's input, which
            is not needed if its latents are cached.
        seed: Seed of the flips, >= 0.

    Raises:
        ValueError: The probability is outside [0, 1].
    """

    def __init__(
        self,
        source_size: int | Sequence[int] = 256,
        image_size: int | Sequence[int] = 512,
        pose_size: int | Sequence[int] = 256,
        *,
        image_shape: Size | None = DEEPFASHION_SIZE,
        flip_source_prob: float = 0.0,
        load_pixel_values: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 <= flip_source_prob <= 1:
            raise ValueError(f"`flip_source_prob` must be in [0, 1], got {flip_source_prob}.")
        self.source_processor = SourceImageProcessor(*as_pair(source_size))
        self.image_processor = SourceImageProcessor(*as_pair(image_size))
        self.pose_size = as_pair(pose_size)
        self.image_shape = image_shape
        self.flip_source_prob = flip_source_prob
        self.load_pixel_values = load_pixel_values
        self.seed = seed

    def __call__(self, pair: PosePair, index: int, epoch: int) -> dict[str, Any]:
        """Read a pair.

        Args:
            pair: The pair.
            index: Its number in the data set. Seed, `epoch` and `index` decide whether `source_image` is flipped.
            epoch: Number of the epoch, >= 0.

        Returns:
            A dict of `source_image` (3, *source_size), `source_pixel_values` and `target_pixel_values`
            (3, *image_size), each float32 in [-1, 1]; `source_pose_map` and `target_pose_map` (21, *pose_size),
            float32, [0, 1]; and `index`. Without `load_pixel_values`, there are no pixel values, and only the header
            of the target image is read.

        Raises:
            UnreadableImageError: An image cannot be read or has another aspect ratio than the image that its keypoints
                were measured on.
        """
        shape = self.image_shape
        source, source_pose = read_padded(pair.source, pair.source_name, pair.source_keypoints, shape)
        item: dict[str, Any] = {"source_image": self.source_processor.preprocess(source)[0]}
        if self.flip_source_prob:
            random = np.random.default_rng([_FLIP_STREAM, self.seed, epoch, index])
            if random.random() < self.flip_source_prob:
                item["source_image"] = item["source_image"].flip(-1)
        if self.load_pixel_values:
            target, target_pose = read_padded(pair.target, pair.target_name, pair.target_keypoints, shape)
            item["source_pixel_values"] = self.image_processor.preprocess(source)[0]
            item["target_pixel_values"] = self.image_processor.preprocess(target)[0]
        else:
            target_size = read_image_size(pair.target, pair.target_name)
            _, target_pose = _fit(target_size, pair.target, pair.target_name, pair.target_keypoints, shape)
        item["source_pose_map"] = torch.from_numpy(render_pose_map(source_pose, self.pose_size))
        item["target_pose_map"] = torch.from_numpy(render_pose_map(target_pose, self.pose_size))
        item["index"] = index
        return item


class PosePairDataset(Dataset[dict[str, Any]]):
    """Pairs of images and pose maps; images are read and maps are drawn on access.

    An item depends only on the pairs, the arguments, the epoch and its index, not on the worker that makes it. A pair
    whose images cannot be used is replaced by the next readable one, so that all processes keep the same number of
    batches; `skipped` of the item names these images. Images of other shapes than `image_shape` are padded, see
    [`PairTransform`].

    Args:
        pairs: The pairs, at least one.
        *sizes: As in [`PairTransform`].
        **options: Likewise, for example `image_shape`.

    Raises:
        ValueError: There are no pairs, or as in [`PairTransform`].

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from diffusers_cfld.data import PosePairDataset, collate_pose_pairs, init_worker, load_pairs
        >>> dataset = PosePairDataset(load_pairs("deepfashion"), flip_source_prob=0.5)  # doctest: +SKIP
        >>> loader = DataLoader(
        ...     dataset, batch_size=8, shuffle=True, num_workers=4, collate_fn=collate_pose_pairs,
        ...     worker_init_fn=init_worker,
        ... )  # doctest: +SKIP
    """

    def __init__(self, pairs: Sequence[PosePair], *sizes: int | Sequence[int], **options: Any) -> None:
        if not len(pairs):
            raise ValueError("`pairs` must have at least one pair, got none.")
        self.pairs = pairs
        self.transform = PairTransform(*sizes, **options)
        # In shared memory, for workers that live longer than an epoch.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call, unused-ignore]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the flips depend; call this before iterating over an epoch.

        Accelerate's loaders call it with their own count of epochs, which starts at 0 in a resumed run; set
        `loader.iteration` to change that.

        Args:
            epoch: Number of the epoch, >= 0.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a pair.

        Args:
            index: Its number; negative ones count from the end.

        Returns:
            A dict of `source_image` (3, *source_size), `source_pixel_values` and `target_pixel_values`
            (3, *image_size), each float32 in [-1, 1]; `source_pose_map` and `target_pose_map` (21, *pose_size),
            float32, [0, 1]; `index`, the number of the pair that was finally read; and `skipped`, a list with (path,
            reason) for each image that could not be read.

        Raises:
            IndexError: There is no such pair.
            UnreadableDataError: 32 images in a row cannot be read, or none can.
        """
        epoch = int(self._epoch)
        return first_readable(
            _from(index, len(self)), lambda number: self.transform(self.pairs[number], number, epoch)
        )


class ImageDataset(Dataset[dict[str, Any]]):
    """Single images as input of the VAE, for computing latents before training.

    Args:
        images: Paths, at least one; see [`unique_images`].
        image_size: (height, width) of the VAE's input, or one number for a square; pixels.
        image_shape: As in [`PairTransform`].

    Raises:
        ValueError: There are no images.
    """

    def __init__(
        self,
        images: Sequence[str],
        image_size: int | Sequence[int] = 512,
        *,
        image_shape: Size | None = DEEPFASHION_SIZE,
    ) -> None:
        if not len(images):
            raise ValueError("`images` must have at least one path, got none.")
        self.images = images
        self.processor = SourceImageProcessor(*as_pair(image_size))
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read an image.

        Args:
            index: Its number; negative ones count from the end.

        Returns:
            A dict of `pixel_values` (3, *image_size), float32, [-1, 1]; `index`, the number of the image that was
            finally read; and `skipped`, a list with (path, reason) for each image that could not be read.

        Raises:
            IndexError: There is no such image.
            UnreadableDataError: 32 images in a row cannot be read, or none can.
        """
        return first_readable(_from(index, len(self)), self._read)

    def _read(self, index: int) -> dict[str, Any]:
        image = read_image(self.images[index])
        window = padding_crop(read_size(image), self.image_shape)
        return {"pixel_values": self.processor.preprocess(window.crop(image))[0], "index": index}


def read_padded(
    image: str | bytes, name: str, keypoints: Keypoints, image_shape: Size | None
) -> tuple[PIL.Image.Image, Keypoints]:
    """Read an image of a pair and pad it to the shape of the training images.

    Args:
        image: Path, or the encoded image.
        name: What errors call an encoded image.
        keypoints: The pose in it.
        image_shape: As in [`PairTransform`].

    Returns:
        The image in RGB, and the pose in it.

    Raises:
        UnreadableImageError: It cannot be read, or the keypoints were measured on an image of another aspect ratio.
    """
    opened = read_image(image, name)
    window, keypoints = _fit(read_size(opened), image, name, keypoints, image_shape)
    return window.crop(opened), keypoints


def _fit(
    size: Size, image: str | bytes, name: str, keypoints: Keypoints, image_shape: Size | None
) -> tuple[CropWindow, Keypoints]:
    """Choose the window that pads an image of this size, and move its keypoints there."""
    if not has_shape(size, keypoints.size):
        raise UnreadableImageError(
            name if isinstance(image, bytes) else image,
            f"is {size[0]}x{size[1]} (height x width), but its keypoints were measured on an image of "
            f"{keypoints.size[0]}x{keypoints.size[1]}, another aspect ratio; pairs.jsonl names that size as "
            "`source_size` or `target_size`",
        )
    window = padding_crop(size, image_shape)
    # Keypoints on a whole image are drawn as they are: rescaling them twice could move a joint by one pixel.
    return window, keypoints if window.is_whole_image else window.move(keypoints)


def first_readable(candidates: Iterable[Item], read: Callable[[Item], dict[str, Any]]) -> dict[str, Any]:
    """Read the first candidate whose images can be read.

    Args:
        candidates: What to try, in this order.
        read: Turns a candidate into an item, or raises `UnreadableImageError`.

    Returns:
        The item, with `skipped`, a list with (path, reason) for each image that could not be read.

    Raises:
        UnreadableDataError: 32 images in a row cannot be read, or none can.
    """
    skipped: list[tuple[str, str]] = []
    # Distinct files are counted, since one file may be in many pairs in a row. The other limit is for endless streams
    # that have only a few broken files.
    for candidate in islice(candidates, _MAX_TRIES):
        try:
            return {**read(candidate), "skipped": skipped}
        except UnreadableImageError as error:
            skipped.append((error.path, error.reason))
            if len({path for path, _ in skipped}) == MAX_IN_A_ROW:
                break
    raise UnreadableDataError.after(skipped)


def unique_images(pairs: Iterable[PosePair]) -> list[str]:
    """List the distinct image files in pairs.

    Args:
        pairs: The pairs.

    Returns:
        Paths of sources and targets, in the order in which they first appear.
    """
    images = (image for pair in pairs for image in (pair.source, pair.target))
    return list(dict.fromkeys(image for image in images if isinstance(image, str)))


def collate_pose_pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate items into a batch.

    Args:
        items: From [`PosePairDataset`] or [`ImageDataset`], all with the same keys.

    Returns:
        The tensors, stacked along a new first axis; `index` as (B,), int64; and `skipped`, the joined lists of the
        items, for a [`SkipReport`].
    """
    numbers = [{key: value for key, value in item.items() if key != "skipped"} for item in items]
    return {**default_collate(numbers), "skipped": [file for item in items for file in item["skipped"]]}


def init_worker(worker_id: int) -> None:
    """Limit OpenCV to one thread in a worker process; pass this function to the loader as `worker_init_fn`.

    Args:
        worker_id: Number of the worker; not used.
    """
    import cv2

    cv2.setNumThreads(0)


def _from(index: int, length: int) -> Iterable[int]:
    """Yield the index and all later ones, then all earlier ones; raise `IndexError` if there is no such index."""
    first = range(length)[index]
    return chain(range(first, length), range(first))
