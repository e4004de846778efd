"""`python -m benchmarks load`: how many rows a process reads, and what a data set of a thousand million rows costs it.

Three questions: the order alone at that size (time to the first micro-batch, memory, rate), order and reading of
posteriors from a real Lance table whose rows stand in for all of them, and what opening a table costs per row.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from terminus import runtime
from terminus.bench.measure import Spread, resident_bytes, save_result
from terminus.conditioning import Crop, Size
from terminus.data.batch import Batch
from terminus.data.geometry import CropPlan
from terminus.data.latent_rows import LatentRows
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.data.record import LatentRow
from terminus.data.store import Store, View, pack_posterior
from terminus.errors import UserError
from terminus.progress import Meter

BAR = 1000.0
"""Rows per second and process that we ask of the loader, at latents of 4 x 128 x 128."""
_TURNS = 5
_FEW = 1000
"""Rows of the small data set that the large one is compared with."""
_VAE, _TRANSFORM = "benchmark", "benchmark"
Made = TypeVar("Made")
_NARROW = 2
"""Side of the latents of the table that is only opened."""


@dataclass(frozen=True)
class Ordering:
    """Speed and memory of the order alone."""

    rows: int
    first: float
    """Seconds from nothing to the first micro-batch."""
    far: float
    """Seconds to a micro-batch in the middle of the tenth pass, as a run that is continued there asks for."""
    rows_per_second: Spread
    """Not seconds: a rate, of several turns."""
    bytes_allocated: int
    """The most that Python held for it."""


@dataclass(frozen=True)
class LoaderMeasurement:
    """Speed of order and posteriors together."""

    rows: int
    """Rows that the order believes in."""
    stored: int
    """Rows in the table, each of which stands in for many."""
    threads: int
    rows_per_second: Spread
    """Not seconds: a rate, of several turns."""
    rows_per_cpu_second: Spread
    """The same by the process's own time, which says what it costs where other work shares the machine."""
    mib_per_second: float
    growth_mib: float | None
    """How much the process grew from the end of the first turn to that of the last; None where it cannot be read."""


@dataclass(frozen=True)
class Opening:
    """Time and memory of opening a table with this many rows."""

    rows: int
    seconds: float
    bytes_per_row: float
    """Bytes that are kept as long as the table is read."""
    bytes_per_row_meanwhile: float
    """The most that Python held for it, Arrow's own memory not counted."""


@dataclass(frozen=True)
class Loading:
    """Everything that was measured."""

    few: Ordering
    many: Ordering
    readings: tuple[LoaderMeasurement, ...]
    opening: Opening


