"""Columns that follow from the row classes: the same as were written before, and rows read back as they were."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from terminus.conditioning import Crop, Size
from terminus.data import store
from terminus.data.geometry import CropPlan
from terminus.data.record import CaptionRow, ImageRow, LatentRow, PartRow, Rejection
from terminus.data.schema import column_names, columns_of, read_row, read_rows

TEXTS, NUMBERS = pa.list_(pa.string()), pa.list_(pa.float32())
CHECKSUM, BOTH = [("checksum", pa.uint32())], [("checksum", pa.uint32()), ("group_checksum", pa.uint32())]


def of(kind: pa.DataType, names: str) -> list[tuple[str, pa.DataType]]:  # pyright: ignore[reportUnknownParameterType]
    return [(name, kind) for name in names.split()]


PLAN = [
    *of(pa.int32(), "original_height original_width resized_height resized_width"),
    *of(pa.int32(), "crop_top crop_left target_height target_width"),
    ("bucket", pa.string()),
]
COMMON = [
    *of(pa.string(), "image_hash source source_id split"),
    *of(TEXTS, "captions caption_origins"),
    ("caption_weights", NUMBERS),
]
SCORES = of(pa.float32(), "watermark unsafe aesthetic similarity")
IMAGES = [
    ("key", pa.string()), *COMMON, ("data", pa.large_binary()), ("background", pa.string()), *PLAN,
    ("luminance", pa.float32()), ("dhash", pa.string()), ("thumbprint", pa.binary()),
    *of(pa.string(), "licence state transform rules url"), *SCORES,
    ("tags", TEXTS), ("camera", pa.bool_()), ("mask", pa.large_binary()), *BOTH,
]  # fmt: skip
LATENTS = [
    *of(pa.string(), "key image_key"), *COMMON, *PLAN, ("posterior", pa.binary()),
    *of(pa.int32(), "latent_channels latent_height latent_width"), *of(pa.string(), "vae transform"),
    ("mask", pa.binary()), *BOTH,
]  # fmt: skip
REJECTED = [
    *of(pa.string(), "source source_id image_hash state transform rules reason detail"), ("thumbnail", pa.binary()),
    *of(pa.string(), "twin url licence"), *of(pa.int32(), "original_height original_width"),
    ("luminance", pa.float32()), *SCORES, *CHECKSUM,
]  # fmt: skip
PARTS = [
    *of(pa.string(), "source part stamp transform rules"), ("reasons", TEXTS), ("counts", pa.list_(pa.int64())),
    *CHECKSUM,
]  # fmt: skip
CAPTIONS = [
    *of(pa.string(), "key image_key source source_id origin request settings model caption reason detail"),
    *of(pa.float32(), "weight own_weight"), *of(pa.int32(), "prompt_tokens completion_tokens"),
    ("created", pa.timestamp("us", "UTC")), *CHECKSUM,
]  # fmt: skip


@pytest.mark.parametrize("name", ["IMAGES", "LATENTS", "REJECTED", "PARTS", "CAPTIONS"])
def test_the_derived_columns_are_those_of_every_store(name: str):
    """Written out, since stores on disk have them: a field that is added or changed has to be added here too."""
    derived: pa.Schema = getattr(store, name)
    assert [(field.name, field.type) for field in derived] == globals()[name]


def test_rows_are_read_back_as_they_were_written():
    plan = CropPlan(Size(96, 128), Size(48, 64), Crop(5, 9), Size(32, 32))
    image = ImageRow(
        "key", "hash", "web", "1", "train", ("a", "b"), ("sidecar", "alt"), (1.0, 0.5), b"data", None, plan,
        0.5, "00" * 8, b"thumb", None, "state", "transform", "{}", "https://e.org/1", 0.25, tags=("x",), mask=b"m",
    )  # fmt: skip
    latent = LatentRow(
        "key", "image", "hash", "web", "1", "validation", ("a",), ("alt",), (2.0,), plan, b"01", 4, 4, 4, "vae", "t"
    )
    rejection = Rejection("web", "2", None, "state", "t", "{}", "damaged", "cut", original_height=3, luminance=0.5)
    part = PartRow("web", "part", "stamp", "t", "{}", ("", "damaged"), (1 << 40, 2))
    answer = CaptionRow(
        "k", "i", "web", "1", "me", "r", "{}", "m", "text", None, "", 1.0, None, 3, 4, datetime(2026, 1, 2, tzinfo=UTC)
    )
    rows = [(image, store.IMAGES), (latent, store.LATENTS), (rejection, store.REJECTED)]
    for row, schema in [*rows, (part, store.PARTS), (answer, store.CAPTIONS)]:
        table = pa.Table.from_pylist([columns_of(row)], schema=schema)
        assert list(read_rows(type(row), table)) == [row]
        assert set(column_names(type(row))) == set(schema.names) - {"bucket", "checksum", "group_checksum"}


def test_a_null_list_is_read_as_an_empty_one():
    """Columns that were added to a store later hold nulls in its first rows."""
    columns = columns_of(PartRow("web", "part", "stamp", "t", "{}", ("",), (1,)))
    assert read_row(PartRow, columns | {"reasons": None, "counts": None}).counts == ()
