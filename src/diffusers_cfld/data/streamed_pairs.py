"""Pairs read from shards one after the other, from a folder or from anywhere fsspec reaches.

Why not `webdataset` or `datasets`: with both, processes get unequal numbers of items (or each reads all of the data to
keep its share), which stops distributed training; neither goes on after an interruption with the very items that were
next; and a broken picture or shard is an error or is dropped without a word. What remains to be written is small.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..pose.keypoints import Keypoints
from .pair_transform import NOT_THE_FILES_FAULT, PairTransform, PosePair, UnreadableImageError
from .shards import SHARD_INDEX
from .skip_report import MAX_TRIES, UnreadableDataError

__all__ = ["StreamedPosePairs"]

_SHARD_STREAM, _WINDOW_STREAM = 3, 4  # first entries of the seed sequences
_NETWORK_TRIES = 3

# A pair as it comes from a shard, with its number in the list that the shards were written from; or what is wrong.
Sample: TypeAlias = "tuple[int, PosePair] | UnreadableImageError"
# What was passed over and not yet been told: (path, reason).
Notes: TypeAlias = "list[tuple[str, str]]"


class StreamedPosePairs(IterableDataset[dict[str, Any]]):
    """The items of [`PosePairDataset`], read from shards that `write_shards` wrote.

    The shards are put in a new order in every epoch and laid end to end; every process takes an equal stretch and
    every worker of it a part, whatever the number of shards. Within its part a worker shuffles in a window. All of
    that follows from the seed, the epoch, and the numbers of processes and workers.

    A broken picture is replaced by the next readable one, the rest of a shard that cannot be read by pairs of the
    next shard; both are in an item's `skipped`. The number of items does not change.

    Processes are told apart here: do not pass the loader to `accelerator.prepare`, which would divide the items among
    the processes a second time. Move the batches to the device instead.

    Args:
        root: Folder of the shards, or its URL (`hf://datasets/...`, `https://...`, whatever `fsspec` knows).
        source_size: (height, width) of the source encoder's input, or one number for a square; pixels.
        image_size: Likewise of what the VAE encodes.
        pose_size: Likewise of the pose maps.
        flip_source_prob: Probability in [0, 1] that `source_image` alone is mirrored, as in the published training.
        load_pixel_values: Whether items have `source_pixel_values` and `target_pixel_values`.
        seed: Of order and mirroring, whole number >= 0.
        window: How many pairs a worker holds, encoded, to shuffle among; 1 reads the shards in their order and does
            not shuffle at all. Pairs of DeepFashion have half a megabyte.
        rank: Number of this process. Default: what `torch.distributed` says, or 0 without it.
        world_size: How many processes share the data. Default: likewise, or 1.
        equal_lengths: Whether every process gets the same number of items, the first ones being repeated to make
            up for what is missing; as distributed training needs it. Without it every pair comes exactly once.

    Raises:
        OSError: There is no index of shards, or it cannot be read.
        ValueError: The index is not complete, or an argument is out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        source_size: int | Sequence[int] = 256,
        image_size: int | Sequence[int] = 512,
        pose_size: int | Sequence[int] = 256,
        *,
        flip_source_prob: float = 0.0,
        load_pixel_values: bool = True,
        seed: int = 0,
        window: int = 256,
        rank: int | None = None,
        world_size: int | None = None,
        equal_lengths: bool = True,
    ) -> None:
        self.transform = PairTransform(
            source_size,
            image_size,
            pose_size,
            flip_source_prob=flip_source_prob,
            load_pixel_values=load_pixel_values,
            seed=seed,
        )
        self.seed = seed
        if window < 1:
            raise ValueError(f"`window` must be at least 1, got {window}.")
        self.window = window
        self.rank, self.world_size = _check_rank(rank, world_size)
        self.equal_lengths = equal_lengths
        self.root = os.fspath(root).rstrip("/")
        self.shards = _read_index(self.root)
        self.num_pairs = sum(count for _, count in self.shards)
        # Epoch, batches to leave out, their size, whether incomplete ones are dropped. Shared as in `PosePairDataset`.
        self._state: torch.Tensor = torch.tensor([0, 0, 1, 1]).share_memory_()  # type: ignore[no-untyped-call, unused-ignore]

    def __len__(self) -> int:
        """Count the items of this process in one epoch."""
        first, last = self._stretch()
        return last - first

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order and random numbers; to be called before an epoch is iterated over.

        Args:
            epoch: Number of the epoch, >= 0.
        """
        self.resume(epoch, 0, 1)

    def resume(self, epoch: int, num_batches: int, batch_size: int, drop_last: bool = True) -> None:
        """Go on within an epoch, with the batch that a loader with the same workers would have given next.

        Pairs that came before are not read again, apart from some of the shuffling window. Holds until the next
        `set_epoch`.

        Args:
            epoch: Number of the epoch, >= 0.
            num_batches: How many batches the loader gave before, >= 0.
            batch_size: Of the loader.
            drop_last: Of the loader.
        """
        self._state.copy_(torch.tensor([epoch, num_batches, batch_size, drop_last]))

    def num_batches(self, batch_size: int, num_workers: int = 0, drop_last: bool = True) -> int:
        """Count the batches of one epoch; every worker makes batches of its own, so there may be fewer than expected.

        Args:
            batch_size: Of the loader.
            num_workers: Of the loader.
            drop_last: Of the loader.

        Returns:
            What a `DataLoader` gives in one epoch on this process.
        """
        return sum(self._batches_of_workers(batch_size, num_workers, drop_last))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read this process's and worker's part of the epoch.

        Yields:
            Items as [`PosePairDataset`] has them; `index` is the pair's number in the list that the shards were
            written from.

        Raises:
            UnreadableDataError: 32 pictures in a row cannot be read, or no shard can.
            OSError: The process has no file descriptors or memory left.
        """
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, num_batches, batch_size, drop_last = self._state.tolist()
        given, turn = self._resume_at(num_batches, batch_size, num_workers, bool(drop_last))
        # The loader begins with its first worker, which takes the part of the one whose turn it is.
        part = (worker + turn) % num_workers
        notes: Notes = []
        owed = 0
        for sample in self._samples(epoch, part, num_workers, given[part], notes):
            item = self._item(sample, epoch, notes)
            owed += 1
            if item is not None:
                yield from _repeat(item, owed, notes)
                owed = 0
            elif len({path for path, _ in notes}) >= MAX_TRIES:
                raise UnreadableDataError.after(notes)
        if owed:
            # The end is broken, and what would be next is the beginning.
            unused: Notes = []
            for sample in self._samples(epoch, part, num_workers, 0, unused):
                item = self._item(sample, epoch, unused)
                if item is not None:
                    yield from _repeat(item, owed, notes)
                    return
            raise UnreadableDataError.after(notes)

    def _item(self, sample: Sample, epoch: int, notes: Notes) -> dict[str, Any] | None:
        try:
            if isinstance(sample, UnreadableImageError):
                raise sample
            index, pair = sample
            return self.transform(pair, index, epoch)
        except UnreadableImageError as error:
            notes.append((error.path, error.reason))
            return None

    # Who reads what ---------------------------------------------------------------------------------------------

    def _stretch(self) -> tuple[int, int]:
        """Return where in the epoch this process begins and ends; beyond the last pair the first one follows."""
        if self.equal_lengths:
            length = -(-self.num_pairs // self.world_size)
            return self.rank * length, (self.rank + 1) * length
        return self.num_pairs * self.rank // self.world_size, self.num_pairs * (self.rank + 1) // self.world_size

    def _part(self, worker: int, num_workers: int) -> tuple[int, int]:
        first, last = self._stretch()
        begin, end = (first + (last - first) * number // num_workers for number in (worker, worker + 1))
        return begin, end

    def _batches_of_workers(self, batch_size: int, num_workers: int, drop_last: bool) -> list[int]:
        parts = [self._part(worker, max(1, num_workers)) for worker in range(max(1, num_workers))]
        return [(end - begin) // batch_size if drop_last else -(-(end - begin) // batch_size) for begin, end in parts]

    def _resume_at(
        self, num_batches: int, batch_size: int, num_workers: int, drop_last: bool
    ) -> tuple[list[int], int]:
        """Return how many items each worker has given when the loader has given `num_batches`, and whose turn it is.

        A loader takes a batch from each worker in turn and passes over those that have none left.
        """
        left = self._batches_of_workers(batch_size, num_workers, drop_last)
        given = [0] * num_workers
        turn = 0
        while num_batches and any(left):
            active = [worker for worker in range(num_workers) if left[worker]]
            rounds = min(min(left[worker] for worker in active), num_batches // len(active))
            served, times = (active, rounds) if rounds else (active[:num_batches], 1)
            for worker in served:
                left[worker] -= times
                given[worker] += times
            num_batches -= len(served) * times
            turn = (served[-1] + 1) % num_workers
        ends = [self._part(worker, num_workers) for worker in range(num_workers)]
        return [min(count * batch_size, end - begin) for count, (begin, end) in zip(given, ends, strict=True)], turn

    def _samples(self, epoch: int, worker: int, num_workers: int, done: int, notes: Notes) -> Iterator[Sample]:
        """Read the worker's part in its shuffled order, without the first `done` pairs of it."""
        begin, end = self._part(worker, num_workers)
        order = self._order(end - begin, np.random.default_rng([_WINDOW_STREAM, self.seed, epoch, self.rank, worker]))
        is_done = bytearray(end - begin)
        for place in itertools.islice(order, done):
            is_done[place] = 1
        reader = self._read(epoch, begin, end, is_done, notes)
        held: dict[int, Sample] = {}
        for place in order:
            while place not in held:
                found, sample = next(reader)
                held[found] = sample
            yield held.pop(place)

    def _order(self, count: int, random: np.random.Generator) -> Iterator[int]:
        """Shuffle the numbers below `count` in a window that slides over them."""
        if self.window == 1:
            yield from range(count)
            return
        held = list(range(min(self.window, count)))
        for place in range(self.window, count):
            chosen = int(random.integers(self.window))
            yield held[chosen]
            held[chosen] = place
        yield from random.permutation(held).tolist()

    # Reading ----------------------------------------------------------------------------------------------------

    def _read(
        self, epoch: int, begin: int, end: int, is_done: bytearray, notes: Notes
    ) -> Iterator[tuple[int, Sample]]:
        """Read the pairs from `begin` to `end` of the epoch that are not done; places count from `begin`."""
        order = list(range(len(self.shards)))
        if self.window > 1:
            order = np.random.default_rng([_SHARD_STREAM, self.seed, epoch]).permutation(order).tolist()
        starts = [0, *itertools.accumulate(self.shards[shard][1] for shard in order)]
        place = 0
        while begin + place < end:
            number = (begin + place) % self.num_pairs
            turn = bisect_right(starts, number) - 1
            row = number - starts[turn]
            count = min(self.shards[order[turn]][1] - row, end - begin - place)
            if is_done.find(0, place, place + count) >= 0:
                shards = [self.shards[shard] for shard in order[turn:] + order[:turn]]
                wanted = memoryview(is_done)[place : place + count]
                for offset, sample in self._read_rows(shards, row, wanted, notes):
                    yield place + offset, sample
            place += count

    def _read_rows(
        self, shards: Sequence[tuple[str, int]], row: int, is_done: memoryview, notes: Notes
    ) -> Iterator[tuple[int, Sample]]:
        """Read rows of the first shard, and where it is broken, of those after it."""
        offset = 0
        for name, count in shards:
            url = f"{self.root}/{name}"
            failures, reached = 0, offset
            while offset < len(is_done):
                first = (row + offset) % count
                last = min(count, first + len(is_done) - offset)
                try:
                    for sample in self._read_shard(url, first, last, is_done[offset:]):
                        if sample is not None:
                            yield offset, sample
                        offset += 1
                except Exception as error:
                    if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_FILES_FAULT:
                        raise
                    # What a remote file system raises is its own affair.
                    if "://" not in url and not isinstance(error, (OSError, EOFError, tarfile.TarError)):
                        raise
                    # What was read since makes it another failure, not the same once more.
                    failures, reached = (1 if offset > reached else failures + 1), offset
                    if "://" in url and failures < _NETWORK_TRIES:
                        time.sleep(failures)
                        continue
                    notes.append((url, f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"))
                    break
            if offset == len(is_done):
                return
        raise UnreadableDataError.after(notes)

    @staticmethod
    def _read_shard(url: str, first: int, last: int, is_done: memoryview) -> Iterator[Sample | None]:
        """Read rows of one shard; None for those that are done, whose pictures are not touched."""
        next_row = first
        with _open(url) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            groups = itertools.groupby(archive, key=lambda member: member.name.partition(".")[0])
            for row, (key, members) in enumerate(groups):
                if row >= last:
                    return
                if row >= first:
                    fields = {member.name.partition(".")[2]: member for member in members}
                    yield None if is_done[row - first] else _unpack(archive, f"{url}:{key}", fields)
                    next_row = row + 1
        if next_row < last:
            raise tarfile.ReadError(f"it ends after {next_row} pairs")


def _unpack(archive: tarfile.TarFile, name: str, fields: dict[str, tarfile.TarInfo]) -> Sample:
    def content(role: str) -> bytes:
        member = next((member for field, member in fields.items() if field.partition(".")[0] == role), None)
        stream = None if member is None else archive.extractfile(member)
        if stream is None:
            raise ValueError(f"no {role}")
        return stream.read()

    try:
        entry = json.loads(content("json"))
        poses = [Keypoints.from_any(entry[f"{role}_keypoints"]) for role in ("source", "target")]
        pair = PosePair(
            content("source"), content("target"), poses[0], poses[1], str(entry["source"]), str(entry["target"])
        )
        return int(entry["index"]), pair
    except (ValueError, TypeError, KeyError) as error:
        return UnreadableImageError(name, f"is no pair ({' '.join(str(error).split())})")


def _repeat(item: dict[str, Any], times: int, notes: Notes) -> Iterator[dict[str, Any]]:
    """Yield an item in place of those before it that were broken; the first one tells of them."""
    for _ in range(times):
        yield {**item, "skipped": list(notes)}
        notes.clear()


def _read_index(root: str) -> list[tuple[str, int]]:
    """Return the shards that have pairs, and how many."""
    url = f"{root}/{SHARD_INDEX}"
    try:
        with _open(url) as stream:
            index = json.loads(stream.read())
        shards = [(str(shard["name"]), int(shard["num_pairs"])) for shard in index["shards"]]
        is_complete = index.get("num_pairs") == sum(count for _, count in shards)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"'{root}' must be a folder of shards with a '{SHARD_INDEX}', which is missing: write the shards with "
            "`write_shards`."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{url}' is no index of shards ({error!r}): write the shards again.") from error
    except Exception as error:
        if isinstance(error, OSError) or "://" not in url:
            raise
        raise OSError(f"'{url}' cannot be read: {error!r}") from error  # as a remote file system's own errors
    if not is_complete:
        raise ValueError(f"The shards in '{root}' are not complete: run `write_shards` again with the same arguments.")
    return [(name, count) for name, count in shards if count]


def _open(url: str) -> IO[bytes]:
    if "://" not in url:
        return Path(url).open("rb")
    import fsspec  # type: ignore[import-untyped, unused-ignore]  # which torch requires

    try:
        stream: IO[bytes] = fsspec.open(url, "rb").open()
    except ImportError as error:
        raise OSError(f"'{url}' cannot be opened without a package that is missing: {error}") from error
    return stream


def _check_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"`rank` and `world_size` go together, got {rank} and {world_size}: pass both or neither.")
    if rank is None or world_size is None:
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not is_distributed:
            return 0, 1
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be from 0 to `world_size` - 1, got {rank} of {world_size}.")
    return rank, world_size
