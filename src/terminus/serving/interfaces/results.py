"""What becomes of a job, for interfaces that answer when it is over: its files, or the reason why there are none."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from terminus.errors import UserError
from terminus.serving.errors import Refusal, refused
from terminus.serving.jobs import Job, JobState
from terminus.serving.service import Service


def check_done(job: Job) -> None:
    """`Refusal` for a job that failed or was cancelled."""
    if job.state is JobState.FAILED:
        raise failure(job)
    if job.state is JobState.CANCELLED:
        raise refused(409, "The job was cancelled")


def failure(job: Job) -> Refusal:
    """Why a job failed."""
    said = job.error or {"message": "The job failed"}
    return Refusal(422, UserError(
        said["message"], where=said.get("where", ""), rule=said.get("rule", ""), fix=said.get("fix", "")
    ))  # fmt: skip


async def job_files(service: Service, job: Job, kind: str = "png", quality: int | None = None) -> list[bytes]:
    """The job's images, as the files on the disk or as another format that says the same of itself."""
    paths = [service.gallery.file(job.user, key) for key in job.images]
    if kind == "png":
        return [await asyncio.to_thread(path.read_bytes) for path in paths]
    return [await service.encode(path, kind, quality) for path in paths]


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """The bytes of base64, with or without a data address before it; UserError for what is none."""
    # Base64 holds no comma: what stands before one is the data address.
    _, _, inside = text.rpartition(",")
    try:
        return base64.b64decode(inside, validate=True)
    except ValueError as error:
        raise UserError(
            "An image is sent as base64", rule="With or without `data:image/png;base64,` before it"
        ) from error


async def add_upload(service: Service, user: str, data: bytes, mask: str | None = None) -> str:
    """The id of an image that came along with a request."""
    upload: dict[str, Any] = await service.uploads.add(user, data, mask)
    return upload["id"]
