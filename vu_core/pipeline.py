"""One run: eight stages in a row, in a folder from which each of them can go on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vu_core import run_folder
from vu_core.blame import is_out_of_memory
from vu_core.config import Override, RawConfig, to_toml
from vu_core.errors import ConfigError, RecordError, UnlearnError, VuError
from vu_core.event import Event, stage
from vu_core.log_events import logs_as_events
from vu_core.plan import Plan
from vu_core.record import RunRecord
from vu_core.run import Section
from vu_core.score import Scorecard

if TYPE_CHECKING:
    from vu_core.edit import Edit
    from vu_core.plugins import Plugins
    from vu_core.stages.bench import Bench

OnEvent = Callable[[Event], None]
OnPlan = Callable[[Plan, Path], None]


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; `folder` can be resumed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; {folder} can be resumed")
        self.folder = folder


def dry_run(raw: RawConfig, *, plugins: Plugins, max_minutes: float | None = None, max_gb: float | None = None) -> Plan:
    """Understand a configuration and tell what it would do and cost: the first three stages; no weight is read.

    Args:
        raw: what `vu_core.stages.read.read` returned.
        plugins: who takes part.
        max_minutes: refuse a plan that would take longer.
        max_gb: refuse a plan that would need more memory, or more disk and downloads together, in 10^9 bytes.

    Raises:
        VuError: everything that is wrong with the configuration, the data or the model files.
    """
    from vu_core.stages.plan import plan
    from vu_core.stages.structure import structure

    return plan(structure(raw, plugins), plugins, max_minutes=max_minutes, max_gb=max_gb)


def execute(
    raw: RawConfig,
    *,
    plugins: Plugins,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
    max_minutes: float | None = None,
    max_gb: float | None = None,
    strict: bool = False,
) -> RunRecord:
    """Unlearn, measure and record: one whole run.

    Args:
        raw: what `vu_core.stages.read.read` returned.
        plugins: who takes part.
        on_event: sees every event.
        on_plan: sees the plan and the reserved run folder before anything heavy starts.
        max_minutes: refuse a plan that would take longer.
        max_gb: refuse a plan that would need more memory, or more disk and downloads together, in 10^9 bytes.
        strict: a status that is not ``ok`` is an error, raised after everything is recorded.

    Returns:
        What lies in the run folder.

    Raises:
        Interrupted: Ctrl-C; the folder can be resumed.
        UnlearnError: ``strict``, and the status is not ``ok`` (``VU-U052``).
        PluginError: the code of a plugin failed (``VU-P009``), whatever it raised.
        VuError: from the stages. A run that fails before anything worth resuming exists leaves no folder behind,
            whatever the failure; of one that can be resumed, the remedy says so.
    """
    plan = dry_run(raw, plugins=plugins, max_minutes=max_minutes, max_gb=max_gb)
    return carry_out(plan, plugins=plugins, on_event=on_event, on_plan=on_plan, strict=strict)


def carry_out(
    plan: Plan,
    *,
    plugins: Plugins,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
    strict: bool = False,
    furnish: Callable[[Plan, Path], Plan] | None = None,
    sections: Sequence[Section] = (),
) -> RunRecord:
    """Do what a plan says: the heavy stages, in a folder of their own.

    Args:
        plan: what `dry_run` returned.
        plugins: who takes part.
        on_event: sees every event.
        on_plan: sees the plan and the reserved run folder before anything heavy starts.
        strict: as for `execute`.
        furnish: puts files that the run needs into the reserved folder and returns the plan that knows of them; it
            may change nothing on which the id depends.
        sections: what the report shows besides.

    Raises:
        VuError: as for `execute`.
    """
    from vu_core.atomic import write_text

    folder, of_the_user = run_folder.reserve(plan.config.run.out, plan.run_id)
    with run_folder.lock(folder), _careful(folder, keep_folder=of_the_user):
        if furnish is not None:
            plan = furnish(plan, folder)
        with run_folder.writing(folder / run_folder.RUN):
            write_text(folder / run_folder.RUN, to_toml(plan.config))
        return _work(
            plan, plugins, folder, on_event=on_event, on_plan=on_plan, strict=strict, resuming=False, sections=sections
        )


def resume(
    folder: Path,
    *,
    plugins: Plugins,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
    strict: bool = False,
) -> RunRecord:
    """Continue an incomplete run where it stopped; on the CPU the edit is bitwise that of an uninterrupted run.

    Args:
        folder: the run folder.
        plugins: who takes part.
        on_event: sees every event.
        on_plan: sees the plan, made anew, and the folder.
        strict: as for `execute`.

    Raises:
        RecordError: there is no run (``VU-R052``), it is complete (``VU-R054``) or in use (``VU-R051``), or the model,
            the data or the versions are no longer those it began with (``VU-R053``).
    """
    _check_resumable(folder)
    with run_folder.lock(folder), _telling_how_to_go_on(folder):
        run_folder.remove_leftovers(folder)
        run_folder.read_events(folder)  # a damaged one is told now, and not when the record is made
        plan = dry_run(_read(folder), plugins=plugins)
        _check_unchanged(plan, folder)
        return _work(plan, plugins, folder, on_event=on_event, on_plan=on_plan, strict=strict, resuming=True)


def measure_run(
    folder: Path, *, plugins: Plugins, overrides: Sequence[Override] = (), on_event: OnEvent | None = None
) -> Scorecard:
    """Measure a run that has an edit once more, with other settings of ``[measure]`` and ``[metric.NAME]``.

    The scores go into ``scores-<split>-<seeds>.json`` beside ``scores.json``, or ``scores-<split>-<seeds>.2.json`` when
    there is one already; nothing is overwritten. The event ``written`` names the file.

    Args:
        folder: the run folder.
        plugins: who takes part.
        overrides: values of ``measure.*`` and ``metric.*`` keys.
        on_event: sees every event; a ``warning`` when the data has changed since the run.

    Raises:
        ConfigError: an override names another key (``VU-C050``). RecordError: there is no run or no edit
            (``VU-R052``), or its ``run.toml`` was changed (``VU-R053``).
    """
    from vu_core.stages.measure import measure
    from vu_core.stages.record import write_further_scores

    check_only_measuring(overrides)
    with opened(folder, plugins, overrides, on_event) as (bench, edit, emit):
        with stage(emit, "measure"):
            measured = measure(bench, edit)
        path = write_further_scores(folder, measured.scorecard, bench.plan.config.measure.seeds)
        emit(Event("written", "record", {"file": path.name}))
        return measured.scorecard


def check_only_measuring(overrides: Sequence[Override]) -> None:
    """Object to what cannot be changed after a run: all but how it is measured. Raises: ConfigError (``VU-C050``)."""
    for override in overrides:
        if override.key.partition(".")[0] not in ("measure", "metric"):
            raise ConfigError(
                "VU-C050",
                f"{override.key!r} cannot be changed after the run.",
                "Set keys of the tables [measure] and [metric.NAME], or start another run with `vu unlearn`.",
                where=override.origin,
            )


def read_record(folder: Path) -> RunRecord:
    """Return what lies in a run folder; needs neither plugins nor torch. Raises: RecordError."""
    from vu_core.stages.record import read_record as read

    return read(folder)


def _read(folder: Path, overrides: Sequence[Override] = ()) -> RawConfig:
    from vu_core.stages.read import read

    return read(folder / run_folder.RUN, overrides)


def _work(
    plan: Plan,
    plugins: Plugins,
    folder: Path,
    *,
    on_event: OnEvent | None,
    on_plan: OnPlan | None,
    strict: bool,
    resuming: bool,
    sections: Sequence[Section] = (),
) -> RunRecord:
    """Do the heavy stages in ``folder``, skipping what a resumed run has done already."""
    from vu_core.stages.load import cpu_threads

    log = run_folder.EventLog(folder / run_folder.EVENTS)
    emit = _emitter(plugins, log, on_event)
    try:
        if on_plan is not None:
            on_plan(plan, folder)
        with logs_as_events(_emitter(None, log, on_event)), cpu_threads(plan.config.run.threads):
            record = _stages(plan, plugins, folder, emit, resuming=resuming, sections=sections)
    except KeyboardInterrupt as stop:
        log.append(Event("interrupted", "run"))
        raise Interrupted(folder) from stop
    except VuError as error:
        log.append(Event("error", "run", error.as_dict()))
        raise
    except Exception as error:
        log.append(Event("error", "run", {"problem": f"{type(error).__name__}: {error}"}))
        if is_out_of_memory(error):
            remedy = "Use a smaller unlearner.training.batch_size with more accumulation, or --set run.precision=bf16."
            raise _out_of_memory(plan, remedy) from error
        raise
    _check_status(record, strict)
    return record


def _out_of_memory(plan: Plan, remedy: str) -> UnlearnError:
    return UnlearnError(
        "VU-U053",
        f"The device {plan.config.run.device!r} ran out of memory.",
        remedy,
        where="run.device",
    )


def _stages(
    plan: Plan, plugins: Plugins, folder: Path, emit: OnEvent, *, resuming: bool, sections: Sequence[Section] = ()
) -> RunRecord:
    from vu_core.adapters import load_edit, save_edit
    from vu_core.cache import dispensable
    from vu_core.cost import remember_speed
    from vu_core.stages.load import load
    from vu_core.stages.measure import measure
    from vu_core.stages.record import begin, record
    from vu_core.stages.unlearn import unlearn

    edit_file = folder / run_folder.EDIT
    if resuming:
        emit(Event("resume", "run", {"from": "measure" if edit_file.exists() else "unlearn"}))
    else:
        for note in plan.notes:
            emit(Event("note", "plan", {"text": note}))
    with stage(emit, "load"):
        bench = load(plan, plugins, folder, emit, resuming=resuming, with_data=not edit_file.exists())
        begin(bench, resuming=resuming)
    if not edit_file.exists():
        started = time.monotonic()
        for section in sections:
            bench.run.report.add(section.title, section.html)
        with stage(emit, "unlearn"):
            edit = unlearn(bench)
            for section in bench.run.report.sections:
                emit(Event("section", "unlearn", {"title": section.title, "html": section.html}))
            with run_folder.writing(edit_file):
                save_edit(edit, edit_file)
        served = getattr(bench.run.attribution, "served", ())
        if not resuming and not served:  # else only a part of the work was done
            with dispensable(bench.run.emit):
                remember_speed(plan, time.monotonic() - started)
    else:
        for event in run_folder.read_events(folder):
            if event["type"] == "section":
                bench.run.report.add(event["values"]["title"], event["values"]["html"])
    # What is measured is what lies on the disk.
    edit = load_edit(edit_file)
    with stage(emit, "measure"):
        measured = measure(bench, edit)
    with stage(emit, "record"):
        record(bench, measured)
    run_folder.remove_checkpoints(folder)
    return read_record(folder)


@contextmanager
def opened(
    folder: Path, plugins: Plugins, overrides: Sequence[Override], on_event: OnEvent | None
) -> Iterator[tuple[Bench, Edit, OnEvent]]:
    """Load model and edit of a run; its events are shown but not added to the finished record.

    Args:
        folder: the run folder.
        plugins: who takes part.
        overrides: values of ``measure.*``, ``metric.*`` and ``run.device``.
        on_event: sees every event.

    Raises:
        RecordError: there is no run or no edit (``VU-R052``), or its ``run.toml`` was changed (``VU-R053``).
    """
    from vu_core.stages.load import cpu_threads, load

    edit = read_edit(folder)
    plan = plan_again(folder, plugins, overrides)
    emit = _emitter(plugins, None, on_event)
    if _data_changed(plan, run_folder.read_environment(folder)):
        text = f"The data {plan.manifest.name!r} has changed since the run: what it holds out may have been trained on."
        emit(Event("warning", "load", {"text": text}))
    with logs_as_events(_emitter(None, None, on_event)), cpu_threads(plan.config.run.threads):
        try:
            with stage(emit, "load"):
                bench = load(plan, plugins, folder, emit, with_data=False)
            yield bench, edit, emit
        except Exception as error:
            if is_out_of_memory(error):
                free = "Stop what else uses its memory, or name another run.device in the run.toml of the run."
                raise _out_of_memory(plan, free) from error
            raise


def read_edit(folder: Path) -> Edit:
    """Return the edit of a run; needs no plugins.

    Raises:
        RecordError: there is no run or no edit (``VU-R052``). EditError: the edit cannot be read (``VU-E031``).
    """
    from vu_core.adapters import load_edit

    _check_run(folder)
    if not (folder / run_folder.EDIT).exists():
        raise RecordError(
            "VU-R052",
            f"The run {str(folder)!r} has no edit yet.",
            f"Finish it first: `vu unlearn --resume {shlex.quote(str(folder))}`.",
            where=str(folder),
        )
    return load_edit(folder / run_folder.EDIT)


def plan_again(folder: Path, plugins: Plugins, overrides: Sequence[Override] = ()) -> Plan:
    """Return the plan of a run that has an edit, made anew.

    Raises:
        RecordError: apart from ``measure.*``, ``metric.*`` and ``run.device``, its ``run.toml`` is no longer the one
            that it was made with (``VU-R053``).
    """
    from vu_core.stages.load import changed_keys

    plan = dry_run(_read(folder, overrides), plugins=plugins)
    then = run_folder.read_environment(folder)
    asked_otherwise = ("measure.", "metric.", "run.device")
    edited = [key for key in changed_keys(plan.config, then) if not key.startswith(asked_otherwise)]
    if edited:
        raise run_folder.changed_since(folder, [_in_run_toml(edited)], doing="be used")
    return plan


def _emitter(plugins: Plugins | None, log: run_folder.EventLog | None, on_event: OnEvent | None) -> OnEvent:
    """Return who spreads an event: to the file, to listening plugins, to the caller.

    Log records go without plugins, because a listener that fails is logged itself.
    """

    def emit(event: Event) -> None:
        if log is not None and event.durable:
            log.append(event)
        if plugins is not None:
            plugins.tell(event)
        if on_event is not None:
            on_event(event)

    return emit


@contextmanager
def _careful(folder: Path, *, keep_folder: bool) -> Iterator[None]:
    """Take back the folder of a run that failed before there was anything to go on from; empty it when it was there."""
    try:
        with _telling_how_to_go_on(folder):
            yield
    except Exception:  # whatever a plugin raised, and on it goes; after Ctrl-C, no Exception, the folder stays
        run_folder.remove_if_nothing_was_won(folder, keep_folder=keep_folder)
        raise


@contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to the remedy of an error how a run goes on that has won something already."""
    try:
        yield
    except RecordError:  # says itself what the folder lacks
        raise
    except VuError as error:
        if run_folder.has_won_something(folder) and run_folder.state_of(folder) == "incomplete":
            place = shlex.quote(str(folder))
            error.remedy += (
                f" If neither the configuration nor a version has to change, the run goes on with "
                f"`vu unlearn --resume {place}`."
            )
            if (folder / run_folder.EDIT).exists():  # a metric that fails must not cost a training
                error.remedy += f" Its edit is kept: `vu measure {place} --set measure.metrics=[...]` measures it."
        raise


