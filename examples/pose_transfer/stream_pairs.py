"""A data set that uses webdataset to stream the shards of `write_shards.py` from a folder or a URL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from random import Random
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import IterableDataset
from webdataset.utils import pytorch_worker_info

from diffusers_cfld import Keypoints
from diffusers_cfld.data import PairTransform, PosePair, UnreadableImageError, first_readable

SHARD_INDEX = "shards.json"
SHUFFLE_BUFFER = 256  # encoded pairs; a pair of DeepFashion takes half a megabyte


class StreamedPosePairs(IterableDataset):
    """The items of `PosePairDataset`, read from shards.

    In every epoch the shards are put in a new order, and every worker of every process takes an equally long stretch
    of pairs, which it shuffles in a buffer. The order depends on the seed, the epoch and the numbers of processes and
    workers. An unreadable image or shard is replaced by the next readable pair, and pairs missing at the end of a
    stretch are replaced by its first ones, so the number of items never changes. To resume, set the same epoch and
    skip the batches that are done, which are read again.

    Do not pass the loader to `accelerator.prepare`, which would divide the items among the processes a second time.

    Args:
        root: Folder or URL of the shards. webdataset opens URLs; `https://` needs `curl`.
        *sizes: As in `PairTransform`.
        seed: Seed of the order and the flips, >= 0.
        rank: Number of this process; by default that of `torch.distributed`.
        world_size: Number of processes that share the shards; by default that of `torch.distributed`.
        **options: As in `PairTransform`, for example `image_shape`.

    Raises:
        OSError: There is no `shards.json` in `root`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *sizes: int | Sequence[int],
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        self.transform = PairTransform(*sizes, seed=seed, **options)
        self.seed = seed
        default_rank, default_world_size, _, _ = pytorch_worker_info()
        self.rank = default_rank if rank is None else rank
        self.world_size = default_world_size if world_size is None else world_size
        self.root = os.fspath(root).rstrip("/")
        with wds.gopen(f"{self.root}/{SHARD_INDEX}") as stream:
            content = stream.read()
        self.shards = [(shard["name"], shard["num_pairs"]) for shard in json.loads(content)["shards"]]
        self.num_pairs = sum(count for _, count in self.shards)
        # In shared memory, for workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; call this before iterating over it.

        Args:
            epoch: Number of the epoch, >= 0.
        """
        self._epoch.fill_(epoch)

    def num_batches(self, batch_size: int, num_workers: int = 0) -> int:
        """Count the batches of an epoch on this process; all processes have the same number.

        Args:
            batch_size: Batch size of the loader, which drops incomplete batches; each worker makes its own batches.
            num_workers: Number of workers of the loader.

        Returns:
            The number of batches.
        """
        num_workers = max(1, num_workers)
        return num_workers * (self._stretch_length(num_workers) // batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read this worker's stretch of the epoch.

        Yields:
            Items like those of `PosePairDataset`; `index` is the number of the pair in the list that was written.

        Raises:
            UnreadableDataError: 32 files in a row, images or shards, cannot be read.
        """
        _, _, worker, num_workers = pytorch_worker_info()
        epoch, length = int(self._epoch), self._stretch_length(num_workers)
        start = (self.rank * num_workers + worker) * length % self.num_pairs
        random = Random(f"{self.seed} {epoch}")  # the same order of the shards in all processes
        shards = random.sample(self.shards, len(self.shards))
        stretch = self._read_from(start, shards)
        buffer = wds.filters.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=random)
        # The pairs after the stretch replace unreadable pairs at its end.
        samples = chain(buffer(islice(stretch, length)), self._read_from(start, shards))
        for _ in range(length):
            yield first_readable(samples, lambda sample: self._to_item(sample, epoch))

    def _stretch_length(self, num_workers: int) -> int:
        return -(-self.num_pairs // (self.world_size * num_workers))

    def _read_from(self, start: int, shards: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """Yield the pairs of all shards from pair `start` on, endlessly."""
        first = 0
        while start >= shards[first][1]:
            start -= shards[first][1]
            first += 1
        for name, num_pairs in cycle(shards[first:] + shards[:first]):
            for number, sample in enumerate(_read_shard(f"{self.root}/{name}", num_pairs)):
                if number >= start or "error" in sample:
                    yield sample
            start = 0

    def _to_item(self, sample: dict[str, Any], epoch: int) -> dict[str, Any]:
        if "error" in sample:
            raise sample["error"]
        try:
            fields = {name.partition(".")[0]: value for name, value in sample.items()}  # whatever the images' suffixes
            entry = json.loads(fields["json"])
            poses = [Keypoints.from_any(entry[f"{role}_keypoints"]) for role in ("source", "target")]
            pair = PosePair(fields["source"], fields["target"], *poses, entry["source"], entry["target"])
            index = entry["index"]
        except (ValueError, TypeError, KeyError) as error:
            name = f"{sample['__url__']}:{sample['__key__']}"
            raise UnreadableImageError(name, f"is not a pair ({error!r})") from error
        return self.transform(pair, index, epoch)


def _read_shard(url: str, num_pairs: int) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard and, if it is damaged, the error."""
    num_read = 0
    try:
        with wds.gopen(url) as stream:
            files = wds.tariterators.tar_file_expander([{"url": url, "stream": stream}])
            for sample in wds.tariterators.group_by_keys(files):
                yield sample
                num_read += 1
        if num_read < num_pairs:
            raise EOFError(f"it ends after {num_read} of {num_pairs} pairs")
    except Exception as error:  # openers and tarfile raise all kinds of errors
        reason = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
        yield {"error": UnreadableImageError(url, f"cannot be read ({reason})")}
