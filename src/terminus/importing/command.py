"""`terminus config import`: what another program's settings are, as a recipe, and what they were that it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from terminus.config.load import load
from terminus.errors import UserError
from terminus.importing import img2dataset, kohya, simpletuner
from terminus.importing.arguments import check_import
from terminus.importing.reading import read_json_settings, read_toml
from terminus.importing.recipe import Draft, written
from terminus.training.recipe import Recipe

KNOWN = (
    "a dataset or training file of kohya's sd-scripts (.toml, .json), SimpleTuner's config.json or "
    "multidatabackend.json (or their folder), and a folder that img2dataset wrote"
)


def import_recipe(source: Path, out: Path, console: Console) -> None:
    """Writes the recipe of `source` to `out`, which must be new, and prints what could not be carried over.

    `UserError` if it is none of the known, cannot be read, or names no images. Nothing is written then.
    """
    check_import(source, out)
    draft = read_settings(source)
    text = written(draft)
    # Read back before it has its name: a recipe that does not load is never left there.
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.yaml")
    try:
        temporary.write_text(text, encoding="utf-8")
        load(temporary, Recipe)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    _show(draft, out, console)


def read_settings(source: Path) -> Draft:
    """The settings at a path. `UserError` if they are none of the known."""
    read = _reader(source)
    if read is None:
        raise UserError(
            "this is not a settings file or folder that can be imported",
            where=str(source),
            rule=f"Terminus imports {KNOWN}",
        )
    return read(source)


def _reader(source: Path) -> Callable[[Path], Draft] | None:
    """The importer of the program whose settings these are; None if no program is recognized."""
    if source.is_dir():
        # By content: what each program's files are called, then which keys they hold.
        if any((source / name).is_file() for name in (*simpletuner.CONFIGS, simpletuner.BACKENDS)):
            return simpletuner.read_simpletuner
        return img2dataset.read_img2dataset if img2dataset.looks_like(source) else None
    if source.is_file() and source.suffix.lower() == ".toml":
        return _reader_of_toml(dict(read_toml(source).values))
    if source.is_file() and source.suffix.lower() == ".json":
        return _reader_of_json(read_json_settings(source))
    return None


def _reader_of_toml(values: dict[str, object]) -> Callable[[Path], Draft] | None:
    if simpletuner.is_config(values):
        return simpletuner.read_simpletuner
    if "datasets" in values or kohya.is_training(values):
        return kohya.read_kohya
    return None


def _reader_of_json(found: object) -> Callable[[Path], Draft] | None:
    # A list can only be backends; sd-scripts' files are objects.
    if isinstance(found, list):
        return simpletuner.read_simpletuner
    if not isinstance(found, dict):
        return None
    if "datasets" in found:
        return kohya.read_kohya
    return simpletuner.read_simpletuner if simpletuner.is_config(found) else None  # pyright: ignore[reportUnknownArgumentType]


def _show(draft: Draft, out: Path, console: Console) -> None:
    for note in draft.notes:
        console.print(Text(note), soft_wrap=True)
    if draft.left:
        table = Table(title="Not carried over", title_justify="left", box=None, header_style="bold")
        for column in ("key", "why"):
            table.add_column(column, overflow="fold")
        for left in draft.left:
            table.add_row(Text(f"{left.key} = {left.value}" if left.value else left.key), Text(left.why))
        console.print(table)
    console.print(
        f"{out}: {len(draft.sources)} sources, {len(draft.settings)} settings; {len(draft.left)} keys not carried "
        f"over, {len(draft.same)} need no line, {len(draft.notes)} remarks. All of it stands in the file.",
        soft_wrap=True,
        markup=False,
    )
