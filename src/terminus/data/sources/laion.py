"""Tables of links with what is known of each image, as LAION, COYO, DataComp and img2dataset write them.

One row is one image: where it lies in the web (or its bytes), its alternative text, its size, and the scores that
others gave it. Nothing is downloaded here, and what the scores say is enough to leave most rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from terminus.config.base import Config
from terminus.data.record import Candidate, SourcePart
from terminus.data.sources import tables
from terminus.data.sources.columns import FACTS, ColumnRow, Columns, column_checksum, metadata

Role = Literal[
    "id", "url", "image", "caption", "width", "height", "similarity", "unsafe", "nsfw", "watermark", "aesthetic",
    "md5", "sha256", "licence", "tags",
]  # fmt: skip
"""What a column can be for."""

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **FACTS,
        "url": ("URL", "image_url", "link"),
        "image": ("image", "jpg", "bytes"),
        "caption": ("TEXT", "caption", "alt_text", "alt"),
    }
)
"""The names that each role goes by, the best first. LAION's `hash` is of the link and the text, so it is no checksum
of the image; a row's own number in its file is its id unless the recipe chooses a column for `id`."""


class LaionSource(Config):
    """Parquet, CSV or JSON Lines tables of image links (or bytes) with captions and scores, LAION's and its kin."""

    kind: Literal["laion"]
    """Tables of links with metadata."""
    name: str
    """What the rows of this source are called in the store; keep it when the tables move."""
    path: str
    """A table, or the folder of tables (also partitioned, `language=en/...`): a path, s3:// or gs://."""
    columns: dict[Role, str] = Field(default_factory=dict)
    """Which column is what, where it is not called as usual: {caption: alt_text, id: key}."""

    def count(self) -> int:
        """About how many rows there are; a `UserError` if the tables have no links or no captions."""
        return tables.estimate(self.path, self._columns())

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per row, files in the order of their names; unreadable tables and rows with the reason."""
        return tables.candidates(self.name, self.path, self._columns(), self._candidate)

    def parts(self) -> Iterator[SourcePart]:
        """The tables. One that did not change since its rows were judged need not be read again."""
        return tables.parts(self.name, self.path, self._columns(), self._candidate)

    def _columns(self) -> Columns:
        return Columns(NAMES, {role: name for role, name in self.columns.items()}, (("url", "image"), ("caption",)))

    def _candidate(self, row: ColumnRow) -> Candidate:
        data, url = row.image()
        return Candidate(
            self.name,
            row.text("id") or row.id,
            row.captions("caption"),
            data=data,
            url=url,
            checksum=column_checksum(row),
            metadata=metadata(row),
            licence=row.licence(),
        )
