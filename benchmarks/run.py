"""Measure what CFLD costs on this machine, side by side with what people would use instead.

    python benchmarks/run.py [--device cpu|cuda] [--dtype float32|float16|bfloat16] [--size small|half|published]
                             [--rows REGEX] [--rounds N] [--steps N] [--json FILE]

Each row of the table is a small function in `rows.py`. A row that has something to be compared with is timed
alternately with it, and the ratio of their medians counts; times from different runs cannot be compared. In float32, a
row that gives another result than it should ends the run. `docs/performance.md` explains the columns and rows.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import gc
import json
import logging
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.utils.flop_counter as flop_counter
from rows import ROWS, SIZES, Bench, Call, Row

MIB = 2**20


@dataclass
class Prepared:
    """A row that is ready to be timed, and what its first calls showed."""

    run: Call
    result: Any
    difference: float | None  # from the result that it should have
    once: float  # seconds
    peak: float | None  # bytes
    flops: float
    calls: int  # so many in a sample, for that to be long enough


def timed(run: Call, calls: int = 1) -> tuple[float, Any]:
    """Seconds of a call, and what the last one returned."""
    result = None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    wait()
    return (time.perf_counter() - start) / calls, result


def wait() -> None:
    """Wait until a GPU, if one is used, has finished."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def measuring_peak(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Yield what tells the peak memory beyond that at the beginning, in bytes: on a CPU from Linux, or None."""
    gc.collect()
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        yield lambda: None
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # or freed memory that the process still has would not count when it is used again
    reset.write_text("5")  # the peak is now what is resident
    before = _peak_resident()
    yield lambda: _peak_resident() - before


def _peak_resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def count_flops() -> flop_counter.FlopCounterMode:
    """Make torch's counter of matrix products and convolutions, and tell it of a CPU's attention."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {  # of the shapes of the arguments
        forward: lambda query, key, value, *_, **__: flop_counter.sdpa_flop_count(query, key, value),
        backward: lambda grad, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(grad, q, k, v),
    }
    return flop_counter.FlopCounterMode(display=False, custom_mapping=formulas)


def relative_difference(result: Any, expected: Any) -> float | None:
    """Largest difference of two results, if there are any, relative to the largest expected value."""
    if result is None:
        return None
    if result.shape != expected.shape:  # samples of a batch do not depend on each other
        result, expected = result[:1], expected[:1]
    expected = expected.float()
    return ((result.float() - expected).abs().max() / expected.abs().max()).item()


def prepare(bench: Bench, row: Row, base: Prepared | None) -> Prepared:
    """Make a row, call it twice, check its result and count its memory and operations."""
    start = time.perf_counter()
    run = row.make(bench)
    _, result = timed(run)
    once = time.perf_counter() - start
    difference = None
    if base is not None and row.tolerance is not None:
        difference = relative_difference(result, base.result)
        if difference is not None and not difference <= row.tolerance and bench.dtype == torch.float32:
            raise SystemExit(
                f"`{row.name}` gives another result than `{row.against}`: they differ by {difference:.1e} of the "
                f"largest value, and may differ by {row.tolerance:.0e}."
            )
    counter = nullcontext() if row.same_work else count_flops()
    with measuring_peak(bench.device) as peak, counter:
        seconds, _ = timed(run)
    if base is not None and row.same_work:
        flops = base.flops * row.images / ROWS[row.against].images
    else:
        flops = counter.get_total_flops()
    return Prepared(run, result, difference, once, peak(), flops, calls=math.ceil(0.05 / seconds))


def alternate(prepared: dict[str, Prepared], rounds: int) -> dict[str, list[float]]:
    """Time each of some calls once a round, in an order that is turned round after each."""
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    for number in range(rounds):
        for name in list(prepared)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(timed(prepared[name].run, prepared[name].calls)[0])
    return seconds


def multiply(bench: Bench) -> Prepared:
    """A product of two large matrices, whose rate is the machine's own."""
    side = 2048 if bench.device.type == "cpu" else 8192
    left, right = bench.rand(2, side, side).to(bench.dtype)
    run = functools.partial(torch.mm, left, right)
    for _ in range(2):
        seconds, _ = timed(run)
    return Prepared(run, None, None, 0.0, None, 2.0 * side**3, calls=math.ceil(0.05 / seconds))


