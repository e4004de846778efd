"""The run's own held-out captions and images, out of its store.

The rows are those of the version that the run was trained on, so none of them was learnt; the images are made from
the untouched files by the recorded plan, exactly as training would have seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from terminus import runtime
from terminus.conditioning import Size
from terminus.data import geometry, pixels
from terminus.data.caption import Caption, captions_of
from terminus.data.geometry import CropPlan
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, View, quoted
from terminus.errors import UserError
from terminus.evaluation.captions import Captions, DrawnCaption, ImageSource
from terminus.evaluation.trained import TrainedOn
from terminus.sampling.prompts import escape

_BRING = "Bring the store back, name a recipe that says where it is with --recipe, or what to draw with --prompts FILE"


@dataclass(frozen=True)
class _Row:
    """One held-out row: how the image is cut, and what it is called."""

    image: str
    """Key of the image in the table of images."""
    caption: str
    plan: CropPlan


@dataclass(frozen=True)
class HeldOutCut:
    """Columns of `latents`."""

    image_key: str
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]
    plan: CropPlan


@dataclass(frozen=True)
class HeldOutImage:
    """Columns of `images`."""

    key: str
    data: bytes
    background: str | None


def from_store(trained: TrainedOn, count: int, seed: int) -> Captions:
    """Up to `count` held-out rows, chosen by the seed alone; UserError if the store has none of this recipe."""
    store = Store(trained.data.store)
    # Rows first, images after: only those that are chosen are read and decoded.
    view = _latents(store, trained)
    offsets = _offsets(view, trained, seed)
    rows = [row for row in _rows(view, offsets[:count]) if row is not None]
    images = _images(store, rows)
    # Takedowns may have removed images since the run; the report counts them as gone.
    kept = [row for row in rows if row.image in images]
    if not kept:
        raise UserError(
            "None of the held-out rows has a caption and an image any more",
            where=trained.data.store,
            rule="A model is compared with images that its training held out",
            fix=_BRING,
        )
    items: list[DrawnCaption] = []
    for number, row in enumerate(kept):
        size = Size(*images[row.image].shape[:2])
        items.append(DrawnCaption(row.caption, escape(row.caption), seed + number, size))
    return Captions(
        kind="held-out",
        items=tuple(items),
        available=len(offsets),
        source=trained.data.store,
        images=tuple(images[row.image] for row in kept),
        version=view.version,
        gone=min(count, len(offsets)) - len(kept),
    )


def _latents(store: Store, trained: TrainedOn) -> View:
    here = "://" in trained.data.store or Path(trained.data.store).is_dir()
    view = store.latents.latest() if here else None
    if view is None:
        raise UserError(
            "The data that this model was trained on are not here",
            where=trained.data.store,
            rule=f"data.store of {trained.recipe} names them; a relative path begins in the folder that you are in",
            fix=_BRING,
        )
    return view if trained.version is None else store.latents.at(trained.version)


def _offsets(view: View, trained: TrainedOn, seed: int) -> list[int]:
    """Row numbers of the held-out images, one of each, in an order that the seed decides."""
    spec = trained.data.transform.spec
    where = f"split = 'validation' AND transform = {quoted(spec)}"
    images: dict[str, int] = {}
    for batch in view.batches(["image_key", "_rowoffset"], where, 1 << 16):
        for key, offset in zip(*(batch.column(name).to_pylist() for name in ("image_key", "_rowoffset")), strict=True):
            images.setdefault(cast(str, key), cast(int, offset))
    if not images:
        raise UserError(
            f"The store holds out no rows for this recipe ({spec})",
            where=trained.data.store,
            rule="Rows are tied to the geometry that made them; data.validation_fraction says how many are held out",
            fix="Run `terminus prepare` with this recipe, or name what to draw with --prompts FILE",
        )
    return [images[key] for key in sorted(images, key=lambda key: runtime.key(seed, 0, f"evaluation {key}"))]


def _rows(view: View, offsets: Sequence[int]) -> list[_Row | None]:
    """The rows' images and captions; None for rows without a caption."""
    found: list[_Row | None] = []
    for row in read_rows(HeldOutCut, view.take(offsets, column_names(HeldOutCut))):
        caption = _caption(captions_of(row))
        found.append(None if caption is None else _Row(row.image_key, caption, row.plan))
    return found


def _caption(captions: Sequence[Caption]) -> str | None:
    """The caption that training draws most often, the first of several."""
    written = [caption for caption in captions if caption.text.strip()]
    return max(written, key=lambda caption: caption.weight).text if written else None


def _images(store: Store, rows: Sequence[_Row]) -> dict[str, ImageSource]:
    """Images by their keys, without those that the store no longer has."""
    view = store.images.latest()
    if view is None or not rows:
        return {}
    plans = {row.image: row.plan for row in rows}
    listed = ", ".join(quoted(key) for key in plans)
    found: dict[str, ImageSource] = {}
    for batch in view.batches(column_names(HeldOutImage), f"key IN ({listed})", 16):
        for row in read_rows(HeldOutImage, batch):
            plan = plans[row.key]
            found[row.key] = geometry.cut(pixels.resized(row, plan), plan)
    return found
