"""Distances of features beside the numbers of the code that others publish with, run once on the same features.

torch-fidelity 0.4.0 (fid_statistics_to_metric, kid_features_to_metric with one whole subset, prc_features_to_metric),
torchmetrics 1.9.0 (_compute_fid, poly_mmd), prdc 0.2 (compute_prdc) and google-research's cmmd/distance.py in float64.
They pull in torchvision, SciPy and scikit-learn, so that their numbers are kept here and not their code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from terminus.evaluation.distribution.frechet import fit_gaussian, frechet_distance
from terminus.evaluation.distribution.manifold import measure_manifold
from terminus.evaluation.distribution.mmd import cmmd, kid
from terminus.model.inception import Inception


@dataclass(frozen=True)
class Published:
    """What the packages say of one pair of sets."""

    torch_fidelity_fid: float
    torchmetrics_fid: float
    torch_fidelity_kid: float
    torchmetrics_kid: float
    cmmd: float
    prdc: tuple[float, float, float, float]


NUMBERS = {
    (300, 300, 64): Published(
        4.6595167208268435, 4.65951695914746, 0.26214122772216797, 0.2621416116797839, 0.035006337463894255,
        (0.92, 0.4533333333333333, 2.428, 0.99),
    ),
    (200, 340, 32): Published(
        1.7483481897175466, 1.7483485170855815, 0.2601194381713867, 0.26011843907961385, 0.03267515043359204,
        (0.965, 0.6147058823529412, 1.575, 0.9323529411764706),
    ),
    # fewer rows than features: both covariances are singular
    (40, 40, 128): Published(
        62.69486066738919, 62.69486083545791, 0.22927188873291016, 0.22927217049741877, 0.21515029431484756,
        (0.975, 0.15, 3.045, 1.0),
    ),
}  # fmt: skip


def two_sets(first: int, second: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive, correlated features, as a network's are."""
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(width, width)) / width**0.5
    a = np.abs(rng.normal(size=(first, width)) @ mix)
    b = np.abs(rng.normal(0.3, 1.1, size=(second, width)) @ mix)
    return a.astype(np.float32), b.astype(np.float32)


@pytest.mark.parametrize("shape", NUMBERS)
def test_distances_are_the_published_ones(shape: tuple[int, int, int]):
    drawn, real = two_sets(*shape)
    published, same = NUMBERS[shape], min(shape[:2])
    distance = frechet_distance(fit_gaussian(drawn), fit_gaussian(real))
    assert distance == pytest.approx(published.torch_fidelity_fid, rel=1e-5)
    assert distance == pytest.approx(published.torchmetrics_fid, rel=1e-5)
    # both packages compare sets of one size only
    kernel = kid(drawn[:same], real[:same]).mean
    assert kernel == pytest.approx(published.torch_fidelity_kid, rel=1e-5)
    assert kernel == pytest.approx(published.torchmetrics_kid, rel=1e-5)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (drawn, real)]
    assert cmmd(*unit) == pytest.approx(published.cmmd, rel=1e-3)
    found = measure_manifold(drawn, real)
    assert found is not None
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(published.prdc, rel=1e-9)


FEATURES = {
    (64, 64): (19.566492080688477, 9.787368774414062, 6.405733108520508, 5.818617343902588),
    (128, 128): (21.498411178588867, 11.111173629760742, 6.943749904632568, 6.27717924118042),
    (300, 420): (20.155729293823242, 10.780355453491211, 6.462543487548828, 5.926053524017334),
}
"""The first features of torch-fidelity's FeatureExtractorInceptionV3 with the weights of `seeded_inception`."""


def seeded_inception() -> tuple[Inception, torch.Generator]:
    network, generator = Inception(), torch.Generator().manual_seed(3)
    state = {}
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(value.shape, generator=generator) * 0.1
    network.load_state_dict(state)
    return network.eval(), generator


def test_inceptions_features_are_those_of_torch_fidelity():
    network, generator = seeded_inception()
    for size, expected in FEATURES.items():
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            found = network(images)[0, :4].tolist()
        assert found == pytest.approx(expected, rel=1e-4)
