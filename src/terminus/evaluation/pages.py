"""Pages that need no other file and no network: templates with images inside, and one script that sorts tables."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from io import BytesIO
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

WIDEST = 256
"""Pixels of an image on a page, which shows them smaller."""


@cache
def page_environment() -> Environment:
    """Templates of the package; the content security policy names the one script by its hash."""
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["uri"] = image_uri  # pyright: ignore[reportArgumentType]
    script = (resources.files("terminus") / "assets" / "sorting.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # jinja2's own annotation allows only the types of its own globals
    cast(dict[str, object], environment.globals).update(sorting=Markup(script), sorting_hash=digest)
    return environment


def image_uri(image: Image.Image) -> str:
    """A small PNG as a data URI."""
    shown = image.copy()
    shown.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    shown.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
