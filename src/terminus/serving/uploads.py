"""Images and masks that came in: decoded at once, kept under ids that nobody can guess, removed when old."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

from terminus.serving import reading_tasks
from terminus.serving.errors import not_found
from terminus.serving.reader import Reader
from terminus.serving.state import ServerState

KEPT_SECONDS = 24 * 3600.0
"""That an upload stays."""


class Uploads:
    """The uploads of all users."""

    def __init__(self, state: ServerState, reader: Reader) -> None:
        self._state, self._reader = state, reader
        self._folder = state.folder / "uploads"
        self._folder.mkdir(exist_ok=True)

    async def add(self, user: str, data: bytes, mask: str | None = None, *, understand: bool = False) -> dict[str, Any]:
        """A new upload, as clients see it; UserError for what is no image."""
        # Decoded and written as a PNG of ours: no byte of a stranger's file is served again.
        upload = await self._reader.ask(reading_tasks.upload_task, data, mask, understand)
        key = secrets.token_urlsafe(12)
        await asyncio.to_thread((self._folder / f"{key}.png").write_bytes, upload.png)
        self._state.put("uploads", id=key, user=user, created=time.time(), width=upload.width, height=upload.height)
        shown = {"id": key, "width": upload.width, "height": upload.height, "url": f"api/v1/uploads/{key}"}
        return {**shown, "recalled": upload.recalled} if understand else shown

    def file(self, user: str, key: str) -> Path:
        """An upload's file; `Refusal` 404 for another user's too."""
        row = self._state.row("SELECT id FROM uploads WHERE id = ? AND user = ?", (key, user))
        path = self._folder / f"{key}.png"
        if row is None or not path.is_file():
            raise not_found("upload")
        return path

    def size(self, key: str) -> tuple[int, int]:
        """Width and height in pixels."""
        row = self._state.row("SELECT width, height FROM uploads WHERE id = ?", (key,))
        if row is None:
            raise not_found("upload")
        return row["width"], row["height"]

    def remove_old(self, kept: set[str]) -> None:
        """Removes what is older than a day, but for those `kept` that a waiting job names."""
        for row in self._state.rows("SELECT id FROM uploads WHERE created < ?", (time.time() - KEPT_SECONDS,)):
            if row["id"] not in kept:
                (self._folder / f"{row['id']}.png").unlink(missing_ok=True)
                self._state.write("DELETE FROM uploads WHERE id = ?", (row["id"],))
