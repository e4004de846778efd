"""The execution engine: a plain function from row to row, run by Daft over many rows in order.

Daft's native runner uses all cores of this machine in-process (Pillow, torch and zlib release the
interpreter lock); a Ray cluster runs the same functions and gives the same bytes, because everything
random in them is a function of the row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

# Before Daft is imported: no usage reports, and no bars of its own among ours.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import pyarrow as pa

ROWS_PER_TASK = 8
"""Small, so that results stream and all cores share even a short list of large images."""

In = TypeVar("In")
Out = TypeVar("Out")


def run(
    columns: Mapping[str, Sequence[object]],
    schema: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
    function: Callable[[dict[str, object]], dict[str, object]],
    returns: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
) -> Iterator[dict[str, object]]:
    """`function` of every row, in row order, as results become ready.

    `schema` and `returns` are the Arrow types of what goes in and comes out; rows are dicts only here,
    at the border to the engine.
    """
    names = schema.names

    struct = daft.DataType.struct({field.name: daft.DataType.from_arrow_type(field.type) for field in returns})
    mapped = daft.func.batch(return_dtype=struct, batch_size=ROWS_PER_TASK, use_process=False)(
        lambda *series: _rows(function, names, cast("tuple[daft.Series, ...]", series))
    )
    frame = daft.from_arrow(pa.table(dict(columns), schema=schema))
    frame = frame.select(mapped(*(frame[name] for name in names)).alias("result"))
    for batch in frame.to_arrow_iter():
        yield from cast("list[dict[str, object]]", batch.column("result").to_pylist())


def _rows(
    function: Callable[[dict[str, object]], dict[str, object]], names: Sequence[str], series: Sequence[daft.Series]
) -> list[dict[str, object]]:
    rows = zip(*(one.to_pylist() for one in series), strict=True)
    return [function(dict(zip(names, row, strict=True))) for row in rows]
