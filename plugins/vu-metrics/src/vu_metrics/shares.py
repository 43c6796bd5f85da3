"""Shares of images as scores, with their intervals."""

from __future__ import annotations

from typing import Literal

from vu_core import Score
from vu_metrics.intervals import Outcomes, newcombe, wilson

Way = Literal["up", "down", "none"]
"""Which way is healthy."""


def share_score(
    name: str, before: Outcomes, after: Outcomes, fingerprint: str, help: str, direction: Way = "up"
) -> Score:
    """Return the share of images of which something holds, with its interval and that of its change.

    Args:
        name: of the score.
        before: outcomes ``(N,)``, N at least 1.
        after: of the same images, ``(N,)``.
        fingerprint: of the metric.
        help: one line.
        direction: which way is healthy.
    """
    low, high = wilson(int(after.sum()), len(after))
    change = newcombe(before, after)
    return Score(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        unit="fraction",
        direction=direction,
        n=len(after),
        ci_low=low,
        ci_high=high,
        change_low=change[0],
        change_high=change[1],
        fingerprint=fingerprint,
        help=help,
    )
