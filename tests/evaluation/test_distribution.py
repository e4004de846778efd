"""Distances of distributions: by hand where a hand can, and the right way when images are spoilt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from terminus.data import emoji
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode
from terminus.errors import UserError
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution import mmd
from terminus.evaluation.distribution.extractors import Extractor, load_extractor
from terminus.evaluation.distribution.frechet import Gaussian, fit_gaussian, frechet_distance
from terminus.evaluation.distribution.manifold import measure_manifold
from terminus.evaluation.distribution.measure import Distribution, measure_distribution
from terminus.evaluation.distribution.mmd import cmmd, kid


def test_frechet_by_hand():
    # of diagonal covariances the root is that of each element: |m|² + Σ (√a − √b)²
    one = Gaussian(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    two = Gaussian(np.array([4.0, 6.0]), np.diag([1.0, 16.0]))
    assert frechet_distance(one, two) == pytest.approx(25 + 1 + 1)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    # a rotation of both changes nothing
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (one, two)]
    assert frechet_distance(*turned) == pytest.approx(27)


def test_a_fitted_covariance_divides_by_n_minus_1():
    fitted = fit_gaussian(np.array([[0.0], [2.0]]))
    assert (fitted.mean.tolist(), fitted.covariance.tolist()) == ([1.0], [[2.0]])


def test_kid_by_hand():
    # one feature: k(x, y) = (xy + 1)³; x = 0 and 1, y = 1 and 2
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    within_first, within_second = (0 * 1 + 1) ** 3, (1 * 2 + 1) ** 3
    across = (1 + 1 + (1 + 1) ** 3 + (2 + 1) ** 3) / 4
    found = kid(first, second)
    assert found.mean == pytest.approx(within_first + within_second - 2 * across)
    assert (found.subsets, found.std) == (1, 0.0)


def test_kid_of_one_distribution_is_around_zero_and_of_many_images_is_taken_in_subsets(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(mmd, "SUBSETS", 8)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1200, 8)), rng.normal(size=(1100, 8))
    found = kid(a, b)
    assert (found.subsets, found.subset_size) == (8, 1000)
    assert abs(found.mean) < 3 * found.std
    assert found == kid(a, b)
    assert found != kid(a, b, seed=1)


def test_cmmd_by_hand():
    # two single points at a right angle: 1000 (1 + 1 − 2 exp(−2 / 200))
    assert cmmd(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == pytest.approx(2000 * (1 - math.exp(-0.01)))
    assert cmmd(np.eye(3), np.eye(3)) == 0.0


def test_the_manifold_by_hand():
    # with one neighbour each ball reaches to the next point of its own set
    real = np.array([[0.0], [1.0], [10.0]])  # radii 1, 1, 9
    drawn = np.array([[0.5], [3.0], [30.0]])  # radii 2.5, 2.5, 27
    found = measure_manifold(drawn, real, neighbours=1)
    assert found is not None
    assert found.precision == pytest.approx(2 / 3), "30 is 20 from the nearest real point"
    assert found.recall == 1.0, "0 and 1 lie around 0.5, 10 around 30"
    assert found.density == pytest.approx((2 + 1) / 3), "0.5 is in the balls of 0 and 1, 3 in that of 10"
    assert found.coverage == 1.0
    assert measure_manifold(drawn[:1], real, neighbours=1) is None


def drawings(split: str, count: int) -> list[ImageSource]:
    some = [one for one in emoji.drawings() if one.style == "3d" and one.split == split][:count]
    found: list[ImageSource] = []
    for drawing in some:
        data = emoji.rgba(drawing)
        decoded = decode(data, Limits(len(data), HARD_PIXEL_LIMIT))
        assert isinstance(decoded, Decoded)
        found.append(np.asarray(Image.fromarray(decoded.on((200, 60, 60))).resize((64, 64))))
    return found


@pytest.fixture(scope="module")
def nano() -> Extractor:
    return load_extractor("nano")


@pytest.fixture(scope="module")
def sets(nano: Extractor) -> tuple[list[ImageSource], np.ndarray]:
    """Images, and the features of others of their kind."""
    some = drawings("train", 160)
    return some[::2], nano.images(some[1::2])


def blurred(image: ImageSource, radius: float) -> ImageSource:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image: ImageSource, sigma: float) -> ImageSource:
    noise = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def greyed(image: ImageSource, share: float) -> ImageSource:
    """What a leaky schedule does: everything moves to the middle."""
    return ((1 - share) * image + share * 127.5).astype(np.uint8)


def statistics(images: Sequence[ImageSource]) -> torch.Tensor:
    """Of a 4 × 4 grid: mean colour, and the energy of differences between neighbours and between pairs of them."""
    rows: list[np.ndarray] = []
    for image in images:
        pixels, parts = image.astype(np.float64) / 255, []
        for step in (0, 1, 2):
            detail = pixels if step == 0 else np.abs(pixels - np.roll(pixels, step, axis=1))
            parts.append(detail.reshape(4, 16, 4, 16, 3).mean(axis=(1, 3)).ravel())
        rows.append(np.concatenate(parts))
    return torch.from_numpy(np.stack(rows))


BY_HAND = Extractor("statistics", "statistics", "0" * 16, "not resized", False, statistics)
SPOILT = pytest.mark.parametrize(
    ("spoil", "strengths"),
    [(blurred, (0.0, 1.0, 3.0)), (noisy, (0.0, 20.0, 100.0)), (greyed, (0.0, 0.3, 0.7))],
    ids=["blur", "noise", "grey"],
)


@SPOILT
def test_every_distance_grows_with_the_damage(
    spoil: Callable[[ImageSource, float], ImageSource], strengths: tuple[float, ...]
):
    images = drawings("train", 80)
    real = BY_HAND.images(images)
    found: list[Distribution] = []
    for much in strengths:
        spoilt = [spoil(one, much) for one in images]
        found.append(measure_distribution(BY_HAND, BY_HAND.images(spoilt), real))
    assert found[0].frechet < found[1].frechet < found[2].frechet
    assert found[0].kid.mean < found[1].kid.mean < found[2].kid.mean
    coverages = [one.manifold.coverage for one in found if one.manifold]
    assert coverages == sorted(coverages, reverse=True)


@SPOILT
def test_nanos_own_encoder_sees_strong_damage(
    spoil: Callable[[ImageSource, float], ImageSource],
    strengths: tuple[float, ...],
    nano: Extractor,
    sets: tuple[list[ImageSource], np.ndarray],
):
    images, real = sets
    whole, spoilt = (
        measure_distribution(nano, nano.images([spoil(one, much) for one in images]), real)
        for much in (0.0, strengths[-1])
    )
    assert whole.frechet < spoilt.frechet
    assert whole.kid.mean < spoilt.kid.mean
    assert whole.cmmd is not None
    assert spoilt.cmmd is not None
    assert whole.cmmd < spoilt.cmmd


def test_copies_of_few_training_images_cost_variety_and_no_fidelity(
    nano: Extractor, sets: tuple[list[ImageSource], np.ndarray]
):
    images, real = sets
    varied = measure_distribution(nano, nano.images(images), real)
    copies = measure_distribution(nano, np.repeat(real[:8], 10, axis=0), real)
    assert varied.manifold is not None
    assert copies.manifold is not None
    assert copies.manifold.precision == 1.0
    assert copies.manifold.coverage < 0.5 * varied.manifold.coverage
    assert copies.manifold.recall < varied.manifold.recall
    assert copies.frechet > varied.frechet
    assert copies.cmmd is not None
    assert varied.cmmd is not None
    assert copies.cmmd > varied.cmmd


def test_what_a_number_depends_on_is_said(nano: Extractor, sets: tuple[list[ImageSource], np.ndarray]):
    images, real = sets
    found = measure_distribution(nano, nano.images(images[:10]), real)
    assert found.extractor == "nano's own vision encoder"
    assert (found.drawn, found.reference) == (10, 80)
    assert len(found.fingerprint) == 16
    assert "bicubic" in found.preparation


def test_images_of_any_size_become_rows(nano: Extractor):
    images = [np.full(shape, 90, np.uint8) for shape in ((30, 200, 3), (512, 512, 3), (65, 64, 3))]
    rows = nano.images(images)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # plain images of one colour look the same at every size
    assert np.allclose(rows[0], rows[1], atol=1e-4)


def test_one_image_has_no_distribution(nano: Extractor):
    rows = np.ones((1, 4))
    with pytest.raises(UserError, match=r"There is 1 image among the drawn images.*needs at least 2"):
        measure_distribution(nano, rows, np.ones((5, 4)))
    with pytest.raises(UserError, match=r"There is 1 image among the reference images"):
        measure_distribution(nano, np.ones((5, 4)), rows)


def test_features_that_are_no_numbers_are_refused():
    def see(images: object) -> torch.Tensor:
        return torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [0.0, float("inf")]])

    broken = Extractor("broken weights", "CLIP", "0" * 16, "", True, see)
    with pytest.raises(UserError, match=r"features of 2 images hold NaN or infinity, the first is image 2"):
        broken.images([np.zeros((4, 4, 3), np.uint8)] * 3)
