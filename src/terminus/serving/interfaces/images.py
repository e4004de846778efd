"""The native interface's gallery: images, boards, and the settings in images that are dropped."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field, StrictBool

from terminus.serving.errors import not_found
from terminus.serving.gallery import Search
from terminus.serving.interfaces.parts import FormImage, image_of, service_of, user_of
from terminus.serving.jobs import Closed, Id

api = APIRouter(prefix="/api/v1", tags=["images"])

_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
"""An image never changes; `private` keeps proxies from keeping it for others."""


class ImageChange(Closed):
    """What of an image is changed; null is left as it is."""

    starred: StrictBool | None = None
    boards: Annotated[list[Id], Field(max_length=200)] | None = None


class NewBoard(Closed):
    """A board to be made."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=100)]


@api.get("/images")
async def list_images(
    request: Request,
    query: Annotated[str | None, Query(max_length=400)] = None,
    model: Annotated[str | None, Query(max_length=200)] = None,
    starred: bool | None = None,
    board: Annotated[str | None, Query(max_length=40)] = None,
    after: float | None = None,
    before: float | None = None,
    cursor: Annotated[str | None, Query(max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
) -> dict[str, Any]:
    """Images that match everything asked, newest first. `after` and `before` are seconds since 1970."""
    search = Search(query, model, starred, board, after, before, cursor, limit)
    found, further = service_of(request).gallery.search(user_of(request), search)
    return {"images": found, "cursor": further}


@api.get("/images/{key}.png")
async def image_file(request: Request, key: str, download: bool = False) -> FileResponse:
    """The image's file, as it is on the disk."""
    path = service_of(request).gallery.file(user_of(request), key)
    if not path.is_file():
        raise not_found("image")
    name = path.name if download else None
    return FileResponse(path, media_type="image/png", headers=_FOREVER, filename=name)


@api.get("/images/{key}/thumbnail")
async def image_thumbnail(request: Request, key: str) -> FileResponse:
    """A small WebP of it."""
    gallery = service_of(request).gallery
    gallery.get(user_of(request), key)
    path = gallery.thumbnail(key)
    if not path.is_file():
        raise not_found("thumbnail")
    return FileResponse(path, media_type="image/webp", headers=_FOREVER)


@api.get("/images/{key}")
async def get_image(request: Request, key: str) -> dict[str, Any]:
    """One image, with its request and its metadata."""
    return service_of(request).gallery.get(user_of(request), key)


@api.patch("/images/{key}")
async def change_image(request: Request, key: str, asked: ImageChange) -> dict[str, Any]:
    """Stars it, or puts it on just these boards."""
    return service_of(request).gallery.change(user_of(request), key, asked.starred, asked.boards)


@api.delete("/images/{key}", status_code=204)
async def delete_image(request: Request, key: str) -> Response:
    """Deletes it; for a day `restore` brings it back."""
    service_of(request).gallery.delete(user_of(request), key)
    return Response(status_code=204)


@api.post("/images/{key}/restore")
async def restore_image(request: Request, key: str) -> dict[str, Any]:
    """Brings a deleted image back."""
    return service_of(request).gallery.restore(user_of(request), key)


@api.post("/images/{key}/again", status_code=202, tags=["jobs"])
async def draw_again(request: Request, key: str) -> dict[str, Any]:
    """Draws it once more from its own metadata; the job's end says whether every pixel is equal."""
    service = service_of(request)
    job = await service.draw_again(user_of(request), key)
    return service.engine.shown(job)


@api.post("/read", openapi_extra=FormImage)
async def read_metadata(request: Request) -> dict[str, Any]:
    """The settings in an image of ours, A1111's, ComfyUI's, InvokeAI's, ..., as a request."""
    return await service_of(request).read_settings(await image_of(request))


@api.get("/boards")
async def list_boards(request: Request) -> dict[str, Any]:
    """This user's boards, each with the number of its images."""
    rows = service_of(request).state.rows(
        "SELECT id, name, created, (SELECT count(*) FROM board_images JOIN images ON image = images.id "
        "WHERE board = boards.id AND deleted IS NULL) AS images FROM boards WHERE user = ? ORDER BY name",
        (user_of(request),),
    )
    return {"boards": [dict(row) for row in rows]}


@api.post("/boards", status_code=201)
async def new_board(request: Request, asked: NewBoard) -> dict[str, Any]:
    """Makes a board."""
    board = {"id": secrets.token_urlsafe(9), "name": asked.name, "created": time.time()}
    service_of(request).state.put("boards", user=user_of(request), **board)
    return {**board, "images": 0}


@api.delete("/boards/{key}", status_code=204)
async def delete_board(request: Request, key: str) -> Response:
    """Deletes a board; its images stay in the gallery."""
    state = service_of(request).state
    with state.together():
        if not state.write("DELETE FROM boards WHERE id = ? AND user = ?", (key, user_of(request))):
            raise not_found("board")
        state.write("DELETE FROM board_images WHERE board = ?", (key,))
    return Response(status_code=204)
