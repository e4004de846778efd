"""The second stage by itself: cuts, masks, tiles, too little memory, and stops between commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from terminus.conditioning import Size
from terminus.data import encode as stage
from terminus.data import geometry, record
from terminus.data.encode import encode_latents
from terminus.data.geometry import Transform
from terminus.data.pixels import latent_mask
from terminus.data.record import ImageRow, content_hash
from terminus.data.schema import plan_of
from terminus.data.store import Store, unpack_posterior
from terminus.data.waiting import Wanted, waiting_cuts
from terminus.errors import UserError
from terminus.model.tiling import Tiling
from terminus.model.vae import VAE, Posterior, to_signal

from .conftest import noise

TRANSFORM = Transform(32, "native", None, seed=4)


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image(number: int, height: int, width: int, **changes: object) -> ImageRow:
    data = png(Image.fromarray(noise(number, height, width)))
    image_hash = content_hash(data)
    plan = geometry.plan(Size(height, width), TRANSFORM, geometry.position(image_hash, TRANSFORM))
    assert plan is not None
    fields: dict[str, object] = {
        "key": record.image_key(image_hash, None, TRANSFORM.spec), "image_hash": image_hash, "source": "test",
        "source_id": str(number), "split": "train", "captions": ("a pattern",), "caption_origins": ("test",),
        "data": data, "background": None, "plan": plan, "luminance": 0.5, "dhash": "0" * 16, "thumbprint": b"",
        "licence": None, "state": "", "transform": TRANSFORM.spec, "rules": "{}", "caption_weights": (2.0,),
    }  # fmt: skip
    return ImageRow(**(fields | changes))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three large images, one square of the size of the bucket, one held out."""
    made = Store(str(tmp_path / "store"))
    made.images.append([
        image(0, 48, 60), image(1, 32, 32), image(2, 70, 40), image(3, 64, 64, split="validation"), image(4, 32, 34),
    ])  # fmt: skip
    return made


def latents(store: Store) -> list[dict[str, object]]:
    view = store.latents.latest()
    return [] if view is None else view.scan(store.latents.schema.names).to_pylist()


def run(store: Store, vae: VAE, crops: int = 1) -> int:
    return encode_latents(store, waiting_cuts(store, TRANSFORM.spec, vae.id, crops), vae, lambda _: None)


def test_each_cut_is_a_row_whose_conditioning_is_where_its_pixels_come_from(store: Store, vae: VAE):
    assert run(store, vae, crops=4) == 4 + 1 + 4 + 1 + 3, "as many as there is room for, and one that is held out"
    found = latents(store)
    assert len({row["key"] for row in found}) == len(found)
    places = {(row["image_key"], row["crop_top"], row["crop_left"]) for row in found}
    assert len(places) == len(found)
    for row in found:
        pixels = noise(int(str(row["source_id"])), int(row["original_height"]), int(row["original_width"]))
        way = plan_of(row)
        (top, left), (height, width) = way.conditioning.crop, way.conditioning.target
        cut = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        expected = vae.encode(to_signal(torch.from_numpy(cut)[None].permute(0, 3, 1, 2))).mean[0].numpy()
        stored = unpack_posterior(row["posterior"], 4, 8, 8)[0]
        assert np.abs(stored - expected).max() < 0.02 * np.abs(expected).max()
        assert row["caption_weights"] == [2.0]


def test_more_cuts_are_added_to_those_that_are_there(store: Store, vae: VAE):
    assert run(store, vae) == 5
    before = latents(store)
    assert {row["transform"] for row in before} == {TRANSFORM.spec}
    assert run(store, vae, crops=2) == 3
    assert latents(store)[:5] == before
    assert run(store, vae, crops=2) == run(store, vae) == 0
    assert list(waiting_cuts(store, TRANSFORM.spec, vae.id, 3)) == [Wanted(0, 2), Wanted(2, 2), Wanted(4, 2)]


def test_a_stop_between_commits_changes_nothing(
    tmp_path: Path, store: Store, vae: VAE, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage, "GROUP", 3)  # the cuts of an image fall into two commits
    straight = Store(str(tmp_path / "straight"))
    straight.images.append([image(0, 48, 60), image(1, 32, 32), image(2, 70, 40), image(4, 32, 34)])
    stopped = Store(str(tmp_path / "stopped"))
    stopped.images.append([image(0, 48, 60), image(1, 32, 32), image(2, 70, 40), image(4, 32, 34)])
    run(straight, vae, crops=4)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_latents(stopped, waiting_cuts(stopped, TRANSFORM.spec, vae.id, 4), vae, advance)
    assert stopped.latents.count() == 3
    run(stopped, vae, crops=4)
    assert latents(stopped) == latents(straight)


