"""What `vu tune-scale` says about its search."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from vu_cli import numbers
from vu_cli.session import Evidence
from vu_core import Scorecard, Table, UnlearnError
from vu_core.tuning import NARROW, Bound, Trial, Tuning

FORMAT = 1
"""``format`` of ``tuned-scale.json``."""


@attrs.frozen
class Tuned:
    """A search and what is needed to tell about it.

    Args:
        run: the run folder; found: the search.
        card: one of its scorecards, which knows units and directions; seeds: per item.
    """

    run: Path
    found: Tuning
    card: Scorecard
    seeds: int

    @property
    def scale(self) -> float:
        """The scale that does what is asked. Raises: ValueError where there is none; see `objection`."""
        if self.found.scale is None:
            raise ValueError("no scale does what is asked")
        return self.found.scale

    def write(self) -> Path:
        """Keep the evidence in the run folder, under a name that is free. Raises: RecordError."""
        from vu_core.stages.record import write_beside

        return write_beside(self.run, "tuned-scale", json.dumps(self._facts(), indent=2, allow_nan=False) + "\n")

    def evidence(self, file: Path | None, warnings: tuple[str, ...] = ()) -> Evidence:
        """Return the trials as a table, with what follows from them.

        Args:
            file: where they were written, if they could be.
            warnings: what a reader must know.
        """
        found = self.found
        asked = [(bound, "") for bound in found.targets] + [(bound, "change of ") for bound in found.keeps]
        columns = (
            "scale",
            *(f"{what}{bound.name}" for bound, what in asked),
            "reached",
            *(["kept"] * bool(found.keeps)),
        )
        rows = tuple(self._row(trial) for trial in sorted(found.trials, key=lambda trial: trial.scale))
        seeds = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        title = f"Scales of the edit of {self.run.resolve().name} ({self.card.split}, {seeds})"
        kept = [] if file is None else [f"Written to {file}."]
        table = Table(title, columns, rows, (*self._notes(), *kept))
        return Evidence((table,), {**self._facts(), "file": None if file is None else str(file)}, warnings)

    def objection(self) -> UnlearnError | None:
        """Return what stands in the way, where no scale does what is asked."""
        if self.found.scale:
            return None
        problem, remedy = self._obstacle()
        return UnlearnError("VU-U120", problem, remedy, where=str(self.run))

    def _facts(self) -> dict[str, Any]:
        return {"format": FORMAT, "split": self.card.split, "seeds": self.seeds, **self.found.as_json()}

    def _row(self, trial: Trial) -> tuple[Any, ...]:
        found = self.found
        after = [numbers.value(trial.targets[bound.name], self._unit(bound)) for bound in found.targets]
        changes = [numbers.difference(trial.keeps[bound.name], self._unit(bound)) for bound in found.keeps]
        kept = ["yes" if trial.kept else "no"] if found.keeps else []
        return f"{trial.scale:g}", *after, *changes, "yes" if trial.reached else "no", *kept

    def _unit(self, bound: Bound) -> str:
        return self.card[bound.name].unit

    def _notes(self) -> Iterator[str]:
        found = self.found
        yield "Asked for: " + ", ".join([*map(self._target, found.targets), *map(self._keep, found.keeps)]) + "."
        if any(trial.scale == 0 for trial in found.trials):
            yield "Scale 0 is the untouched model."
        for each in found.contradictions:
            what = f"{each.name} is worse" if each.name else "more is kept"
            yield (
                f"A larger scale should forget more and keep less, but {what} at {each.large:g} than at "
                f"{each.small:g}: the smallest scale may be another. More --seeds make the scores steadier."
            )
        if found.scale:
            yield from self._success(found.scale)

    def _success(self, scale: float) -> Iterator[str]:
        missing = self.found.missing
        beside = f"; {missing:g} does not" if missing is not None else ""
        yield f"Scale {scale!r} is the smallest one tried that does what is asked{beside}."
        if missing is not None and scale - missing > NARROW:
            yield "More --trials would look in between."
        place = shlex.quote(str(self.run))
        yield f"vu generate {place} PROMPT --scale {scale!r}"
        yield f"vu export {place} --to FORMAT --out DIR --scale {scale!r}"

    def _obstacle(self) -> tuple[str, str]:
        found = self.found
        largest = max(found.trials, key=lambda trial: trial.scale)
        if found.reaching is None:
            return (
                f"No scale that was tried, up to {largest.scale:g}, reaches {self._targets()}: "
                f"{self._values(largest)} at {largest.scale:g}.",
                "Ask for less, raise --high or --trials, or train longer.",
            )
        if found.reaching == 0:
            return (
                f"The untouched model reaches {self._targets()} already: {self._values(found.at(0.0))} there.",
                "Ask for more, or put what must stay as it is under --keep.",
            )
        dear = found.at(found.reaching)
        cost = (f"{b.name} changes by {self._with_unit(dear.keeps[b.name], b, signed=True)}" for b in found.keeps)
        kept = "No scale that was tried holds --keep."
        if found.keeping is not None:
            best = self._values(found.at(found.keeping))
            kept = f"The largest scale tried that holds --keep is {found.keeping:g}: {best}."
        return (
            f"To reach {self._targets()} costs more than --keep allows: at scale {dear.scale:g}, the smallest tried "
            f"that reaches it, {', '.join(cost)}. {kept}",
            "Ask for less, allow more with --keep, or train with a larger weight of the retain side.",
        )

    def _targets(self) -> str:
        return " and ".join(map(self._target, self.found.targets))

    def _values(self, trial: Trial) -> str:
        return ", ".join(f"{b.name} is {self._with_unit(trial.targets[b.name], b)}" for b in self.found.targets)

    def _target(self, bound: Bound) -> str:
        sign = ">=" if self.card[bound.name].direction == "up" else "<="
        return f"{bound.name} {sign} {self._with_unit(bound.value, bound)}"

    def _keep(self, bound: Bound) -> str:
        sign = ">=" if self.card[bound.name].direction == "up" else "<="
        return f"change of {bound.name} {sign} {self._with_unit(bound.value, bound, signed=True)}"

    def _with_unit(self, value: float, bound: Bound, *, signed: bool = False) -> str:
        unit = self._unit(bound)
        text = numbers.difference(value, unit) if signed else numbers.value(value, unit)
        shown = "points" if signed and unit == "fraction" else numbers.unit(unit)
        return f"{text} {shown}".rstrip()
