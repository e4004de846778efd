"""Arguments of `terminus config import`, checked before anything of a recipe is loaded."""

from __future__ import annotations

from pathlib import Path

from terminus.errors import UserError


def check_import(source: Path, out: Path) -> None:
    """UserError for a recipe that cannot be written under this name, and for a source that is not there."""
    if out.exists() or out.is_symlink():
        raise UserError("this file exists already", where=str(out), fix="Give another name to --out.")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out.name} is no name of a recipe", where="--out", fix=f"Call it {out.stem}.yaml.")
    if not source.exists():
        raise UserError("there is no such file or folder", where=str(source))
