"""`terminus card`: writes README.md into a run's folder, or checks the one that is there."""

from __future__ import annotations

from pathlib import Path

from terminus.card.check import card_problems
from terminus.card.facts import read_run
from terminus.card.render import render_card
from terminus.errors import UserError


def card(run_dir: Path, check: bool = False) -> Path:
    """The path of the card. With `check` nothing is written.

    UserError if the folder is no finished run, or if the card that is checked says something else than the run.
    """
    path = run_dir / "README.md"
    text = render_card(read_run(run_dir))
    if check:
        _check(path, text)
        return path
    wrong = card_problems(text, text)
    assert not wrong, f"a card that we write is right: {wrong}"
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def _check(path: Path, right: str) -> None:
    fix = f"Write it anew with `terminus card {path.parent}`, or correct it"
    try:
        found = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("There is no card to check", where=str(path), fix=f"`terminus card {path.parent}`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"This card cannot be read ({error})", where=str(path), fix=fix) from error
    wrong = card_problems(found, right)
    if wrong:
        listed = "\n".join(f"- {problem}" for problem in wrong)
        raise UserError(f"{len(wrong)} problems in this card:\n{listed}\n", where=str(path), fix=fix)
