"""The benchmark runs: its table has all figures, and it notices wrong results."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from testing_utils import tiny_pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def run():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as when it is run: a script imports its neighbours
        yield importlib.import_module("run")


@pytest.fixture(scope="module")
def memory(run):
    return importlib.import_module("memory")  # from the same folder


@pytest.fixture
def add_row(run, monkeypatch):
    def add(name, make, **options):
        monkeypatch.setitem(run.ROWS, name, run.Row("test", name, make, **options))

    return add


def measure(run, capsys, tmp_path, rows):
    path = tmp_path / "figures.json"
    assert run.main(["--rows", rows, "--rounds", "1", "--steps", "1", "--json", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return json.loads(path.read_text()), [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_default_is_compared_with_the_published_way(run, capsys, tmp_path):
    figures, table = measure(run, capsys, tmp_path, "denoising: default")
    assert {"date", "commit", "processor", "cores", "threads", "versions"} <= figures["machine"].keys()
    assert figures["settings"] == {"size": "small", "dtype": "float32", "rounds": 1, "steps": 1}
    published, default = figures["rows"]
    assert [published["name"], default["name"]] == ["published way", "default"]
    assert default["against"] == "published way"
    assert default["difference"] < 1e-4
    # Three branches and two, counted.
    assert published["gflop"] == pytest.approx(default["gflop"] * 3 / 2, rel=1e-6)
    assert len(default["all_seconds"]) == 1
    assert all(default[figure] is not None for figure in run.FIGURES if figure != "peak_mebibytes")  # Linux has it
    assert [len(line) for line in table] == [2 + len(run.FIGURES)] * 4
    assert table[3][:2] == ["default", "published way"]


def test_another_result_ends_the_run(run, add_row):
    add_row("right", lambda bench: lambda: torch.ones(1, 2))
    add_row("wrong", lambda bench: lambda: torch.tensor([[1.0, 1.001]]), against="right")
    with pytest.raises(SystemExit, match=r"`wrong` gives another result than `right`: they differ by 1\.0e-03"):
        run.main(["--rows", "test: wrong", "--rounds", "1"])


def test_a_row_that_cannot_run_says_why_and_the_others_go_on(run, add_row, capsys, tmp_path):
    def missing(bench):
        raise ImportError("No module named 'openvino'")

    add_row("missing", missing)
    add_row("dependent", lambda bench: lambda: None, against="missing")
    add_row("other", lambda bench: lambda: None)
    figures, table = measure(run, capsys, tmp_path, "^test: ")
    reasons = [row["not_run"] for row in figures["rows"]]
    assert reasons == ["ImportError: No module named 'openvino'", "RuntimeError: `missing` was not run", None]
    assert table[2][2] == "not run: ImportError: No module named 'openvino'"


def test_unknown_rows_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run.main(["--rows", "warp drive"])
    assert "No row contains 'warp drive'" in capsys.readouterr().err


def test_memory_of_tensors_is_counted_while_they_are_alive(memory):
    weight = torch.empty(100, 100, device="meta")
    with memory.LiveTensors([weight]) as live:
        first = torch.empty(100, 100, device="meta")
        second = first @ weight
        view = second.T
        assert (live.now, live.peak, live.peak_with_layer) == (80_000, 80_000, 120_000)
        del first, second
        assert live.now == 40_000
        del view
        assert (live.now, live.peak) == (0, 80_000)


def test_memory_of_a_call_grows_with_the_batch_but_not_with_micro_batches(memory):
    pipe = tiny_pipeline().to("meta")
    pipe._cross_attention_kwargs = None
    one, four, micro = (memory.count(pipe, *call)["vae"][0] for call in ((1, None), (4, None), (4, 1)))
    assert four > 3 * one
    assert micro < 2 * one
    assert memory.weigh(pipe.unet, int8=False) == 4 * pipe.unet.num_parameters()
    assert memory.weigh(pipe.unet, int8=True) < 4 * pipe.unet.num_parameters()
