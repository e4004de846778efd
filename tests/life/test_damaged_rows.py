"""A run over a store with a damaged row goes to its end, says which, and is continued bit for bit."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from terminus.config.load import Loaded
from terminus.data.store import Store
from terminus.errors import Stopped
from terminus.training import run
from terminus.training.recipe import Recipe

from .conftest import same_end


def test_a_damaged_row_costs_itself(
    prepared: Path, recipe: Callable[..., Loaded[Recipe]], tmp_path: Path, monkeypatch, caplog
):
    shutil.copytree(prepared / "data", tmp_path / "data")
    latents = Store(str(tmp_path / "data")).latents.required()
    seen = ["key", "source_id", "posterior"]
    hit = latents.scan(seen, "split = 'train'").to_pylist()[3]
    for path in Path(latents.dataset.uri, "data").iterdir():
        data = bytearray(path.read_bytes())
        if (place := data.find(hit["posterior"])) >= 0:
            data[place + 5] ^= 16
            path.write_bytes(data)

    def train(name: str) -> Path:
        return run.train(recipe(f"run.dir={tmp_path / name}", f"data.store={tmp_path / 'data'}"))

    with caplog.at_level(logging.WARNING):
        train("whole")
    assert len([message for message in caplog.messages if hit["source_id"] in message]) == 1
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    named = {name for row in rows for name in row.get("damaged", ())}
    assert [hit["source_id"] in name and hit["key"][:16] in name for name in named] == [True]
    assert json.loads((tmp_path / "whole" / "facts.json").read_text())["damaged_rows"] == 1

    real = run.run_loop

    def stopping(step, state, loader, settings, hooks):
        def recording(row):
            hooks.record(row)
            if row.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        real(step, state, loader, settings, replace(hooks, record=recording))

    monkeypatch.setattr(run, "run_loop", stopping)
    with pytest.raises(Stopped):
        train("stopped")
    monkeypatch.undo()
    train("stopped")
    same_end(tmp_path / "whole", tmp_path / "stopped")
