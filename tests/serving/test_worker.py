"""How a worker begins."""

from __future__ import annotations

import pytest
import torch

from terminus.serving.worker import usual_threads


@pytest.mark.parametrize(("given", "variables", "expected"), [(8, {}, 7), (1, {}, 1), (8, {"OMP_NUM_THREADS": "8"}, 8)])
def test_a_core_is_left_for_the_page(
    given: int, variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given)
    assert usual_threads() == expected
