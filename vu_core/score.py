"""Numbers with unit, direction, sample size and interval; tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

Direction = Literal["up", "down", "none"]
Status = Literal["ok", "not_forgotten", "retain_collapsed"]


@attrs.frozen
class Score:
    """One number of one metric, before and after the edit.

    Args:
        name: such as ``ua``.
        before, after: fractions in [0, 1] for ``unit="fraction"`` (shown as %), else plain numbers; ``before`` may be
            absent.
        unit: ``fraction``, ``bytes``, ``parameters``, ``mse``, ...
        direction: which way is healthy: ``up``, ``down``, or ``none`` (a fact, not a quality).
        n: number of items behind ``after``; ci_low, ci_high: 95 % interval of ``after`` (absent where none is defined).
        seeds: the seeds that were used, empty where none are; fingerprint: hash of everything that defines the metric.
        help: one line for the reader.
        change_low, change_high: paired 95 % interval of ``change`` (absent where none is defined).
        reference: the same score of the run that ``measure.reference`` names, ``after`` its own edit.
    """

    name: str
    after: float
    unit: str
    direction: Direction
    n: int
    before: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    seeds: tuple[int, ...] = ()
    fingerprint: str = ""
    help: str = ""
    change_low: float | None = None
    change_high: float | None = None
    reference: float | None = None

    @property
    def change(self) -> float | None:
        """``after - before``."""
        return None if self.before is None else self.after - self.before


@attrs.frozen
class Scorecard:
    """All scores of a run and what they mean together.

    Args:
        split: ``validation`` or ``held-out``.
        status: ``ok``; ``not_forgotten``; ``retain_collapsed``.
        scores: in the order in which the metrics were asked for.
        reasons: one sentence per doubt behind a status that is not ok.
    """

    split: str
    status: Status
    scores: tuple[Score, ...]
    reasons: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)


@attrs.frozen
class Table:
    """A titled table that the command line renders; plugins' commands return it.

    Args:
        title: heading; columns: names; rows: cells (str, int, float, None); notes: lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()


def scorecard_to_json(card: Scorecard) -> dict[str, Any]:
    """Return the content of ``scores.json``."""
    scores = [{**attrs.asdict(score), "change": score.change, "seeds": list(score.seeds)} for score in card.scores]
    return {"format": 1, "split": card.split, "status": card.status, "reasons": list(card.reasons), "scores": scores}


def scorecard_from_json(value: Mapping[str, Any]) -> Scorecard:
    """Read the content of ``scores.json``; raises KeyError or TypeError when it is something else."""
    entries: Sequence[Mapping[str, Any]] = value["scores"]
    scores = tuple(
        Score(**{**{k: v for k, v in entry.items() if k != "change"}, "seeds": tuple(entry["seeds"])})
        for entry in entries
    )
    return Scorecard(value["split"], value["status"], scores, tuple(value.get("reasons", ())))
