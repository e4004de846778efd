"""The execution engine: plain functions over rows, run by Daft over many rows, answered in order.

Daft's native runner uses all cores of this machine in-process (Pillow, torch and zlib release the
interpreter lock); a Ray cluster runs the same functions and gives the same bytes, because everything
random in them is a function of the row. For the same reason a row whose node is lost is just computed again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

# Before Daft is imported: no usage reports, and no bars of its own among ours.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import pyarrow as pa

from terminus.data import cluster
from terminus.data.cluster import Engine, NativeEngine, RayEngine
from terminus.errors import UserError

ROWS_PER_TASK = 8
"""Small, so that results stream and all cores share even a short list of large images."""
ROWS_PER_PARTITION = 64
"""What a node of a cluster gets at a time; few enough that a short list is spread, and that a loss costs little."""
LOSSES = 5
"""How often in a row nodes may be lost before any result came."""

Row = dict[str, object]


@dataclass(frozen=True)
class Errand:
    """Work that mostly waits (downloads): done for several rows at once, beside all that computes."""

    function: Callable[[list[Row]], list[Row]]
    """From rows to as many rows of the type `returns`; blocks while it waits."""
    returns: pa.Schema  # pyright: ignore[reportUnknownVariableType]
    rows_per_call: int
    calls: int
    """How many calls wait at a time."""


def use(engine: Engine) -> None:
    """Decides where `run` computes, once for this process, since Daft decides once. `UserError` if that cannot be."""
    global _used
    if _used == engine:
        return
    if _used is not None:
        raise UserError(
            f"this process computes with {_used.kind} already",
            where="data.engine",
            rule="The engine is chosen once for a process",
            fix=f"Prepare with {engine.kind} in another process.",
        )
    if isinstance(engine, RayEngine):
        cluster.connect(engine)
        daft.set_runner_ray(noop_if_initialized=True)
    else:
        daft.set_runner_native()
    _used = engine


_used: Engine | None = None


def require_readable(folders: set[Path]) -> None:
    """Raises `UserError` if where `run` computes these folders cannot be read as here."""
    if isinstance(_used, RayEngine) and (new := folders - _required):
        cluster.require_shared_folders(sorted(new))
        _required.update(new)


_required: set[Path] = set()


def run(
    columns: Mapping[str, Sequence[object]],
    schema: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
    function: Callable[[Row], Row],
    returns: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
    errand: Errand | None = None,
) -> Iterator[Row]:
    """`function` of every row, in row order, as results become ready; on this machine, or where `use` says.

    `schema` and `returns` are the Arrow types of what goes in and comes out; rows are dicts only here,
    at the border to the engine. What an `errand` returns for a row is added to it before `function` sees it.
    """
    if _used is None:  # or a variable in the environment would decide
        use(NativeEngine(kind="native"))
    names = tuple(schema.names)
    table = pa.table(dict(columns), schema=schema)
    # Results come in any order, which this column restores.
    table = table.append_column("order", pa.array(range(table.num_rows), pa.int64()))
    mapped = _mapped((*names, "fetched") if errand else names, function, returns)
    fetched = _fetched(names, errand) if errand else None

    def frame(part: pa.Table) -> daft.DataFrame:  # pyright: ignore[reportUnknownParameterType]
        # Nodes get small parts to share, this machine all rows at once.
        size = ROWS_PER_PARTITION if isinstance(_used, RayEngine) else max(1, part.num_rows)
        given = daft.from_arrow([part.slice(start, size) for start in range(0, max(1, part.num_rows), size)])
        inputs = [given[name] for name in names]
        if fetched is not None:
            given = given.with_column("fetched", fetched(*inputs))
            inputs = [given[name] for name in (*names, "fetched")]
        return given.select(given["order"], mapped(*inputs).alias("result"))

    yield from _in_order(table, frame)


def _in_order(
    table: pa.Table,  # pyright: ignore[reportUnknownParameterType]
    frame: Callable[[pa.Table], daft.DataFrame],  # pyright: ignore[reportUnknownParameterType]
) -> Iterator[Row]:
    """Results in their order. What comes early is held until its turn; what is lost with a node of a cluster is
    computed again."""
    early: dict[int, Row] = {}
    turn = losses = 0
    lost = cluster.losses() if isinstance(_used, RayEngine) else ()
    while turn < table.num_rows:
        # At first all rows; after a loss those that have no result yet.
        missing = [number for number in range(turn, table.num_rows) if number not in early]
        try:
            for batch in frame(table.take(missing)).to_arrow_iter():
                losses = 0
                results = cast("list[Row]", batch.column("result").to_pylist())
                early.update(zip(cast("list[int]", batch.column("order").to_pylist()), results, strict=True))
                while turn in early:
                    yield early.pop(turn)
                    turn += 1
            assert turn == table.num_rows, "every row has a result"
        except lost:
            losses += 1
            if losses > LOSSES:
                raise


def _fetched(names: tuple[str, ...], errand: Errand) -> Callable[..., daft.Expression]:
    made = daft.func.batch(
        return_dtype=_struct(errand.returns), batch_size=errand.rows_per_call, max_concurrency=errand.calls
    )(_errand(errand.function, names, errand.calls))
    return cast("Callable[..., daft.Expression]", made)


def _mapped(
    names: tuple[str, ...],
    function: Callable[[Row], Row],
    returns: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
) -> Callable[..., daft.Expression]:
    made = daft.func.batch(return_dtype=_struct(returns), batch_size=ROWS_PER_TASK, use_process=False)(
        lambda *series: [function(_flat(row)) for row in _rows(names, cast("tuple[daft.Series, ...]", series))]
    )
    return cast("Callable[..., daft.Expression]", made)


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
