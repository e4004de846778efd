"""What is waited for is said where it takes long, and only there."""

from __future__ import annotations

import io
import time

from rich.console import Console

from terminus.progress import waiting


def said(seconds: float, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with waiting(console, "loading [nano]", after=0.05):
        time.sleep(seconds)
    return file.getvalue()


def test_a_long_wait_is_one_plain_line():
    assert said(0.3) == "loading [nano] ...\n"


def test_a_short_wait_is_no_word():
    assert said(0.0) == ""
    assert said(0.0, terminal=True) == ""


def test_on_a_terminal_it_goes_away_again():
    shown = said(0.3, terminal=True)
    assert "loading [nano]" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
