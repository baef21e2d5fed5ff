"""Shards: the same items as from files, each once over all processes and workers, and going on after interruptions."""

import errno
import importlib.util
import itertools
import json
import logging
import os
import signal
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from miniature_sets import NAMES, save_picture
from torch.utils.data import DataLoader

from diffusers_cfld.data import (
    PosePairDataset,
    SkipReport,
    StreamedPosePairs,
    UnreadableDataError,
    collate_pose_pairs,
    init_worker,
    load_pairs,
    write_shards,
)
from diffusers_cfld.data import shards as module
from diffusers_cfld.data.pair_transform import UnreadableImageError
from diffusers_cfld.data.streamed_pairs import _check_rank

SIZES = {"source_size": (16, 12), "image_size": (20, 14), "pose_size": (16, 12)}
SCRIPT = Path(__file__).parents[2] / "examples" / "pose_transfer" / "write_shards.py"


@pytest.fixture
def pairs(deepfashion):
    """Fifteen pairs of six pictures."""
    return (load_pairs(deepfashion) * 3)[:15]


@pytest.fixture
def shards(pairs, tmp_path):
    """A folder of them in shards of 4, 4, 4 and 3."""
    return write_shards(pairs, tmp_path / "shards", pairs_per_shard=4).parent


def loader(stream, num_workers=0, batch_size=1, **changes):
    return DataLoader(
        stream,
        batch_size,
        num_workers=num_workers,
        collate_fn=collate_pose_pairs,
        worker_init_fn=init_worker,
        **changes,
    )


def indices(items):
    return [item["index"] for item in items]


def assert_equal(item, other):
    assert item.keys() == other.keys()
    for key, value in item.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


# Writing --------------------------------------------------------------------------------------------------------


def test_shards_hold_the_files_byte_for_byte_under_webdataset_names(pairs, shards):
    index = json.loads((shards / "shards.json").read_text())
    assert [shard["num_pairs"] for shard in index["shards"]] == [4, 4, 4, 3]
    assert index["num_pairs"] == 15
    seen = []
    for shard in index["shards"]:
        assert (shards / shard["name"]).stat().st_size == shard["num_bytes"]
        with tarfile.open(shards / shard["name"]) as archive:
            members = archive.getmembers()
            for source, target, entry in zip(members[::3], members[1::3], members[2::3], strict=True):
                content = json.loads(archive.extractfile(entry).read())
                pair = pairs[content["index"]]
                key = f"{content['index']:09d}"
                assert [source.name, target.name, entry.name] == [
                    f"{key}.source.jpg",
                    f"{key}.target.jpg",
                    f"{key}.json",
                ]
                assert archive.extractfile(source).read() == Path(pair.source).read_bytes()
                assert archive.extractfile(target).read() == Path(pair.target).read_bytes()
                assert (content["source"], content["target"]) == (pair.source_name, pair.target_name)
                seen.append(content["index"])
    assert sorted(seen) == list(range(15)) != seen


