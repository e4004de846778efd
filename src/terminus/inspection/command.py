"""`terminus inspect`: what is this file or folder, and how do we know."""

from __future__ import annotations

import json

from rich.console import Console
from rich.text import Text

from terminus.errors import UserError
from terminus.inspection.findings import Checkpoint, Probe
from terminus.inspection.look import look
from terminus.inspection.show import finding_json, printable_line, show_finding


def inspect(path: str, as_json: bool = False, probe: bool = False) -> None:
    """Prints the facts of a model folder, a single file, an adapter, a run, an image, a hub id or `nano`.

    On stdout, as aligned lines or as one JSON object; UserError if `path` is none of these. Nothing is written, no
    tensor is loaded unless a model is to be probed, and no code or class that a file names is imported.
    """
    finding = look(path, Console(stderr=True, highlight=False))
    answers: list[Probe] = []
    if probe:
        if not isinstance(finding, Checkpoint):
            raise UserError("Only a model can be probed", where=path, fix="Leave out --probe")
        from terminus.inspection.probe import probe as ask  # loads networks, and what runs them

        answers.append(ask(path))
    if as_json:
        print(
            json.dumps(
                finding_json(finding) | {said.kind: finding_json(said) for said in answers}, indent=2, allow_nan=False
            )
        )
        return
    for part in (finding, *answers):
        show_finding(part, Console(highlight=False))


def fix_command(path: str, target: str, decided: str | None = None) -> None:
    """Writes a copy of `path` to `target` in which every label says the same, and prints what was wrong.

    See `terminus.inspection.fix.write_fixed_copy`.
    """
    from terminus.inspection.fix import write_fixed_copy

    fixed = write_fixed_copy(path, target, decided)
    console = Console(highlight=False)
    for problem in fixed.problems:
        console.print(Text.assemble("  ", printable_line(problem)), soft_wrap=True)
    console.print(Text.assemble(("corrected in  ", "bold"), printable_line(str(fixed.target))), soft_wrap=True)
