"""Intervals: golden numbers, bounds, agreement with independent formulas, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vu_metrics.intervals import Z95, Outcomes, bootstrap_mean, interval_of_mean, newcombe, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(108, 142, 68.41, 82.33), (38, 50, 62.59, 85.70), (0, 10, 0.0, 27.75)]
)
def test_wilson_golden(successes: int, trials: int, low: float, high: float) -> None:
    assert [round(100 * bound, 2) for bound in wilson(successes, trials)] == [low, high]


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_stays_in_bounds(case: tuple[int, int]) -> None:
    successes, trials = case
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, trials)


def pairs(both: int, lost: int, won: int, neither: int) -> tuple[Outcomes, Outcomes]:
    """Outcomes before and after with these counts."""
    before = [True] * (both + lost) + [False] * (won + neither)
    after = [True] * both + [False] * lost + [True] * won + [False] * neither
    return np.array(before), np.array(after)


def by_hand(both: int, lost: int, won: int, neither: int) -> tuple[float, float]:
    """Newcombe's method 10 by the roots of (p - x)^2 = z^2 x (1 - x) / n, without `wilson`."""
    n = both + lost + won + neither
    bounds = []
    for count in (both + lost, both + won):
        p = count / n
        low, high = sorted(np.roots([1 + Z95**2 / n, -(2 * p + Z95**2 / n), p * p]).real)
        bounds.append((p, low, high))
    (p, l1, u1), (q, l2, u2) = bounds
    product = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    top = both * neither - lost * won
    top = top if top < 0 else max(0.0, top - n / 2)
    phi = top / product**0.5 if product else 0.0
    down = (q - l2) ** 2 - 2 * phi * (q - l2) * (u1 - p) + (u1 - p) ** 2
    up = (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2
    return q - p - down**0.5, q - p + up**0.5


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 2, 12, 0), 0.0569, 0.3404),  # 38 and 48 of 50: the example of Newcombe 1998
        ((36, 12, 2, 0), -0.3404, -0.0569),
        ((10, 0, 0, 0), -0.2775, 0.2775),  # all agree: one minus the Wilson bound of 10 of 10
        ((0, 0, 0, 10), -0.2775, 0.2775),
        ((0, 0, 10, 0), 0.6075, 1.0),  # 1 - sqrt(2) * 0.2775
    ],
)
def test_newcombe_golden(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    assert newcombe(*pairs(*counts)) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_newcombe_agrees_with_an_independent_formula(counts: tuple[int, int, int, int]) -> None:
    low, high = newcombe(*pairs(*counts))
    assert (low, high) == pytest.approx(by_hand(*counts), abs=1e-6)
    n, (_, lost, won, _) = sum(counts), counts
    assert -1 <= low <= (won - lost) / n <= high <= 1
    assert low < high


def test_mover_of_disjoint_and_of_overlapping_items() -> None:
    values, intervals = [0.5, 0.7], [(0.2, 0.6), (0.3, 0.8)]
    assert interval_of_mean(values, intervals, [[0], [1]]) == pytest.approx((0.6 - 0.25, 0.6 + 0.2**0.5 * 0.1**0.5 / 2))
    assert interval_of_mean(values, intervals, [[0, 1], [1]]) == pytest.approx((0.6 - 0.35, 0.6 + 0.1))
    assert interval_of_mean(values[:1], intervals[:1], [[0]]) == pytest.approx(intervals[0])


def test_mover_covers_the_truth() -> None:
    """In 95 of 100 samples, give or take, the interval of a mean of changes holds the true one."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        was = [generator.random(20) < 0.95 for _ in range(9)]
        now = [w & (generator.random(20) < 0.9) for w in was]
        low, high = interval_of_mean(
            [float(n.mean() - w.mean()) for w, n in zip(was, now, strict=True)],
            [newcombe(w, n) for w, n in zip(was, now, strict=True)],
            [range(20 * k, 20 * k + 20) for k in range(9)],
        )
        held += low <= -0.095 <= high
    assert 370 <= held <= 400


def test_few_values_have_no_interval() -> None:
    assert bootstrap_mean(np.array([0.5, 0.6, 0.4, 0.5]), 500, seed=3) is None
    assert bootstrap_mean(np.array([0.5, 0.6, 0.4, 0.5, 0.7]), 500, seed=3) is not None


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, 500, seed=3) == bootstrap_mean(values, 500, seed=3)
    assert bootstrap_mean(values, 500, seed=3) != bootstrap_mean(values, 500, seed=4)
    low, high = bootstrap_mean(values, 2000, seed=3) or (0.0, 0.0)
    assert low < values.mean() < high