def test_other_readers_understand_the_shards(pairs, shards):
    webdataset = pytest.importorskip("webdataset")
    files = sorted(map(str, shards.glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert len(samples) == 15
    for sample in samples:
        pair = pairs[json.loads(sample["json"])["index"]]
        assert sample["source.jpg"] == Path(pair.source).read_bytes()


def test_the_same_call_writes_the_same_bytes_and_nothing_twice(pairs, shards, tmp_path):
    files = sorted(shards.iterdir())
    again = write_shards(pairs, tmp_path / "again", pairs_per_shard=4).parent
    assert [file.read_bytes() for file in sorted(again.iterdir())] == [file.read_bytes() for file in files]
    before = [file.stat().st_mtime_ns for file in shards.glob("*.tar")]
    write_shards(pairs, shards, pairs_per_shard=4)
    assert [file.stat().st_mtime_ns for file in shards.glob("*.tar")] == before


def test_without_a_seed_the_order_is_kept(pairs, tmp_path):
    write_shards(pairs, tmp_path / "shards", pairs_per_shard=4, seed=None)
    assert indices(StreamedPosePairs(tmp_path / "shards", **SIZES, window=1)) == list(range(15))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process to kill")
def test_a_killed_writer_goes_on_with_the_shard_that_is_missing(pairs, shards, tmp_path):
    output = tmp_path / "killed"
    child = os.fork()
    if not child:
        really_add, members = tarfile.TarFile.addfile, itertools.count()

        def add(archive, *arguments):
            if next(members) == 2 * 12 + 5:  # within the third shard
                os.kill(os.getpid(), signal.SIGKILL)
            return really_add(archive, *arguments)

        tarfile.TarFile.addfile = add
        write_shards(pairs, output, pairs_per_shard=4)
        os._exit(1)  # never back into pytest
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(file.name for file in output.glob("*.tar")) == ["pairs-000000.tar", "pairs-000001.tar"]
    with pytest.raises(ValueError, match="are not complete: run `write_shards` again"):
        StreamedPosePairs(output)
    before = (output / "pairs-000001.tar").stat().st_mtime_ns
    write_shards(pairs, output, pairs_per_shard=4)
    assert (output / "pairs-000001.tar").stat().st_mtime_ns == before
    assert sorted(file.name for file in output.iterdir()) == sorted(file.name for file in shards.iterdir())
    for file in output.iterdir():
        assert file.read_bytes() == (shards / file.name).read_bytes()


@pytest.mark.parametrize("change", [{"pairs_per_shard": 5}, {"seed": 1}, {"pairs": 14}])
def test_a_folder_of_other_shards_is_not_continued(pairs, shards, change):
    arguments = {"pairs_per_shard": 4, **change}
    given = pairs[: arguments.pop("pairs", 15)]
    with pytest.raises(ValueError, match="was begun with other pairs or settings"):
        write_shards(given, shards, **arguments)


def test_broken_pictures_stay_out_and_are_named(pairs, tmp_path, caplog):
    Path(pairs[1].source).write_bytes(Path(pairs[1].source).read_bytes()[:-30])
    report = SkipReport(max_logged=0)
    with caplog.at_level(logging.INFO, "diffusers_cfld"):
        write_shards(pairs, tmp_path / "shards", pairs_per_shard=4, report=report)
    assert list(report) == [pairs[1].source]
    assert report.num_times == 6
    assert "6 of 15 pairs are left out" in caplog.text
    stream = StreamedPosePairs(tmp_path / "shards", **SIZES)
    assert len(stream) == 9
    assert sorted(indices(stream)) == [index for index in range(15) if index % 6 > 1]
    with caplog.at_level(logging.WARNING, "diffusers_cfld"):
        caplog.clear()
        write_shards(pairs, tmp_path / "others", pairs_per_shard=4)
        assert pairs[1].source in caplog.text


def test_other_pictures_under_the_same_names_are_written_anew(pairs, shards):
    changed = Path(pairs[0].source)
    former = changed.read_bytes()
    has_it = {file.name for file in shards.glob("*.tar") if former in file.read_bytes()}
    save_picture(changed, 7, (40, 30))
    write_shards(pairs, shards, pairs_per_shard=4)
    assert len(list(StreamedPosePairs(shards, **SIZES, window=1))) == 15
    assert has_it
    for file in shards.glob("*.tar"):
        content = file.read_bytes()
        assert former not in content
        assert (changed.read_bytes() in content) == (file.name in has_it)


def test_other_pictures_are_noticed_beside_one_that_is_missing(pairs, tmp_path):
    shards, missing, changed = tmp_path / "shards", Path(pairs[0].source), Path(pairs[1].source)
    assert missing != changed
    former = changed.read_bytes()
    missing.unlink()
    write_shards(pairs, shards, pairs_per_shard=len(pairs))
    write_shards(pairs, shards, pairs_per_shard=len(pairs))  # which keeps what is known
    save_picture(changed, 7, (40, 30))
    write_shards(pairs, shards, pairs_per_shard=len(pairs))
    (file,) = shards.glob("*.tar")
    assert former not in file.read_bytes()
    assert changed.read_bytes() in file.read_bytes()


def test_a_mended_picture_goes_in_again(pairs, tmp_path, monkeypatch):
    whole = Path(pairs[1].source).read_bytes()
    Path(pairs[1].source).write_bytes(whole[:-30] + bytes(30))
    with pytest.raises(ValueError, match="nothing"):
        write_shards([], tmp_path / "shards")
    write_shards(pairs, tmp_path / "shards", pairs_per_shard=4)
    assert len(StreamedPosePairs(tmp_path / "shards", **SIZES)) == 9
    Path(pairs[1].source).write_bytes(whole)  # of the same size
    # Interrupted after the first shard, the same call goes on with the others.
    really_write, shards_written = module._write_shard, []

    def write(file, *args):
        if shards_written:
            raise KeyboardInterrupt
        shards_written.append(file)
        return really_write(file, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            write_shards(pairs, tmp_path / "shards", pairs_per_shard=4)
    report = SkipReport(max_logged=0)
    write_shards(pairs, tmp_path / "shards", pairs_per_shard=4, report=report)
    assert not len(report)
    assert len(StreamedPosePairs(tmp_path / "shards", **SIZES)) == 15


def test_finished_shards_stay_while_the_pictures_are_away(pairs, shards):
    before = {file.name: file.read_bytes() for file in shards.iterdir()}
    folder = Path(pairs[0].source).parent
    folder.rename(folder.with_name("away"))
    write_shards(pairs, shards, pairs_per_shard=4)
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == before
    # One that is missing is not written, and the others are left alone.
    (shards / "pairs-000001.tar").unlink()
    report = SkipReport(max_logged=0)
    write_shards(pairs, shards, pairs_per_shard=4, report=report)
    assert len(report) > 0
    for number in (0, 2, 3):
        assert (shards / f"pairs-00000{number}.tar").read_bytes() == before[f"pairs-00000{number}.tar"]


def test_a_mended_picture_in_bytes_goes_in_again(pairs, tmp_path):
    whole = Path(pairs[0].source).read_bytes()
    broken = [replace(pairs[0], source=whole[:40]), *pairs[1:3]]
    write_shards(broken, tmp_path / "shards")
    report = SkipReport(max_logged=0)
    write_shards([replace(pairs[0], source=whole), *pairs[1:3]], tmp_path / "shards", report=report)
    assert not len(report)
    assert len(StreamedPosePairs(tmp_path / "shards", **SIZES)) == 3


def test_a_disk_that_goes_away_leaves_no_short_shards(pairs, shards, tmp_path, monkeypatch):
    calls, really_read = itertools.count(), module.read_bytes

    def read(image):
        # From the last pair of the second shard on.
        if next(calls) >= 15:
            raise UnreadableImageError(str(image), "does not exist")
        return really_read(image)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_bytes", read)
        patch.setattr(module, "MAX_TRIES", 2)
        with pytest.raises(UnreadableDataError, match="2 in a row cannot be read"):
            write_shards(pairs, tmp_path / "away", pairs_per_shard=4)
    index = json.loads((tmp_path / "away" / "shards.json").read_text())
    assert [shard["num_pairs"] for shard in index["shards"]] == [4]
    write_shards(pairs, tmp_path / "away", pairs_per_shard=4)
    for file in shards.iterdir():
        assert (tmp_path / "away" / file.name).read_bytes() == file.read_bytes()


def test_wholly_wrong_pictures_and_wrong_arguments_are_one_sentence(pairs, deepfashion, tmp_path):
    with pytest.raises(ValueError, match="`pairs` is empty"):
        write_shards([], tmp_path / "shards")
    with pytest.raises(ValueError, match="`pairs_per_shard` must be at least 1, got 0"):
        write_shards(pairs, tmp_path / "shards", pairs_per_shard=0)
    for name in NAMES:
        (deepfashion / "train_highres" / name).unlink()
    with pytest.raises(UnreadableDataError, match=r"6 in a row cannot be read .* does not exist"):
        write_shards(pairs, tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*.tar"))


# Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("load_pixel_values", [True, False])
def test_items_are_those_of_the_files(pairs, shards, window, load_pixel_values):
    settings = {**SIZES, "flip_source_prob": 0.5, "load_pixel_values": load_pixel_values, "seed": 7}
    from_files = PosePairDataset(pairs, **settings)
    stream = StreamedPosePairs(shards, **settings, window=window)
    assert len(stream) == 15
    orders = []
    for epoch in (0, 2):
        from_files.set_epoch(epoch)
        stream.set_epoch(epoch)
        items = list(stream)
        assert sorted(indices(items)) == list(range(15))
        for item in items:
            assert_equal(item, from_files[item["index"]])
        orders.append(indices(items))
        assert indices(stream) == orders[-1]
    assert (orders[0] == orders[1]) == (window == 1)


@pytest.mark.parametrize(("pairs_per_shard", "window"), [(4, 3), (1, 3), (15, 1)])
def test_two_processes_with_two_workers_each_read_everything_once(pairs, tmp_path, pairs_per_shard, window):
    write_shards(pairs, tmp_path / "shards", pairs_per_shard=pairs_per_shard)
    seen = Counter()
    for rank in range(2):
        stream = StreamedPosePairs(
            tmp_path / "shards", **SIZES, window=window, rank=rank, world_size=2, equal_lengths=False
        )
        batches = [batch["index"].tolist() for batch in loader(stream, 2, batch_size=2)]
        assert sum(map(len, batches)) == len(stream) == 7 + rank
        assert len(batches) == stream.num_batches(2, 2, drop_last=False)
        seen.update(itertools.chain(*batches))
    assert seen == Counter(range(15))


def test_processes_get_equally_many_items(shards):
    streams = [StreamedPosePairs(shards, **SIZES, rank=rank, world_size=4) for rank in range(4)]
    found = [indices(stream) for stream in streams]
    assert [len(part) for part in found] == [len(stream) for stream in streams] == [4] * 4
    seen = Counter(itertools.chain(*found))
    assert set(seen) == set(range(15))
    assert sum(seen.values()) == 16
    many = [StreamedPosePairs(shards, **SIZES, rank=rank, world_size=40) for rank in range(40)]
    assert [len(indices(stream)) for stream in many[::13]] == [1] * 4


@pytest.mark.parametrize(("num_workers", "batch_size", "drop_last"), [(0, 2, True), (2, 2, False), (2, 1, True)])
def test_resuming_gives_the_batches_that_were_next(shards, num_workers, batch_size, drop_last):
    stream = StreamedPosePairs(shards, **SIZES, window=3)
    batches = loader(stream, num_workers, batch_size, drop_last=drop_last, persistent_workers=num_workers > 0)
    stream.set_epoch(1)
    whole = [batch["index"].tolist() for batch in batches]
    assert len(whole) == stream.num_batches(batch_size, num_workers, drop_last)
    for done in range(len(whole) + 1):
        stream.resume(1, done, batch_size, drop_last)
        assert [batch["index"].tolist() for batch in batches] == whole[done:], done
    stream.set_epoch(1)
    assert [batch["index"].tolist() for batch in batches] == whole


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 4), (2, 3), (4, 1), (7, 2), (7, 3)])
def test_turns_are_counted_as_a_loader_takes_them(shards, num_workers, batch_size, drop_last):
    stream = StreamedPosePairs(shards)
    parts = [15 * (worker + 1) // num_workers - 15 * worker // num_workers for worker in range(num_workers)]
    batches = [[batch_size] * (part // batch_size) for part in parts]
    if not drop_last:
        batches = [
            [*own, part % batch_size] if part % batch_size else own for own, part in zip(batches, parts, strict=True)
        ]
    turns = [worker for turn in range(16) for worker in range(num_workers) if turn < len(batches[worker])]
    for done in range(len(turns) + 1):
        given = [sum(batches[worker][: turns[:done].count(worker)]) for worker in range(num_workers)]
        found, turn = stream._resume_at(done, batch_size, num_workers, drop_last)
        assert found == given
        left = [len(batches[worker]) - turns[:done].count(worker) for worker in range(num_workers)]
        following = [(turn + step) % num_workers for step in range(num_workers)]
        assert done == len(turns) or next(worker for worker in following if left[worker]) == turns[done]


def test_resuming_does_not_open_shards_that_are_done(shards):
    stream = StreamedPosePairs(shards, **SIZES, window=1)
    (shards / "pairs-000000.tar").unlink()
    stream.resume(0, 4, 1)
    items = list(stream)
    assert len(items) == 11
    assert not any(item["skipped"] for item in items)


def test_shards_are_read_from_wherever_fsspec_reaches(shards):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe(f"/cfld-shards/{file.name}", file.read_bytes())
    try:
        local = list(StreamedPosePairs(shards, **SIZES))
        remote = list(StreamedPosePairs("memory://cfld-shards/", **SIZES))
    finally:
        memory.rm("/cfld-shards", recursive=True)
    for item, other in zip(local, remote, strict=True):
        assert_equal(item, other)


def test_what_a_remote_file_system_raises_is_one_sentence(shards, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    real_open, errors = fsspec.open, []

    def failing_open(url, mode):
        if errors and not url.endswith(".json"):
            raise errors.pop()
        return real_open(url, mode)

    class ReadTimeout(Exception):
        """As an HTTP client's, no OSError."""

    memory = fsspec.filesystem("memory")
    for file in shards.iterdir():
        memory.pipe(f"/cfld-shards/{file.name}", file.read_bytes())
    monkeypatch.setattr(fsspec, "open", failing_open)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    try:
        stream = StreamedPosePairs("memory://cfld-shards/", **SIZES)
        errors.append(ReadTimeout())
        assert not any(item["skipped"] for item in stream)
        assert not errors

        # A connection that breaks again and again, but not twice at the same place.
        really_read, broken = StreamedPosePairs._read_shard, []

        def breaking(url, first, last, is_done):
            for number, sample in enumerate(really_read(url, first, last, is_done)):
                if number == 1:
                    broken.append(url)
                    raise ReadTimeout
                yield sample

        with monkeypatch.context() as patch:
            patch.setattr(StreamedPosePairs, "_read_shard", staticmethod(breaking))
            items = list(StreamedPosePairs("memory://cfld-shards/", **SIZES, window=15))
        assert len(broken) > 8
        assert not any(item["skipped"] for item in items)
        assert len(items) == 15
    finally:
        memory.rm("/cfld-shards", recursive=True)

    def raising(error):
        def open_(url, mode):
            raise error

        return open_

    monkeypatch.setattr(fsspec, "open", raising(ImportError("HTTPFileSystem requires aiohttp")))
    with pytest.raises(OSError, match="cannot be opened without a package that is missing: HTTPFileSystem requires"):
        StreamedPosePairs("https://somewhere/shards", **SIZES)
    monkeypatch.setattr(fsspec, "open", raising(ReadTimeout()))
    with pytest.raises(OSError, match=r"'https://somewhere/shards/.*' cannot be read: ReadTimeout"):
        StreamedPosePairs("https://somewhere/shards", **SIZES)


# Broken shards --------------------------------------------------------------------------------------------------


def damage(file, where=b"\xff\xd8", size=200, occurrence=0):
    """Overwrite part of a picture within a shard; tar itself stays readable."""
    content = bytearray(file.read_bytes())
    start = -1
    for _ in range(occurrence + 1):
        start = content.index(where, start + 1)
    content[start : start + size] = bytes(size)
    file.write_bytes(content)


@pytest.mark.parametrize("occurrence", [0, 2 * 2, 2 * 3])
def test_a_broken_picture_is_replaced_by_the_next_pair_and_named(pairs, shards, occurrence):
    whole = indices(StreamedPosePairs(shards, **SIZES, window=1))
    damage(shards / "pairs-000003.tar" if occurrence == 4 else shards / "pairs-000000.tar", occurrence=occurrence)
    stream = StreamedPosePairs(shards, **SIZES, window=1)
    items = list(stream)
    # The very last pair is followed by the first one.
    place = {0: 0, 4: 14, 6: 3}[occurrence]
    assert indices(items) == [*whole[:place], whole[(place + 1) % 15], *whole[place + 1 :]]
    assert [len(item["skipped"]) for item in items] == [int(number == place) for number in range(15)]
    assert items[place]["skipped"][0][0] == pairs[whole[place]].source_name
    for done in range(15):
        stream.resume(0, done, 1)
        assert indices(stream) == indices(items)[done:]


@pytest.mark.parametrize(
    "break_it", [os.remove, lambda file: os.truncate(file, 0), lambda file: os.truncate(file, 5000)]
)
def test_a_broken_shard_is_replaced_by_others_and_named_once(shards, break_it):
    stream = StreamedPosePairs(shards, **SIZES, window=1)
    whole = indices(stream)
    file = shards / "pairs-000003.tar"
    break_it(file)
    items = list(stream)
    kept = 0 if not file.exists() else file.stat().st_size // 4000
    assert indices(items) == whole[: 12 + kept] + whole[kept:3]
    (entry,) = [entry for item in items for entry in item["skipped"]]
    assert entry[0] == str(file)
    shuffled = StreamedPosePairs(shards, **SIZES, window=3)
    assert len(list(shuffled)) == 15
    assert len(list(loader(shuffled, 2))) == 15


def test_a_shard_is_not_broken_where_the_process_has_no_descriptors_left(shards, monkeypatch):
    def fail(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    stream = StreamedPosePairs(shards, **SIZES, window=1)
    monkeypatch.setattr(StreamedPosePairs, "_read_shard", fail)
    with pytest.raises(OSError, match="Too many open files") as caught:
        next(iter(stream))
    assert caught.value.errno == errno.EMFILE


def test_a_pair_without_its_keypoints_is_named(shards):
    file = shards / "pairs-000001.tar"
    file.write_bytes(file.read_bytes().replace(b'"source_keypoints"', b'"sauce_keypoints" ', 1))
    items = list(StreamedPosePairs(shards, **SIZES))
    (entry,) = [entry for item in items for entry in item["skipped"]]
    assert entry[0].startswith(f"{file}:0000000")
    assert "is no pair" in entry[1]


def test_wholly_broken_shards_are_one_sentence(shards):
    stream = StreamedPosePairs(shards, **SIZES)
    for file in shards.glob("*.tar"):
        file.unlink()
    with pytest.raises(UnreadableDataError, match=r"4 in a row cannot be read .*No such file") as error:
        list(stream)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("window", [1, 100])
def test_wholly_broken_pictures_are_one_sentence(pairs, tmp_path, window):
    named = [replace(pair, source_name=f"{number}.jpg") for number, pair in enumerate(pairs * 3)]
    folder = write_shards(named, tmp_path / "shards", pairs_per_shard=100).parent
    file = folder / "pairs-000000.tar"
    file.write_bytes(file.read_bytes().replace(b"\xff\xd8", b"\0\0"))
    with pytest.raises(UnreadableDataError, match="32 in a row cannot be read"):
        list(StreamedPosePairs(folder, **SIZES, window=window))
    few = write_shards(pairs[:3], tmp_path / "few").parent
    file = few / "pairs-000000.tar"
    file.write_bytes(file.read_bytes().replace(b"\xff\xd8", b"\0\0"))
    with pytest.raises(UnreadableDataError, match="3 in a row cannot be read"):
        list(StreamedPosePairs(few, **SIZES, window=window))


def test_a_folder_without_shards_is_one_sentence(deepfashion, shards):
    with pytest.raises(FileNotFoundError, match=r"must be a folder of shards with a 'shards.json', which is missing"):
        StreamedPosePairs(deepfashion)
    for content in ("{", "[]", '{"shards": [3]}'):
        (shards / "shards.json").write_text(content)
        with pytest.raises(ValueError, match="is no index of shards"):
            StreamedPosePairs(shards)


def test_wrong_arguments(shards):
    with pytest.raises(ValueError, match="`window` must be at least 1, got 0"):
        StreamedPosePairs(shards, window=0)
    with pytest.raises(ValueError, match="`rank` and `world_size` go together"):
        StreamedPosePairs(shards, rank=1)
    with pytest.raises(ValueError, match="`rank` must be from 0 to `world_size` - 1, got 2 of 2"):
        StreamedPosePairs(shards, rank=2, world_size=2)
    assert _check_rank(None, None) == (0, 1)


# The script -----------------------------------------------------------------------------------------------------


def test_the_script_writes_shards_of_a_data_set(deepfashion, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("write_shards_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = ["--train_data_dir", str(deepfashion), "--output_dir", str(tmp_path / "out"), "--pairs_per_shard", "4"]
    script.main(script.parse_args([*arguments, "--no_shuffle"]))
    assert "No file was skipped." in capsys.readouterr().out
    assert indices(StreamedPosePairs(tmp_path / "out", **SIZES, window=1)) == list(range(6))
    with pytest.raises(SystemExit, match=r"write_shards: error: .* was begun with other pairs or settings"):
        script.main(script.parse_args(arguments))
