"""Pages from templates: every value is escaped, and every address is relative, so any root path will do."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from terminus.serving.pages.static_files import build

PAGES = {
    "draw": "Draw",
    "canvas": "Canvas",
    "grid": "Grid",
    "compare": "Compare",
    "gallery": "Gallery",
    "models": "Models",
    "runs": "Runs",
}
"""The pages by the names of their templates, in the order of the navigation; `draw` is the root."""


@cache
def _environment() -> Environment:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    addresses = {name: "./" if name == "draw" else name for name in PAGES}
    known: dict[str, object] = {
        "static": f"static/{build()}",
        "pages": PAGES,
        "addresses": addresses,
        "version": metadata.version("terminus-xl"),
    }
    cast(dict[str, object], environment.globals).update(known)
    return environment


def render_page(template: str, status: int = 200, **values: object) -> HTMLResponse:
    """The page of this template; browsers ask again for it each time, since it names the current static files."""
    text = _environment().get_template(template).render(**values)
    return HTMLResponse(text, status_code=status, headers={"Cache-Control": "no-cache"})
