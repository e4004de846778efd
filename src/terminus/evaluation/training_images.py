"""The images that a run was trained on, out of its store: what a model may have learnt by heart."""

from __future__ import annotations

from typing import cast

from terminus import runtime
from terminus.data import geometry, pixels
from terminus.data.geometry import CropPlan
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, quoted
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.held_out import HeldOutCut, HeldOutImage
from terminus.evaluation.memorised import TrainedImages
from terminus.evaluation.trained import TrainedOn

MOST = 4096
"""Training images that are looked at, unless all are fewer."""


def training_images(trained: TrainedOn, seed: int, most: int = MOST) -> TrainedImages | None:
    """At most `most` images of the version that training read, as training saw them; None without a store or rows.

    The seed chooses them; `available` says of how many.
    """
    store = Store(trained.data.store)
    latents, images = store.latents.latest(), store.images.latest()
    if latents is None or images is None:
        return None
    # The version that the run read: rows that were added later taught it nothing.
    if trained.version is not None:
        latents = store.latents.at(trained.version)
    where = f"split != 'validation' AND transform = {quoted(trained.data.transform.spec)}"
    offsets: dict[str, int] = {}
    for batch in latents.batches(["image_key", "_rowoffset"], where, 1 << 16):
        keys, rows = (batch.column(name).to_pylist() for name in ("image_key", "_rowoffset"))
        for key, row in zip(keys, rows, strict=True):
            offsets.setdefault(cast(str, key), cast(int, row))
    chosen = sorted(offsets, key=lambda key: runtime.key(seed, 0, f"training {key}"))[:most]
    if len(chosen) < 2:
        return None
    plans: dict[str, CropPlan] = {}
    for row in read_rows(HeldOutCut, latents.take([offsets[key] for key in chosen], column_names(HeldOutCut))):
        plans[row.image_key] = row.plan
    found: list[ImageSource] = []
    listed = ", ".join(quoted(key) for key in plans)
    for batch in images.batches(column_names(HeldOutImage), f"key IN ({listed})", 16):
        for row in read_rows(HeldOutImage, batch):
            plan = plans[row.key]
            found.append(geometry.cut(pixels.resized(row, plan), plan))
    return TrainedImages(found, len(offsets), "the run's training images") if len(found) > 1 else None
