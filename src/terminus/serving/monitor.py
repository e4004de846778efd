"""Training runs as their folders show them: curves, previews, reports. Reads alone, and only below the given folder."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terminus.serving.errors import not_found
from terminus.serving.run_log import RunLog

_QUIET = 180.0
"""Seconds without a step after which a run counts as stopped; ten of its own steps, where they are longer."""
_MOST = 500
_DOCUMENT = 4 << 20
_PREVIEW = re.compile(r"images-\d{1,15}\.png")
_STORE = re.compile(r"^  store: *[\"']?([^\s\"']+)[\"']? *$", re.MULTILINE)
_PAGES = ("report", "evaluation", "card")
_MEDIA = {".html": "text/html; charset=utf-8", ".md": "text/plain; charset=utf-8", ".png": "image/png"}


@dataclass(frozen=True)
class RunFile:
    """A file of a run that may be shown."""

    path: Path
    media_type: str


class Monitor:
    """The runs of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs: dict[Path, RunLog] = {}

    def runs(self) -> list[dict[str, Any]]:
        """All runs, those that moved last first."""
        shown = [self._shown(key, path) for key, path in self._found().items()]
        return sorted(shown, key=lambda run: -run["updated"])

    def run(self, key: str) -> dict[str, Any]:
        """One run, with its curves."""
        path = self._path(key)
        return {**self._shown(key, path), "metrics": self._log(path).table()}

    def stamp(self, key: str) -> float:
        """When the run's log was last written."""
        return _modified(self._path(key) / "log.jsonl")

    def file(self, key: str, name: str) -> RunFile:
        """A report, or a preview, by its name; `Refusal` 404 for anything else."""
        folder = self._path(key)
        # Only names from a fixed list, or of previews, reach the disk.
        path = self._page(folder, name)
        if _PREVIEW.fullmatch(name):
            path = folder / "previews" / name
        if path is None or not self._inside(path):
            raise not_found("file of a run")
        return RunFile(path, _MEDIA[path.suffix])

    def _page(self, folder: Path, name: str) -> Path | None:
        """Where a page of a run lies; the data report is beside the data, whose place the recipe names."""
        places = {
            "evaluation": [folder / "evaluation" / "report.html"],
            "card": [folder / "README.md", folder / "model" / "README.md"],
        }
        if name == "report" and (store := _STORE.search(_text(folder / "recipe.yaml"))):
            # Recipes name stores as seen from where the training was started, which runs/ lies in.
            places["report"] = [self._folder.parent / store[1] / "report.html"]
        return next((path for path in places.get(name, ()) if self._inside(path)), None)

    def _inside(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self._folder.resolve())

    def _found(self) -> dict[str, Path]:
        """Run folders by id, which is made of their names and never read as a path."""
        if not self._folder.is_dir():
            return {}
        # A run is where a log is, in the folder or one below, as recipes put them.
        logs = sorted([*self._folder.glob("*/log.jsonl"), *self._folder.glob("*/*/log.jsonl")])[:_MOST]
        found: dict[str, Path] = {}
        for log in logs:
            name = "-".join(log.parent.relative_to(self._folder).parts)
            key = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
            while key in found:
                key += "-2"
            found[key] = log.parent
        return found

    def _path(self, key: str) -> Path:
        found = self._found()
        if key not in found:
            raise not_found("run")
        return found[key]

    def _log(self, path: Path) -> RunLog:
        # Logs grow for weeks: only what is new is read at each look.
        log = self._logs.setdefault(path, RunLog(path / "log.jsonl"))
        log.read_on()
        return log

    def _shown(self, key: str, path: Path) -> dict[str, Any]:
        last, updated = self._log(path).last, _modified(path / "log.jsonl")
        facts = _facts(path)
        # A run that was killed writes nothing; long steps are no sign of that.
        quiet = time.time() - updated > max(_QUIET, 10 * last.get("seconds", 0.0))
        state = "finished" if facts else "stopped" if quiet else "running"
        goodput = facts.get("goodput")
        shown: dict[str, Any] = {
            "id": key,
            "name": str(path.relative_to(self._folder)),
            "state": state,
            "updated": updated,
            "images_seen": last.get("images_seen", 0),
            "loss": last.get("loss"),
            "rate": last.get("images_per_second"),
            "goodput": goodput.get("share") if isinstance(goodput, dict) else None,
            "previews": [f"api/v1/runs/{key}/{name}" for name in _previews(path)],
        }
        for name in _PAGES:
            shown[name] = f"api/v1/runs/{key}/{name}" if self._page(path, name) else None
        return shown


def _previews(path: Path) -> list[str]:
    folder = path / "previews"
    names = [one.name for one in folder.glob("images-*.png")] if folder.is_dir() else []
    return sorted(name for name in names if _PREVIEW.fullmatch(name))[-24:]


def _facts(path: Path) -> dict[str, Any]:
    """`facts.json`, which a run writes when it is finished; empty where there is none."""
    try:
        said = json.loads(_text(path / "facts.json") or "null")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _text(path: Path) -> str:
    """A small file's text; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_DOCUMENT).decode("utf-8", "replace")
    except OSError:
        return ""


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
