"""95 % intervals: Wilson for a proportion, bootstrap for means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a proportion, inside [0, 1].

    ``(p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p = successes / trials``.

    Args:
        successes: 0 .. trials.
        trials: at least 1.

    Raises:
        ValueError: there are no trials, or more successes than trials.

    Example:
        >>> [round(100 * bound, 2) for bound in wilson(108, 142)]
        [68.41, 82.33]

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials are no proportion")
    p, z2 = successes / trials, Z95 * Z95
    centre = p + z2 / (2 * trials)
    reach = Z95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    low, high = (centre - reach) / (1 + z2 / trials), (centre + reach) / (1 + z2 / trials)
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == trials else min(1.0, high))


def bootstrap_accuracies(
    before: Sequence[NDArray[np.bool_]], after: Sequence[NDArray[np.bool_]], resamples: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the 95 % percentile intervals of a mean of accuracies after, and of its paired change.

    Every accuracy is resampled over its own items; an item keeps its two outcomes (before, after) together, so that
    what both models get wrong cancels in the change. Drawing n items with replacement is drawing the counts of the
    four pairs of outcomes from a multinomial distribution, which is what is done.

    Args:
        before: per accuracy the outcomes of its items before; none is empty.
        after: the same after, in the same order.
        resamples: number of bootstrap samples.
        seed: seed of the generator.

    Returns:
        ``(low, high)`` of the mean after, and of mean after - mean before.
    """
    generator = np.random.default_rng(seed)
    means_before, means_after = np.zeros(resamples), np.zeros(resamples)
    for was, now in zip(before, after, strict=True):
        n = len(now)
        outcomes = np.bincount(2 * was.astype(np.int64) + now.astype(np.int64), minlength=4) / n
        counts = generator.multinomial(
            n, outcomes, size=resamples
        )  # (resamples, 4): (no,no) (no,yes) (yes,no) (yes,yes)
        means_before += (counts[:, 2] + counts[:, 3]) / n / len(after)
        means_after += (counts[:, 1] + counts[:, 3]) / n / len(after)
    return percentiles(means_after), percentiles(means_after - means_before)


def bootstrap_mean(values: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of ``values`` ``(N,)``, resampled over N."""
    generator = np.random.default_rng(seed)
    picked = generator.integers(0, len(values), size=(resamples, len(values)))
    return percentiles(values[picked].mean(axis=1))


def percentiles(samples: NDArray[Any]) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
