"""The three scales of UCE, and which of many are the best; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from vu_core import ConfigError, Score, Scorecard, UnlearnError

FORGOTTEN = "ua"
KEPT = ("ira", "cra")
"""Scores that a search goes by; of the latter those that the data have."""

RULES = ("kept", "mean")
"""How the best scales are chosen; see `chosen`."""

ROUNDING = 1e-9
"""0.97 - 0.95 is more than 0.02 in binary numbers."""


@attrs.frozen
class Scales:
    """How much each term of the objective counts.

    Args:
        erase: e, above 0; preserve: q, at least 0; regularization: lambda, above 0.
    """

    erase: float
    preserve: float
    regularization: float

    def ratios(self) -> tuple[float, float]:
        """Return e / lambda and q / lambda, on which alone the solution depends, to 9 digits: 0.3 / 0.1 is 3."""
        erase, preserve = self.erase / self.regularization, self.preserve / self.regularization
        return float(f"{erase:.9g}"), float(f"{preserve:.9g}")

    def __str__(self) -> str:
        return f"e = {self.erase:g}, q = {self.preserve:g}, lambda = {self.regularization:g}"


def grid(erase: Sequence[float], preserve: Sequence[float], regularization: Sequence[float]) -> tuple[Scales, ...]:
    """Return every combination, without those that have the ratios of an earlier one and so the same solution.

    Example:
        >>> len(grid([0.3, 0.6], [1.0, 2.0], [0.5, 1.0]))
        7
    """
    found: dict[tuple[float, float], Scales] = {}
    for e in erase:
        for q in preserve:
            for weight in regularization:
                scales = Scales(e, q, weight)
                found.setdefault(scales.ratios(), scales)
    return tuple(found.values())


@attrs.frozen
class Trial:
    """Scales that were measured.

    Args:
        scales: e, q and lambda; forgotten: UA; kept: IRA and CRA by name, those that there are.
        fall: the largest fall of one of these against the untouched model.
    """

    scales: Scales
    forgotten: float
    kept: dict[str, float]
    fall: float

    @classmethod
    def of(cls, scales: Scales, card: Scorecard) -> Trial:
        """Read the scores that matter. Raises: ConfigError ``VU-C109``."""
        check_scores(card)
        scores = {score.name: score for score in card.scores}
        kept = {name: scores[name] for name in KEPT if name in scores}
        falls = [(score.before or 0.0) - score.after for score in kept.values()]
        return cls(scales, scores[FORGOTTEN].after, {name: score.after for name, score in kept.items()}, max(falls))

    def mean(self) -> float:
        """Return the mean of UA and of what is kept."""
        return (self.forgotten + sum(self.kept.values())) / (1 + len(self.kept))


def check_scores(card: Scorecard) -> None:
    """Object to scores that do not say how much is forgotten and how much kept.

    Raises:
        ConfigError: ``VU-C109``.
    """
    found: dict[str, Score] = {score.name: score for score in card.scores}
    kept = [name for name in KEPT if name in found]
    if FORGOTTEN in found and kept and all(found[name].before is not None for name in kept):
        return
    raise ConfigError(
        "VU-C109",
        f"The search goes by UA and by IRA or CRA, but the metrics of the run give {', '.join(found) or 'nothing'}: "
        "without a judge nobody can say what is forgotten.",
        "Use data with a judge and a metric such as 'unlearncanvas'; else compare runs of your own by their images.",
        where="measure.metrics",
    )


def chosen(trials: Sequence[Trial], rule: str, max_fall: float) -> Trial:
    """Return the best trial.

    - ``kept``: of those in which neither IRA nor CRA falls by more than ``max_fall``, the one with the highest UA.
    - ``mean``: the one with the highest mean of UA, IRA and CRA.

    Of equal ones the one that keeps more, then the one that erases with the smaller e / lambda.

    Args:
        trials: at least one.
        rule: one of `RULES`.
        max_fall: a fraction; only for ``kept``.

    Raises:
        UnlearnError: ``VU-U106`` when every trial falls by more.
    """
    able = [trial for trial in trials if rule == "mean" or trial.fall <= max_fall + ROUNDING]
    if not able:
        gentle = min(trials, key=lambda trial: trial.fall)
        raise UnlearnError(
            "VU-U106",
            f"No scales that were tried hold IRA and CRA within {100 * max_fall:g} points. The least they fall is "
            f"{100 * gentle.fall:.1f} points, with {gentle.scales}, where UA is {100 * gentle.forgotten:.1f} %.",
            "Allow more with --max-fall, try smaller --erase or larger --preserve, or take --choose mean.",
            where="--max-fall",
        )

    def merit(trial: Trial) -> tuple[float, ...]:
        first = trial.mean() if rule == "mean" else trial.forgotten
        return (round(first, 9), round(sum(trial.kept.values()), 9), -trial.scales.ratios()[0])

    return max(able, key=merit)
