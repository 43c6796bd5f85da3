"""Time and memory of combining two gradients of 100 million numbers with ``munba``: both sides in one process."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from memory import forget_peak, peak_bytes
from reference import munba_combine
from torch import Tensor

from vu_core.ops import gram
from vu_core.training.gradients import combine
from vu_munba.bargain import BargainConfig
from vu_munba.munba import Munba

WARM_UP = 1
TOLERANCE = 0.05
"""Of the distance between both: the reference adds up 100 million products in float32, which costs it 1 %."""


Grads = Sequence[Tensor]
Combination = Callable[[Grads, Grads], Sequence[Tensor | None]]


class Turn(NamedTuple):
    """What one combination took: seconds, and the GB that it needed besides both gradients."""

    seconds: float
    extra: float


def ours(retain: Sequence[Tensor], forget: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Combine as `fit` does it: Gram matrix, coefficients, in place."""
    a_retain, a_forget = Munba(BargainConfig()).coefficients(gram(retain, forget), {}, {})
    return combine(retain, forget, a_retain, a_forget)


def distance(found: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """Return ``||found - expected|| / ||expected||``."""
    apart = sum(float((g - e).norm()) ** 2 for g, e in zip(found, expected, strict=True) if g is not None)
    return math.sqrt(apart / sum(float(e.norm()) ** 2 for e in expected))


def turn(combination: Combination, retain: Grads, forget: Grads) -> tuple[Sequence[Tensor | None], float, float]:
    """Combine once; return the update, the seconds, and by how many GB it raised the resident set on its way."""
    forget_peak()
    before = peak_bytes()
    start = time.perf_counter()
    combined = combination(retain, forget)
    seconds = time.perf_counter() - start
    return combined, seconds, (peak_bytes() - before) / 1e9


def turns(pairs: int) -> tuple[list[Turn], list[Turn]]:
    """Let both take turns on the same gradients and return seconds and extra GB of each, after a warm-up.

    Raises:
        RuntimeError: when the two results differ.
    """
    retain, forget = munba_combine.make()
    untouched = [g.clone() for g in retain]
    mine, other = [], []
    for _ in range(pairs + WARM_UP):
        expected, *taken = turn(munba_combine.combine, retain, forget)
        other.append(Turn(*taken))
        found, *taken = turn(ours, retain, forget)
        mine.append(Turn(*taken))
        if not mine[WARM_UP:] and distance(found, [g for g in expected if g is not None]) > TOLERANCE:
            raise RuntimeError("the two combinations differ")
        del expected
        for g, before in zip(retain, untouched, strict=True):
            g.copy_(before)
    return mine[WARM_UP:], other[WARM_UP:]


def compare(pairs: int) -> list[tuple[str, str, list[float], float, float, str]]:
    """Return name, target, ratios, ours, other and unit of both bounds."""
    mine, other = turns(pairs)
    one, two = ([statistics.median(values) for values in zip(*side, strict=True)] for side in (mine, other))
    faster = [theirs.seconds / own.seconds for own, theirs in zip(mine, other, strict=True)]
    more = [own.extra / theirs.extra for own, theirs in zip(mine, other, strict=True)]
    return [
        ("100 M numbers: combining with munba, speed-up", ">=2.0", faster, one[0], two[0], "s"),
        ("100 M numbers: extra memory / the reference", "<=0.5", more, one[1], two[1], "GB"),
    ]
