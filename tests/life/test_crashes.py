"""Interrupted at every file event of a run, and continued by the same command: nothing lost, nothing different."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CHANGES = (
    "training.images=12", "training.micro_batch=1", "training.loader_threads=0",
    "training.checkpoints={every_images: 4, keep: 9}", "training.validation={every_images: 100, images: 2}",
)  # fmt: skip


ENDS = {"before": {137}, "torn": {137}, "unsynced": {137}, "term": {0, 75, -signal.SIGTERM}}
"""How a run may end at a crash point: one that did not kill would prove nothing. SIGTERM comes at the very end, within
the run (which saves), or before the run listens to it."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("modes", [("before", "torn"), ("term", "unsynced")], ids=" ".join)
def test_every_file_event(prepared: Path, tmp_path: Path, modes: tuple[str, ...]):
    """Three saves, the log, the session, the finished model, each interrupted in these ways."""
    from terminus.config.load import dump, load
    from terminus.training.recipe import Recipe

    (tmp_path / "recipe.yaml").write_text(dump(load(prepared / "recipe.yaml", Recipe, list(CHANGES)).value))
    command = [sys.executable, str(Path(__file__).with_name("crashes.py")), "recipe.yaml", str(tmp_path), *modes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert Counter(row["verdict"] for row in rows) == {"PASS": len(rows)}, [r for r in rows if r["verdict"] != "PASS"]
    assert len(rows) > 100
    assert [row for row in rows if row["exit"] not in ENDS[row["mode"]]] == []
