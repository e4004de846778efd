"""Rows of good, broken and hostile tables, on disk and in an object store."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terminus.data.sources.columns import BadRow, ColumnRow, Columns
from terminus.data.sources.tables import estimate, table_rows
from terminus.errors import UserError

COLUMNS = Columns({"url": ("URL", "link"), "caption": ("TEXT",), "score": ("score",)}, {}, (("url",), ("caption",)))


def table(count: int, start: int = 0, **columns: list[object]) -> pa.Table:
    numbers = range(start, start + count)
    plain = {"URL": [f"http://x.test/{n}.jpg" for n in numbers], "TEXT": [f"image {n}" for n in numbers]}
    return pa.table(plain | columns)


def parquet(path: Path, content: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def seen(place: Path | str, columns: Columns = COLUMNS) -> dict[str, object]:
    """Id to caption, or to the reason why there is none."""
    found = {
        row.id: row.problem.reason if row.problem else row.values.get("caption")
        for row in table_rows(str(place), columns)
    }
    assert len(found) == len(list(table_rows(str(place), columns)))  # ids are unique, and the same again
    return found


def details(place: Path) -> list[str]:
    return [row.problem.detail for row in table_rows(str(place), COLUMNS) if row.problem]


def test_rows_of_all_kinds_of_files_come_in_one_order(tmp_path: Path):
    parquet(tmp_path / "b" / "x.parquet", table(2))
    (tmp_path / "a.csv").write_text('link,Text\nu,"two\nlines, quoted ""here"""\n')
    (tmp_path / "c.jsonl").write_text('{"link": "u", "text": "json é"}\n\n{"text": "more", "URL": "v"}\n')
    (tmp_path / "d.TSV").write_text("URL\tTEXT\nu\ttabs\n")
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(b"URL,TEXT\nu,zipped\n"))
    (tmp_path / "readme.md").write_text("no table")
    assert list(seen(tmp_path).items()) == [
        ("a.csv#0", 'two\nlines, quoted "here"'),
        ("b/x.parquet#0", "image 0"),
        ("b/x.parquet#1", "image 1"),
        ("c.jsonl#0", "json é"),
        ("c.jsonl#2", "more"),
        ("d.TSV#0", "tabs"),
        ("e.csv.gz#0", "zipped"),
    ]
    assert seen(tmp_path / "a.csv") == {"a.csv#0": 'two\nlines, quoted "here"'}


def test_folders_of_hive_are_columns(tmp_path: Path):
    for language in ("en", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
        parquet(tmp_path / f"language={language}" / "TEXT=folder" / "0.parquet", table(1).drop_columns("TEXT"))
    columns = Columns({**COLUMNS.names, "language": ("Language",)}, {}, COLUMNS.needed)
    found = [(row.values["language"], row.values["caption"]) for row in table_rows(str(tmp_path), columns)]
    assert found == [(None, "folder"), ("a/b", "folder"), ("en", "folder")]
    parquet(tmp_path / "TEXT=folder" / "own.parquet", table(1))
    assert seen(tmp_path / "TEXT=folder") == {"own.parquet#0": "image 0"}


def test_a_chosen_column_counts_more_than_a_usual_one(tmp_path: Path):
    parquet(tmp_path / "x.parquet", table(1, alt=["chosen"]))
    chosen = Columns(COLUMNS.names, {"caption": "ALT"}, COLUMNS.needed)
    assert seen(tmp_path, chosen) == {"x.parquet#0": "chosen"}
    with pytest.raises(UserError, match=r"no column for nothing.*The columns here are: URL, TEXT, alt"):
        seen(tmp_path, Columns(COLUMNS.names, {"caption": "nothing"}, COLUMNS.needed))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_tables_without_the_columns_are_the_users_matter_only_at_first(tmp_path: Path, name: str):
    wrong = {"photo": ["u"], "\x1b[31mred": ["v"]}
    if name.endswith("parquet"):
        parquet(tmp_path / name, pa.table(wrong))
    else:
        text = (
            "photo,\x1b[31mred\nu,v\n"
            if name.endswith("csv")
            else json.dumps({key: value[0] for key, value in wrong.items()})
        )
        (tmp_path / name).write_text(text)
    for call in (estimate, lambda place, columns: list(table_rows(place, columns))):
        with pytest.raises(UserError, match=r"no column for url, caption.*are: photo, \\x1b\[31mred") as caught:
            call(str(tmp_path), COLUMNS)
        assert "\x1b" not in str(caught.value)
    parquet(tmp_path / "0.parquet", table(1))
    assert estimate(str(tmp_path), COLUMNS) > 0
    assert seen(tmp_path) == {"0.parquet#0": "image 0", f"{name}#0": "table cannot be read"}
    assert "no column for url, caption" in details(tmp_path)[0]


def test_nothing_to_read_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no tables here"):
        list(table_rows(str(tmp_path), COLUMNS))
    with pytest.raises(UserError, match="there is nothing under this name"):
        list(table_rows(str(tmp_path / "nowhere"), COLUMNS))


def test_a_broken_shard_costs_itself(tmp_path: Path):
    whole = parquet(tmp_path / "a.parquet", table(3)).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-9])
    (tmp_path / "c.parquet").write_bytes(b"<html>404</html>")
    (tmp_path / "d.parquet").write_bytes(b"")
    (tmp_path / "e.csv").write_bytes(b"")
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(b"URL,TEXT\n" + b"u,v\n" * 9)[:-12])
    (tmp_path / "g.jsonl").write_bytes(b"")
    (tmp_path / "h.jsonl.gz").write_bytes(b"no gzip")
    parquet(tmp_path / "z.parquet", table(1, 3))
    broken = {f"{name}#0": "table cannot be read" for name in ("b.parquet", "c.parquet", "d.parquet", "e.csv")}
    good = {f"a.parquet#{n}": f"image {n}" for n in range(3)} | {"z.parquet#0": "image 3"}
    found = seen(tmp_path)
    assert {key: value for key, value in found.items() if key[0] in "abcdez"} == good | broken
    assert {key[0] for key, value in found.items() if value == "table cannot be read"} == set("bcdefgh")
    assert all(row.stamp for row in table_rows(str(tmp_path), COLUMNS) if row.problem)


