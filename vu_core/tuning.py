"""The smallest strength of an edit that forgets enough, found by bisection.

``W' = W + s * delta``: the scale ``s`` of an edit is the one number that can be chosen after training. A larger scale
forgets more and keeps less; that is assumed here, and checked on everything that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs

from vu_core.errors import ConfigError, did_you_mean
from vu_core.score import Score, Scorecard

NARROW = 0.02
"""A bracket of scales that is no wider than this is not halved again."""
_DIGITS = 4
"""Decimals of a scale, so that it can be typed."""
_ROUNDING = 1e-9
"""0.96 - 0.98 is a little below -0.02 in binary numbers."""


@attrs.frozen
class Bound:
    """What is asked of one score.

    Args:
        name: of the score.
        value: a target is the least value after the edit, or the largest one where low is healthy; a keep is the least
            change, after - before, or the largest one where low is healthy.
    """

    name: str
    value: float


@attrs.frozen
class Trial:
    """What one scale gives.

    Args:
        scale: factor of the edit.
        targets: the score after the edit, per target; keeps: its change, per keep.
        reached: every target is reached; kept: every keep is held.
    """

    scale: float
    targets: Mapping[str, float]
    keeps: Mapping[str, float]
    reached: bool
    kept: bool


@attrs.frozen
class Contradiction:
    """A score that is worse for forgetting at the larger of two scales, or better for keeping.

    Args:
        name: of the score; empty where all keeps together are meant.
        small, large: the scales.
    """

    name: str
    small: float
    large: float


@attrs.frozen
class Tuning:
    """What a search has found.

    Args:
        targets: what should be reached; keeps: what it may cost.
        trials: in the order in which they were made; scale 0 is the untouched model, which costs no measurement.
        reaching: the smallest scale tried that reaches every target, ``None`` where none does.
        missing: the largest scale tried below it that does not: the bracket. ``None`` where there is none.
        keeping: the largest scale tried that holds every keep, ``None`` where none does.
        contradictions: what speaks against the assumption that a larger scale forgets more and keeps less.
    """

    targets: tuple[Bound, ...]
    keeps: tuple[Bound, ...]
    trials: tuple[Trial, ...]
    reaching: float | None
    missing: float | None
    keeping: float | None
    contradictions: tuple[Contradiction, ...]

    @property
    def scale(self) -> float | None:
        """The scale to use: ``reaching``, where the keeps are held there."""
        held = any(trial.kept for trial in self.trials if trial.scale == self.reaching)
        return self.reaching if held else None

    def at(self, scale: float) -> Trial:
        """Return the trial of a scale."""
        return next(trial for trial in self.trials if trial.scale == scale)

    def as_json(self) -> dict[str, Any]:
        """Return what was asked, tried and found, as JSON values."""
        return {
            "targets": {bound.name: bound.value for bound in self.targets},
            "keeps": {bound.name: bound.value for bound in self.keeps},
            "scale": self.scale,
            "reaching": self.reaching,
            "missing": self.missing,
            "keeping": self.keeping,
            "trials": [attrs.asdict(trial) for trial in self.trials],
            "contradictions": [attrs.asdict(each) for each in self.contradictions],
        }


def tune(
    measure: Callable[[float], Scorecard],
    targets: Sequence[Bound],
    keeps: Sequence[Bound] = (),
    *,
    low: float = 0.0,
    high: float = 2.0,
    trials: int = 8,
) -> Tuning:
    """Find the smallest scale at which every target is reached, and look whether the keeps are held there.

    Scale 1 comes first: it is what was trained. Then the range is halved, between a scale that reaches the targets
    and one that does not, until the bracket is at most 0.02 wide. Where that scale does not hold the keeps, the largest
    one that does is looked for too: the two show what the targets cost.

    Args:
        measure: returns the scores at a scale; on validation seeds, as this selects.
        targets: at least one.
        keeps: what it must not cost.
        low: least scale, at least 0.
        high: largest scale, above ``low``.
        trials: how often to measure at most, at least once.

    Returns:
        Everything that was tried. A value that is no number reaches and keeps nothing.

    Raises:
        ConfigError: a bound names a score that cannot be bounded (``VU-C131``).

    Example:
        >>> def measure(scale):
        ...     gone = min(1.0, 0.8 * scale)
        ...     return Scorecard("validation", "ok", (Score("ua", gone, "fraction", "up", 100, before=0.0),))
        >>> tune(measure, [Bound("ua", 0.6)]).scale
        0.75
    """
    first = min(max(1.0, low), high)
    card = measure(first)
    check_bounds(card, targets, keeps)
    sides = {score.name: 1 if score.direction == "up" else -1 for score in card.scores}
    search = _Search(measure, tuple(targets), tuple(keeps), sides, budget=trials - 1)
    reached = search.take(first, card).reached
    if low == 0:
        search.take_untouched(card)
    further = low if reached else high
    if further not in (0, first) and search.budget > 0:
        search.at(further)
    search.narrow(_reached, low, rising=True, unless=_hopeless)
    found = search.found()
    if found.reaching is not None and found.scale is None:
        search.narrow(_kept, low, rising=False)
        search.narrow(_reached, low, rising=True)
    return search.found()


def _reached(trial: Trial) -> bool:
    return trial.reached


def _kept(trial: Trial) -> bool:
    return trial.kept


def _hopeless(trial: Trial) -> bool:
    """Tell that the targets, which need a larger scale, will cost more than is allowed."""
    return not trial.reached and not trial.kept


def check_bounds(card: Scorecard, targets: Sequence[Bound], keeps: Sequence[Bound]) -> None:
    """Object to a bound on a score that is not there, has no healthy direction, or cannot have such a value.

    Raises:
        ConfigError: ``VU-C131``.
    """
    directed = [score.name for score in card.scores if score.direction != "none"]
    for flag, bounds in (("--target", targets), ("--keep", keeps)):
        for bound in bounds:
            score = next((score for score in card.scores if score.name == bound.name), None)
            if score is None:
                problem = f"There is no score {bound.name!r} here.{did_you_mean(bound.name, directed)}"
            else:
                problem = _objection(score, bound, flag)
            if problem:
                known = ", ".join(directed) or "none"
                raise ConfigError("VU-C131", problem, f"Scores that can be bounded: {known}.", where=flag)


def _objection(score: Score, bound: Bound, flag: str) -> str:
    """Return what is wrong with bounding this score, or nothing."""
    if score.direction == "none":
        return f"The score {bound.name!r} is a fact: no value of it is better than another."
    if flag == "--keep" and score.before is None:
        return f"The score {bound.name!r} has no value for the untouched model, so it has no change to limit."
    least = -1.0 if flag == "--keep" else 0.0
    if score.unit == "fraction" and not least <= bound.value <= 1.0:
        what = "The change of a share lies between -1 and 1" if flag == "--keep" else "A share lies between 0 and 1"
        return f"{what}, so {bound.name!r} cannot be bounded by {bound.value:g}; write 0.95 or 95%."
    return ""


@attrs.define
class _Search:
    """The trials so far, and the budget for more."""

    measure: Callable[[float], Scorecard]
    targets: tuple[Bound, ...]
    keeps: tuple[Bound, ...]
    sides: Mapping[str, int]
    """1 for a score of which high is healthy, -1 where low is."""
    budget: int
    trials: list[Trial] = attrs.field(factory=list)

    def at(self, scale: float) -> Trial:
        """Measure one scale."""
        self.budget -= 1
        return self.take(scale, self.measure(scale))

    def take(self, scale: float, card: Scorecard) -> Trial:
        """Keep what was measured at a scale."""
        after = {bound.name: card[bound.name].after for bound in self.targets}
        changes = {bound.name: _change(card[bound.name]) for bound in self.keeps}
        return self._judged(scale, after, changes)

    def take_untouched(self, card: Scorecard) -> None:
        """Keep what every measurement says about scale 0, where nothing is changed; a target may lack a value there."""
        before = {bound.name: card[bound.name].before for bound in self.targets}
        known = {name: value for name, value in before.items() if value is not None}
        if len(known) == len(before):
            self._judged(0.0, known, {bound.name: 0.0 for bound in self.keeps})

    def narrow(
        self,
        holds: Callable[[Trial], bool],
        low: float,
        *,
        rising: bool,
        unless: Callable[[Trial], bool] = lambda _: False,
    ) -> None:
        """Halve the range in which ``holds`` changes, while it is wide and the budget lasts.

        Args:
            holds: what is asked of a trial.
            low: where the range begins, when no smaller scale was tried.
            rising: it holds from some scale on, else up to some scale.
            unless: a trial of this kind makes further ones pointless.
        """
        while self.budget > 0 and not any(map(unless, self.trials)):
            # Below the change stands what is smaller, whether it holds there (falling) or not (rising).
            above = min((trial.scale for trial in self.trials if holds(trial) == rising), default=None)
            if above is None:
                return
            below = max((t.scale for t in self.trials if holds(t) != rising and t.scale < above), default=low)
            if above - below <= NARROW:
                return
            self.at(round((below + above) / 2, _DIGITS))

    def found(self) -> Tuning:
        """Return what the trials say."""
        reaching = min((trial.scale for trial in self.trials if trial.reached), default=None)
        below = [t.scale for t in self.trials if not t.reached and (reaching is None or t.scale < reaching)]
        keeping = max((trial.scale for trial in self.trials if trial.kept), default=None)
        return Tuning(
            self.targets,
            self.keeps,
            tuple(self.trials),
            reaching,
            max(below, default=None),
            keeping,
            tuple(self._contradictions()),
        )

    def _judged(self, scale: float, after: Mapping[str, float], changes: Mapping[str, float]) -> Trial:
        reached = all(self._holds(bound, after) for bound in self.targets)
        kept = all(self._holds(bound, changes) for bound in self.keeps)
        self.trials.append(Trial(scale, after, changes, reached, kept))
        return self.trials[-1]

    def _holds(self, bound: Bound, values: Mapping[str, float]) -> bool:
        return self.sides[bound.name] * (values[bound.name] - bound.value) >= -_ROUNDING

    def _contradictions(self) -> Iterator[Contradiction]:
        ordered = sorted(self.trials, key=lambda trial: trial.scale)
        for bound in self.targets:
            for small, large in pairwise(ordered):
                gain = self.sides[bound.name] * (large.targets[bound.name] - small.targets[bound.name])
                if not gain >= -_ROUNDING:  # also where one of them is no number
                    yield Contradiction(bound.name, small.scale, large.scale)
        for small, large in pairwise(ordered):
            if large.kept and not small.kept:
                yield Contradiction("", small.scale, large.scale)


def _change(score: Score) -> float:
    change = score.change
    if change is None:
        raise RuntimeError(f"{score.name} was found to have a value before")
    return change