def _check_run(folder: Path) -> None:
    if run_folder.state_of(folder) in ("absent", "empty", "foreign"):
        raise run_folder.no_run(folder)


def _check_resumable(folder: Path) -> None:
    _check_run(folder)
    if run_folder.state_of(folder) == "complete":
        raise RecordError(
            "VU-R054",
            f"The run {str(folder)!r} is complete; there is nothing to resume.",
            f"Repeat it with `vu unlearn -c {shlex.quote(str(folder / run_folder.RUN))}`, or measure again: "
            f"`vu measure {shlex.quote(str(folder))}`.",
            where=str(folder),
        )


def _check_unchanged(plan: Plan, folder: Path) -> None:
    """Object when configuration, data or versions are not those of the beginning; the model is compared when loaded."""
    from vu_core.stages.load import changed_keys

    if not (folder / run_folder.ENVIRONMENT).exists():  # killed while it loaded: nothing was done that could disagree
        return
    then = run_folder.read_environment(folder)
    changed = []
    edited = changed_keys(plan.config, then)
    if edited:
        changed.append(_in_run_toml(edited))
    if _data_changed(plan, then):
        changed.append(f"the data {plan.manifest.name!r}")
    versions = then.get("versions", {})
    for name in sorted({*versions, *plan.versions}):
        was, now = versions.get(name, "absent"), plan.versions.get(name, "absent")
        if was != now:
            changed.append(f"{name} (was {was}, is {now})")
    if changed:
        raise run_folder.changed_since(folder, changed)


def _in_run_toml(keys: Sequence[str]) -> str:
    return f"the configuration in {run_folder.RUN} ({', '.join(keys)})"


def _data_changed(plan: Plan, environment: Mapping[str, Any]) -> bool:
    return bool(environment.get("data", {}).get("digest") != plan.manifest.digest)


def _check_status(record: RunRecord, strict: bool) -> None:
    card = record.scorecard
    if not strict or card is None or card.status == "ok":
        return
    problem = {"not_forgotten": "Forgetting did not happen", "retain_collapsed": "What should stay was damaged"}
    raise UnlearnError(
        "VU-U052",
        f"{problem[card.status]}: {' '.join(card.reasons)}",
        f"The run is recorded: look at {record.folder / run_folder.REPORT}. Train longer or with other weights.",
        where=str(record.folder),
    )
