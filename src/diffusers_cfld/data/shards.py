"""Pairs packed into tar files, for data that does not fit on one disk.

The files follow WebDataset's convention, so that `webdataset` and `datasets` read them too: members
`{key}.source.jpg`, `{key}.target.jpg` and `{key}.json`, one after the other, the key being the number of the pair.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io_utils import replacing, write_file
from ..pose.keypoints import Keypoints
from .pair_transform import PosePair, UnreadableImageError, decode_picture, read_bytes
from .skip_report import MAX_TRIES, SkipReport, UnreadableDataError

__all__ = ["SHARD_INDEX", "write_shards"]

logger = logging.getLogger(__name__)

SHARD_INDEX = "shards.json"
"""The file that says which shards there are and how many pairs each has."""

_FORMAT_VERSION = 1
_AWAY = "-"  # in the place of a mark
_ORDER_STREAM = 2  # first entry of the seed sequence
_SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}


def write_shards(
    pairs: Sequence[PosePair],
    output_dir: str | os.PathLike[str],
    *,
    pairs_per_shard: int = 1000,
    seed: int | None = 0,
    report: SkipReport | None = None,
) -> Path:
    """Write pairs into tar files of a folder, for [`StreamedPosePairs`].

    The pictures go in as they are, byte for byte, once for each pair they are in. Each is decoded once before, and a
    pair with a broken one is left out and named. Every file appears complete or not at all; after an interruption the
    same call goes on with the first shard that is missing. Shards whose pictures have other file sizes than when they
    were written, or of which a broken picture has been mended, are written anew. One process at a time may write to a
    folder.

    Args:
        pairs: The pairs.
        output_dir: Folder; made if it does not exist.
        pairs_per_shard: Pairs in a shard, >= 1; the last one may have fewer.
        seed: Whole number >= 0 that the pairs are shuffled with before, since a stream is only shuffled within a
            window; None to keep their order.
        report: Takes in the broken pictures; None to log a summary.

    Returns:
        Path of the index, `shards.json`.

    Raises:
        ValueError: An argument is out of range, or the folder was begun with other pairs or settings.
        UnreadableDataError: No pair is readable, or 32 pictures in a row are not.
        OSError: A file cannot be written.
    """
    if not len(pairs):
        raise ValueError("`pairs` is empty: there is nothing to write.")
    if pairs_per_shard < 1:
        raise ValueError(f"`pairs_per_shard` must be at least 1, got {pairs_per_shard}.")
    order = (
        np.arange(len(pairs)) if seed is None else np.random.default_rng([_ORDER_STREAM, seed]).permutation(len(pairs))
    )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "pairs": len(pairs),
        "pairs_per_shard": pairs_per_shard,
        "seed": seed,
        "sha256": _fingerprint(pairs),
    }
    index = _begin(folder, settings)
    # Those stay in the index until every shard that they belong to has been written anew.
    mended = _find_mended(index, pairs)
    skipped = SkipReport(max_logged=0)
    files = {path: entry for path, entry in index["skipped"]["files"].items() if path not in mended}
    skipped.load_state_dict({"files": files})
    written: set[str] = set()
    finished = {shard["name"]: shard for shard in index["shards"]}
    suffixes: dict[str, str] = {}
    num_pairs = 0
    in_a_row: dict[str, int] = {}  # the shard of each file that broke since the last good pair
    for number, first in enumerate(range(0, len(pairs), pairs_per_shard)):
        name = _shard_name(number)
        numbered = [(key, pairs[key]) for key in order[first : first + pairs_per_shard].tolist()]
        pictures = _measure_pictures(numbered)
        has_mended = any(image in mended for _, pair in numbered for image in (pair.source, pair.target))
        if name not in finished or has_mended or not _is_there(folder / name, finished[name], pictures):
            _forget_bytes(skipped, numbered)
            written.add(name)
            try:
                count = _write_shard(folder / name, numbered, number, suffixes, skipped, in_a_row)
            except UnreadableDataError:
                _write_index(folder, _forget(index, in_a_row, written))
                raise
            size = (folder / name).stat().st_size if count else 0
            finished[name] = {"name": name, "num_pairs": count, "num_bytes": size, "pictures": pictures}
            left_out = {"files": mended | skipped.state_dict()["files"]}
            index |= {"shards": [finished[key] for key in sorted(finished)], "skipped": left_out}
            _write_index(folder, index)
            logger.info("Wrote '%s', %d pairs.", folder / name, count)
        else:
            both = _marks_before_and_now(finished[name], pictures)
            finished[name]["pictures"] = " ".join(before if now == _AWAY else now for before, now in both)
        num_pairs += finished[name]["num_pairs"]
    if not num_pairs:
        raise UnreadableDataError.after([(path, skipped.reason(path)) for path in skipped])
    _write_index(folder, index | {"num_pairs": num_pairs, "skipped": skipped.state_dict()})
    if report is not None:
        report.merge(skipped.state_dict())
    if num_pairs < len(pairs):
        details = f" {skipped.summary()}" if report is None else ""
        logger.warning("%d of %d pairs are left out.%s", len(pairs) - num_pairs, len(pairs), details)
    return folder / SHARD_INDEX


def _begin(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the index of a folder that was begun with these settings, or begin it."""
    file = folder / SHARD_INDEX
    if not file.exists():
        index = {"format_version": _FORMAT_VERSION, "settings": settings, "shards": [], "skipped": {"files": {}}}
        _write_index(folder, index)
        return index
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found.get("format_version") != _FORMAT_VERSION or found.get("settings") != settings:
        raise ValueError(
            f"'{folder}' was begun with other pairs or settings, {found.get('settings')} instead of {settings}: use "
            "those again, or another folder."
        )
    return found


