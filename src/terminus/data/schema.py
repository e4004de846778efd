"""Columns of the tables, derived from the row classes: a field of a row class is a column, whose type follows from
the field's.

A field annotated with an Arrow type (`Annotated[bytes, pa.large_binary()]`) has that one. A `CropPlan` is nine columns:
its eight numbers and the name of its bucket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pyarrow as pa

from terminus.conditioning import Crop, Size
from terminus.data.checksums import CHECKSUM, GROUP_CHECKSUM
from terminus.data.geometry import CropPlan

GEOMETRY = (
    "original_height", "original_width", "resized_height", "resized_width",
    "crop_top", "crop_left", "target_height", "target_width",
)  # fmt: skip
"""A `CropPlan` as eight int32 columns."""
_BUCKET = "bucket"

_SCALARS: dict[object, pa.DataType] = {  # pyright: ignore[reportUnknownVariableType]
    str: pa.string(),
    bytes: pa.binary(),
    float: pa.float32(),
    int: pa.int32(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", "UTC"),
}

RowClass = TypeVar("RowClass")


def table_schema(row_class: type, grouped: bool = False) -> pa.Schema:  # pyright: ignore[reportUnknownParameterType]
    """The columns of a row class, and its checksum; `grouped` adds that of the columns by which rows are found."""
    checksums = [(CHECKSUM, pa.uint32())]
    if grouped:
        checksums.append((GROUP_CHECKSUM, pa.uint32()))
    return pa.schema([*row_schema(row_class), *(pa.field(name, kind) for name, kind in checksums)])


def row_schema(row_class: type) -> pa.Schema:  # pyright: ignore[reportUnknownParameterType]
    """The columns of a row class, in the order of its fields."""
    columns: list[tuple[str, pa.DataType]] = []  # pyright: ignore[reportUnknownVariableType]
    for name, annotation in _annotations(row_class).items():
        if annotation is CropPlan:
            columns += [(number, pa.int32()) for number in GEOMETRY]
            columns.append((_BUCKET, pa.string()))
        else:
            columns.append((name, _arrow_type(annotation)))
    return pa.schema(columns)


def column_names(row_class: type) -> list[str]:
    """The columns that `read_row` needs."""
    return [name for name in row_schema(row_class).names if name != _BUCKET]


def columns_of(row: object) -> dict[str, object]:
    """A row as the values of its columns; a tuple is a list, since Daft takes tuples for structs."""
    columns: dict[str, object] = {}
    for name in _annotations(type(row)):
        value = getattr(row, name)
        if isinstance(value, CropPlan):
            numbers = (*value.original, *value.resized, *value.crop, *value.target)
            columns.update(zip(GEOMETRY, numbers, strict=True))
            columns[_BUCKET] = value.bucket
        else:
            columns[name] = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
    return columns


def read_row(row_class: type[RowClass], columns: Mapping[str, object]) -> RowClass:
    """The row that these columns hold, as `to_pylist` gives them; a null list is an empty one.

    Columns that the class does not have are ignored.
    """
    values: dict[str, Any] = {}
    for name, annotation in _annotations(row_class).items():
        if annotation is CropPlan:
            values[name] = plan_of(columns)
        elif _is_list(annotation):
            values[name] = tuple(cast("list[object] | None", columns[name]) or ())
        else:
            values[name] = columns[name]
    return row_class(**values)


def read_rows(
    row_class: type[RowClass],
    table: pa.Table | pa.RecordBatch,  # pyright: ignore[reportUnknownParameterType]
) -> Iterator[RowClass]:
    """The rows of a table or batch, in order."""
    return (read_row(row_class, columns) for columns in cast("Sequence[dict[str, object]]", table.to_pylist()))


def plan_of(columns: Mapping[str, object]) -> CropPlan:
    """The plan that the geometry columns of a row hold; its other columns are ignored."""
    original_height, original_width, resized_height, resized_width, top, left, height, width = (
        cast(int, columns[name]) for name in GEOMETRY
    )
    return CropPlan(
        Size(original_height, original_width),
        Size(resized_height, resized_width),
        Crop(top, left),
        Size(height, width),
    )


@cache
def _annotations(row_class: type) -> dict[str, object]:
    """The types of a row class's fields, with what `Annotated` adds, in their order."""
    hints = get_type_hints(row_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(row_class)}


@cache
def _is_list(annotation: object) -> bool:
    return pa.types.is_list(_arrow_type(annotation))


def _arrow_type(annotation: object) -> pa.DataType:  # pyright: ignore[reportUnknownParameterType]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next(one for one in arguments if isinstance(one, pa.DataType))
    if origin in (Union, UnionType):  # any column may hold nulls
        (present,) = (one for one in arguments if one is not NoneType)
        return _arrow_type(present)
    if origin is Literal:
        return _arrow_type(type(arguments[0]))
    if origin is tuple:  # tuple[str, ...]
        return pa.list_(_arrow_type(arguments[0]))
    return _SCALARS[annotation]
