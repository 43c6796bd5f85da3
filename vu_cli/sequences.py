"""Sequences of runs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vu_cli import numbers
from vu_core import Table
from vu_core.sequence_record import SequencePlan, SequenceRecord, mean_and_deviation

_SHOWN = 4
"""So many concepts of a task are named."""


def planned(plan: SequencePlan) -> Table:
    """Return what every task forgets and how long it will take."""
    rows = []
    for number, (task, run) in enumerate(zip(plan.tasks, plan.plans, strict=True)):
        more = f" and {len(task.forget) - _SHOWN} more" if len(task.forget) > _SHOWN else ""
        what = f"{task.name}: " * bool(task.name) + ", ".join(task.forget[:_SHOWN]) + more
        counts = (len(task.forget), len(task.leave_out), len(task.missing))
        rows.append((number, *counts, numbers.duration(run.cost.seconds), what))
    return Table("Tasks", ("task", "forget", "old", "missing", "time", "what"), tuple(rows))


def finished(record: SequenceRecord) -> Table:
    """Return the scores of every task; of several seeds their mean and deviation."""
    numbers_of = [number for number in range(record.planned) if record.of(number)]
    shares = [
        (name, *(_share([task.score(name) for task in record.of(number)]) for number in numbers_of))
        for name in record.shares()
    ]
    times = ("time", *(_time([task.seconds for task in record.of(number)]) for number in numbers_of))
    title = "Scores after each task, in %"
    notes = [f"Mean and standard deviation over {len(record.seeds)} seeds."] if len(record.seeds) > 1 else []
    notes += record.doubts()
    return Table(title, ("score", *(f"task {number}" for number in numbers_of)), (*shares, times), tuple(notes))


def live(ended: Sequence[Mapping[str, Any]]) -> Table:
    """Return what was told of every task that has ended, one row each."""
    names = tuple(dict.fromkeys(name for values in ended for name in values["scores"]))
    seeded = any(values["seeds"] > 1 for values in ended)
    rows = []
    for values in ended:
        shares = (numbers.value(values["scores"].get(name), "fraction") for name in names)
        seed = (values["seed"],) if seeded else ()
        rows.append((values["number"], *seed, *shares, numbers.duration(values["seconds"])))
    return Table("", ("task", *(("seed",) if seeded else ()), *names, "time"), tuple(rows))


def _share(values: Sequence[float | None]) -> str:
    mean, deviation = mean_and_deviation(values)
    spread = f" ± {numbers.value(deviation, 'fraction')}" if deviation is not None else ""
    return numbers.value(mean, "fraction") + spread


def _time(seconds: Sequence[float]) -> str:
    mean, _ = mean_and_deviation(seconds)
    return numbers.duration(mean or 0.0)
