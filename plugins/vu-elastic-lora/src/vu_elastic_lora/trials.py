"""What a search for ranks has measured, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from vu_core import ConfigError, Score, Scorecard
from vu_elastic_lora.adapter_config import target_of
from vu_elastic_lora.groups import VERSIONS, RankGroup, ranks_text, spread

MAIN = ("ua", "ira", "cra")
"""Scores that a search goes by where there are any of them."""
SIZES = ("bytes", "parameters")
"""Units that tell a size, which a search knows better itself."""
FORMAT = 1
"""``format`` of ``search.json``."""
ROUNDING = 1e-9
"""0.97 - 0.95 is more than 0.02 in binary numbers."""


@attrs.frozen
class Limits:
    """What a search goes by.

    Args:
        trials: assignments to measure, at least 1; seconds: no further one begins after so long.
        seeds: per item that is measured; tolerance: see `Search`.
    """

    trials: int = 24
    seconds: float = 600.0
    seeds: int = 1
    tolerance: float = 0.02


@attrs.frozen
class Objective:
    """A score that a search wants to be good.

    Args:
        name: of the score; direction: ``up`` or ``down``, which way is good; unit: of the score.
    """

    name: str
    direction: str
    unit: str

    @property
    def sign(self) -> int:
        """1 when more is better, else -1."""
        return 1 if self.direction == "up" else -1

    def margin(self, whole: float, tolerance: float) -> float:
        """Return how much worse than the whole adapter is tolerated: a fraction absolutely, else a share of it."""
        return tolerance * (1.0 if self.unit == "fraction" else abs(whole)) + ROUNDING


def objectives_of(card: Scorecard) -> tuple[Objective, ...]:
    """Return those of UA, IRA and CRA that a scorecard has, else every score with a direction.

    Raises:
        ConfigError: ``VU-C094`` there is none.
    """
    directed = [score for score in card.scores if score.direction != "none" and score.unit not in SIZES]
    chosen = [score for score in directed if score.name in MAIN] or directed
    if not chosen:
        names = ", ".join(score.name for score in card.scores)
        raise ConfigError(
            "VU-C094",
            f"A search needs scores that say which way is better, but the metrics of the run give none: {names}.",
            "Extract with --rank, or repeat the run with metrics that measure forgetting (measure.metrics).",
            where="measure.metrics",
        )
    return tuple(Objective(score.name, score.direction, score.unit) for score in chosen)


def values_of(card: Scorecard, objectives: Sequence[Objective]) -> dict[str, float]:
    """Return the scores that a search goes by. Raises: ConfigError ``VU-C094`` when one of them is missing."""
    found: dict[str, Score] = {score.name: score for score in card.scores}
    missing = [objective.name for objective in objectives if objective.name not in found]
    if missing:
        raise ConfigError(
            "VU-C094",
            f"The metrics gave the score {missing[0]!r} for the whole adapter, but not for a smaller one.",
            "Report this to the author of the metric; extract with --rank meanwhile.",
            where="measure.metrics",
        )
    return {objective.name: found[objective.name].after for objective in objectives}


@attrs.frozen
class Trial:
    """One assignment that was measured.

    Args:
        ranks: one per group; bytes: size of the tensors of the adapter; scores: by name.
    """

    ranks: tuple[int, ...]
    bytes: int
    scores: Mapping[str, float]


@attrs.frozen
class Search:
    """Everything that was measured so far; the first trial is the whole adapter.

    Args:
        groups: of the adapter; objectives: what is wanted besides few bytes.
        tolerance: how much worse than the whole adapter a score may be: points of a fraction, or a share.
        trials: in the order measured, no assignment twice; distinct: number of assignments that there are.
        stopped: why no more were measured; empty while the search goes on.
    """

    groups: tuple[RankGroup, ...]
    objectives: tuple[Objective, ...]
    tolerance: float
    trials: tuple[Trial, ...]
    distinct: int
    stopped: str = ""

    def front(self) -> tuple[Trial, ...]:
        """Return the trials that no other one beats: not larger, no score worse, and something better; small first."""
        return tuple(
            sorted(
                (t for t in self.trials if not any(self._beats(other, t) for other in self.trials)),
                key=lambda trial: trial.bytes,
            )
        )

    def _beats(self, one: Trial, other: Trial) -> bool:
        pairs = [(-one.bytes, -other.bytes), *zip(self._goods(one), self._goods(other), strict=True)]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    def _goods(self, trial: Trial) -> list[float]:
        return [objective.sign * trial.scores[objective.name] for objective in self.objectives]

    def is_tolerable(self, trial: Trial) -> bool:
        """Tell whether every score is at most the tolerance worse than that of the whole adapter."""
        whole = self.trials[0].scores
        return all(
            each.sign * (whole[each.name] - trial.scores[each.name]) <= each.margin(whole[each.name], self.tolerance)
            for each in self.objectives
        )

    def chosen(self) -> Trial:
        """Return the smallest tolerable trial; of equally small ones the one with the best scores."""
        tolerable = [trial for trial in self.trials if self.is_tolerable(trial)]
        return min(tolerable, key=lambda trial: (trial.bytes, -sum(self._goods(trial))))

    def ranks(self) -> dict[str, int]:
        """Return the rank of every weight in the chosen trial."""
        return spread(self.groups, self.chosen().ranks)

    def name_of(self, trial: Trial) -> str:
        """Return ``maximal``, ``heuristic`` or ``minimal``, or how many groups have which rank."""
        for version in VERSIONS:
            if trial.ranks == tuple(group.rank(version) for group in self.groups):
                return version
        return ranks_text(trial.ranks)

    def to_json(self, about: Mapping[str, Any]) -> str:
        """Return the text of ``search.json``: what was searched, every trial, and what was chosen.

        Args:
            about: further values for the head of the file.
        """
        front, chosen = self.front(), self.chosen()
        trials = [
            {
                "ranks": list(trial.ranks),
                "bytes": trial.bytes,
                "scores": dict(trial.scores),
                "tolerable": self.is_tolerable(trial),
                "front": trial in front,
                "chosen": trial is chosen,
            }
            for trial in self.trials
        ]
        wanted = [{"name": each.name, "direction": each.direction} for each in self.objectives]
        groups = [{"target": list(map(target_of, g.names)), "search_space": list(g.search_space)} for g in self.groups]
        content = {
            "format": FORMAT,
            "state": "finished" if self.stopped else "unfinished",
            "stopped": self.stopped,
            **about,
            "tolerance": self.tolerance,
            "assignments": self.distinct,
            "objectives": [{"name": "bytes", "direction": "down"}, *wanted],
            "trials": trials,
            "groups": groups,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
