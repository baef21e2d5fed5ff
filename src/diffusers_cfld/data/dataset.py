"""Data sets of pose pairs for `torch.utils.data.DataLoader`: lazy, and not ended by a broken file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..processors.source_image import SourceImageProcessor
from .pair_transform import PairTransform, PosePair, UnreadableImageError, check_size, read_picture
from .skip_report import MAX_TRIES, UnreadableDataError

__all__ = ["PictureDataset", "PosePairDataset", "collate_pose_pairs", "init_worker", "unique_images"]


class PosePairDataset(Dataset[dict[str, Any]]):
    """Pairs of pictures and pose maps, decoded and drawn when asked for.

    An item is a function of the pairs, the settings, the seed, the epoch and its index alone, never of the worker
    that makes it. A pair whose pictures cannot be read is replaced by the next one that can, so that all processes
    keep the same number of equal batches; what was passed over is in the item's `skipped`.

    Args:
        pairs: The pairs, at least one.
        source_size: (height, width) of the source encoder's input, or one number for a square; pixels.
        image_size: Likewise of what the VAE encodes.
        pose_size: Likewise of the pose maps.
        flip_source_prob: Probability in [0, 1] that `source_image` alone is mirrored, as in the published training.
        load_pixel_values: Whether items have `source_pixel_values` and `target_pixel_values`. Without them, when
            latents are cached, target pictures are not opened.
        seed: Of the mirroring, whole number >= 0.

    Raises:
        ValueError: There is no pair, a size is not positive, the probability is outside [0, 1], or the seed is
            negative.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from diffusers_cfld.data import PosePairDataset, collate_pose_pairs, init_worker, load_pairs
        >>> dataset = PosePairDataset(load_pairs("deepfashion"), flip_source_prob=0.5)  # doctest: +SKIP
        >>> loader = DataLoader(
        ...     dataset, batch_size=8, shuffle=True, num_workers=4, collate_fn=collate_pose_pairs,
        ...     worker_init_fn=init_worker,
        ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        pairs: Sequence[PosePair],
        source_size: int | Sequence[int] = 256,
        image_size: int | Sequence[int] = 512,
        pose_size: int | Sequence[int] = 256,
        *,
        flip_source_prob: float = 0.0,
        load_pixel_values: bool = True,
        seed: int = 0,
    ) -> None:
        if not len(pairs):
            raise ValueError("`pairs` is empty: a data set needs at least one pair.")
        self.pairs = pairs
        self.transform = PairTransform(
            source_size,
            image_size,
            pose_size,
            flip_source_prob=flip_source_prob,
            load_pixel_values=load_pixel_values,
            seed=seed,
        )
        # In shared memory, so that workers which outlive an epoch see it change.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call, unused-ignore]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's random numbers; to be called before an epoch is iterated over.

        Accelerate's loaders call this themselves with their own count of epochs, which starts at 0 in a resumed run
        too: set `loader.iteration` there.

        Args:
            epoch: Number of the epoch, >= 0.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a pair.

        Args:
            index: Of the pair; negative ones count from the end.

        Returns:
            A dict of `source_image` (3, *source_size), `source_pixel_values` and `target_pixel_values`
            (3, *image_size), each float32 in [-1, 1]; `source_pose_map` and `target_pose_map` (21, *pose_size),
            float32, [0, 1]; `index`, the number of the pair that was read in the end; `skipped`, a list of
            (path, reason) for the pictures that could not be.

        Raises:
            IndexError: There is no such pair.
            UnreadableDataError: Up to the next pair that can be read 32 pictures cannot, or no pair can.
        """
        epoch = int(self._epoch)
        return _read_first(index, len(self), lambda number: self.transform(self.pairs[number], number, epoch))


class PictureDataset(Dataset[dict[str, Any]]):
    """Single pictures as the VAE takes them, for computing latents ahead of training.

    Args:
        images: Paths, at least one; see [`unique_images`].
        image_size: (height, width) of what the VAE encodes, or one number for a square; pixels.

    Raises:
        ValueError: There is no picture, or the size is not positive.
    """

    def __init__(self, images: Sequence[str], image_size: int | Sequence[int] = 512) -> None:
        if not len(images):
            raise ValueError("`images` is empty: a data set needs at least one picture.")
        self.images = images
        self.processor = SourceImageProcessor(*check_size(image_size, "image_size"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a picture.

        Args:
            index: Of the picture; negative ones count from the end.

        Returns:
            A dict of `pixel_values` (3, *image_size), float32, [-1, 1]; `index`, the number of the picture that was
            read in the end; `skipped`, a list of (path, reason) for those that could not be.

        Raises:
            IndexError: There is no such picture.
            UnreadableDataError: This picture and the 31 after it, or all, are unreadable.
        """
        return _read_first(index, len(self), self._read)

    def _read(self, index: int) -> dict[str, Any]:
        return {"pixel_values": read_picture(self.images[index], [self.processor])[0], "index": index}


def unique_images(pairs: Iterable[PosePair]) -> list[str]:
    """List the distinct pictures of pairs.

    Args:
        pairs: The pairs.

    Returns:
        Paths, sources and targets, in the order in which they first appear.

    Raises:
        TypeError: A pair holds encoded pictures and no paths.
    """
    found: dict[str, None] = {}
    for pair in pairs:
        for image in (pair.source, pair.target):
            if isinstance(image, bytes):
                raise TypeError(f"`pairs` must name files, got the encoded picture '{pair.source_name}'.")
            found[image] = None
    return list(found)


def collate_pose_pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch of items.

    Args:
        items: From [`PosePairDataset`], [`PictureDataset`] or [`StreamedPosePairs`], all with the same keys.

    Returns:
        The tensors stacked along a new first axis, `index` as (B,), int64, and `skipped`, the items' lists joined:
        enter it in a [`SkipReport`].
    """
    batch: dict[str, Any] = {}
    for key, value in items[0].items():
        values = [item[key] for item in items]
        if isinstance(value, torch.Tensor):
            batch[key] = torch.stack(values)
        elif key == "skipped":
            batch[key] = [entry for entries in values for entry in entries]
        else:
            batch[key] = torch.tensor(values, dtype=torch.int64)
    return batch


def init_worker(worker_id: int) -> None:
    """Prepare a worker process; pass it to the loader as `worker_init_fn`.

    OpenCV otherwise starts as many threads in each worker as the machine has cores.

    Args:
        worker_id: Number of the worker; not used.
    """
    import cv2

    cv2.setNumThreads(0)


def _read_first(index: int, length: int, read: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Read the first readable item from `index` on and note in it which ones were not."""
    if not -length <= index < length:
        raise IndexError(f"There are {length} items, got index {index}.")
    skipped: list[tuple[str, str]] = []
    files: set[str] = set()
    for offset in range(length):
        try:
            item = read((int(index) + offset) % length)
        except UnreadableImageError as error:
            skipped.append((error.path, error.reason))
            # Files are counted, not items: all pairs of one source may follow one another.
            files.add(error.path)
            if len(files) >= MAX_TRIES:
                break
        else:
            item["skipped"] = skipped
            return item
    raise UnreadableDataError.after(skipped)
