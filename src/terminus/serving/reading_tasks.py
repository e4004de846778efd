"""What the server asks of the reader's process, by function: each imports what it needs when it runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from terminus.serving.readings import GalleryFile, Recalled, Upload


def upload_task(data: bytes, mask: str | None = None, understand: bool = False) -> Upload:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.read_upload(data, mask, understand=understand)


def settings_task(data: bytes) -> Recalled:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.recall_settings(data)


def gallery_file_task(path: Path) -> GalleryFile:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.read_gallery_file(path)


def inspect_task(name: str) -> dict[str, Any]:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.inspect_model(name)


def count_tokens_task(model: str, prompt: str) -> dict[str, Any]:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.count_tokens(model, prompt)


def enlarge_task(path: Path, factor: float) -> bytes:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.enlarge_file(path, factor)


def encode_task(path: Path, kind: str, quality: int | None, signer: tuple[Path, Path] | None) -> bytes:
    """See `reading_work`."""
    from terminus.serving import reading_work

    return reading_work.encode_file(path, kind, quality, signer)
