"""Shards: the same items as from files, each once over all processes and workers."""

import functools
import http.server
import json
import os
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import webdataset
from example_scripts import load_example
from miniature_sets import write_deepfashion
from torch.utils.data import DataLoader

from diffusers_cfld.data import (
    PosePairDataset,
    SkipReport,
    UnreadableDataError,
    collate_pose_pairs,
    init_worker,
    load_pairs,
)

StreamedPosePairs = load_example("stream_pairs").StreamedPosePairs
script = load_example("write_shards")
write_shards = script.write_shards

SIZES = {"source_size": (16, 12), "image_size": (20, 14), "pose_size": (16, 12)}


@pytest.fixture
def deepfashion(tmp_path):
    return write_deepfashion(tmp_path / "deepfashion")


@pytest.fixture
def pairs(deepfashion):
    """Fifteen pairs of six images."""
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
        drop_last=True,
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


def test_shards_hold_the_files_byte_for_byte_as_webdataset_reads_them(pairs, shards):
    index = json.loads((shards / "shards.json").read_text())
    assert index == {"shards": [{"name": f"pairs-00000{n}.tar", "num_pairs": 3 + (n < 3)} for n in range(4)]}
    files = sorted(map(str, shards.glob("*.tar")))
    seen = []
    for sample in webdataset.WebDataset(files, shardshuffle=False):
        entry = json.loads(sample["json"])
        pair = pairs[entry["index"]]
        assert sample["__key__"] == f"{entry['index']:09d}"
        assert sample["source.jpg"] == Path(pair.source).read_bytes()
        assert sample["target.jpg"] == Path(pair.target).read_bytes()
        assert (entry["source"], entry["target"]) == (pair.source_name, pair.target_name)
        seen.append(entry["index"])
    assert sorted(seen) == list(range(15)) != seen


def test_the_same_call_writes_the_same_bytes_and_nothing_twice(pairs, shards, tmp_path):
    files = sorted(shards.iterdir())
    again = write_shards(pairs, tmp_path / "again", pairs_per_shard=4).parent
    assert [file.read_bytes() for file in sorted(again.iterdir())] == [file.read_bytes() for file in files]
    before = [file.stat().st_mtime_ns for file in shards.glob("*.tar")]
    write_shards(pairs, shards, pairs_per_shard=4)
    assert [file.stat().st_mtime_ns for file in shards.glob("*.tar")] == before


