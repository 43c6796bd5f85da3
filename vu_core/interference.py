"""Which edit of a composition hurts which concept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_core import run_folder
from vu_core.atomic import write_text
from vu_core.score import Direction, Score, Scorecard

FORMAT = 1
"""``format`` of ``interference.json``."""

_ROUNDING = 1e-9
"""A difference that is no larger may come from the order of additions alone."""

Values = Mapping[str, float]
"""Per score its value after an edit, as stored: a share lies in [0, 1]."""


@attrs.frozen
class Quality:
    """A score of which one direction is healthy.

    Args:
        name: of the score; unit, direction: as in `Score`.
    """

    name: str
    unit: str
    direction: Direction


@attrs.frozen
class Harm:
    """The largest loss that an edit causes beside the others.

    Args:
        edit: its place; score: which one; loss: how far the score is from where it would be without the edit, positive.
    """

    edit: int
    score: Quality
    loss: float


@attrs.frozen
class Interference:
    """One evaluation asked about every edit of a composition alone, about all, and about all but one.

    Args:
        split: of the seeds; seeds: how many per item.
        scores: what is compared.
        edits: what each edit forgets.
        weights: with which each is in the composition, and was measured alone.
        untouched: of the model without any edit; a metric may have no value for it.
        alone: per edit.
        together: of the composition.
        without: per edit, of the composition of all others.
    """

    split: str
    seeds: int
    scores: tuple[Quality, ...]
    edits: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...]
    untouched: Values
    alone: tuple[Values, ...]
    together: Values
    without: tuple[Values, ...]

    @classmethod
    def of(
        cls,
        together: Scorecard,
        alone: Sequence[Scorecard],
        without: Sequence[Scorecard],
        *,
        seeds: int,
        edits: Sequence[tuple[str, ...]],
        weights: Sequence[float],
    ) -> Interference:
        """Take the values from scorecards of the same evaluation.

        Args:
            together: of the composition.
            alone: per edit.
            without: per edit, of the composition of all others; of two edits, each is what the other one leaves.
            seeds: how many per item.
            edits: what each edit forgets.
            weights: of the edits.
        """
        kept = [score for score in together.scores if _is_quality(score)]
        scores = tuple(Quality(score.name, score.unit, score.direction) for score in kept)

        def values(card: Scorecard) -> Values:
            after = {score.name: score.after for score in card.scores}
            return {score.name: after[score.name] for score in scores if score.name in after}

        return cls(
            split=together.split,
            seeds=seeds,
            scores=scores,
            edits=tuple(edits),
            weights=tuple(weights),
            untouched={score.name: score.before for score in kept if score.before is not None},
            alone=tuple(map(values, alone)),
            together=values(together),
            without=tuple(map(values, without)),
        )

    def effect(self, edit: int, score: str) -> float | None:
        """Return what an edit adds to a score beside the others: all together minus all without it."""
        together, without = self.together.get(score), self.without[edit].get(score)
        return None if together is None or without is None else together - without

    @property
    def harm(self) -> Harm | None:
        """The largest loss that an edit causes; ``None`` where none does."""
        losses = []
        for edit in range(len(self.edits)):
            for score in self.scores:
                effect = self.effect(edit, score.name) or 0.0
                losses.append(Harm(edit, score, -effect if score.direction == "up" else effect))
        return max((harm for harm in losses if harm.loss > _ROUNDING), key=lambda harm: harm.loss, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``interference.json``."""
        edits = [
            {"forget": list(forget), "weight": weight, "alone": dict(alone), "all_without_it": dict(without)}
            for forget, weight, alone, without in zip(self.edits, self.weights, self.alone, self.without, strict=True)
        ]
        return {
            "format": FORMAT,
            "split": self.split,
            "seeds": self.seeds,
            "scores": [attrs.asdict(score) for score in self.scores],
            "untouched": dict(self.untouched),
            "all_together": dict(self.together),
            "edits": edits,
        }

    def write(self, folder: Path) -> None:
        """Write ``interference.json`` into a run folder, whole or not at all. Raises: RecordError."""
        path = folder / run_folder.INTERFERENCE
        with run_folder.writing(path):
            write_text(path, json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")


def _is_quality(score: Score) -> bool:
    """Tell whether a score says how well a model does; sizes have a direction at most for their own sake."""
    return score.direction != "none" and score.unit not in ("bytes", "parameters")
