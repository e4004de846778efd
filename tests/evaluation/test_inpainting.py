"""Leak and seam: by hand, and of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from terminus.evaluation.inpainting import (
    WAYS,
    InpaintedImages,
    draw_inpainted,
    hole,
    measure_inpainting,
    seam_contrast,
)
from terminus.evaluation.kept import Kept
from terminus.evaluation.prompts import build_prompts
from terminus.model.components import load_components
from terminus.sampling.settings import Settings


def test_leak_and_seam_by_hand():
    before = np.full((1, 16, 16, 3), 100, np.uint8)
    mask = hole(16, 16)
    assert mask.sum() == 64
    leaked = np.where(mask[..., None], 151, before).astype(np.uint8)
    painted = {(way, name): before for way in WAYS for name in ("black", "white")}
    painted["in place", "white"] = leaked
    found = measure_inpainting(InpaintedImages(before, painted))
    assert found.ways["replaced"].leak.mean == 0
    assert found.ways["in place"].leak.mean == pytest.approx(51 / 255)
    # a step of 51 at the edge and none beside it, in one of the two images
    assert found.ways["in place"].seam.mean == pytest.approx(51 / 255 / 2)
    assert found.seam_before.mean == 0
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, None, :, None] * 10, 16, axis=1).repeat(3, axis=3)
    assert seam_contrast(ramp, mask) == pytest.approx(0, abs=1e-9), "a slope that goes on is no seam"


def test_what_is_replaced_does_not_leak(random_nano: Path, tmp_path: Path):
    components = load_components(random_nano)
    prompts = build_prompts(32, 2, 0, seed=0)[:2]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    place = Kept(tmp_path, "")
    counted: list[int] = []
    drawn = [
        draw_inpainted(
            components, images, prompts, Settings(steps=2), lambda way: replace(place, who=way), counted.append
        )
        for _ in range(2)
    ]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert sum(counted) == 2 * 2 * 4
    for key, some in drawn[0].painted.items():
        assert np.array_equal(some, drawn[1].painted[key]), "kept images are those that were drawn"
        assert np.array_equal(some[:, ~hole(32, 32)], images[:, ~hole(32, 32)])
    found = measure_inpainting(drawn[0])
    assert found.images == 2
    assert found.ways["replaced"].leak.mean == 0
