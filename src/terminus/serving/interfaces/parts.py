"""What every interface takes out of a request: the service, the user, an image in a form."""

from __future__ import annotations

from typing import Any, cast

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from terminus.errors import UserError
from terminus.serving.service import Service

FormImage: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            }
        },
    }
}
"""OpenAPI's words for a form with one image."""
_FILES, _FIELDS, _FIELD_BYTES = 20, 64, 1 << 20


def service_of(request: Request) -> Service:
    """The server's parts."""
    return cast(Service, request.app.state.service)


def user_of(request: Request) -> str:
    """Who asks; the door has found out."""
    return cast(str, request.scope["state"]["user"])


async def form_of(request: Request) -> FormData:
    """A multipart form within the limits; UserError for a body that is none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UserError("The body is no form", rule="Images are sent as multipart/form-data")
    try:
        return await request.form(max_files=_FILES, max_fields=_FIELDS, max_part_size=_FIELD_BYTES)
    except HTTPException as error:
        raise UserError(f"The form cannot be read ({error.detail})") from error


async def image_of(request: Request, name: str = "file") -> bytes:
    """The bytes of the one file in a form; whatever it is called is not looked at."""
    form = await form_of(request)
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    named = form.getlist(name)
    if len(files) != 1 or not named or not isinstance(named[0], UploadFile):
        raise UserError(f"The form has {len(files)} files", where=name, rule=f"It has exactly one, called `{name}`")
    return await files[0].read()
