"""`images.jsonl`: the numbers of an evaluation image by image, so that two evaluations can be compared in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terminus.errors import UserError
from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.image_set import Measured
from terminus.evaluation.luminance import REC601, Images, frame_rgb, luma, luma_of
from terminus.evaluation.measure import EvaluationImages

FILE = "images.jsonl"


@dataclass(frozen=True)
class EvaluationRow:
    """One image: what was asked for, and its numbers by their names."""

    set: str
    """"probe", "light" or "captions"."""
    text: str
    """The prompt, or the name of the file."""
    seed: int
    values: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, int]:
        """Images of two evaluations with the same key are a pair."""
        return self.set, self.text, self.seed


def model_rows(gallery: EvaluationImages, light: Sequence[DrawnCaption], found: Measured) -> list[EvaluationRow]:
    """Of every image that a model drew by its own schedule."""
    rows: list[EvaluationRow] = []
    border = frame_rgb(gallery.own.probe) @ np.array(REC601)
    for prompt, value in zip(gallery.prompts, border, strict=True):
        distance = {f"luma error, asked {prompt.background}": abs(float(value) - luma_of(prompt.rgb))}
        rows.append(EvaluationRow("probe", prompt.text, prompt.seed, distance))
    if gallery.own.light is not None:
        means = luma(gallery.own.light).mean(axis=(1, 2))
        for caption, value in zip(light, means, strict=True):
            asked = caption.text.split()[1]
            rows.append(EvaluationRow("light", caption.text, caption.seed, {f"luma, asked {asked}": float(value)}))
    items = gallery.prompts if gallery.captions is None else gallery.captions.items
    named = [(one.text, one.seed) for one in items]
    return [*rows, *_set_rows(named, found)]


def folder_rows(names: Sequence[str], found: Measured) -> list[EvaluationRow]:
    """Of the images of a folder."""
    return list(_set_rows([(name, 0) for name in names], found))


def _set_rows(named: Sequence[tuple[str, int]], found: Measured) -> Iterator[EvaluationRow]:
    for place, (text, seed) in enumerate(named):
        values = {name: float(column[place]) for name, column in found.scores.items()}
        yield EvaluationRow("captions", text, seed, {name: one for name, one in values.items() if math.isfinite(one)})


def write_evaluation_rows(rows: Sequence[EvaluationRow], out: Path) -> None:
    """One JSON object a line."""
    lines = (json.dumps({"set": row.set, "text": row.text, "seed": row.seed, **row.values}) for row in rows)
    (out / FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_evaluation_rows(out: Path) -> list[EvaluationRow]:
    """What `write_evaluation_rows` wrote; UserError for what it did not."""
    rows: list[EvaluationRow] = []
    path = out / FILE
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            rows.append(EvaluationRow(found.pop("set"), found.pop("text"), int(found.pop("seed")), found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"This table of images cannot be read ({error})", where=str(path)) from error
    return rows


def images_by_key(gallery: EvaluationImages, light: Sequence[DrawnCaption]) -> dict[tuple[str, str, int], ImageSource]:
    """Every image that a model drew by its own schedule, by the key of its row."""
    found: dict[tuple[str, str, int], ImageSource] = {}
    sets: list[tuple[str, Sequence[tuple[str, int]], Images | Sequence[ImageSource]]] = [
        ("probe", [(one.text, one.seed) for one in gallery.prompts], gallery.own.probe)
    ]
    if gallery.own.light is not None:
        sets.append(("light", [(one.text, one.seed) for one in light], gallery.own.light))
    if gallery.captions is not None:
        sets.append(("captions", [(one.text, one.seed) for one in gallery.captions.items], gallery.own.captions))
    for name, keys, images in sets:
        found |= {(name, *key): image for key, image in zip(keys, images, strict=True)}
    return found
