"""These tests need a GPU, and are skipped elsewhere: `python -m pytest tests/gpu -m ""`, with the slow ones."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from ..life.conftest import prepared, recipe

__all__ = ["prepared", "recipe"]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Generator[torch.device]:
    """The first one, computing convolutions in float32 where that is asked for (torch's default there is TF32)."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device("cuda", torch.cuda.current_device())
