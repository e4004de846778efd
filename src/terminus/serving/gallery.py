"""Images: PNG files in a folder, by day, each with its own metadata; and their index, which can be made anew.

An image's id stands in its file's name, so that addresses stay good when the index is lost.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from terminus.errors import UserError
from terminus.sampling.files import write_new
from terminus.serving.errors import not_found
from terminus.serving.state import ServerState

LOCAL = "local"
"""The user where nobody has a token."""
TRASH_SECONDS = 24 * 3600.0
"""That a deleted image can be brought back."""
_NAME = re.compile(r"\d{6}-\d{1,19}-([A-Za-z0-9_-]{16})\.png")
_USER = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_SHOWN = ("width", "height", "created", "model", "prompt", "negative", "seed", "steps")
"""Columns that clients see as they are."""
_MOST = 200
"""Images of one answer."""


@dataclass(frozen=True)
class Search:
    """What of the gallery is asked for; None is not asked."""

    query: str | None = None
    """Words that all stand in prompt, negative prompt or parameters."""
    model: str | None = None
    starred: bool | None = None
    board: str | None = None
    after: float | None = None
    before: float | None = None
    cursor: str | None = None
    limit: int = 60


class Gallery:
    """The images of all users."""

    def __init__(self, folder: Path, state: ServerState) -> None:
        self.folder = folder
        self._state = state
        self._thumbnails, self._trash = state.folder / "thumbnails", state.folder / "trash"
        for place in (self._thumbnails, self._trash):
            place.mkdir(exist_ok=True)

    def write(self, user: str, seed: int, png: bytes, thumbnail: bytes) -> tuple[str, Path]:
        """A new image's id, and its file; touches no database, so any thread may call it."""
        # Local time: people look for "yesterday evening" in folders by day.
        key, now = secrets.token_urlsafe(12), datetime.now().astimezone()
        own = self.folder if user == LOCAL else self.folder / user
        path = own / f"{now:%Y-%m-%d}" / f"{now:%H%M%S}-{seed}-{key}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_new(path, png)
            (self._thumbnails / f"{key}.webp").write_bytes(thumbnail)
        except OSError as error:
            raise UserError(
                f"The image could not be written ({error.strerror or error})", rule="Those before it are kept",
                fix="Make room on the server's disk, and draw it again",
            ) from error  # fmt: skip
        return key, path

    def add(self, key: str, path: Path, user: str, facts: dict[str, Any]) -> None:
        """Puts a written image into the index."""
        self._state.put("images", id=key, user=user, path=str(path.relative_to(self.folder)), **facts)

    def get(self, user: str, key: str, *, deleted: bool = False) -> dict[str, Any]:
        """One image, as clients see it; `Refusal` 404 for another user's too."""
        row = self._state.row("SELECT * FROM images WHERE id = ? AND user = ?", (key, user))
        if row is None or (row["deleted"] is not None) != deleted:
            raise not_found("image")
        return self._shown(dict(row))

    def several(self, user: str, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Those of these images that are still there, in this order."""
        marks = ", ".join("?" * len(keys))
        rows = self._state.rows(
            f"SELECT * FROM images WHERE user = ? AND deleted IS NULL AND id IN ({marks})", (user, *keys)
        )
        found = {row["id"]: dict(row) for row in rows}
        return [self._shown(found[key]) for key in keys if key in found]

    def file(self, user: str, key: str) -> Path:
        """An image's file."""
        row = self._state.row("SELECT path FROM images WHERE id = ? AND user = ? AND deleted IS NULL", (key, user))
        if row is None:
            raise not_found("image")
        return self.folder / row["path"]

    def thumbnail(self, key: str) -> Path:
        """Where the small WebP of an image is, or would be."""
        return self._thumbnails / f"{key}.webp"

    def search(self, user: str, search: Search) -> tuple[list[dict[str, Any]], str | None]:
        """Images, newest first, and where to go on; None at the end."""
        where, values = ["user = ?", "deleted IS NULL"], [user]
        for word in (search.query or "").split()[:16]:
            where.append("(prompt || ' ' || negative || ' ' || coalesce(parameters, '')) LIKE ? ESCAPE '\\'")
            values.append("%" + re.sub(r"([\\%_])", r"\\\1", word) + "%")
        for column, operator, value in (
            ("model", "=", search.model), ("created", ">=", search.after), ("created", "<", search.before),
            ("starred", "=", None if search.starred is None else int(search.starred)),
        ):  # fmt: skip
            if value is not None:
                where.append(f"{column} {operator} ?")
                values.append(value)  # pyright: ignore[reportArgumentType]
        if search.board is not None:
            where.append("id IN (SELECT image FROM board_images WHERE board = ?)")
            values.append(search.board)
        if search.cursor is not None:
            created, _, key = search.cursor.partition("_")
            where.append("(created, id) < (?, ?)")
            values += [_number(created), key]  # pyright: ignore[reportArgumentType]
        limit = max(1, min(search.limit, _MOST))
        condition = " AND ".join(where)
        rows = self._state.rows(
            f"SELECT * FROM images WHERE {condition} ORDER BY created DESC, id DESC LIMIT ?", (*values, limit + 1)
        )
        found = [self._shown(dict(row)) for row in rows[:limit]]
        last = rows[limit - 1] if len(rows) > limit else None
        return found, None if last is None else f"{last['created']!r}_{last['id']}"

    def change(self, user: str, key: str, starred: bool | None, boards: Sequence[str] | None) -> dict[str, Any]:
        """Stars an image or not, and puts it on just these boards."""
        self.get(user, key)
        with self._state.together():
            if starred is not None:
                self._state.write("UPDATE images SET starred = ? WHERE id = ?", (int(starred), key))
            if boards is not None:
                # Another user's board is answered as one that is not there.
                own = {row["id"] for row in self._state.rows("SELECT id FROM boards WHERE user = ?", (user,))}
                if not own.issuperset(boards):
                    raise not_found("board")
                self._state.write("DELETE FROM board_images WHERE image = ?", (key,))
                for board in set(boards):
                    self._state.put("board_images", board=board, image=key)
        return self.get(user, key)

    def delete(self, user: str, key: str) -> None:
        """Moves an image to the trash, from where `restore` brings it back."""
        path = self.file(user, key)
        # The file first: a crash in between leaves an image without a file, which the next start forgets.
        if path.exists():
            path.rename(self._trash / f"{key}.png")
        self._state.write("UPDATE images SET deleted = ? WHERE id = ?", (time.time(), key))

    def restore(self, user: str, key: str) -> dict[str, Any]:
        """Brings a deleted image back."""
        self.get(user, key, deleted=True)
        row = self._state.row("SELECT path FROM images WHERE id = ?", (key,))
        assert row is not None
        kept, path = self._trash / f"{key}.png", self.folder / row["path"]
        if not kept.exists():
            raise not_found("image")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(path)
        self._state.write("UPDATE images SET deleted = NULL WHERE id = ?", (key,))
        return self.get(user, key)

    def empty_trash(self) -> None:
        """Removes for good what was deleted long ago."""
        for row in self._state.rows("SELECT id FROM images WHERE deleted < ?", (time.time() - TRASH_SECONDS,)):
            for path in (self._trash / f"{row['id']}.png", self.thumbnail(row["id"])):
                path.unlink(missing_ok=True)
            self._state.write("DELETE FROM images WHERE id = ?", (row["id"],))

    def strangers(self) -> list[tuple[str, Path]]:
        """Files that the index does not know, each with its user; and it forgets those that are gone."""
        known = {
            row["path"]: row["id"] for row in self._state.rows("SELECT id, path FROM images WHERE deleted IS NULL")
        }
        there: set[str] = set()
        found: list[tuple[str, Path]] = []
        for user, day in self._days():
            for path in sorted(day.glob("*.png")):
                name = str(path.relative_to(self.folder))
                there.add(name)
                if name not in known and path.is_file() and not path.is_symlink():
                    found.append((user, path))
        # People may delete files by hand; the folder is what counts.
        for name in known.keys() - there:
            self._state.write("DELETE FROM images WHERE path = ?", (name,))
        return found

    def _days(self) -> list[tuple[str, Path]]:
        folders = [(LOCAL, self.folder)]
        named = [path for path in sorted(self.folder.iterdir()) if _USER.fullmatch(path.name)]
        folders += [(path.name, path) for path in named]
        return [
            (user, day)
            for user, folder in folders
            if folder.is_dir() and not folder.is_symlink()
            for day in sorted(folder.iterdir())
            if _DAY.fullmatch(day.name) and day.is_dir()
        ]

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        key = row["id"]
        boards = self._state.rows("SELECT board FROM board_images WHERE image = ?", (key,))
        return {
            "id": key,
            "url": f"api/v1/images/{key}.png",
            "thumbnail": f"api/v1/images/{key}/thumbnail",
            **{name: row[name] for name in _SHOWN},
            "starred": bool(row["starred"]),
            "boards": [one["board"] for one in boards],
            "request": json.loads(row["request"]) if row["request"] else None,
            "metadata": json.loads(row["metadata"]) if row["metadata"] else None,
            "parameters": row["parameters"] or "",
        }  # fmt: skip


def key_of(path: Path) -> str:
    """The id in a file's name; a new one for a file that was put there by hand."""
    named = _NAME.fullmatch(path.name)
    return named[1] if named else secrets.token_urlsafe(12)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
