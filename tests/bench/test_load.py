"""The loader's benchmark reads real tables, in the order of a data set that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import load
from benchmarks.load import BAR, bench_load
from terminus.data.latent_rows import LatentRows
from terminus.errors import UserError

TINY = {"stored": 12, "side": 4, "micro_batch": 3, "batches": 2, "opened": 500}


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "load.json"
    result = bench_load(10**9, threads=(0, 1), out=out, **TINY)
    assert [one.rows for one in (result.few, result.many)] == [1000, 10**9]
    for one in (result.few, result.many):
        assert one.rows_per_second.low <= one.rows_per_second.median <= one.rows_per_second.high
        assert min(one.first, one.far, one.rows_per_second.low) > 0
    # memory that does not grow with the rows: a shuffled list of them would be eight thousand million bytes
    assert result.many.bytes_allocated < 2 * result.few.bytes_allocated < 100_000
    assert [one.threads for one in result.readings] == [0, 1]
    for reading in result.readings:
        assert (reading.rows, reading.stored) == (10**9, 12)
        # mean and log variance, 4 channels of 4 x 4, two bytes each
        assert reading.mib_per_second * 2**20 == pytest.approx(256 * reading.rows_per_second.median)
    assert result.opening.rows == 500
    assert 0 < result.opening.bytes_per_row <= result.opening.bytes_per_row_meanwhile
    written = json.loads(out.read_text())
    assert written["bar_rows_per_second"] == BAR == 1000
    assert written["many"]["rows"] == 10**9
    assert written["readings"][1]["rows_per_second"]["runs"] == 5
    assert {"date", "environment", "load_average", "latent"} <= set(written)
    lines = capsys.readouterr().out.splitlines()
    assert "1,000,000,000" in lines[-2]
    assert lines[-1].startswith("opening")
    assert max(map(len, lines[1:])) <= 80


def test_what_is_read_is_what_was_written(tmp_path: Path):
    rows = LatentRows(load._made(tmp_path / "store", 5, 4), "benchmark", "benchmark", "train")
    assert rows.sizes == (5,)
    batch = rows.read(0, [4, 0, 4], range(3), 0)
    assert batch.values.shape == (3, 2, 4, 4, 4)
    assert torch.equal(batch.values[0], batch.values[2])
    assert not torch.equal(batch.values[0], batch.values[1])
    assert [caption.text for caption in batch.captions[0]] == ["a 3d render of 4 apples on a white background"]
    assert batch.conditioning[0].target == (32, 32)


def test_few_rows_stand_in_for_many(tmp_path: Path):
    stored = LatentRows(load._made(tmp_path / "store", 5, 2), "benchmark", "benchmark", "train")
    many = load._StandIn(stored, 10**9)
    assert many.sizes == (10**9,)
    assert many.read(0, [999_999_999, 7], [3, 4], 1).keys == stored.read(0, [4, 2], [3, 4], 1).keys


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"stored": 0}, {"micro_batch": 0}, {"threads": ()}, {"threads": (-1,)}, {"opened": 0}]
)
def test_wrong_input_is_answered(wrong: dict[str, object]):
    with pytest.raises(UserError):
        bench_load(**wrong)
