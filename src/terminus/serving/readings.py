"""What the reader's process tells, as plain data: the server that receives it imports nothing that reads files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recalled:
    """Settings that an image tells."""

    source: str
    """Whose words were understood: "terminus", "a1111", "comfyui", ..., "none"."""
    request: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of a `JobRequest`, without a model, and without images that only its hashes name."""
    model: str = ""
    model_hash: str = ""
    adapters: tuple[tuple[str, str, float], ...] = ()
    """Name, hash and weight of each."""
    notes: tuple[str, ...] = ()
    """What could not be taken over."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """All settings by A1111's names."""
    text: str = ""
    """A1111's text, or what the file has in its place."""


@dataclass(frozen=True)
class Upload:
    """An image that came in, as a PNG of its upright sRGB pixels."""

    png: bytes
    width: int
    height: int
    recalled: Recalled | None = None


@dataclass(frozen=True)
class GalleryFile:
    """What a file of the gallery says of itself."""

    width: int
    height: int
    metadata: str
    parameters: str
    recalled: Recalled
    thumbnail: bytes
