"""Brightness: closed forms for every measure."""

from __future__ import annotations

import numpy as np
import pytest

from terminus.data.emoji import BACKGROUNDS
from terminus.evaluation.contrast import histogram_distance, measure_contrast
from terminus.evaluation.luminance import (
    frame,
    frame_rgb,
    histograms,
    luma,
    luma_of,
    mean_of,
    wasserstein,
)
from terminus.evaluation.prompts import EvaluationPrompt, build_prompts, real_images


def plain(rgb: tuple[int, int, int], count: int = 1, side: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (count, side, side, 3)).copy()


@pytest.mark.parametrize(("rgb", "expected"), [((0, 0, 0), 0.0), ((255, 255, 255), 1.0), ((0, 255, 0), 0.587)])
def test_luma_of_plain_colors(rgb, expected: float):
    assert luma(plain(rgb)) == pytest.approx(expected, abs=1e-12)
    assert luma_of(rgb) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("height", "width", "border"), [(64, 64, 4), (1024, 1024, 64), (32, 64, 2), (8, 8, 1)])
def test_the_frame_is_a_sixteenth_wide(height: int, width: int, border: int):
    mask = frame(height, width)
    assert mask.sum() == height * width - (height - 2 * border) * (width - 2 * border)
    assert mask[0].all()
    assert not mask[border:-border, border:-border].any()


def test_what_is_inside_the_frame_does_not_count():
    images = plain((10, 20, 30))
    images[:, 2:-2, 2:-2] = 255
    assert frame_rgb(images)[0] == pytest.approx(np.array([10, 20, 30]) / 255)


def test_wasserstein_is_the_mean_difference_of_sorted_pixels():
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16), dtype=np.uint8)
    a, b = (np.repeat(x[..., None], 3, axis=3) for x in (first, second))
    expected = np.abs(np.sort(first.ravel()).astype(float) - np.sort(second.ravel())).mean() / 255
    assert wasserstein(histograms(a)[0].astype(float), histograms(b)[0].astype(float)) == pytest.approx(expected)


def test_wasserstein_of_a_shift_is_the_shift():
    black, gray = histograms(plain((0, 0, 0)))[0], histograms(plain((51, 51, 51)))[0]
    assert wasserstein(black.astype(float), gray.astype(float)) == pytest.approx(0.2)
    assert wasserstein(black.astype(float), 7.0 * black) == 0.0


def test_an_interval_covers_its_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        found = mean_of(random.normal(3.0, 1.0, 40))
        inside += found.ci95[0] <= 3.0 <= found.ci95[1]
    assert 0.88 <= inside / 200 <= 0.99


def test_one_image_has_no_spread():
    found = mean_of(np.array([0.25]))
    assert (found.n, found.mean, found.std, found.ci95) == (1, 0.25, 0.0, (0.25, 0.25))


def test_a_model_that_draws_what_it_is_asked_for():
    prompts = build_prompts(32, extreme=6, color=2, seed=0)
    images = np.concatenate([plain(prompt.rgb) for prompt in prompts])
    found = measure_contrast(prompts, images)
    assert list(found.backgrounds) == list(BACKGROUNDS)
    for name, row in found.backgrounds.items():
        assert row.border_luminance.mean == pytest.approx(luma_of(BACKGROUNDS[name]))
        assert row.distance.mean == pytest.approx(0, abs=1e-12)
        assert row.rgb_error.mean == pytest.approx(0, abs=1e-12)
    assert found.black_white_gap.mean == pytest.approx(1.0)
    black = found.backgrounds["black"]
    assert black.held_out is not None
    assert black.seen is not None
    assert (black.border_luminance.n, black.held_out.n, black.seen.n) == (6, 3, 3)


def test_a_model_that_draws_gray_whatever_it_is_asked_for():
    prompts = build_prompts(32, extreme=4, color=1, seed=0)
    found = measure_contrast(prompts, plain((51, 51, 51), len(prompts)))
    assert found.black_white_gap.mean == pytest.approx(0)
    assert found.backgrounds["black"].distance.mean == pytest.approx(0.2)
    assert found.backgrounds["white"].distance.mean == pytest.approx(0.8)
    assert found.backgrounds["red"].rgb_error.mean == pytest.approx((0.8 + 0.2 + 0.2) / 3)


def test_range_is_of_the_whole_image():
    images = plain((0, 0, 0))
    images[:, :16] = 255
    row = measure_contrast(
        [EvaluationPrompt("x", "black", 0), EvaluationPrompt("x", "white", 0)], np.concatenate([images] * 2)
    )
    assert row.backgrounds["black"].darkest.mean == 0
    assert row.backgrounds["black"].brightest.mean == pytest.approx(1)


def test_real_images_are_at_no_distance_from_themselves():
    prompts = build_prompts(32, extreme=4, color=1, seed=0)
    real = real_images(prompts, 32)
    found = histogram_distance(list(real), list(real))
    assert (found.wasserstein, found.ci95) == (0.0, (0.0, 0.0))
    assert found.images == len(prompts)
    data = measure_contrast(prompts, real)
    assert data.black_white_gap.mean > 0.9, "the drawings stand on the backgrounds that their captions name"


def test_distances_of_images_of_several_sizes_count_pixels():
    dark, light = (np.full((8, 8, 3), level, np.uint8) for level in (51, 102))
    wide = np.full((8, 24, 3), 102, np.uint8)
    found = histogram_distance([light, wide], [dark, wide])
    assert found.wasserstein == pytest.approx(0.2 * 64 / 256)
    assert (found.images, found.mean_luma) == (2, pytest.approx(0.4))
    assert found.real_mean_luma == pytest.approx((0.2 * 64 + 0.4 * 192) / 256)
