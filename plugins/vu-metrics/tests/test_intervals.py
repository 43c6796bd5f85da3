"""Intervals: golden numbers, bounds, and agreement of the multinomial bootstrap with the plain one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vu_metrics.intervals import bootstrap_accuracies, bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(108, 142, 68.41, 82.33), (38, 50, 62.59, 85.70), (0, 10, 0.0, 27.75)]
)
def test_wilson_golden(successes: int, trials: int, low: float, high: float) -> None:
    assert [round(100 * bound, 2) for bound in wilson(successes, trials)] == [low, high]


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


def test_bootstrap_accuracies_agrees_with_resampling_items() -> None:
    generator = np.random.default_rng(0)
    was = [generator.random(40) < 0.9, generator.random(60) < 0.8]
    now = [w & (generator.random(len(w)) < 0.8) for w in was]
    interval, change = bootstrap_accuracies(was, now, 20_000, seed=1)
    means, changes = [], []
    for _ in range(5_000):
        picks = [generator.integers(0, len(w), len(w)) for w in was]
        after = np.mean([n[p].mean() for n, p in zip(now, picks, strict=True)])
        means.append(after)
        changes.append(after - np.mean([w[p].mean() for w, p in zip(was, picks, strict=True)]))
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert change == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])), abs=0.01)


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, 500, seed=3) == bootstrap_mean(values, 500, seed=3)
    assert bootstrap_mean(values, 500, seed=3) != bootstrap_mean(values, 500, seed=4)
    low, high = bootstrap_mean(values, 2000, seed=3)
    assert low < values.mean() < high