def _forget(index: dict[str, Any], in_a_row: dict[str, int], written: set[str]) -> dict[str, Any]:
    """Return the index as before some files broke: a disk may be away, and the same call tries them again."""
    files = {path: entry for path, entry in index["skipped"]["files"].items() if path not in in_a_row}
    first = _shard_name(min(in_a_row.values()))
    shards = [shard for shard in index["shards"] if shard["name"] < first or shard["name"] not in written]
    return index | {"shards": shards, "skipped": {"files": files}}


def _find_mended(index: dict[str, Any], pairs: Sequence[PosePair]) -> dict[str, Any]:
    """Return the entries of those files that were left out and are readable now."""
    left_out = index["skipped"]["files"]
    paths = {image for pair in pairs for image in (pair.source, pair.target)} if left_out else set()
    mended = {}
    for path, entry in left_out.items():
        if path not in paths:  # the name of a picture in bytes
            continue
        try:
            decode_picture(read_bytes(path), path, reduced=True)
        except UnreadableImageError:
            continue
        mended[path] = entry
    return mended


def _forget_bytes(skipped: SkipReport, numbered_pairs: Sequence[tuple[int, PosePair]]) -> None:
    """Take out the pictures in bytes that a shard left out when it was written before; they are tried again."""
    names = {
        name
        for _, pair in numbered_pairs
        for image, name in ((pair.source, pair.source_name), (pair.target, pair.target_name))
        if isinstance(image, bytes)
    }
    files = {path: entry for path, entry in skipped.state_dict()["files"].items() if path not in names}
    if len(files) < len(skipped):
        skipped.load_state_dict({"files": files})


def _measure_pictures(numbered_pairs: Sequence[tuple[int, PosePair]]) -> str:
    """Return marks by which other pictures under the same names are known: sizes of files, digests of bytes.

    One for each picture of each pair, with spaces between. It is "-" where a file is away: what has been written of it
    is still good.
    """
    marks = []
    for _, pair in numbered_pairs:
        for image in (pair.source, pair.target):
            try:
                size = hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else str(os.path.getsize(image))
            except OSError:
                size = _AWAY
            marks.append(size)
    return " ".join(marks)


