"""Killed at every file event of a run, and continued by the same command: nothing lost, nothing different."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CHANGES = (
    "training.images=12", "training.micro_batch=1", "training.loader_threads=0",
    "training.checkpoints={every_images: 4, keep: 9}", "training.validation={every_images: 100, images: 2}",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_file_event(prepared: Path, tmp_path: Path):
    """Three saves, the log, the session, the finished model: before each event, and with each file cut in half."""
    from terminus.config.load import dump, load
    from terminus.training.recipe import Recipe

    (tmp_path / "recipe.yaml").write_text(dump(load(prepared / "recipe.yaml", Recipe, list(CHANGES)).value))
    command = [sys.executable, str(Path(__file__).with_name("crashes.py")), "recipe.yaml", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert Counter(row["verdict"] for row in rows) == {"PASS": len(rows)}, [r for r in rows if r["verdict"] != "PASS"]
    assert len(rows) > 100
    # A crash point that did not kill would prove nothing.
    assert all(row["exit"] == 137 for row in rows)
