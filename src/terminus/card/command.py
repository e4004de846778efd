"""`terminus card`: writes README.md into a run's folder, or checks the one that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terminus.card.check import card_problems, document_problems
from terminus.card.data_summary import FILE, render_data_summary
from terminus.card.eval_results import write_eval_results
from terminus.card.facts import read_run
from terminus.card.render import render_card
from terminus.errors import UserError


def card(run_dir: Path, check: bool = False) -> Path:
    """The path of the card; beside it lie `data-summary.md` and `.eval_results`. With `check` nothing is written.

    UserError if the folder is no finished run, or if what is checked says something else than the run.
    """
    path, summary = run_dir / "README.md", run_dir / FILE
    run = read_run(run_dir)
    text, data = render_card(run), render_data_summary(run)
    if check:
        _check(path, card_problems(_read(path), text))
        _check(summary, document_problems(_read(summary), data))
        return path
    # A card must pass its own check before it replaces the one that is there.
    wrong = [*card_problems(text, text), *document_problems(data, data)]
    assert not wrong, f"a card that we write is right: {wrong}"
    _write(path, text)
    _write(summary, data)
    write_eval_results(run)
    return path


def _write(path: Path, text: str) -> None:
    # Whole or not at all: people edit cards, and a half of one would be their loss.
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = "There is no card to check" if path.name == "README.md" else "There is no data summary to check"
        raise UserError(what, where=str(path), fix=f"`terminus card {path.parent}`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"This cannot be read ({error})", where=str(path), fix=_fix(path)) from error


def _check(path: Path, wrong: Sequence[str]) -> None:
    if wrong:
        listed = "\n".join(f"- {problem}" for problem in wrong)
        what = "in this card" if path.name == "README.md" else "in this data summary"
        raise UserError(f"{len(wrong)} problems {what}:\n{listed}\n", where=str(path), fix=_fix(path))


def _fix(path: Path) -> str:
    return f"Write it anew with `terminus card {path.parent}`, or correct it"
