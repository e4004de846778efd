"""Images that an evaluation has drawn already: killed and started again, it draws none of them twice.

They are kept under everything that decides them: the weights, the schedule, the settings, prompt and seed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from terminus.evaluation.luminance import Images
from terminus.sampling.settings import Settings

Asked = tuple[str, int]
"""Prompt and seed of one image."""


@dataclass(frozen=True)
class Kept:
    """The images of one model by one schedule, in a folder."""

    folder: Path
    who: str
    """The weights and the schedule."""

    def read(self, batch: Sequence[Asked], settings: Settings) -> Images | None:
        """The images of a whole batch; None unless all are here, because a batch's numbers depend on its size."""
        images: list[np.ndarray] = []
        for path in self._paths(batch, settings):
            try:
                with Image.open(path) as image:
                    images.append(np.array(image.convert("RGB")))
            except (OSError, SyntaxError):
                return None
        return np.stack(images)

    def write(self, batch: Sequence[Asked], settings: Settings, images: Images) -> None:
        """Each file appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, image in zip(self._paths(batch, settings), images, strict=True):
            # A run that is stopped in the middle leaves no half of an image behind.
            temporary = path.with_suffix(".tmp")
            Image.fromarray(image).save(temporary, "PNG")
            os.replace(temporary, path)

    def _paths(self, batch: Sequence[Asked], settings: Settings) -> list[Path]:
        # All that has an influence on a batch is in its files' name; what changes draws anew.
        how = hashlib.sha256(f"{self.who}\n{settings!r}\n{list(batch)!r}".encode()).hexdigest()[:16]
        return [self.folder / f"{how}-{number:03}.png" for number in range(len(batch))]
