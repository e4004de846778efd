"""Models, adapters and control networks that may be drawn with: given at the start, or found in the given folders.

Ids are names, never paths: nothing that a client says is looked up in the file system.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terminus.errors import UserError
from terminus.model.naming import SHIPPED, at_home, find_local
from terminus.serving import reading_tasks
from terminus.serving.control_networks import control_kind
from terminus.serving.errors import error_parts, not_found
from terminus.serving.reader import Reader
from terminus.serving.state import ServerState

_MOST = 2000
"""Files of a folder that are looked at."""
_THUMBNAILS = (".preview.png", ".png", ".jpg", ".jpeg", ".webp", ".preview.jpg")


@dataclass
class CatalogueEntry:
    """A model or an adapter."""

    id: str
    name: str
    """Path, hub id or shipped name, as everything that loads it takes it; never told to clients."""
    finding: dict[str, Any] | None = None
    """What `inspect` says; None while nobody has asked."""
    problem: dict[str, str] | None = None

    @property
    def path(self) -> Path | None:
        """Its file or folder; None on the hub."""
        return find_local(self.name)

    @property
    def kind(self) -> str:
        """ "model folder", "single file", "adapter", ..., or "" while it is not known."""
        return str(self.finding.get("kind", "")) if self.finding else ""

    @property
    def control(self) -> str:
        """ "controlnet", "t2i" or "ip"; "" for what steers nothing, or a file while it is not known."""
        return "" if self.path is None else control_kind(self.path, self.finding)


class Catalogue:
    """All entries by id."""

    def __init__(self, models: Iterable[str], folders: Iterable[Path], state: ServerState, reader: Reader) -> None:
        self._state, self._reader = state, reader
        self._entries: dict[str, CatalogueEntry] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}
        for name in models:
            self._add(name)
        self.first = next(iter(self._entries), None)
        """The id of the model that is loaded at the start."""
        for folder in folders:
            for path in _found(folder):
                if all(entry.name != str(path) for entry in self._entries.values()):
                    self._add(str(path))

    def _add(self, name: str) -> None:
        path = find_local(name)
        title = name if name in SHIPPED or path is None else _title(path)
        # Ids stand in addresses: nothing in them may mean anything to a server or a browser.
        key = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "model"
        number, unique = 1, key
        while unique in self._entries:
            number += 1
            unique = f"{key}-{number}"
        self._entries[unique] = CatalogueEntry(unique, name)

    def ids(self) -> list[str]:
        """Of all entries."""
        return list(self._entries)

    def entry(self, key: str, what: str = "model") -> CatalogueEntry:
        """The entry of this id; `Refusal` 404 where there is none."""
        if key not in self._entries:
            raise not_found(what)
        return self._entries[key]

    async def inspected(self, key: str) -> CatalogueEntry:
        """The entry with its finding, which is read once and kept with the file's size and time."""
        entry = self.entry(key)
        if entry.finding is None and entry.problem is None:
            # Whoever asks meanwhile waits for the same reading; one who leaves does not stop it for the others.
            if key not in self._asked:
                self._asked[key] = asyncio.create_task(self._inspect(entry))
            await asyncio.shield(self._asked[key])
        return entry

    async def models(self) -> list[CatalogueEntry]:
        """Everything that is a model, or cannot be read at all."""
        found = [await self.inspected(key) for key in list(self._entries)]
        return [entry for entry in found if entry.kind in ("model folder", "single file") or entry.problem]

    async def adapters(self) -> list[CatalogueEntry]:
        """Everything that is an adapter."""
        return [entry for key in list(self._entries) if (entry := await self.inspected(key)).kind == "adapter"]

    async def controls(self) -> list[CatalogueEntry]:
        """Everything that is a control network."""
        return [entry for key in list(self._entries) if (entry := await self.inspected(key)).control]

    async def find(self, name: str, digest: str = "") -> str | None:
        """The id of the model or adapter with this hash, or else of this name."""
        entries = [await self.inspected(key) for key in list(self._entries)]
        # A hash tells more than a name, which others may have given to another file.
        for entry in entries:
            hashes = (entry.finding or {}).get("hashes") or {}
            known = (str(hashes.get("sha256", "")), str(hashes.get("tensors_sha256", "")))
            if len(digest) >= 8 and any(one.startswith(digest) for one in known):
                return entry.id
        return next((entry.id for entry in entries if name and entry.id.lower() == name.lower()), None)

    async def _inspect(self, entry: CatalogueEntry) -> None:
        path = entry.path
        stamp = "" if path is None else _stamp(path)
        # Hashing a large file takes a minute: done once for each size and time of it.
        row = self._state.row("SELECT stamp, finding FROM inspected WHERE path = ?", (entry.name,))
        if row is not None and stamp and row["stamp"] == stamp:
            entry.finding = json.loads(row["finding"])
            return
        try:
            entry.finding = await self._reader.ask(reading_tasks.inspect_task, entry.name)
        except UserError as error:
            entry.problem = error_parts(error)
            return
        self._state.put("inspected", path=entry.name, stamp=stamp, finding=json.dumps(entry.finding))

    def thumbnail(self, entry: CatalogueEntry) -> Path | None:
        """The image beside a file, or in a folder, that shows what it draws."""
        path = entry.path
        if path is None:
            return None
        # The names that A1111, ComfyUI and the evaluation of a run give to such images.
        places = [path / "thumbnail.png", path / "samples.png"] if path.is_dir() else []
        places += [path.with_suffix(ending) for ending in _THUMBNAILS] if path.is_file() else []
        return next((place for place in places if place.is_file()), None)


def _title(path: Path) -> str:
    if path.is_file():
        return path.stem
    return path.resolve().parent.name if path.name == "model" else path.name


def _found(folder: Path) -> list[Path]:
    """Model folders and safetensors files in a folder and in its folders."""
    folder = at_home(folder)
    if not folder.is_dir():
        raise UserError("This folder does not exist", where=str(folder), fix="Name the folder of your models")
    found: list[Path] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")])[:_MOST]:
        inside = any(parent in found for parent in path.parents)
        if _is_whole(path) or (path.is_file() and path.suffix == ".safetensors" and not inside):
            found.append(path)
    # The vision encoder of IP-Adapters lies beside them, and is nothing to draw with.
    apart = [path for path in found if path.parent.name != "image_encoder"]
    return [path for path in apart if not any(parent in apart for parent in path.parents)]


def _is_whole(path: Path) -> bool:
    """Whether a folder is one thing: a model, or a control network."""
    return path.is_dir() and ((path / "model_index.json").is_file() or bool(control_kind(path)))


def _stamp(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    facts = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return f"{len(facts)}:{sum(size for size, _ in facts)}:{max((at for _, at in facts), default=0)}"
