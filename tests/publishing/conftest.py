"""The finished, evaluated run of the card's tests."""

from __future__ import annotations

from tests.card.conftest import _finished, edit, run

__all__ = ["_finished", "edit", "run"]
