"""A sequence of runs, planned and finished, as the command line shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import attrs

from vu_core.contracts.sequence import SequenceTask
from vu_core.plan import Cost, Plan
from vu_core.record import RunRecord
from vu_core.score import scorecard_to_json

SEQUENCE_JSON = "sequence.json"
"""Holds the results of a sequence, in its folder."""
FORMAT = 1
"""``format`` of ``sequence.json``."""


@attrs.frozen
class SequencePlan:
    """What a sequence of runs will do and cost, before any weight is read.

    Args:
        name: the sequence plugin, empty for tasks that the configuration lists.
        tasks: what each of them forgets; ``leave_out`` holds what earlier tasks forget, too.
        plans: one per task, as if the model carried no earlier edits: these do not exist yet.
        seeds: every task is run with each of them.
        cost: of all runs together.
        run_id: 12 hex digits.
        text: ``sequence.toml``.
        notes: sentences for the user.
    """

    name: str
    tasks: tuple[SequenceTask, ...]
    plans: tuple[Plan, ...]
    seeds: tuple[int, ...]
    cost: Cost
    run_id: str
    text: str
    notes: tuple[str, ...] = ()


@attrs.frozen
class TaskRecord:
    """One finished task of a sequence.

    Args:
        number: from 0; name: a word for tables, may be empty; seed: of its run.
        place: its run folder, relative to that of the sequence; run: what lies there.
    """

    number: int
    name: str
    seed: int
    place: str
    run: RunRecord

    def score(self, name: str, *, before: bool = False) -> float | None:
        """Return a score after the task, or before it; ``None`` when it was not measured."""
        scores = self.run.scorecard.scores if self.run.scorecard else ()
        found = {score.name: score.before if before else score.after for score in scores}
        return found.get(name)

    def shares(self) -> tuple[str, ...]:
        """Return the names of the scores that are shares of all that was asked, without those of single concepts."""
        scores = self.run.scorecard.scores if self.run.scorecard else ()
        return tuple(score.name for score in scores if score.unit == "fraction" and "[" not in score.name)

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.run.seconds.values())


@attrs.frozen
class SequenceRecord:
    """What lies in the folder of a sequence.

    Args:
        folder: its folder; run_id: 12 hex digits; name: the sequence plugin, empty for listed tasks.
        method, model, data: of the runs; seeds: all of them.
        planned: how many tasks there are for each seed.
        tasks: those that are finished, seed by seed.
        files: what was written, relative to the folder, with one line each on what it is.
        notes: sentences for the user.
    """

    folder: Path
    run_id: str
    name: str
    method: str
    model: str
    data: str
    seeds: tuple[int, ...]
    planned: int
    tasks: tuple[TaskRecord, ...]
    files: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Every task is finished with every seed."""
        return len(self.tasks) == self.planned * len(self.seeds)

    def doubts(self) -> tuple[str, ...]:
        """Return a sentence for every task whose status is not ``ok``."""
        words = {"not_forgotten": "forgetting did not happen", "retain_collapsed": "the model lost what it should keep"}
        found = []
        for task in self.tasks:
            card = task.run.scorecard
            if card is not None and card.status != "ok":
                seed = f" (seed {task.seed})" if len(self.seeds) > 1 else ""
                found.append(f"Task {task.number}{seed}: {words[card.status]}. {' '.join(card.reasons)}")
        return tuple(found)

    def of(self, number: int) -> tuple[TaskRecord, ...]:
        """Return one task, with every seed that it is finished with."""
        return tuple(task for task in self.tasks if task.number == number)

    def shares(self) -> tuple[str, ...]:
        """Return the names of the scores that tables and the plot show."""
        return tuple(dict.fromkeys(name for task in self.tasks for name in task.shares()))

    def score_names(self) -> tuple[str, ...]:
        """Return the names of everything that was measured, in the order of the metrics."""
        cards = [task.run.scorecard for task in self.tasks if task.run.scorecard is not None]
        return tuple(dict.fromkeys(score.name for card in cards for score in card.scores))


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean over seeds and the sample standard deviation, ``None`` where there is none.

    Example:
        >>> mean_and_deviation([1.0, 2.0, None]), mean_and_deviation([1.0])
        ((1.5, 0.7071067811865476), (1.0, None))
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (fmean(known) if known else None), (stdev(known) if len(known) > 1 else None)


def to_json(record: SequenceRecord) -> dict[str, Any]:
    """Return the content of ``sequence.json``."""
    return {
        "format": FORMAT,
        "id": record.run_id,
        "status": "complete" if record.complete else "incomplete",
        "sequence": record.name,
        "method": record.method,
        "model": record.model,
        "data": record.data,
        "seeds": list(record.seeds),
        "planned": record.planned,
        "tasks": [_task_json(record, number) for number in range(record.planned) if record.of(number)],
    }


def _task_json(record: SequenceRecord, number: int) -> dict[str, Any]:
    tasks = record.of(number)
    summary = {}
    for name in record.score_names():
        mean, deviation = mean_and_deviation([task.score(name) for task in tasks])
        if mean is not None:
            summary[name] = {"mean": mean, "deviation": deviation}
    seconds, spread = mean_and_deviation([task.seconds for task in tasks])
    return {
        "task": number,
        "name": tasks[0].name,
        "forget": list(tasks[0].run.forget),
        "scores": summary,
        "seconds": {"mean": seconds, "deviation": spread},
        "runs": [_run_json(task) for task in tasks],
    }


def _single_values(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of the facts that are no lists."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _single_values(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value


def _run_json(task: TaskRecord) -> dict[str, Any]:
    facts = dict(_single_values(task.run.edit_facts))
    return {
        "seed": task.seed,
        "folder": task.place,
        "id": task.run.run_id,
        "seconds": dict(task.run.seconds),
        "edit": facts,
        "measured": None if task.run.scorecard is None else scorecard_to_json(task.run.scorecard),
    }
