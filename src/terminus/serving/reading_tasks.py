"""What the server asks of the reader's process, by function: each imports what it needs when it runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from terminus.serving.readings import GalleryFile, Recalled, Upload


def read_upload(data: bytes, mask: str | None = None, understand: bool = False) -> Upload:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.read_upload(data, mask, understand=understand)


def read_settings(data: bytes) -> Recalled:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.read_settings(data)


def read_image(path: Path) -> GalleryFile:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.read_image(path)


def inspect(name: str) -> dict[str, Any]:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.inspect(name)


def count_tokens(model: str, prompt: str) -> dict[str, Any]:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.count_tokens(model, prompt)


def enlarge(path: Path, factor: float) -> bytes:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.enlarge(path, factor)


def encode(path: Path, kind: str, quality: int | None) -> bytes:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.encode(path, kind, quality)
