"""The captions that a model is asked for beside the contrast probe: of its own held-out data, or of a file.

The probe asks every model for the same; these ask for what the model is for. Held-out captions have a real image
each, so that what is drawn can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.evaluation.prompt_file import read_prompts
from terminus.sampling import prompts

ImageSource = UInt8[np.ndarray, "_ _ 3"]
"""One image, [height, width, 3]; images of one set may differ in size."""


@dataclass(frozen=True)
class DrawnCaption:
    """One image that is asked for."""

    text: str
    """The caption as people read it."""
    prompt: str
    """The same in the grammar of `sampling.prompts`."""
    seed: int
    size: Size | None = None
    """Size of the image to draw, in pixels; None is the model's own."""


@dataclass(frozen=True)
class Captions:
    """The captions that are drawn, and the images that they are compared with."""

    kind: Literal["held-out", "file"]
    items: tuple[DrawnCaption, ...]
    available: int
    """Held-out rows, or prompts in the file: all that `items` was taken from."""
    source: str
    """The data store, or the file."""
    images: tuple[ImageSource, ...] = ()
    """The real image of each caption; () for those of a file."""
    version: int | None = None
    """Version of the store's table of latents."""
    gone: int = 0
    """Held-out rows among those chosen whose image the store no longer has."""


def from_file(path: Path, count: int | None, seed: int) -> Captions:
    """The first `count` prompts of a file (all for None).

    UserError for a file that has none or cannot be read, and for a prompt that nobody can draw.
    """
    lines = read_prompts(path)
    chosen = list(lines.items())[:count]
    items: list[DrawnCaption] = []
    for place, (number, text) in enumerate(chosen):
        try:
            # Expanded and parsed now, so that line 900 is refused before an hour of drawing.
            prompt = prompts.expand(text, seed + place)
            prompts.parse_weights(prompt)
        except UserError as error:
            raise UserError(error.what, where=f"{path}:{number}", rule=error.rule, fix=error.fix) from None
        items.append(DrawnCaption(text, prompt, seed + place))
    return Captions("file", tuple(items), len(lines), str(path))
