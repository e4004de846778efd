"""Timestep draws are uniform, evenly spread within a batch, and blind to how the batch is cut."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terminus.diffusion.timesteps import Band, density, logit_normal, slices, stratified, uniform_timesteps


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_uniform_gives_each_timestep_its_exact_share_of_the_unit_interval():
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert torch.equal(uniform_timesteps(u, 1000).bincount(minlength=1000), torch.full((1000,), 10))


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_uniform_stays_in_the_table_at_both_ends(u: float):
    for timesteps in (1, 10, 1000):
        t = uniform_timesteps(torch.tensor([u], dtype=torch.float64), timesteps)
        assert int(t) == (0 if u == 0 else timesteps - 1)


@given(batch=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_stratified_puts_one_sample_in_each_slice_of_every_batch(batch: int, seed: int):
    position = slices(torch.Generator().manual_seed(seed), batch)
    t = stratified(draws(batch, seed), position, batch, 1000)
    assert sorted(position.tolist()) == list(range(batch))
    low, high = position * 1000 // batch, -((-(position + 1) * 1000) // batch)
    assert bool(((t >= low) & (t < high)).all())


def test_stratified_covers_each_slice_evenly():
    u = (torch.arange(2500, dtype=torch.float64) + 0.5) / 2500
    for position in range(4):
        t = stratified(u, torch.full((2500,), position), 4, 1000)
        assert torch.equal(t.bincount(minlength=1000)[250 * position :][:250], torch.full((250,), 10))


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
def test_stratified_does_not_depend_on_how_a_batch_is_cut(pieces: int):
    batch, u = 24, draws(24)
    position = slices(torch.Generator().manual_seed(7), batch)
    whole = stratified(u, position, batch, 1000)
    cut = [
        stratified(u_piece, position_piece, batch, 1000)
        for u_piece, position_piece in zip(u.chunk(pieces), position.chunk(pieces), strict=True)
    ]
    assert torch.equal(torch.cat(cut), whole)


def test_one_place_in_the_batch_sees_all_timesteps_evenly():
    """Chi-squared over ten bands for the samples that are always third of eight: 9 degrees of freedom."""
    batch, steps = 8, 4000
    u = draws(steps)
    third = torch.stack([slices(torch.Generator().manual_seed(step), batch)[2] for step in range(steps)])
    counts = (stratified(u, third, batch, 1000) // 100).bincount(minlength=10).double()
    expected = steps / 10
    assert float(((counts - expected).square() / expected).sum()) < 27.9  # p = 0.001


def test_stratified_has_less_variance_than_uniform():
    batch = 16

    def spread(draw: Callable[[int], torch.Tensor]) -> float:
        means = [draw(step).double().mean() for step in range(500)]
        return float(torch.stack(means).std())

    def even(step: int) -> torch.Tensor:
        return stratified(draws(batch, step), torch.arange(batch), batch, 1000)

    assert spread(even) < 0.1 * spread(lambda step: uniform_timesteps(draws(batch, step), 1000))


@pytest.mark.parametrize("position", [-1, 4])
def test_a_position_outside_the_batch_is_refused(position: int):
    with pytest.raises(ValueError, match="position must be in"):
        stratified(draws(1), torch.tensor([position]), 4, 1000)


LATE = [Band(0, 399, 1.0), Band(400, 999, 3.0)]


def even(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_a_density_is_constant_in_each_band_and_sums_to_one():
    table = density(LATE, 1000)
    assert float(table.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(table[:400], torch.full((400,), 1 / 2200, dtype=torch.float64))
    torch.testing.assert_close(table[400:], torch.full((600,), 3 / 2200, dtype=torch.float64))


def test_each_timestep_is_drawn_as_often_as_the_density_says():
    counts = uniform_timesteps(even(22_000), 1000, density(LATE, 1000)).bincount(minlength=1000)
    # a boundary of the inverse may fall on either side of a point of the grid
    assert int((counts[:400] - 10).abs().max()) <= 1
    assert int((counts[400:] - 30).abs().max()) <= 1


def test_a_flat_density_is_no_density():
    u = draws(5000)
    flat = density([Band(0, 999, 7.0)], 1000)
    assert int((uniform_timesteps(u, 1000, flat) - uniform_timesteps(u, 1000)).abs().max()) == 0


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_what_is_in_no_band_is_never_drawn(u: float):
    table = density([Band(200, 299, 1.0), Band(700, 899, 0.5), Band(950, 999, 0.0)], 1000)
    drawn = int(uniform_timesteps(torch.tensor([u], dtype=torch.float64), 1000, table))
    assert 200 <= drawn <= 299 or 700 <= drawn <= 899
    if u != 0.5:
        assert drawn == (200 if u == 0 else 899)
    spread = uniform_timesteps(even(100_000), 1000, table).bincount(minlength=1000)
    assert bool(((spread > 0) == (table > 0)).all())


@given(batch=st.integers(1, 64), seed=st.integers(0, 2**31))
def test_stratified_over_a_density_puts_one_sample_in_each_slice_of_equal_probability(batch: int, seed: int):
    table = density(LATE, 1000)
    position = slices(torch.Generator().manual_seed(seed), batch)
    t = stratified(draws(batch, seed), position, batch, 1000, table)
    upto = torch.cat([torch.zeros(1, dtype=torch.float64), table.cumsum(0)])
    low, high = upto[t], upto[t + 1]  # the part of the unit interval that this timestep has
    assert bool((low < (position + 1) / batch + 1e-12).all())
    assert bool((high > position / batch - 1e-12).all())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.2, 1.5), (1.0, 0.5)])
def test_a_logit_normal_density_is_that_of_its_formula(mean: float, std: float):
    """Esser et al. 2403.03206, eq. 19, at the middle of each timestep, and as draws through the sigmoid have it."""
    table = logit_normal(mean, std, 1000)
    assert float(table.sum()) == pytest.approx(1.0, abs=1e-12)
    tau = even(1000)
    written = (-((tau.logit() - mean) ** 2) / (2 * std**2)).exp() / (std * (2 * torch.pi) ** 0.5 * tau * (1 - tau))
    torch.testing.assert_close(table[200:950] * 1000, written[200:950], rtol=1e-3, atol=0)
    drawn = (
        mean + std * torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).sigmoid()
    shares = (drawn * 10).long().bincount(minlength=10) / len(drawn)
    torch.testing.assert_close(table.reshape(10, 100).sum(1), shares.double(), rtol=0, atol=5e-3)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_logit_normal_density_without_meaning_is_refused(mean: float, std: float):
    with pytest.raises(ValueError, match="logit-normal"):
        logit_normal(mean, std, 1000)


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ([Band(0, 1000, 1.0)], "timesteps are 0 to 999"),
        ([Band(300, 200, 1.0)], "from 300 to 200"),
        ([Band(0, 500, 1.0), Band(500, 999, 1.0)], "overlaps"),
        ([Band(0, 999, 0.0)], "no band has a weight"),
        ([Band(0, 999, -1.0)], "not negative"),
        ([Band(0, 999, float("nan"))], "finite"),
    ],
)
def test_bands_that_make_no_density_are_refused(bands: list[Band], words: str):
    with pytest.raises(ValueError, match=words):
        density(bands, 1000)
