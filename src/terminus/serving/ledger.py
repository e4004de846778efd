"""Jobs on the disk: the queue that a restart finds, and the history that clients ask for."""

from __future__ import annotations

import json
import sqlite3
import time

from pydantic import ValidationError

from terminus.serving.jobs import Job, JobRequest, JobState
from terminus.serving.state import ServerState

_SHOWN = 50
"""Jobs that are over, in a user's list."""
_KEPT_SECONDS = 30 * 24 * 3600.0
_KEY_SECONDS = 24 * 3600.0
"""That a client's own name for a job is remembered."""


class Ledger:
    """The table of jobs."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def save(self, job: Job) -> None:
        """Writes a job as it is now."""
        self._state.put(
            "jobs", id=job.id, user=job.user, created=job.created, finished=job.finished, state=job.state.value,
            attempts=job.attempts, steps=job.steps, request=job.request.model_dump_json(),
            images=json.dumps(job.images), error=_json(job.error), key=job.key, grouped=job.group, again=job.again,
            again_result=_json(job.again_result),
        )  # fmt: skip

    def job(self, key: str) -> Job | None:
        """A job by its id."""
        return self._one("SELECT * FROM jobs WHERE id = ?", key)

    def by_key(self, user: str, key: str) -> Job | None:
        """A job by its client's own name for it."""
        # A key may be used anew after its time.
        self._state.write("UPDATE jobs SET key = NULL WHERE key = ? AND created < ?", (key, time.time() - _KEY_SECONDS))
        return self._one("SELECT * FROM jobs WHERE user = ? AND key = ?", user, key)

    def recent(self, user: str) -> list[Job]:
        """A user's jobs that are over, newest first."""
        return self._several(
            "SELECT * FROM jobs WHERE user = ? AND finished IS NOT NULL ORDER BY created DESC LIMIT ?", user, _SHOWN
        )

    def unfinished(self) -> list[Job]:
        """Jobs that an earlier server left, in the order in which they were asked for; those it had begun first."""
        return self._several(
            "SELECT * FROM jobs WHERE state IN ('running', 'queued') ORDER BY state = 'queued', created"
        )

    def forget_old(self) -> None:
        """Removes jobs that are long over."""
        self._state.write("DELETE FROM jobs WHERE finished < ?", (time.time() - _KEPT_SECONDS,))

    def _one(self, query: str, *values: object) -> Job | None:
        return next(iter(self._several(query, *values)), None)

    def _several(self, query: str, *values: object) -> list[Job]:
        return [job for row in self._state.rows(query, values) if (job := _job(row))]


def _job(row: sqlite3.Row) -> Job | None:
    """The job of a row; None for a request that this version does not know."""
    try:
        request = JobRequest.model_validate_json(row["request"])
    except ValidationError:
        return None
    return Job(
        user=row["user"], request=request, id=row["id"], state=JobState(row["state"]), created=row["created"],
        finished=row["finished"], attempts=row["attempts"], steps=row["steps"], images=json.loads(row["images"]),
        error=json.loads(row["error"]) if row["error"] else None, key=row["key"], group=row["grouped"],
        again=row["again"], again_result=json.loads(row["again_result"]) if row["again_result"] else None,
    )  # fmt: skip


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value)
