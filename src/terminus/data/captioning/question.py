"""A question about one image: the pixels that training will see, and the prompt with its placeholders filled.

The model is shown the planned crop and not the whole file, so a caption never names what the crop has cut away. Only
where an image has several crops (`data.crops`), which share its captions, is it shown the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol, runtime_checkable

from PIL import Image

from terminus.data import damage
from terminus.data.captioning.answer import Answer
from terminus.data.captioning.settings import MAX_SIDE
from terminus.data.pixels import resized, training_pixels
from terminus.data.record import ImageRow
from terminus.data.store import View

QUOTED = 1000
"""Characters of a source's description that a prompt may quote: what strangers wrote must not drown the question."""
QUALITY = 90


@dataclass(frozen=True)
class Question:
    """One image and what is asked about it."""

    key: str
    """Of its row in `images`."""
    source: str
    source_id: str
    row: ImageRow
    prompt: str
    whole: bool = False
    """Whether the image is all of the image, and not the crop."""

    @property
    def name(self) -> str:
        """The image's name for people."""
        return f"{self.source}/{self.source_id}"

    def image(self, max_side: int = MAX_SIDE) -> Image.Image:
        """The training pixels, reduced to `max_side` where they are larger; never enlarged."""
        pixels = resized(self.row, self.row.plan) if self.whole else training_pixels(self.row)
        image = Image.fromarray(pixels)
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        return image

    def jpeg(self, max_side: int = MAX_SIDE) -> bytes:
        """`image` as a JPEG file: a few hundred kilobytes, without any of the original's metadata."""
        file = BytesIO()
        self.image(max_side).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


@runtime_checkable
class ImageQuestion(Protocol):
    """What a server is sent: an image, and what is asked about it."""

    @property
    def prompt(self) -> str: ...

    def jpeg(self) -> bytes:
        """The image as a JPEG file."""
        ...


@dataclass(frozen=True)
class Failure:
    """No answer came. Nothing is recorded, so that the next run asks again."""

    reason: str
    """Short and stable: "HTTP 500", "timed out", "no connection", ..."""
    detail: str = ""


@runtime_checkable
class Asking(Protocol):
    """Somebody who answers."""

    at_once: int
    """Groups of questions to keep submitted."""
    batch: int
    """Questions in a group."""

    def submit(self, questions: Sequence[Question]) -> Future[list[Answer | Failure]]:
        """One result for each question, in order. UserError where no further question makes sense."""
        ...

    def close(self) -> None:
        """Ends requests that are under way as soon as it can."""
        ...


def questions(
    images: View, rows: Sequence[int], prompt: str, generated: frozenset[str], whole: bool = False
) -> list[Question]:
    """The questions about the images with these row numbers; `generated` origins are not quoted in prompts."""
    asked: list[Question] = []
    for row in damage.sound_images(images, rows):
        filled = fill_template(prompt, own_texts(row, generated), row.tags)
        asked.append(Question(row.key, row.source, row.source_id, row, filled, whole))
    return asked


def own_texts(row: ImageRow, generated: frozenset[str]) -> list[str]:
    """The captions that the image's source gives."""
    pairs = zip(row.captions, row.caption_origins, strict=True)
    return [text for text, origin in pairs if origin not in generated]


def fill_template(prompt: str, captions: Sequence[str], tags: Sequence[str]) -> str:
    """The prompt with `{captions}` and `{tags}` replaced; what is put in is not searched for placeholders again."""
    pieces = prompt.split("{captions}")
    told, listed = "; ".join(captions)[:QUOTED], ", ".join(tags)[:QUOTED]
    return told.join(piece.replace("{tags}", listed) for piece in pieces)
