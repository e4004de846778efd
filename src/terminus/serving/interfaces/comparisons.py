"""The native interface's comparisons: two models, the same requests, and votes on which image is better."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from terminus.errors import UserError
from terminus.serving.errors import Refusal, not_found
from terminus.serving.interfaces.parts import service_of, user_of
from terminus.serving.jobs import Closed, Id, Job, JobRequest
from terminus.serving.service import Service

api = APIRouter(prefix="/api/v1", tags=["comparisons"])

_SEEDS = 2**32
_SIDES = ("left", "right")


class ComparisonRequest(Closed):
    """Two models, and requests that each of them draws; the model that a request names is not looked at."""

    models: Annotated[list[Id], Field(min_length=2, max_length=2)]
    requests: Annotated[list[JobRequest], Field(min_length=1, max_length=50)]


class Vote(Closed):
    """Which image of a pair is better."""

    pair: Id
    choice: Literal["left", "right", "tie", "neither"]


@api.post("/comparisons", status_code=202)
async def new_comparison(request: Request, asked: ComparisonRequest) -> dict[str, Any]:
    """Draws every request with both models; which of them is on the left is drawn by lot, and told after the vote."""
    service, user = service_of(request), user_of(request)
    if asked.models[0] == asked.models[1]:
        raise UserError("Both models are the same one", where="models", rule="Two models are compared")
    key = secrets.token_urlsafe(12)
    jobs: list[Job] = []
    pairs: list[dict[str, Any]] = []
    try:
        for one in asked.requests:
            # One seed for both: the models are compared, and not their luck.
            seed = secrets.randbelow(_SEEDS) if one.seed is None else one.seed
            # By lot for each pair, so that a habit of choosing the left cancels out.
            sides = asked.models if secrets.randbelow(2) else asked.models[::-1]
            drawn = [one.model_copy(update={"model": model, "seed": seed, "count": 1}) for model in sides]
            jobs += [await service.submit(user, each, group=key) for each in drawn]
            pairs.append({"id": secrets.token_urlsafe(12), "jobs": [job.id for job in jobs[-2:]], "models": sides})
    except (UserError, Refusal):
        for job in jobs:
            service.engine.cancel(job)
        raise
    content = json.dumps({"pairs": pairs})
    service.state.put("groups", id=key, user=user, kind="comparison", created=time.time(), content=content)
    return _shown(service, user, key)


@api.get("/comparisons/{key}")
async def get_comparison(request: Request, key: str) -> dict[str, Any]:
    """The pairs of a comparison, with what is drawn of them."""
    return _shown(service_of(request), user_of(request), key)


@api.post("/votes", status_code=201)
async def new_vote(request: Request, asked: Vote) -> dict[str, Any]:
    """Keeps a vote, in place of an earlier one on this pair, and tells which model was which."""
    service, user = service_of(request), user_of(request)
    pair = _pair(service, user, asked.pair)
    jobs = [service.engine.find(user, key) for key in pair["jobs"]]
    if any(job is None or not job.images for job in jobs):
        raise Refusal(409, UserError("This pair is not drawn yet", fix="Vote when both images are there"))
    left, right = [job for job in jobs if job is not None]
    content = {
        "prompt": left.request.prompt,
        "negative": left.request.negative,
        "choice": asked.choice,
        "left_model": pair["models"][0],
        "right_model": pair["models"][1],
        "left_image": left.images[0],
        "right_image": right.images[0],
        "request": left.request.model_dump(exclude={"model"}, exclude_defaults=True),
    }
    service.state.put(
        "votes", id=secrets.token_urlsafe(12), user=user, created=time.time(), pair=pair["id"],
        content=json.dumps(content),
    )  # fmt: skip
    told = {"left_model": pair["models"][0], "right_model": pair["models"][1]}
    return {"pair": pair["id"], "choice": asked.choice, **told, "tally": _tally(_votes(service, user))}


@api.get("/votes")
async def list_votes(request: Request) -> Response:
    """This user's votes as JSON lines, oldest first: prompt, both images, both models, the choice."""
    lines = "".join(json.dumps(one) + "\n" for one in _votes(service_of(request), user_of(request)))
    return Response(lines, media_type="application/x-ndjson")


def _votes(service: Service, user: str) -> list[dict[str, Any]]:
    rows = service.state.rows("SELECT pair, created, content FROM votes WHERE user = ? ORDER BY created", (user,))
    return [{"pair": row["pair"], "created": row["created"], **json.loads(row["content"])} for row in rows]


def _tally(votes: list[dict[str, Any]]) -> dict[str, int]:
    """How often each model's image was the better one."""
    return dict(Counter(one[f"{one['choice']}_model"] for one in votes if one["choice"] in _SIDES))


def _pairs(service: Service, user: str, key: str) -> list[dict[str, Any]]:
    query = "SELECT content FROM groups WHERE id = ? AND user = ? AND kind = 'comparison'"
    row = service.state.row(query, (key, user))
    if row is None:
        raise not_found("comparison")
    return json.loads(row["content"])["pairs"]


def _pair(service: Service, user: str, key: str) -> dict[str, Any]:
    rows = service.state.rows("SELECT content FROM groups WHERE user = ? AND kind = 'comparison'", (user,))
    for row in rows:
        for pair in json.loads(row["content"])["pairs"]:
            if pair["id"] == key:
                return pair
    raise not_found("pair")


def _shown(service: Service, user: str, key: str) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    for pair in _pairs(service, user, key):
        sides: dict[str, Any] = {}
        for side, job_key in zip(_SIDES, pair["jobs"], strict=True):
            job = service.engine.find(user, job_key)
            whole = {} if job is None else service.engine.shown(job)
            images = whole.get("images") or [None]
            sides[side] = {"id": job_key, "state": whole.get("state", "cancelled"), "image": images[0]}
            # Which model it is stays hidden until the vote.
            request = {} if job is None else job.request.model_dump(exclude={"model"})
            sides.setdefault("request", request)
        shown.append({"id": pair["id"], **sides})
    return {"id": key, "pairs": shown}
