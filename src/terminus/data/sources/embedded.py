"""The drawings that come with Terminus, each on several plain backgrounds that its caption names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from terminus.config.base import Config
from terminus.data.caption import Caption
from terminus.data.record import Candidate

if TYPE_CHECKING:
    from terminus.data.emoji import EmojiRow

LICENCE = "MIT"


class EmbeddedSource(Config):
    """The embedded emoji drawings: a small captioned set that needs no download."""

    kind: Literal["embedded"]
    """The embedded drawings."""
    name: str = "embedded"
    """What the rows of this source are called in the store."""
    styles: tuple[Literal["3d", "flat"], ...] = Field(default=("3d",), min_length=1)
    """Which kinds of drawing to use."""
    backgrounds: int = Field(default=3, ge=1)
    """On how many different backgrounds each drawing appears."""
    colors: tuple[str, ...] = ()
    """Names of the backgrounds to choose from; none named is all of them."""
    groups: tuple[str, ...] = ()
    """Unicode's groups of subjects, such as "Food & Drink"; none named is all of them."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many drawings; null is all."""
    captions: tuple[Literal["background", "plain", "brightness"], ...] = Field(default=("background",), min_length=1)
    """Captions of each image, drawn alike: naming its background; without one; "a dark image of ...", if it is."""

    def count(self) -> int:
        """How many candidates there will be."""
        from terminus.data import emoji

        return sum(
            1 for _ in emoji.emoji_rows(self.styles, self.backgrounds, 0, self.limit, self._colors(), self.groups)
        )

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per drawing and background; the drawing decides the split, so no shape is in both."""
        from terminus.data import emoji

        for row in emoji.emoji_rows(self.styles, self.backgrounds, seed, self.limit, self._colors(), self.groups):
            yield Candidate(
                self.name,
                row.id,
                self._captions(row),
                data=emoji.rgba(row.drawing),
                background=row.rgb,
                split=row.drawing.split,
                licence=LICENCE,
                near_duplicates=True,
            )

    def _captions(self, row: EmojiRow) -> tuple[Caption, ...]:
        from terminus.data import emoji

        written = {
            "background": row.caption,
            "plain": emoji.plain_caption(row.drawing),
            "brightness": emoji.brightness_caption(row.drawing, row.rgb),
        }
        return tuple(Caption(text, "embedded") for form in self.captions if (text := written[form]) is not None)

    def _colors(self) -> tuple[str, ...]:
        from terminus.data import emoji

        return self.colors or tuple(emoji.BACKGROUNDS)
