"""A model that draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from terminus import Terminus


@pytest.fixture(scope="module")
def model(random_nano: Path) -> Terminus:
    return Terminus.load(random_nano, device="cpu")
