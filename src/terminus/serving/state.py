"""What survives a restart: jobs, the index of images, stars and boards, uploads and votes, in one SQLite file.

The images themselves are files. When the database is damaged it is set aside, and the index is made anew from them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from terminus.errors import UserError

log = logging.getLogger("terminus")

_VERSION = 1
_TABLES = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, created REAL NOT NULL, finished REAL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, steps INTEGER NOT NULL, request TEXT NOT NULL, images TEXT NOT NULL, error TEXT,
    key TEXT, grouped TEXT, again TEXT, again_result TEXT
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (user, key) WHERE key IS NOT NULL;
CREATE INDEX jobs_by_user ON jobs (user, created);
CREATE TABLE images (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, path TEXT NOT NULL UNIQUE, created REAL NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL,
    negative TEXT NOT NULL, seed INTEGER, steps INTEGER, starred INTEGER NOT NULL DEFAULT 0, deleted REAL,
    request TEXT, metadata TEXT, parameters TEXT
);
CREATE INDEX images_by_time ON images (user, created DESC, id);
CREATE TABLE boards (id TEXT PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE board_images (board TEXT NOT NULL, image TEXT NOT NULL, PRIMARY KEY (board, image));
CREATE TABLE uploads (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, created REAL NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL
);
CREATE TABLE groups (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, kind TEXT NOT NULL, created REAL NOT NULL, content TEXT NOT NULL
);
CREATE TABLE votes (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, created REAL NOT NULL, pair TEXT NOT NULL UNIQUE, content TEXT NOT NULL
);
CREATE TABLE inspected (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, finding TEXT NOT NULL);
CREATE TABLE consents (user TEXT NOT NULL, model TEXT NOT NULL, PRIMARY KEY (user, model));
"""


class ServerState:
    """The database of one folder, which no other server may use meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".serve"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A second server on this folder would draw the same queue.
            self._lock = _locked(self.folder / "lock")
        except OSError as error:
            raise UserError(
                f"This folder cannot be written ({error.strerror or error})", where=str(folder),
                fix="Choose another --folder",
            ) from error  # fmt: skip
        self._database = _opened(self.folder / "state.sqlite")

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        return self._database.execute(query, tuple(values)).fetchall()

    def row(self, query: str, values: Iterable[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query."""
        return self._database.execute(query, tuple(values)).fetchone()

    def write(self, query: str, values: Iterable[Any] = ()) -> int:
        """Changes something, at once on the disk; the number of rows that were changed."""
        return self._database.execute(query, tuple(values)).rowcount

    @contextmanager
    def together(self) -> Generator[None]:
        """Changes inside are all made or none."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def put(self, table: str, **values: Any) -> None:
        """Writes one row, in place of one with the same key."""
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self.write(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", values.values())

    def close(self) -> None:
        """Lets go of the file and of the folder."""
        self._database.close()
        os.close(self._lock)


def _locked(path: Path) -> int:
    """A lock that ends with the process that holds it, so that none can be stale."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(
            "Another server uses this folder", where=str(path.parent.parent),
            rule="One server keeps the images of a folder", fix="Choose another --folder, or stop the other server",
        ) from error  # fmt: skip
    return lock


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _connected(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # not damage: no room, no permission
            raise UserError(f"The server's state cannot be opened ({error})", where=str(path)) from error
    # Kept, not deleted: the queue and the stars may still be read out of it.
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    path.rename(aside)
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    log.warning("%s was damaged and is set aside as %s; the images are read anew", path.name, aside.name)
    return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    # Only the server's own thread uses it; the check would also forbid closing it from another.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        database.row_factory = sqlite3.Row
        # With a write-ahead log a kill loses nothing, and a power cut at most the newest rows.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("malformed")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise UserError(
                f"The state was written by another version of Terminus ({version}; this one writes {_VERSION})",
                where=str(path), fix="Use that version, or move the file away: images are kept, the queue is not",
            )  # fmt: skip
    except BaseException:
        database.close()
        raise
    return database
