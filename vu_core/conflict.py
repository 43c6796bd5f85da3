"""How the gradients of forgetting and of keeping agree, over the steps of a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs

from vu_core import run_folder
from vu_core.atomic import write_text

FORMAT = 1
"""``format`` of ``gradient-conflict.json``."""
EVENT = "gradient_conflict"
COSINES = ("cos_rf", "cos_g_r", "cos_g_f")
"""Between retain and forget gradient, between update and retain gradient, between update and forget gradient."""
BINS = 50
"""Bins of a histogram over [-1, 1]."""


@attrs.frozen
class Step:
    """What is known of one optimiser step.

    Args:
        phase: the call of `fit`; number: of the step in it, from 1.
        cosines: per name of `COSINES` a number in [-1, 1], or ``None`` where a gradient is zero or not finite.
        flags: what the weighting says about the step.
    """

    phase: str
    number: int
    cosines: Mapping[str, float | None]
    flags: tuple[str, ...] = ()


@attrs.frozen
class Spread:
    """How one cosine is spread over the steps in which it is defined.

    Args:
        defined: in how many steps; undefined: in how many it is not.
        negative: share of the defined ones below 0.
        mean, median: of the defined ones; low, high: their 5th and 95th percentile, between neighbours by a straight
            line. All of them are ``None`` when the cosine is defined nowhere.
        histogram: how many lie in each of 50 bins of equal width over [-1, 1]; a bin holds its lower edge, the last one
            its upper edge, too.
    """

    defined: int
    undefined: int
    negative: float | None
    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    histogram: tuple[int, ...]

    @classmethod
    def of(cls, cosines: Iterable[float | None]) -> Spread:
        """Summarise the cosines of a run, ``None`` where one is undefined.

        Example:
            >>> spread = Spread.of([-0.5, 0.1, None, 1.0])
            >>> spread.defined, spread.undefined, round(spread.negative, 2), round(spread.mean, 2), spread.median
            (3, 1, 0.33, 0.2, 0.1)
            >>> [place for place, count in enumerate(spread.histogram) if count]
            [12, 27, 49]
        """
        every = list(cosines)
        known = sorted(cosine for cosine in every if cosine is not None)
        counts = Counter(map(_bin, known))
        n = len(known)
        return cls(
            defined=n,
            undefined=len(every) - n,
            negative=sum(cosine < 0 for cosine in known) / n if n else None,
            mean=math.fsum(known) / n if n else None,
            median=_quantile(known, 0.5),
            low=_quantile(known, 0.05),
            high=_quantile(known, 0.95),
            histogram=tuple(counts[place] for place in range(BINS)),
        )


def _bin(cosine: float) -> int:
    """Return the bin of a cosine; not by ``cosine + 1``, which would round the smallest negative ones up to 1."""
    half = BINS // 2
    return min(math.floor(cosine * half) + half, BINS - 1)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@attrs.frozen
class Conflict:
    """The ``gradient_conflict`` events of a run.

    The retain gradient ``g_r`` and the forget gradient ``g_f`` are those that the weighting sees, each with the
    penalties on its side; the update ``g = a_r g_r + a_f g_f`` is what it makes of them: before penalties outside of
    the sides, clipping and the optimiser.

    Args:
        steps: phases in the order in which they began, each with its steps in order.
    """

    steps: tuple[Step, ...]

    @property
    def spreads(self) -> dict[str, Spread]:
        """Each of the `COSINES`, summarised over the run."""
        return {name: Spread.of(step.cosines[name] for step in self.steps) for name in COSINES}

    @property
    def flags(self) -> dict[str, int]:
        """In how many steps the weighting set each flag, by name."""
        return dict(sorted(Counter(flag for step in self.steps for flag in set(step.flags)).items()))

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Name and number of steps of each phase."""
        return tuple((name, sum(1 for _ in steps)) for name, steps in groupby(self.steps, key=lambda step: step.phase))

    @property
    def sentence(self) -> str:
        """What is to be said in one line.

        Example:
            >>> steps = [Step("main", n, dict.fromkeys(COSINES, c)) for n, c in enumerate((-0.5, 0.1, 0.3), start=1)]
            >>> Conflict(tuple(steps)).sentence
            'The gradients of forgetting and keeping conflict in 33 % of the steps (mean cosine -0.03).'
        """
        spread = self.spreads["cos_rf"]
        if spread.negative is None or spread.mean is None:
            return "The gradients of forgetting and keeping cannot be compared: never were both other than zero."
        return (
            f"The gradients of forgetting and keeping conflict in {100 * spread.negative:.0f} % of the steps "
            f"(mean cosine {decimals(spread.mean)})."
        )

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``gradient-conflict.json``."""
        return {
            "format": FORMAT,
            "steps": len(self.steps),
            "phases": [{"name": name, "steps": steps} for name, steps in self.phases],
            "cosines": {name: attrs.asdict(spread) for name, spread in self.spreads.items()},
            "flags": self.flags,
        }

    def write(self, folder: Path) -> None:
        """Write ``gradient-conflict.json`` into a run folder, whole or not at all. Raises: RecordError."""
        path = folder / run_folder.CONFLICT
        with run_folder.writing(path):
            write_text(path, json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")


def decimals(cosine: float) -> str:
    """Return a cosine with two decimals; what rounds to nothing has no sign.

    Example:
        >>> decimals(-0.0449), decimals(-0.001)
        ('-0.04', '0.00')
    """
    return f"{round(cosine, 2) + 0.0:.2f}"


def read_conflict(folder: Path) -> Conflict | None:
    """Read how the gradients of a run agree, or ``None`` when nothing is known of them.

    A resumed run repeats the steps after its checkpoint; the last time counts.

    Args:
        folder: of the run.

    Raises:
        RecordError: ``events.jsonl`` is damaged (``VU-R056``).
    """
    told = [event["values"] for event in run_folder.read_events(folder) if event["type"] == EVENT]
    phases: dict[str, dict[int, Step]] = {}
    for values in told:
        step = _step(values)
        if step is None:
            raise run_folder.unreadable(folder / run_folder.EVENTS, f"{values} is no event {EVENT!r}")
        phases.setdefault(step.phase, {})[step.number] = step
    steps = tuple(step for each in phases.values() for _, step in sorted(each.items()))
    return Conflict(steps) if steps else None


def _step(values: Mapping[str, Any]) -> Step | None:
    """Return the step that an event tells of, or ``None`` when it is damaged."""
    phase, number, flags = values.get("phase"), values.get("step"), values.get("flags")
    cosines = {name: values[name] for name in COSINES if name in values}
    whole = (
        isinstance(phase, str)
        and type(number) is int
        and isinstance(flags, list)
        and all(isinstance(flag, str) for flag in flags)
        and len(cosines) == len(COSINES)
        and all(cosine is None or _is_cosine(cosine) for cosine in cosines.values())
    )
    return Step(str(phase), int(number or 0), cosines, tuple(flags or ())) if whole else None


def _is_cosine(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1