def _marks_before_and_now(shard: dict[str, Any], now: str) -> list[tuple[str, str]]:
    """Return each picture's marks; those of now twice where former versions noted nothing, or something else."""
    new = now.split()
    old = (shard.get("pictures") or "").split()
    return list(zip(old if len(old) == len(new) else new, new, strict=True))


def _shard_name(number: int) -> str:
    return f"pairs-{number:06d}.tar"


def _is_there(file: Path, shard: dict[str, Any], pictures: str) -> bool:
    both = _marks_before_and_now(shard, pictures)
    if any(before != now and _AWAY not in (before, now) for before, now in both):
        return False
    if not shard["num_pairs"]:
        return True
    return file.is_file() and file.stat().st_size == shard["num_bytes"]


def _write_shard(
    file: Path,
    numbered_pairs: Sequence[tuple[int, PosePair]],
    shard_number: int,
    suffixes: dict[str, str],
    skipped: SkipReport,
    in_a_row: dict[str, int],
) -> int:
    """Write one shard unless all of its pairs are broken; returns how many it has."""
    count = 0
    with replacing(file) as partial:
        with tarfile.open(partial, "w") as archive:
            for number, pair in numbered_pairs:
                try:
                    source = _encoded(pair.source, pair.source_name, suffixes, skipped)
                    target = _encoded(pair.target, pair.target_name, suffixes, skipped)
                except UnreadableImageError as error:
                    skipped.add(error.path, error.reason)
                    in_a_row.setdefault(error.path, shard_number)
                    if len(in_a_row) >= MAX_TRIES:
                        raise UnreadableDataError.after([(path, skipped.reason(path)) for path in in_a_row]) from error
                    continue
                in_a_row.clear()
                key = f"{number:09d}"
                for name, content in ((f"source.{source[1]}", source[0]), (f"target.{target[1]}", target[0])):
                    _add(archive, f"{key}.{name}", content)
                _add(archive, f"{key}.json", json.dumps(_describe(number, pair)).encode())
                count += 1
        if not count:
            partial.unlink()
    return count


def _encoded(image: str | bytes, name: str, suffixes: dict[str, str], skipped: SkipReport) -> tuple[bytes, str]:
    """Return an encoded picture and what its file name ends in; each file is decoded only the first time."""
    if image in skipped:
        raise UnreadableImageError(str(image), skipped.reason(str(image)))
    data = read_bytes(image)
    path = image if isinstance(image, str) else name
    suffix = suffixes.get(path) if isinstance(image, str) else None
    if suffix is None:
        kind = (decode_picture(data, path, reduced=True).format or "img").lower()
        suffix = suffixes[path] = _SUFFIXES.get(kind, kind)
    return data, suffix


def _describe(number: int, pair: PosePair) -> dict[str, Any]:
    return {
        "index": number,
        "source": pair.source_name,
        "target": pair.target_name,
        "source_keypoints": pair.source_keypoints.to_openpose(),
        "target_keypoints": pair.target_keypoints.to_openpose(),
    }


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # Neither time nor owner: the same pairs give the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _fingerprint(pairs: Sequence[PosePair]) -> str:
    """Return a digest of which pictures and poses are paired."""
    digest = hashlib.sha256()
    # By identity, since a pose is shared by all pairs of its picture; held, so that no other one takes its identity.
    poses: dict[int, tuple[Keypoints, bytes]] = {}
    for pair in pairs:
        for name, pose in ((pair.source_name, pair.source_keypoints), (pair.target_name, pair.target_keypoints)):
            if id(pose) not in poses:
                poses[id(pose)] = pose, pose.to_array().tobytes() + repr(pose.size).encode()
            digest.update(name.encode() + b"\0" + poses[id(pose)][1])
    return digest.hexdigest()


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    write_file(folder / SHARD_INDEX, json.dumps(index, indent=1).encode() + b"\n")