@dataclass(frozen=True)
class _StandIn:
    """Rows of a table, each of which stands in for many."""

    rows: LatentRows
    count: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each bucket: there is one bucket."""
        return (self.count,)

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """A batch of the rows that stand in for these."""
        stored = self.rows.sizes[0]
        return self.rows.read(bucket, [row % stored for row in rows], positions, epoch)


def bench_load(
    rows: int = 10**9,
    stored: int = 1000,
    side: int = 128,
    micro_batch: int = 24,
    threads: Sequence[int] = (0, 2),
    batches: int = 20,
    opened: int = 100_000,
    out: Path | None = None,
) -> Loading:
    """Makes its own tables in a temporary folder; prints a table last, and writes `out` as JSON.

    `stored` posteriors of 4 x side x side are on the disk (262 kB each at 128), `opened` tiny ones in a second table;
    a turn reads `batches` micro-batches.
    """
    if min(rows, stored, side, micro_batch, batches, opened) < 1 or not threads or min(threads) < 0:
        raise UserError(f"{rows} rows, {stored} stored, micro-batch {micro_batch}", rule="Each is at least 1")
    with Meter(Console(stderr=True), "parts", 3 + len(threads)) as meter:
        few, many = (_ordering(count, micro_batch, batches) for count in (min(rows, _FEW), rows))
        meter.advance(1)
        with tempfile.TemporaryDirectory(prefix="terminus-bench-") as folder:
            view = _made(Path(folder) / "wide", stored, side)
            meter.advance(1)
            readings: list[LoaderMeasurement] = []
            for count in threads:
                readings.append(_reading(view, rows, side, micro_batch, count, batches))
                meter.advance(1)
            opening = _opening(Path(folder) / "narrow", opened)
            meter.advance(1)
    result = Loading(few, many, tuple(readings), opening)
    _report(result, side, micro_batch, out)
    return result


def _ordering(rows: int, micro_batch: int, batches: int) -> Ordering:
    order, first = _clocked(lambda: _begun(rows, micro_batch))
    middle = int(9.5 * rows / micro_batch)
    _, far = _clocked(lambda: order[middle])
    tracemalloc.start()
    _ = _begun(rows, micro_batch)[middle]
    _, allocated = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rates: list[float] = []
    for turn in range(_TURNS):
        start = middle + turn * batches
        _, seconds = _clocked(lambda start=start: [order[start + index] for index in range(batches)])
        rates.append(batches * micro_batch / seconds)
    return Ordering(rows, first, far, Spread.of(rates), allocated)


def _begun(rows: int, micro_batch: int) -> Order:
    order = Order(0, (rows,), micro_batch)
    assert len(order[0].rows) == micro_batch
    return order


def _reading(view: View, rows: int, side: int, micro_batch: int, threads: int, batches: int) -> LoaderMeasurement:
    stored = LatentRows(view, _VAE, _TRANSFORM, "train")
    standing_in = _StandIn(stored, rows)
    loader = Loader(standing_in, Order(0, standing_in.sizes, micro_batch), 1, threads)
    rates: list[float] = []
    own: list[float] = []
    sizes: list[int] = []
    # One stream for all turns, as a run has; the first turn fills it and the page cache, and is not counted.
    with closing(loader.steps(0, batches * (1 + _TURNS))) as stream:
        for turn in range(1 + _TURNS):
            before = time.process_time()
            _, seconds = _clocked(lambda: [next(stream)[0].positions for _ in range(batches)])
            spent = time.process_time() - before
            sizes += _resident()
            if turn:
                rates.append(batches * micro_batch / seconds)
                own.append(batches * micro_batch / spent)
    rate = Spread.of(rates)
    return LoaderMeasurement(
        rows=rows,
        stored=stored.sizes[0],
        threads=threads,
        rows_per_second=rate,
        rows_per_cpu_second=Spread.of(own),
        mib_per_second=rate.median * 2 * 4 * side * side * 2 / 2**20,
        growth_mib=(sizes[-1] - sizes[0]) / 2**20 if sizes else None,
    )


def _opening(folder: Path, rows: int) -> Opening:
    view = _made(folder, rows, _NARROW)
    tracemalloc.start()
    opened = LatentRows(view, _VAE, _TRANSFORM, "train")
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(opened.sizes) == rows
    # Again without the tracing, which is slow, and without what the first time found.
    shutil.rmtree(f"{view.dataset.uri}.index")
    _, seconds = _clocked(lambda: LatentRows(view, _VAE, _TRANSFORM, "train"))
    return Opening(rows, seconds, kept / rows, most / rows)


def _made(folder: Path, count: int, side: int) -> View:
    """A table of random posteriors; the folder is the caller's to remove."""
    table, size = Store(str(folder)).latents, Size(8 * side, 8 * side)
    generator = np.random.default_rng(0)
    values = pack_posterior(generator.standard_normal((2, 4, side, side)).astype(np.float16))
    plan = CropPlan(size, size, Crop(0, 0), size)
    at_once = max(1, min(count, 2**26 // len(values), 10_000))
    for start in range(0, count, at_once):
        table.append([_row(number, values, plan, side) for number in range(start, min(count, start + at_once))])
    return table.required()


def _row(number: int, values: bytes, plan: CropPlan, side: int) -> LatentRow:
    shift = number % len(values) // 2 * 2  # other bytes in each row, or a file system could keep them once
    return LatentRow(
        key=f"{number:032x}",
        image_key=f"{number:032x}",
        image_hash=f"{number:064x}",
        source="benchmark",
        source_id=str(number),
        split="train",
        captions=(f"a 3d render of {number} apples on a white background",),
        caption_origins=("benchmark",),
        plan=plan,
        posterior=values[shift:] + values[:shift],
        latent_channels=4,
        latent_height=side,
        latent_width=side,
        vae=_VAE,
        transform=_TRANSFORM,
        caption_weights=(1.0,),
    )


def _clocked(work: Callable[[], Made]) -> tuple[Made, float]:
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


def _resident() -> list[int]:
    try:
        return [resident_bytes()]
    except OSError:
        return []


def _report(result: Loading, side: int, micro_batch: int, out: Path | None) -> None:
    environment = runtime.environment()
    if out is not None:
        content = {
            "latent": [2, 4, side, side],
            "micro_batch": micro_batch,
            "bar_rows_per_second": BAR,
            "environment": asdict(environment),
            "load_average": os.getloadavg()[0],
            **asdict(result),
        }
        save_result(out, content)
    console = Console(highlight=False)
    console.print(
        f"micro-batches of {micro_batch} rows, posteriors 2 x 4 x {side} x {side} in float16, {environment.hardware}, "
        f"pylance {environment.packages['pylance']}; the bar is {BAR:,.0f} rows/s per process. The order alone, "
        "order and posteriors by the number of threads, and what it takes to open a table:",
        soft_wrap=True,
    )
    console.print(_table(result))


def _table(result: Loading) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "rows", "rows/s", "slowest", "/CPU s", "first ms", "far ms", "memory"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for one in (result.few, result.many):
        rate = one.rows_per_second
        table.add_row(
            "order", f"{one.rows:,}", f"{rate.median:,.0f}", f"{rate.low:,.0f}", "-", f"{1000 * one.first:.2f}",
            f"{1000 * one.far:.2f}", f"{one.bytes_allocated / 1024:.1f} KiB",
        )  # fmt: skip
    for one in result.readings:
        rate = one.rows_per_second
        grown = "-" if one.growth_mib is None else f"{one.growth_mib:+.1f} MiB"
        table.add_row(
            f"threads: {one.threads}", f"{one.rows:,}", f"{rate.median:,.0f}", f"{rate.low:,.0f}",
            f"{one.rows_per_cpu_second.median:,.0f}", "-", "-", grown,
        )  # fmt: skip
    opening = result.opening
    memory = f"{opening.bytes_per_row:.0f}-{opening.bytes_per_row_meanwhile:.0f} B/row"
    rate = f"{opening.rows / opening.seconds:,.0f}"
    table.add_row("opening", f"{opening.rows:,}", rate, "-", "-", f"{1000 * opening.seconds:.2f}", "-", memory)
    return table