def test_a_damaged_row_group_costs_itself(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet", table(3000), row_group_size=1000, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\x00" * column.total_compressed_size
    path.write_bytes(data)
    found = seen(path)
    assert [key for key, value in found.items() if value == "table cannot be read"] == ["x.parquet#1000"]
    assert details(path)[0].startswith("rows 1000 to 1999: ")
    assert found["x.parquet#999"] == "image 999"
    assert found["x.parquet#2000"] == "image 2000"
    assert len(found) == 2001


def test_no_byte_of_a_parquet_file_can_end_the_run(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet", table(40, score=[0.5] * 40), row_group_size=20)
    whole = path.read_bytes()
    parquet(tmp_path / "0.parquet", table(1))
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        list(table_rows(str(tmp_path), COLUMNS))
        path.write_bytes(whole[:place])
        assert details(tmp_path), place


def test_a_flipped_bit_of_a_page_with_a_checksum_costs_its_row_group(tmp_path: Path):
    path = parquet(
        tmp_path / "x.parquet", table(40), write_page_checksum=True, compression="none", use_dictionary=False
    )
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"image 7") + 8] ^= 1  # another digit
    path.write_bytes(flipped)
    parquet(tmp_path / "y.parquet", table(1))
    assert seen(tmp_path) == {"x.parquet#0": "table cannot be read", "y.parquet#0": "image 0"}


def test_csv_rows_that_are_none(tmp_path: Path):
    lines = [
        b"\xef\xbb\xbfURL,TEXT,TEXT", b"u,good,second", b"u,too few", b"u,too,many,fields", b"", b"u,caf\xe9,x",
        b"u,nul\x00,x", b'u,"open', b"x" * 200_000, b"u,after,x", b"=cmd|' /C calc'!A0,formula,x",
    ]  # fmt: skip
    (tmp_path / "x.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
    found = seen(tmp_path)
    bad = "row cannot be read"
    assert found == {
        "x.csv#0": "good", "x.csv#1": bad, "x.csv#2": bad, "x.csv#3": "caf\udce9", "x.csv#4": "nul\x00",
        "x.csv#5": bad, "x.csv#6": "after", "x.csv#7": "formula",
    }  # fmt: skip
    latin = next(row for row in table_rows(str(tmp_path), COLUMNS) if row.id == "x.csv#3")
    with pytest.raises(BadRow, match=r"TEXT is 'caf.*, not UTF-8"):
        latin.texts("caption")


def test_json_lines_that_are_none(tmp_path: Path):
    lines = [
        b'\xef\xbb\xbf{"URL": "u"}', b'{"URL": "u", "TEXT": "good"}', b"[1]", b"{broken", b"[" * 100_000,
        b'{"URL": "u", "TEXT": "\xff"}', b'{"TEXT": ' + b"9" * 5000 + b"}", b'{"a": "' + b"x" * (1 << 20) + b'"}',
        b'{"TEXT": "last"}',
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    bad = "row cannot be read"
    found = seen(tmp_path)
    assert list(found.values()) == [None, "good", *[bad] * 7, "last"]
    assert len(found) == 10  # the line that is too long is two


def test_names_in_a_table_are_never_code(tmp_path: Path):
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (marker,)

    trap = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Trap())}
    url, text = table(2).schema
    parquet(
        tmp_path / "x.parquet", table(2).cast(pa.schema([url.with_metadata(trap), text], metadata={b"pandas": b"{"}))
    )
    assert len(seen(tmp_path)) == 2
    assert not marker.exists()


