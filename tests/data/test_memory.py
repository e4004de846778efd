"""Memory follows neither the number of files nor what they weigh together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terminus.data import curate as first
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store

from .conftest import save

FILES = 24
SIDE = 700
"""Of an image that cannot be compressed: 1.4 MiB."""


class Peak:
    """How many MiB a process held at most, beyond what it held at the beginning; as Linux counts them."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._held("VmRSS")

    @property
    def grown(self) -> float:
        return self._held("VmHWM") - self.before

    @staticmethod
    def _held(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_many_heavy_files_take_no_more_memory_than_a_few(tmp_path: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    for number in range(FILES):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        save(tmp_path / "heavy" / f"{number:02}.png", Image.fromarray(pixels), compress_level=0)
    source = FolderSource(kind="folder", name="heavy", path=tmp_path / "heavy")
    data = DataConfig(store=str(tmp_path / "store"), sources=(source,), resolution=64)
    store = Store(data.store)
    # Limits a sixty-fourth of what they are.
    monkeypatch.setattr(first, "READ_BYTES", first.READ_BYTES // 64)
    monkeypatch.setattr(first, "COMMIT_BYTES", first.COMMIT_BYTES // 64)
    curating = Peak()
    assert first.curate(data, store, lambda _: None).added == FILES
    assert curating.grown < 160
