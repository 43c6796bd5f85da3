"""Scores of several runs side by side."""

from __future__ import annotations

import attrs

from vu_cli import numbers
from vu_core import Score


@attrs.frozen
class Row:
    """One metric, comparable from column to column because its fingerprint is one.

    Args:
        name: the score; unit: as in `Score`; fingerprint: what defines the numbers.
        scores: one per run, ``None`` where the run did not measure exactly this.
    """

    name: str
    unit: str
    fingerprint: str
    scores: tuple[Score | None, ...]

    @property
    def unit_label(self) -> str:
        """The unit as it is shown."""
        return next(numbers.unit(score.unit) for score in self.scores if score is not None)

    @property
    def cells(self) -> tuple[str, ...]:
        """``after`` with its change, per run."""
        return tuple("-" if score is None else _cell(score) for score in self.scores)


def _cell(score: Score) -> str:
    change = numbers.change(score)
    return numbers.value(score.after, score.unit) + (f" ({change})" if change else "")


@attrs.frozen
class Comparison:
    """What `vu compare` returns.

    Args:
        labels: one per run, in the order given.
        rows: metrics; two fingerprints of one name give two rows.
        differences: configuration keys that differ, with the value per run as text.
        notes: what a reader must know before comparing.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()