def test_odd_types_are_values_or_reasons(tmp_path: Path):
    columns = {
        "URL": pa.array(["u", "u", "u", "u", None], pa.dictionary(pa.int8(), pa.string())),
        "TEXT": pa.array([["a", "b", "a"], [], [None], ["\x1b[31m x\n\ty"], None], pa.list_(pa.large_string())),
        "score": pa.array(["0.5", "nan", "", "high", None]),
    }
    parquet(tmp_path / "x.parquet", pa.table(columns))
    found = list(table_rows(str(tmp_path), COLUMNS))
    assert [row.texts("caption") for row in found] == [["a", "b"], [], [], ["[31m x y"], []]
    assert [row.number("score") for row in found if row.values["score"] != "high"] == [0.5, None, None, None]
    with pytest.raises(BadRow, match="score is 'high', not a number"):
        found[3].number("score")
    assert [row.text("url") for row in found] == ["u"] * 4 + [None]


@pytest.mark.parametrize("value", [True, b"1", [1], {"a": 1}, "x", "1e", object()])
def test_what_is_no_number(value: object):
    with pytest.raises(BadRow, match=r"s is .*, not a number"):
        ColumnRow("x#0", {"score": value}, {"score": "s"}).number("score")


def test_bytes_that_are_not_utf8_cost_their_row(tmp_path: Path):
    broken = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    parquet(tmp_path / "x.parquet", table(3, TEXT=broken))
    good, bad, fine = table_rows(str(tmp_path), COLUMNS)
    assert good.texts("caption") + fine.texts("caption") == ["good", "fine"]
    with pytest.raises(BadRow, match="not text"):
        bad.texts("caption")


def test_a_caption_has_a_limit():
    row = ColumnRow("x#0", {"caption": "é" * 32768}, {"caption": "c"})
    assert row.texts("caption") == ["é" * 32768]
    with pytest.raises(BadRow, match="longer than 65536"):
        ColumnRow("x#0", {"caption": "é" * 32769}, {"caption": "c"}).texts("caption")


def test_memory_is_bounded_by_a_batch_and_not_by_the_file(tmp_path: Path):
    size, count = 1 << 18, 400
    noise = memoryview(random.Random(0).randbytes(size + count))
    content = table(count, image=pa.array([bytes(noise[n : n + size]) for n in range(count)], pa.binary()))
    path = parquet(tmp_path / "x.parquet", content, compression="none", use_dictionary=False, write_batch_size=8)
    del content
    assert path.stat().st_size > 100 << 20
    columns = Columns({**COLUMNS.names, "image": ("image",)}, {}, COLUMNS.needed)
    before, highest, read = pa.total_allocated_bytes(), 0, 0
    for row in table_rows(str(path), columns):
        highest = max(highest, pa.total_allocated_bytes() - before)
        read += row.values["image"] == noise[read : read + size]
    assert read == count
    assert highest < 48 << 20


def test_rows_are_estimated_from_some_of_the_files(tmp_path: Path):
    for index in range(100):
        parquet(tmp_path / f"{index:03}.parquet", table(7))
    assert estimate(str(tmp_path), COLUMNS) == 700
    text = io.StringIO()
    csv.writer(text).writerows([("URL", "TEXT"), *((f"http://x.test/{n}", f"image {n % 97}") for n in range(99_999))])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.csv").write_text(text.getvalue())
    assert estimate(str(tmp_path / "x"), COLUMNS) == pytest.approx(100_000, rel=0.1)
    (tmp_path / "x" / "x.csv").write_bytes(b"")
    assert estimate(str(tmp_path / "x"), COLUMNS) == 0


def test_an_object_store_gives_the_same_rows(bucket: Path):
    parquet(bucket / "set" / "language=en" / "0.parquet", table(5), row_group_size=2)
    (bucket / "set" / "1.csv.gz").write_bytes(gzip.compress(b"URL,TEXT\nu,zipped\n"))
    (bucket / "set" / "2.parquet").write_bytes(b"PAR1 and no more")
    uri = f"s3://{bucket.name}/set"
    assert seen(uri) == seen(bucket / "set")
    assert seen(f"{uri}/1.csv.gz") == {"1.csv.gz#0": "zipped"}
    assert estimate(uri, COLUMNS) == estimate(str(bucket / "set"), COLUMNS) > 0
