"""The execution engine: plain functions over rows, run by Daft over many rows, answered in order.

Daft's native runner uses all cores of this machine in-process (Pillow, torch and zlib release the
interpreter lock); a Ray cluster runs the same functions and gives the same bytes, because everything
random in them is a function of the row.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

# Before Daft is imported: no usage reports, and no bars of its own among ours.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import pyarrow as pa

ROWS_PER_TASK = 8
"""Small, so that results stream and all cores share even a short list of large images."""

Row = dict[str, object]


@dataclass(frozen=True)
class Errand:
    """What mostly waits (downloads): done for several rows at once, beside all that computes."""

    function: Callable[[list[Row]], list[Row]]
    """From rows to as many rows of the type `returns`; blocks while it waits."""
    returns: pa.Schema  # pyright: ignore[reportUnknownVariableType]
    rows_per_call: int
    calls: int
    """How many calls wait at a time."""


def run(
    columns: Mapping[str, Sequence[object]],
    schema: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
    function: Callable[[Row], Row],
    returns: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
    errand: Errand | None = None,
) -> Iterator[Row]:
    """`function` of every row, in row order, as results become ready.

    `schema` and `returns` are the Arrow types of what goes in and comes out; rows are dicts only here,
    at the border to the engine. What an `errand` returns for a row is added to it before `function` sees it.
    """
    names = list(schema.names)
    table = pa.table(dict(columns), schema=schema)
    table = table.append_column("order", pa.array(range(table.num_rows), pa.int64()))
    frame = daft.from_arrow(table)
    if errand is not None:
        fetched = daft.func.batch(
            return_dtype=_struct(errand.returns), batch_size=errand.rows_per_call, max_concurrency=errand.calls
        )(_errand(errand.function, tuple(names), errand.calls))
        frame = frame.with_column("fetched", cast(daft.Expression, fetched(*(frame[name] for name in names))))
        names.append("fetched")
    mapped = daft.func.batch(return_dtype=_struct(returns), batch_size=ROWS_PER_TASK, use_process=False)(
        lambda *series: [function(_flat(row)) for row in _rows(names, cast("tuple[daft.Series, ...]", series))]
    )
    frame = frame.select(frame["order"], mapped(*(frame[name] for name in names)).alias("result"))
    yield from _in_order(frame)


def _in_order(frame: daft.DataFrame) -> Iterator[Row]:
    """Calls that wait end in any order; what comes early is held until its turn."""
    early: dict[int, Row] = {}
    turn = 0
    for batch in frame.to_arrow_iter():
        results = cast("list[Row]", batch.column("result").to_pylist())
        early.update(zip(cast("list[int]", batch.column("order").to_pylist()), results, strict=True))
        while turn in early:
            yield early.pop(turn)
            turn += 1
    assert not early, "every row has a result"


def _errand(function: Callable[[list[Row]], list[Row]], names: tuple[str, ...], calls: int) -> Callable[..., object]:
    async def wait(*series: daft.Series) -> list[Row]:
        rows = _rows(names, series)
        return await asyncio.get_running_loop().run_in_executor(_waiters(calls), function, rows)

    return wait


@lru_cache(maxsize=4)
def _waiters(calls: int) -> ThreadPoolExecutor:
    """asyncio's own pool is as small as the machine has cores."""
    return ThreadPoolExecutor(calls, "errand")


def _rows(names: Sequence[str], series: Sequence[daft.Series]) -> list[Row]:
    columns = (one.to_pylist() for one in series)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _flat(row: Row) -> Row:
    fetched = cast("Row | None", row.pop("fetched", None))
    return row | (fetched or {})


def _struct(schema: pa.Schema) -> daft.DataType:  # pyright: ignore[reportUnknownParameterType]
    return daft.DataType.struct({field.name: daft.DataType.from_arrow_type(field.type) for field in schema})
