"""A caption, and the three columns of a table that hold the captions of an image.

Without pyarrow: a step chooses among captions, and needs nothing else of what the store is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Caption:
    """A text and where it comes from ("sidecar", "embedded", or the name of a captioner)."""

    text: str
    origin: str
    weight: float = 1.0
    """How often it is drawn among the captions of its image, in proportion."""


@runtime_checkable
class CaptionColumns(Protocol):
    """A row of a table that holds captions: three columns, whose values belong together one by one."""

    @property
    def captions(self) -> tuple[str, ...]: ...

    @property
    def caption_origins(self) -> tuple[str, ...]: ...

    @property
    def caption_weights(self) -> tuple[float, ...]: ...


def captions_of(row: CaptionColumns) -> tuple[Caption, ...]:
    """The captions that the three columns of a row hold."""
    return tuple(map(Caption, row.captions, row.caption_origins, row.caption_weights))
