"""Whether a command answers in half a second, on whatever machine the tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

SECONDS = 0.5
SLOW_MACHINE = 2.5
"""What a command may take where typer alone, with one argument, needs more than a fifth of a second for its help."""

BARE = [sys.executable, "-c", "import typer\ndef main(name: str):\n    pass\ntyper.run(main)", "--help"]


def answers_soon(
    command: Sequence[str], check: Callable[[subprocess.CompletedProcess[str]], None], cwd: str | None = None
) -> bool:
    """Whether the best of five turns is within the budget, in processor time: wall time tells what else runs."""
    budget = SECONDS
    for _ in range(5):
        bare, _ = _run(BARE, cwd)
        took, result = _run(command, cwd)
        check(result)
        budget = max(budget, SLOW_MACHINE * bare)
        if took < budget:
            return True
    return False


def _run(command: Sequence[str], cwd: str | None) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = os.times()
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    after = os.times()
    user, system = (after.children_user - before.children_user, after.children_system - before.children_system)
    return user + system, result
