"""`terminus sample`: prompts in, numbered PNG files and one sheet out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from terminus.errors import UserError
from terminus.progress import Meter
from terminus.sampling.api import Terminus, parse_size
from terminus.sampling.metadata import save
from terminus.sampling.settings import Settings
from terminus.sampling.sheet import sheet

_SHEET = 64
"""Pictures that a sheet shows at most."""
_COLUMNS = 8
_ANOTHER = "Choose another --out"


def sample(
    model: str,
    *,
    prompts: Sequence[str],
    out: Path,
    negative: str = "",
    seed: int = 0,
    count: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    size: str | None = None,
) -> None:
    """Draws `count` pictures per prompt into `out` and prints their paths; None is the default of `Settings`."""
    console = Console(stderr=True, highlight=False)
    settings = Settings(
        steps=Settings.steps if steps is None else steps,
        guidance=Settings.guidance if guidance is None else guidance,
        solver=solver or Settings.solver,
        size=None if size is None else parse_size(size),
    )
    if negative and settings.guidance == 1.0:
        console.print("The negative prompt has no effect at guidance 1.")
    _check_folder(out)
    with console.status(Text(f"Loading {model}")):
        loaded = Terminus.load(model)
    stream = loaded.stream(prompts, negative, seed=seed, count=count, settings=settings)
    shown: list[tuple[Image.Image, str]] = []
    with Meter(console, "sample", settings.steps * len(prompts) * count, unit="steps") as meter:
        for drawing in stream:
            _make_folder(out)  # a first step says that the model can draw what is asked; before, nothing is written
            meter.advance(len(drawing.requests))
            if drawing.finished:
                pictures = drawing.pictures()
                first = _next_number(out)
                for number, (picture, request) in enumerate(zip(pictures, drawing.requests, strict=True), first):
                    print(_save(picture, out, f"{number:05d}-{request.seed}"), flush=True)
                captions = [f"{one.prompt} · {one.seed}" for one in drawing.requests]
                shown += list(zip(pictures, captions, strict=True))[: _SHEET - len(shown)]
    if len(shown) > 1:
        columns = count if 1 < count <= _COLUMNS else None  # a row per prompt, where that is not too wide
        page = sheet([picture for picture, _ in shown], [caption for _, caption in shown], columns)
        print(_save(page, out, _free_name(out, "samples")))


def _check_folder(out: Path) -> None:
    """Before the model is loaded: minutes of drawing must not end in a folder that cannot be written."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"This folder cannot be made ({there} is a file)", where=str(out), fix=_ANOTHER)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError("This folder cannot be written", where=str(out), fix=_ANOTHER)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"This folder cannot be made ({error.strerror})", where=str(out), fix=_ANOTHER) from error


def _next_number(out: Path) -> int:
    numbers = [int(match[1]) for path in out.iterdir() if (match := re.match(r"(\d{5,9})-", path.name))]
    return max(numbers, default=0) + 1


def _free_name(out: Path, stem: str) -> str:
    taken = {path.stem for path in out.iterdir()}
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)


def _save(picture: Image.Image, out: Path, stem: str) -> Path:
    path = out / f"{stem}.png"
    try:
        save(picture, path)
    except OSError as error:
        raise UserError(f"This picture cannot be written ({error.strerror or error})", where=str(path)) from error
    return path