def test_an_interrupted_writer_leaves_whole_shards_and_continues(pairs, shards, tmp_path, monkeypatch):
    output, written = tmp_path / "interrupted", []
    really_write = webdataset.TarWriter.write

    def write(writer, sample):
        written.append(sample)
        if len(written) == 10:  # within the third shard
            raise KeyboardInterrupt
        return really_write(writer, sample)

    with monkeypatch.context() as patch:
        patch.setattr(webdataset.TarWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            write_shards(pairs, output, pairs_per_shard=4)
    assert sorted(file.name for file in output.iterdir()) == ["pairs-000000.tar", "pairs-000001.tar"]
    with pytest.raises(FileNotFoundError, match=r"shards\.json"):
        StreamedPosePairs(output)
    before = (output / "pairs-000001.tar").stat().st_mtime_ns
    write_shards(pairs, output, pairs_per_shard=4)
    assert (output / "pairs-000001.tar").stat().st_mtime_ns == before
    for file in shards.iterdir():
        assert (output / file.name).read_bytes() == file.read_bytes()


def test_missing_images_are_left_out_and_named(pairs, tmp_path):
    Path(pairs[1].source).unlink()
    report = SkipReport()
    write_shards(pairs, tmp_path / "shards", pairs_per_shard=1, report=report)
    assert list(report.files) == [pairs[1].source]
    stream = StreamedPosePairs(tmp_path / "shards", **SIZES)
    assert stream.num_pairs == 9
    assert sorted(indices(stream)) == [index for index in range(15) if index % 6 > 1]


def test_32_missing_images_in_a_row_stop_the_writer(pairs, deepfashion, tmp_path):
    shutil.rmtree(deepfashion / "train_highres")
    with pytest.raises(UnreadableDataError, match="32 files in a row cannot be used"):
        write_shards(pairs * 3, tmp_path / "shards", pairs_per_shard=4)
    with pytest.raises(UnreadableDataError, match="15 files in a row cannot be used"):
        write_shards(pairs, tmp_path / "shards", pairs_per_shard=4)
    assert not list((tmp_path / "shards").iterdir())


def test_the_script_writes_shards_of_a_data_set(deepfashion, tmp_path, capsys):
    arguments = ["--train_data_dir", str(deepfashion), "--output_dir", str(tmp_path / "out"), "--pairs_per_shard", "4"]
    script.main(script.parse_args([*arguments, "--no_shuffle"]))
    assert "No file was skipped." in capsys.readouterr().out
    with tarfile.open(tmp_path / "out" / "pairs-000001.tar") as archive:
        assert [name for name in archive.getnames() if name.endswith(".json")] == ["000000004.json", "000000005.json"]
    shutil.rmtree(deepfashion)
    with pytest.raises(SystemExit, match=r"write_shards.py: error: .* must have 'pairs.jsonl'"):
        script.main(script.parse_args(arguments))


# Reading --------------------------------------------------------------------------------------------------------


def test_items_are_those_of_the_files(pairs, shards):
    options = {**SIZES, "flip_source_prob": 0.5, "seed": 3}
    stream, dataset = StreamedPosePairs(shards, **options), PosePairDataset(pairs, **options)
    stream.set_epoch(2)
    dataset.set_epoch(2)
    items = list(stream)
    assert sorted(indices(items)) == list(range(15))
    for item in items:
        assert_equal(item, dataset[item["index"]])
    assert "source_pixel_values" not in next(iter(StreamedPosePairs(shards, **SIZES, load_pixel_values=False)))


def test_the_order_follows_from_seed_and_epoch(shards):
    stream = StreamedPosePairs(shards, **SIZES)
    first = indices(stream)
    assert indices(stream) == first != sorted(first)
    stream.set_epoch(1)
    second = indices(stream)
    assert second != first
    assert sorted(second) == sorted(first)
    other = StreamedPosePairs(shards, **SIZES, seed=1)
    assert indices(other) != first
    stream.set_epoch(0)
    assert indices(stream) == first


@pytest.mark.parametrize(("num_workers", "world_size", "batch_size"), [(0, 1, 4), (2, 2, 1), (2, 3, 2), (1, 16, 1)])
def test_processes_get_equally_many_batches_and_together_all_pairs(shards, num_workers, world_size, batch_size):
    seen = Counter()
    for rank in range(world_size):
        stream = StreamedPosePairs(shards, **SIZES, rank=rank, world_size=world_size)
        batches = [batch["index"].tolist() for batch in loader(stream, num_workers, batch_size)]
        assert len(batches) == stream.num_batches(batch_size, num_workers)
        seen.update(index for batch in batches for index in batch)
    if batch_size == 1:
        assert set(seen) == set(range(15))
    assert max(seen.values()) <= 2


def test_workers_that_outlive_the_epoch_see_it_change(shards):
    stream = StreamedPosePairs(shards, **SIZES)
    batches = loader(stream, 2, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([batch["index"].item() for batch in batches])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens URLs with curl")
def test_shards_are_read_from_a_url(shards):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=shards)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        remote = list(StreamedPosePairs(f"http://127.0.0.1:{server.server_port}/", **SIZES))
        with pytest.raises(OSError, match="exit 22"):
            StreamedPosePairs(f"http://127.0.0.1:{server.server_port}/elsewhere")
    finally:
        server.shutdown()
        server.server_close()
    for item, other in zip(StreamedPosePairs(shards, **SIZES), remote, strict=True):
        assert_equal(item, other)


# Broken shards --------------------------------------------------------------------------------------------------


def replace_bytes(file, old, new, count=-1):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, count))


@pytest.mark.parametrize("number", [0, 3])
def test_a_broken_image_is_replaced_by_the_next_pair_and_named(pairs, shards, number):
    replace_bytes(shards / f"pairs-00000{number}.tar", b"\xff\xd8", b"\0\0", 1)
    items = list(StreamedPosePairs(shards, **SIZES))
    assert len(items) == 15
    (entry,) = (entry for item in items for entry in item["skipped"])
    assert entry[0] in {pair.source_name for pair in pairs}
    assert entry[1] == "is not an image in a known format"
    (missing,) = set(range(15)) - set(indices(items))
    assert pairs[missing].source_name == entry[0]


@pytest.mark.parametrize(
    "break_it", [os.remove, lambda file: os.truncate(file, 0), lambda file: os.truncate(file, 5000)]
)
def test_a_broken_shard_is_replaced_by_others_and_named(shards, break_it):
    stream = StreamedPosePairs(shards, **SIZES)
    file = shards / "pairs-000003.tar"
    break_it(file)
    items = list(stream)
    assert len(items) == 15
    named = {path for item in items for path, _ in item["skipped"]}
    assert named == {str(file)}
    assert len(list(loader(stream, 2))) == stream.num_batches(1, 2) == 16


def test_a_pair_without_its_keypoints_is_named(shards):
    file = shards / "pairs-000001.tar"
    replace_bytes(file, b'"source_keypoints"', b'"sauce_keypoints" ', 1)
    items = list(StreamedPosePairs(shards, **SIZES))
    (entry,) = (entry for item in items for entry in item["skipped"])
    assert entry[0].startswith(f"{file}:0000000")
    assert "is not a pair" in entry[1]


def test_wholly_broken_shards_end_the_run_with_one_sentence(shards):
    stream = StreamedPosePairs(shards, **SIZES)
    for file in shards.glob("*.tar"):
        replace_bytes(file, b"\xff\xd8", b"\0\0")
    with pytest.raises(UnreadableDataError, match="files in a row cannot be used"):
        list(stream)
    for file in shards.glob("*.tar"):
        file.unlink()
    with pytest.raises(UnreadableDataError, match=r"in a row cannot be used; .*No such file") as error:
        list(stream)
    assert "\n" not in str(error.value)
