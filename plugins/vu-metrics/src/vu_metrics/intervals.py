"""95 % intervals: Wilson for a proportion, Newcombe for a paired difference, MOVER for means of both, bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Outcomes = NDArray[np.bool_]

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


def newcombe(before: Outcomes, after: Outcomes) -> tuple[float, float]:
    """Return the 95 % interval of a paired difference of proportions, after - before: Newcombe's method 10.

    With the Wilson bounds l, u of both proportions p (before) and q (after)::

        low  = q - p - sqrt((q - l_q)^2 - 2 phi (q - l_q)(u_p - p) + (u_p - p)^2)
        high = q - p + sqrt((p - l_p)^2 - 2 phi (p - l_p)(u_q - q) + (u_q - q)^2)

    phi is the correlation of the two outcomes with a continuity correction: with a items right both times, d wrong both
    times, b and c those that changed, ``phi = max(ad - bc - n/2, 0)`` or, when ad < bc, ``ad - bc``, divided by
    ``sqrt((a+b)(c+d)(a+c)(b+d))``; 0 where a factor is 0. Unlike a bootstrap it has width when nothing changed.

    Args:
        before: outcomes ``(n,)``, n at least 1.
        after: the outcomes of the same items.

    Example:
        >>> outcome = np.array([True] * 10)
        >>> [round(100 * bound, 1) for bound in newcombe(outcome, outcome)]
        [-27.8, 27.8]

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17, 1998.
    """
    n, was, now = len(after), int(before.sum()), int(after.sum())
    both = int((before & after).sum())
    neither = n - was - now + both
    p, q = was / n, now / n
    (low_p, high_p), (low_q, high_q) = wilson(was, n), wilson(now, n)
    spread = was * (n - was) * now * (n - now)
    excess: float = both * neither - (was - both) * (now - both)
    if excess > 0:
        excess = max(excess - n / 2, 0)
    phi = excess / math.sqrt(spread) if spread else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))

    return max(-1.0, q - p - reach(q - low_q, high_p - p)), min(1.0, q - p + reach(p - low_p, high_q - q))


def interval_of_mean(
    values: Sequence[float], intervals: Sequence[tuple[float, float]], rows: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of K estimates from the interval of each: MOVER.

    For estimates over different items the distances to the bounds add up in squares,
    ``low = mean - sqrt(sum((value - low)^2)) / K``, and so upwards. Estimates that share items are not independent;
    they are put into different groups, each without common items, and the distances of the groups are added plainly,
    which is wide enough whatever the dependence.

    Args:
        values: the K estimates.
        intervals: of each.
        rows: the items behind each.

    Example:
        >>> interval_of_mean([0.5, 0.5], [(0.2, 0.9), (0.1, 0.8)], [[0, 1], [2, 3]])
        (0.25, 0.75)

    Source: G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27, 2008.
    """
    down, up = 0.0, 0.0
    for group in disjoint(rows):
        down += math.sqrt(sum((values[k] - intervals[k][0]) ** 2 for k in group))
        up += math.sqrt(sum((intervals[k][1] - values[k]) ** 2 for k in group))
    mean, count = math.fsum(values) / len(values), len(values)
    return mean - down / count, mean + up / count


def disjoint(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the positions in groups, so that no item stands behind two of one group.

    Example:
        >>> disjoint([[0, 1], [1, 2], [2, 3]])
        [[0, 2], [1]]
    """
    groups: list[tuple[list[int], set[int]]] = []
    for position, items in enumerate(rows):
        for group, taken in groups:
            if taken.isdisjoint(items):
                group.append(position)
                taken.update(items)
                break
        else:
            groups.append(([position], set(items)))
    return [group for group, _ in groups]


FEWEST = 5
"""Values that a bootstrap needs: the nominal 95 % are 52 % for two normal values and 71 % for three."""


def bootstrap_mean(values: Floats, resamples: int, seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean of ``values`` ``(N,)``.

    Too few values say nothing about the spread of others: ``None`` for N < `FEWEST`.
    """
    return percentiles(resampled_means(values, resamples, seed)) if len(values) >= FEWEST else None


def resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Return means ``(resamples,)`` of ``values`` ``(N,)`` drawn N times with replacement.

    Equal seeds and lengths draw equal rows, so that two columns of the same items stay together.
    """
    picked = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(values[picked].mean(axis=1))


def percentiles(samples: Floats) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
