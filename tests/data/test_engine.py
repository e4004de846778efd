from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from terminus.data import cluster, engine
from terminus.data.cluster import NativeEngine, RayEngine
from terminus.data.engine import Errand, Row
from terminus.errors import UserError

NUMBERS = pa.schema([("number", pa.int64())])
TEXTS = pa.schema([("text", pa.string())])


def slow_text(row: Row) -> Row:
    time.sleep(random.random() / 200)
    return {"text": f"{row['number']} {row.get('extra', '')}"}


MEETING = threading.Barrier(2, timeout=20)


def meet(row: Row) -> Row:
    if row["number"] in (0, engine.ROWS_PER_TASK):  # of two tasks
        MEETING.wait()
    return {"text": ""}


def extra(rows: list[Row]) -> list[Row]:
    time.sleep(random.random() / 20)
    return [{"extra": str(row["number"])[::-1]} for row in rows]


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_results_come_in_row_order(count: int):
    found = engine.run({"number": list(range(count))}, NUMBERS, slow_text, TEXTS)
    assert [row["text"] for row in found] == [f"{number} " for number in range(count)]


def test_what_waits_is_added_to_its_own_row():
    errand = Errand(extra, pa.schema([("extra", pa.string())]), rows_per_call=4, calls=8)
    found = engine.run({"number": list(range(200))}, NUMBERS, slow_text, TEXTS, errand)
    assert [row["text"] for row in found] == [f"{number} {str(number)[::-1]}" for number in range(200)]


def test_null_and_bytes_survive_the_border():
    schema = pa.schema([("data", pa.large_binary())])
    values = [None, b"", b"\x00\xff" * 1000]
    assert [row["data"] for row in engine.run({"data": values}, schema, dict, schema)] == values


def test_a_defect_in_the_function_is_raised():
    def fail(row: Row) -> Row:
        raise ZeroDivisionError(f"row {row['number']}")

    with pytest.raises(Exception, match="row 0"):
        list(engine.run({"number": [0]}, NUMBERS, fail, TEXTS))


def test_all_cores_are_used():
    if (os.cpu_count() or 1) > 1:
        assert len(list(engine.run({"number": list(range(16))}, NUMBERS, meet, TEXTS))) == 16


def test_the_engine_is_chosen_once():
    engine.use(NativeEngine(kind="native"))
    engine.use(NativeEngine(kind="native"))
    with pytest.raises(UserError, match="computes with native already"):
        engine.use(RayEngine(kind="ray", address="auto"))


def test_a_variable_in_the_environment_does_not_choose():
    program = "import daft, pyarrow as pa; from terminus.data import engine; s = pa.schema([('a', pa.int64())])"
    program += "\nprint(list(engine.run({'a': [1]}, s, dict, s)), daft.get_or_infer_runner_type())"
    metadata = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"DAFT_RUNNER": "ray"}, capture_output=True, text=True
    )
    assert metadata.stdout == "[{'a': 1}] native\n", metadata.stderr


@pytest.mark.parametrize("address", ["", "head", "ray://head:10001", "local", "http://head:6379", "head:6379/x", ":1 "])
def test_only_addresses_of_heads_are_taken(address: str):
    with pytest.raises(ValidationError):
        RayEngine(kind="ray", address=address)


def test_a_folder_is_known_by_its_last_change(tmp_path: Path):
    before = cluster.sight(os.fsencode(tmp_path))
    os.utime(tmp_path, (1, 1))
    assert cluster.sight(os.fsencode(tmp_path)) == 1 != before
    assert cluster.sight(os.fsencode(tmp_path / "nothing")) is None


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_DISABLE_DASHBOARD"):
        monkeypatch.setenv(name, "disabled")  # and taken back afterwards
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'terminus-xl\[ray\]'"):
        cluster.connect(RayEngine(kind="ray", address="127.0.0.1:1"))