def measure(
    row: Row, prepared: Prepared, base: Prepared | None, product: Prepared, rounds: int
) -> dict[str, float | list[float] | None]:
    """Time a row alternately with the one that it is compared with and with the matrix product."""
    together = {"base": base, "row": prepared, "product": product if prepared.flops else None}
    seconds = alternate({name: each for name, each in together.items() if each is not None}, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    measured = {
        "seconds": medians["row"] / row.images,
        "all_seconds": [sample / row.images for sample in seconds["row"]],
        "difference": prepared.difference,
    }
    if base is not None:
        measured["ratio"] = medians["base"] / ROWS[row.against].images / measured["seconds"]
    if prepared.flops:
        measured["gflop"] = prepared.flops / row.images / 1e9
        measured["share_of_product"] = prepared.flops / medians["row"] * medians["product"] / product.flops
    if row.group != "start-up":  # which is in other processes
        measured["once_seconds"] = max(0.0, prepared.once - medians["row"])
        measured["peak_mebibytes"] = None if prepared.peak is None else prepared.peak / MIB
    return measured


def run_rows(bench: Bench, rows: list[Row], rounds: int) -> list[dict[str, Any]]:
    """Prepare, measure and print rows one by one; those that others are compared with come first and are kept."""
    product = multiply(bench)
    kept: dict[str, Prepared] = {}
    records = []
    for row in rows:
        record: dict[str, Any] = {"group": row.group, "name": row.name, "against": row.against}
        record |= dict.fromkeys(["not_run", *FIGURES])
        try:
            if row.against is not None and row.against not in kept:
                raise RuntimeError(f"`{row.against}` was not run")
            base = kept.get(row.against)
            prepared = prepare(bench, row, base)
            record |= measure(row, prepared, base, product, rounds)
            if any(other.against == row.name for other in rows):
                kept[row.name] = prepared
        except Exception as error:  # the other rows go on
            record["not_run"] = f"{type(error).__name__}: {error}".splitlines()[0]
        records.append(record)
        print(format_record(record), flush=True)
    return records


# The table.


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


# Each figure of a row, with its column and format.
FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "seconds": ("time", _format_seconds),
    "ratio": ("as fast", "{:.2f}x".format),
    "difference": ("differs by", "{:.0e}".format),
    "once_seconds": ("once", _format_seconds),
    "peak_mebibytes": ("memory", "{:.0f} MiB".format),
    "gflop": ("GFLOP", "{:.3g}".format),
    "share_of_product": ("of product", "{:.0%}".format),
}


def format_table_head() -> str:
    """Write the first lines of the table."""
    titles = ["row", "compared with", *(title for title, _ in FIGURES.values())]
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


def format_record(record: dict[str, Any]) -> str:
    """Write a line of the table."""
    cells = [form(record[key]) if record[key] is not None else "" for key, (_, form) in FIGURES.items()]
    if record["not_run"] is not None:
        cells[0] = f"not run: {record['not_run']}"
    return f"| {' | '.join([record['name'], record['against'] or '', *cells])} |"


def describe_machine(bench: Bench) -> dict[str, Any]:
    """Describe what the figures were measured with."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        processor = found[1] if found else processor
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": "cpu" if bench.device.type == "cpu" else torch.cuda.get_device_name(bench.device),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }


def select_rows(pattern: str) -> list[Row]:
    """Choose rows by what their group and name contain, and what these are compared with."""
    chosen = {name for name, row in ROWS.items() if re.search(pattern, f"{row.group}: {name}")}
    while more := {ROWS[name].against for name in chosen} - chosen - {None}:
        chosen |= more
    return [row for name, row in ROWS.items() if name in chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--rows", default="", metavar="REGEX", help="those whose 'group: name' contains it")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="samples per row (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="denoising steps (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("This PyTorch finds no CUDA device.")
    rows = select_rows(args.rows)
    if not rows:
        parser.error(f"No row contains {args.rows!r}; there are: {', '.join(ROWS)}.")

    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        bench = Bench(args.size, torch.device(args.device), getattr(torch, args.dtype), args.steps, Path(folder))
        machine = describe_machine(bench)
        settings = {name: getattr(args, name) for name in ("size", "dtype", "rounds", "steps")}
        for name, value in {**machine, **settings}.items():
            print(f"{name}: {value}")
        print(f"\n{format_table_head()}", flush=True)
        records = run_rows(bench, rows, args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "settings": settings, "rows": records}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    diffusers.utils.logging.disable_progress_bar()
    torch.compiler.config.force_disable_caches = True  # or compiling would cost less than it does the first time
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    logging.disable(logging.WARNING)  # the small model warns that random images are no drawings
    sys.exit(main())
