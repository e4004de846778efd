"""The held-out error by timestep: pairs, and a prediction that is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from terminus.evaluation import bands
from terminus.evaluation.bands import band_errors, band_timesteps, compare_bands
from terminus.evaluation.captions import Captions, DrawnCaption
from terminus.model.components import load_components
from terminus.sampling.settings import Settings

IMAGES = tuple(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
CAPTIONS = Captions("held-out", tuple(DrawnCaption(f"a {i}", f"a {i}", i) for i in range(3)), 3, "store", IMAGES)


def test_timesteps():
    assert band_timesteps(1000) == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950, 999]


def test_differences_are_of_pairs():
    hard = np.array([[1.0], [10.0], [100.0]]) * np.ones((1, 11))
    found = compare_bands(1000, hard - 0.5, hard)
    assert found[3].difference is not None
    assert (found[3].difference.mean, found[3].difference.std) == (-0.5, 0.0)
    assert compare_bands(1000, hard, hard[:2])[0].before is None, "of other images"
    assert compare_bands(1000, hard, None)[0].difference is None


def test_a_network_that_knows_the_answer_has_no_error(random_nano: Path, monkeypatch: pytest.MonkeyPatch):
    components = load_components(random_nano)
    errors = band_errors(components, CAPTIONS, Settings(), lambda count: None)
    assert errors.shape == (3, 11)
    assert np.isfinite(errors).all()
    assert (errors > 0.1).all()
    assert np.array_equal(errors, band_errors(components, CAPTIONS, Settings(), lambda count: None))

    # at the last timestep of zero terminal SNR the velocity is minus the latent, whatever the noise
    def knowing(components_: object, requests: list, *rest: object):
        image = IMAGES[requests[0].seed]
        x0 = bands._latent(components, image)
        return lambda x, t: -x0 if int(t[0]) == 999 else torch.zeros_like(x)

    monkeypatch.setattr(bands, "network", knowing)
    known = band_errors(components, CAPTIONS, Settings(), lambda count: None)
    assert known[:, -1] == pytest.approx(0, abs=1e-10)
    assert (known[:, :-1] > 0.01).all()
