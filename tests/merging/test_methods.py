"""The formulas of merging, element by element, against worked examples and identities."""

from __future__ import annotations

import pytest
import torch

from terminus.merging.arguments import AdapterSize
from terminus.merging.low_rank import factorise
from terminus.merging.methods import Magnitudes, dare, model_difference, split_rows, ties, weighted


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ties_by_hand():
    """Trimmed at 1: [2, −3, 0, 1] and [−1, −1, 0, 4]; elected + − 0 +; of the agreeing ones the mean."""
    base = torch.full((4,), 10.0)
    tuned = [base + torch.tensor([2.0, -3.0, 0.5, 1.0]), base + torch.tensor([-1.0, -1.0, 0.4, 4.0])]
    expected = base + torch.tensor([2.0, -2.0, 0.0, 2.5])
    torch.testing.assert_close(ties(base, tuned, [1.0, 1.0], [1.0, 1.0]).float(), expected)


def test_equal_weights_are_the_papers_lambda():
    base, tuned = random(50), [random(50, seed=1), random(50, seed=2)]
    whole = ties(base, tuned, [1.0, 1.0], [0.5, 0.5]) - base
    half = ties(base, tuned, [0.5, 0.5], [0.5, 0.5]) - base
    torch.testing.assert_close(half, whole / 2)


def test_dare_is_right_in_the_mean_and_the_same_for_the_same_seed():
    base, tuned = torch.zeros(200_000), torch.ones(200_000)

    def drawn(seed: int) -> torch.Tensor:
        return dare(base, [tuned], [1.0], 0.25, [torch.Generator().manual_seed(seed)])

    merged = drawn(0)
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert merged.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(merged, drawn(0))
    assert not torch.equal(merged, drawn(1))


def test_dare_that_drops_nothing_is_task_arithmetic():
    base, tuned = random(100), random(100, seed=1)
    merged = dare(base, [tuned], [0.5], 1.0, [torch.Generator().manual_seed(0)])
    torch.testing.assert_close(merged.float(), base + 0.5 * (tuned - base))


def test_a_coefficient_of_nothing_leaves_no_trace():
    a, b = torch.full((3,), 1e30), random(3)
    assert torch.equal(weighted([a, b], [0.0, 1.0]).float(), b)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 1.0])
def test_the_threshold_is_exact_whatever_the_pieces(density: float):
    tau = random(10_001) * random(10_001, seed=3).exp()
    tau[:100] = 0
    found = Magnitudes()
    for piece in tau.split(37):
        found.count(piece)
    found.choose(density)
    for piece in tau.split(4000):
        found.refine(piece)
    wanted = tau.abs().sort(descending=True).values[int(-(-density * 10_001 // 1)) - 1]
    assert found.threshold == wanted.item()


def test_pieces_cover_all_rows_once():
    rows = split_rows((7, 3), 6)
    assert [(one.start, one.stop) for one in rows] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert model_difference(torch.ones(2), torch.zeros(2)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 5, 3, 3), (3, 9, 1, 1)])
def test_factors_are_the_best_of_their_rank(shape: tuple[int, ...]):
    change = random(*shape)
    singular = torch.linalg.svdvals(change.double().flatten(1))
    for rank in (1, 2, len(singular)):
        factors = factorise(change, AdapterSize(rank=rank))
        assert factors is not None
        assert factors.down.shape == (rank, *shape[1:])
        product = (factors.up.flatten(1) @ factors.down.flatten(1)).reshape(shape)
        assert (product - change).norm().item() == pytest.approx(singular[rank:].norm().item(), abs=2e-5)
        assert factors.lost**0.5 == pytest.approx(singular[rank:].norm().item(), abs=1e-5)


def test_an_error_is_kept_by_the_smallest_rank():
    change = random(20, 30)
    singular = torch.linalg.svdvals(change.double())
    factors = factorise(change, AdapterSize(error=0.3))
    assert factors is not None
    assert singular[factors.rank :].norm() <= 0.3 * singular.norm() < singular[factors.rank - 1 :].norm()
    assert factorise(torch.zeros(3, 3), AdapterSize(rank=1)) is None


def test_a_change_of_low_rank_gets_no_more_than_that():
    factors = factorise(random(20, 2) @ random(2, 30, seed=1), AdapterSize(rank=16))
    assert factors is not None
    assert factors.rank == 2
