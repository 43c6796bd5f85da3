"""A sequence of runs: each begins with the model that the one before has left.

    runs/<id>/sequence.toml           repeats the sequence
    runs/<id>/sequence.json           every score of every task, mean and deviation over the seeds
    runs/<id>/tasks/<k>/              a run folder as any other; with several seeds: seeds/<s>/tasks/<k>/

The life cycle of each run is that of `vu_core.pipeline`. What is done first and what comes after a kill is one and the
same: the folder is worked through from its beginning, finished tasks are read, one that has begun is resumed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vu_core import pipeline, run_folder
from vu_core.atomic import write_text
from vu_core.config import RawConfig
from vu_core.errors import RecordError, UnlearnError, VuError
from vu_core.event import Event
from vu_core.pipeline import Interrupted, OnEvent
from vu_core.record import RunRecord
from vu_core.run_folder import SEQUENCE
from vu_core.sequence_plan import Chain, describes_sequence, dry_run, understand
from vu_core.sequence_record import SEQUENCE_JSON, SequencePlan, SequenceRecord, TaskRecord, to_json

if TYPE_CHECKING:
    from vu_core.plugins import Plugins

OnPlan = Callable[[SequencePlan, Path], None]

TASKS, SEEDS = "tasks", "seeds"
FILES = {
    SEQUENCE: "the configuration of all tasks; `vu unlearn -c sequence.toml` repeats the sequence",
    SEQUENCE_JSON: "every score of every task, with mean and deviation over the seeds",
    TASKS: "the run folders of the tasks",
    SEEDS: "the run folders of the tasks, seed by seed",
    run_folder.REPORT: "the report: how the scores change from task to task",
    run_folder.CARD: "the same as a table",
}
"""What lies in the folder of a sequence, and what it is."""

__all__ = [
    "Interrupted",
    "describes_sequence",
    "dry_run",
    "execute",
    "holds_sequence",
    "read_record",
    "resume",
    "understand",
]


def holds_sequence(folder: Path) -> bool:
    """Tell whether a folder is that of a sequence."""
    return (folder / SEQUENCE).is_file()


def execute(
    raw: RawConfig,
    *,
    plugins: Plugins,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
    max_minutes: float | None = None,
    max_gb: float | None = None,
    strict: bool = False,
) -> SequenceRecord:
    """Run every task of a sequence, one after the other, and record all of them together.

    Args:
        raw: what `vu_core.stages.read.read` returned.
        plugins: who takes part.
        on_event: sees the events of every run, and between them ``task`` (``number``, ``planned``, ``seed``, ``seeds``,
            ``state``: ``begin`` or ``end``, and then ``seconds`` and the shares that were measured, ``scores``).
        on_plan: sees the plan and the reserved folder before anything heavy starts.
        max_minutes: refuse a sequence that would take longer, all its runs together.
        max_gb: refuse one that would need more memory, or more disk and downloads together, in 10^9 bytes.
        strict: a task whose status is not ``ok`` is an error, raised after everything is recorded.

    Returns:
        What lies in the folder.

    Raises:
        Interrupted: Ctrl-C; the folder can be resumed.
        UnlearnError: ``strict``, and the status of a task is not ``ok`` (``VU-U052``).
        VuError: from the runs; `resume` goes on after the finished ones.
    """
    plan = dry_run(raw, plugins=plugins, max_minutes=max_minutes, max_gb=max_gb)
    folder, of_the_user = run_folder.reserve(plan.plans[0].config.run.out, plan.run_id)
    with run_folder.lock(folder), _careful(folder, keep_folder=of_the_user):
        with run_folder.writing(folder / SEQUENCE):
            write_text(folder / SEQUENCE, plan.text)
        return _work(plan, folder, plugins, on_event=on_event, on_plan=on_plan, strict=strict)


def resume(
    folder: Path,
    *,
    plugins: Plugins,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
    strict: bool = False,
) -> SequenceRecord:
    """Continue a sequence where it stopped, be it in the middle of a task.

    Args:
        folder: that of the sequence.
        plugins: who takes part.
        on_event: as for `execute`.
        on_plan: as for `execute`; the plan is made anew.
        strict: as for `execute`.

    Raises:
        RecordError: there is no sequence (``VU-R052``), it is complete (``VU-R054``) or in use (``VU-R051``), or the
            model, the data, the configuration or a version is no longer the one that it began with (``VU-R053``).
    """
    if not holds_sequence(folder):
        raise run_folder.no_run(folder)
    if (folder / run_folder.CARD).exists():
        raise RecordError(
            "VU-R054",
            f"The sequence {str(folder)!r} is complete; there is nothing to resume.",
            f"Repeat it with `vu unlearn -c {shlex.quote(str(folder / SEQUENCE))}`.",
            where=str(folder),
        )
    with run_folder.lock(folder), _telling_how_to_go_on(folder):
        run_folder.remove_leftovers(folder)
        plan = dry_run(_read(folder), plugins=plugins)
        _check_unchanged(plan, folder)
        return _work(plan, folder, plugins, on_event=on_event, on_plan=on_plan, strict=strict)


def read_record(folder: Path) -> SequenceRecord:
    """Return what lies in the folder of a sequence, complete or not; needs neither plugins nor torch.

    Raises:
        RecordError: there is no sequence (``VU-R052``), or a file cannot be read (``VU-R056``).
    """
    if not holds_sequence(folder):
        raise run_folder.no_run(folder)
    told = run_folder.read_json(folder / SEQUENCE_JSON)
    try:
        finished = [
            (task["task"], task["name"], run["seed"], run["folder"]) for task in told["tasks"] for run in task["runs"]
        ]
        record = SequenceRecord(
            folder=folder,
            run_id=told["id"],
            name=told["sequence"],
            method=told["method"],
            model=told["model"],
            data=told["data"],
            seeds=tuple(told["seeds"]),
            planned=told["planned"],
            tasks=(),
        )
    except (KeyError, TypeError) as error:
        raise run_folder.unreadable(folder / SEQUENCE_JSON, f"it tells of no sequence ({error})") from error
    tasks = [TaskRecord(*about, pipeline.read_record(folder / about[-1])) for about in finished]
    ordered = sorted(tasks, key=lambda task: (record.seeds.index(task.seed), task.number))
    return attrs.evolve(record, tasks=tuple(ordered), files=_files(folder))


def _files(folder: Path) -> dict[str, str]:
    return {name: what for name, what in FILES.items() if (folder / name).exists()}


def _read(folder: Path) -> RawConfig:
    from vu_core.stages.read import read

    return read(folder / SEQUENCE)


def _check_unchanged(plan: SequencePlan, folder: Path) -> None:
    """Object when what names the sequence is no longer what it was when it began."""
    path = folder / SEQUENCE_JSON
    if path.exists() and run_folder.read_json(path).get("id") != plan.run_id:
        changed = f"the configuration in {SEQUENCE}, the model, the data or a version"
        raise run_folder.changed_since(folder, [changed], file=SEQUENCE)


def _work(
    plan: SequencePlan,
    folder: Path,
    plugins: Plugins,
    *,
    on_event: OnEvent | None,
    on_plan: OnPlan | None,
    strict: bool,
) -> SequenceRecord:
    """Work through the folder from its beginning: read finished runs, resume the one that has begun, do the others."""
    from vu_core.sequence_report import write_report

    tell = on_event or (lambda event: None)
    chain = understand(_read(folder), plugins)
    config = plan.plans[0].config
    record = SequenceRecord(
        folder=folder,
        run_id=plan.run_id,
        name=plan.name,
        method=config.unlearner.name,
        model=config.model.name + (f"={config.model.ref}" if config.model.ref else ""),
        data=config.data.name + (f"={config.data.ref}" if config.data.ref else ""),
        seeds=plan.seeds,
        planned=len(plan.tasks),
        tasks=(),
        notes=plan.notes,
    )
    _write(record)
    if on_plan is not None:
        on_plan(plan, folder)
    for seed in plan.seeds:
        for number in range(len(plan.tasks)):
            done = _task(chain, record, number, seed, plugins, tell)
            record = attrs.evolve(record, tasks=(*record.tasks, done))
            _write(record)
    write_report(attrs.evolve(record, files=_files(folder)))
    record = attrs.evolve(record, files=_files(folder))
    _check_status(record, strict)
    return record


def _task(chain: Chain, record: SequenceRecord, number: int, seed: int, plugins: Plugins, tell: OnEvent) -> TaskRecord:
    """Do one task with one seed, or what is left of it; read it when it is finished."""
    places = [_place(record, each, seed) for each in range(number + 1)]
    earlier = [record.folder / place / run_folder.EDIT for place in places[:-1]]
    folder = record.folder / places[-1]
    about = {"number": number, "planned": record.planned, "seed": seed, "seeds": len(record.seeds)}
    state = run_folder.state_of(folder)
    tell(Event("task", "sequence", {**about, "state": "begin", "name": chain.tasks[number].name}))
    run: RunRecord
    if state == "complete":
        run = pipeline.read_record(folder)
    elif state == "incomplete":
        run = pipeline.resume(folder, plugins=plugins, on_event=tell)
    else:
        raw = chain.run(number, seed=seed, edits=earlier, out=folder)
        run = pipeline.execute(raw, plugins=plugins, on_event=tell)
    done = TaskRecord(number, chain.tasks[number].name, seed, places[-1], run)
    scores = {name: done.score(name) for name in done.shares()}
    tell(Event("task", "sequence", {**about, "state": "end", "seconds": round(done.seconds, 3), "scores": scores}))
    return done


def _place(record: SequenceRecord, number: int, seed: int) -> str:
    """Return the run folder of a task, relative to that of the sequence."""
    return f"{TASKS}/{number}" if len(record.seeds) == 1 else f"{SEEDS}/{seed}/{TASKS}/{number}"


def _write(record: SequenceRecord) -> None:
    path = record.folder / SEQUENCE_JSON
    with run_folder.writing(path):
        write_text(path, json.dumps(to_json(record), indent=2, allow_nan=False) + "\n")


@contextmanager
def _careful(folder: Path, *, keep_folder: bool) -> Iterator[None]:
    """Take back the folder of a new sequence in which nothing was won, as that of a run."""
    try:
        with _telling_how_to_go_on(folder):
            yield
    except Exception:  # whatever a plugin raised, and on it goes; after Ctrl-C, no Exception, the folder stays
        if not _began(folder):
            _take_back(folder, keep_folder=keep_folder)
        raise


@contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to the remedy of an error how a sequence goes on that has begun a run, and name its folder after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(folder) from stop
    except RecordError:  # says itself what the folder lacks
        raise
    except VuError as error:
        if _began(folder) and not (folder / run_folder.CARD).exists():
            again = f"`vu unlearn --resume {shlex.quote(str(folder))}`"
            error.remedy += f" The sequence goes on, from where it stopped, with {again}."
        raise


def _began(folder: Path) -> bool:
    """Tell whether a run of the sequence has left anything behind."""
    return any(folder.glob(f"**/{run_folder.RUN}"))


def _take_back(folder: Path, *, keep_folder: bool) -> None:
    """Remove what a sequence has written whose first run failed early, and so left nothing behind."""
    for name in (SEQUENCE, SEQUENCE_JSON, run_folder.LOCK):
        (folder / name).unlink(missing_ok=True)
    inner = sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True)
    with suppress(OSError):  # something of a plugin lies in it
        for each in (*inner, *(() if keep_folder else (folder,))):
            each.rmdir()


def _check_status(record: SequenceRecord, strict: bool) -> None:
    if not strict:
        return
    for task in record.tasks:
        card = task.run.scorecard
        if card is not None and card.status != "ok":
            raise UnlearnError(
                "VU-U052",
                f"Task {task.number} (seed {task.seed}) is {card.status!r}: {' '.join(card.reasons)}",
                f"The sequence is recorded: look at {record.folder / run_folder.REPORT}.",
                where=str(record.folder),
            )