def test_the_mask_of_a_latent_is_cut_where_the_latent_is(tmp_path: Path, vae: VAE):
    mask = np.zeros((48, 60), np.uint8)
    mask[:, 30:] = 255
    store = Store(str(tmp_path / "store"))
    store.images.append([image(0, 48, 60, mask=png(Image.fromarray(mask))), image(1, 32, 32)])
    run(store, vae, crops=5)
    found = latents(store)
    assert [row["mask"] is None for row in found] == [row["source_id"] == "1" for row in found]
    masks = [row for row in found if row["mask"]]
    assert len({row["mask"] for row in masks}) > 1
    for row in masks:
        left = int(row["crop_left"])
        assert row["mask"] == latent_mask(np.ascontiguousarray(mask[:32, left : left + 32]), vae.factor).tobytes()


class SmallMemory(VAE):
    """Runs out of memory with more than so many images at once."""

    room = 2

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Posterior:
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().encode(pixels)


def test_what_does_not_fit_into_memory_is_encoded_in_halves(tmp_path: Path, vae: VAE):
    rows = [image(number, 32, 32) for number in range(7)]
    stores = [Store(str(tmp_path / name)) for name in ("wide", "narrow")]
    small = SmallMemory(vae.autoencoder)
    for store, one in zip(stores, (vae, small), strict=True):
        store.images.append(rows)
        assert run(store, one) == 7
    for wide, narrow in zip(latents(stores[0]), latents(stores[1]), strict=True):
        assert wide["key"] == narrow["key"]
        pair = [unpack_posterior(row["posterior"], 4, 8, 8).astype(np.float32) for row in (wide, narrow)]
        assert np.abs(pair[0] - pair[1]).max() < 0.01
    small.room = 0
    with pytest.raises(UserError, match="encoding one image of 32x32 pixels needs more memory"):
        encode_latents(stores[0], [Wanted(0, 0)], small, lambda _: None)


def test_large_images_pass_the_vae_in_tiles(store: Store, vae: VAE, tmp_path: Path):
    run(store, vae)
    tiled = Store(str(tmp_path / "tiled"))
    tiled.images.append([image(0, 48, 60)])
    calls: list[torch.Size] = []
    handle = vae.autoencoder.encoder.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    run(tiled, VAE(vae.autoencoder, Tiling(whole=512, side=24, overlap=8)))
    handle.remove()
    assert {tuple(shape[-2:]) for shape in calls} == {(24, 24)}
    whole = next(row for row in latents(store) if row["source_id"] == "0")
    (one,) = latents(tiled)
    assert one["key"] == whole["key"]
    pair = [unpack_posterior(row["posterior"], 4, 8, 8).astype(np.float32)[0] for row in (one, whole)]
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.9


def test_what_is_rendered_together_fits_into_memory(store: Store, vae: VAE, monkeypatch: pytest.MonkeyPatch):
    """Files count by their bytes, and pixels by what is made of them; what is too large alone is alone."""
    pieces: list[tuple[int, int]] = []
    run_all = stage.engine.run

    def counted(columns: Mapping[str, Any], *rest: Any) -> Iterator[dict[str, object]]:
        files = sum(len(data) for data in columns["data"])
        pieces.append((len(columns["key"]), files + sum(3 * 32 * 32 * len(cut) // 2 for cut in columns["corners"])))
        return run_all(columns, *rest)

    monkeypatch.setattr(stage.engine, "run", counted)
    monkeypatch.setattr(stage, "READ_PIXELS", 1)
    assert run(store, vae) == 5
    together, whole = pieces.pop()
    assert together == 5
    monkeypatch.setattr(stage, "PIECE_BYTES", whole // 2)
    store.latents.delete("vae", [vae.id])
    assert run(store, vae) == 5
    assert sum(count for count, _ in pieces) == 5
    assert sum(size for _, size in pieces) == whole
    assert 1 < len(pieces) < 5
    assert all(size <= whole // 2 or count == 1 for count, size in pieces)
