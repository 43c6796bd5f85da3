"""``vu unlearn``: one whole run, or its plan, or the rest of an interrupted one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from vu_cli import session as sessions
from vu_cli.command import PositiveNumber, SectionedCommand
from vu_cli.completion import names_of
from vu_cli.options import overrides, reference_option, set_option, shared
from vu_cli.session import Session
from vu_cli.silence import silenced
from vu_core import ConfigError, Plan, RunRecord, UnlearnError
from vu_core.sequence_record import SequencePlan, SequenceRecord

RecordT = TypeVar("RecordT", RunRecord, SequenceRecord)
Noun = RunRecord | Plan | SequenceRecord | SequencePlan

SECTIONS = {
    "What": ("method", "model", "data", "forget", "overwrite", "sequence"),
    "How": ("weighting", "parameters", "regularizer", "seed", "device", "config", "settings"),
    "Run": ("out", "reference", "resume", "dry_run", "max_minutes", "max_gb", "strict"),
    "Output": ("quiet", "as_json", "help"),
}
NOT_OK = "VU-U052"
"""Code of the objection that ``--strict`` raises after the run is recorded."""
_WITH_RESUME = {"resume", "strict"}

EPILOG = """\b
Examples:
  vu unlearn --method fade-sparse --forget style:neon
  vu unlearn --method fade --model ./my-pipeline --data ./my-images --overwrite "a dog"
  vu unlearn -c run.toml --set unlearner.training.lr=1e-3 --dry-run
"""


@click.command(
    cls=SectionedCommand, sections=SECTIONS, short_help="Make a model forget, and measure it.", epilog=EPILOG
)
@click.option("--method", metavar="NAME", shell_complete=names_of("unlearner"), help="The unlearning method.")
@click.option(
    "--model",
    metavar="NAME|NAME=REF|PATH|ID",
    shell_complete=names_of("model", paths=True),
    help="The model: a registered name, a folder, or owner/name on the hub.",
)
@click.option(
    "--data",
    metavar="NAME|NAME=REF|PATH",
    shell_complete=names_of("dataset", paths=True),
    help="The data that shows what to forget and what to keep.",
)
@click.option("--forget", multiple=True, metavar="CONCEPT", help="What must go, such as style:neon. Repeatable.")
@click.option("--overwrite", multiple=True, metavar="CONCEPT", help="What takes its place: one for all, or one each.")
@click.option("--weighting", metavar="NAME", shell_complete=names_of("weighting"), help="How gradients are joined.")
@click.option("--parameters", metavar="NAME", shell_complete=names_of("parameters"), help="What is trained.")
@click.option(
    "--regularizer",
    multiple=True,
    metavar="NAME",
    shell_complete=names_of("regularizer"),
    help="A penalty or projection. Repeatable.",
)
@click.option(
    "--sequence",
    metavar="NAME",
    shell_complete=names_of("sequence"),
    help="Forget the classes of the data in several tasks, one after the other.",
)
@click.option("--seed", type=int, metavar="N", help="Root of all random numbers; drawn and recorded when absent.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps.")
@reference_option
@click.option("-c", "--config", metavar="FILE", help="A TOML file with any key; a run.toml repeats its run.")
@set_option
@click.option("--out", metavar="DIR", help="The run folder itself; runs/<id> when absent.")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Continue an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its cost; read no weights, write nothing.")
@click.option("--max-minutes", type=PositiveNumber(), metavar="M", help="Refuse a plan that takes longer.")
@click.option(
    "--max-gb",
    type=PositiveNumber(),
    metavar="GB",
    help="Refuse a plan that needs more memory, or more disk and downloads together.",
)
@click.option("--strict", is_flag=True, help="Exit with 6 when forgetting did not happen or the rest was damaged.")
@shared(quiet=True)
@click.pass_context
def unlearn(context: click.Context, /, **flags: Any) -> Noun:
    """Make a model forget a concept, and measure what was forgotten and what was kept.

    Without options it starts the default run at once; --dry-run shows the plan of any run, and starts nothing.
    Ctrl-C leaves a run that --resume continues.

    Everything that is not said comes from the method, from the recipe for this model, or from what is installed by
    default. The run folder holds the edit, the scores, images, a report and a run.toml that repeats the run.
    """
    session = sessions.of(context)
    if flags["resume"] is not None:
        _refuse_with_resume(context)
        return _resume(flags["resume"], session, strict=flags["strict"])
    return _execute(flags, session)


def _execute(flags: Mapping[str, Any], session: Session) -> Noun:
    from vu_core import pipeline, sequence
    from vu_core.stages.read import read

    config = Path(flags["config"]) if flags["config"] is not None else None
    raw = read(config, overrides(flags, flags["settings"]))
    budget = {"max_minutes": flags["max_minutes"], "max_gb": flags["max_gb"]}
    if sequence.describes_sequence(raw):
        if flags["dry_run"]:
            with silenced():
                return sequence.dry_run(raw, plugins=session.plugins, **budget)
        return _watched(session, sequence.execute, raw, strict=flags["strict"], **budget)
    if flags["dry_run"]:
        with silenced():
            return pipeline.dry_run(raw, plugins=session.plugins, **budget)
    return _watched(session, pipeline.execute, raw, strict=flags["strict"], **budget)


def _resume(folder: Path, session: Session, *, strict: bool) -> RunRecord | SequenceRecord:
    from vu_core import pipeline, sequence

    session.interruption.folder = folder
    if sequence.holds_sequence(folder):
        return _watched(session, sequence.resume, folder, strict=strict)
    return _watched(session, pipeline.resume, folder, strict=strict)


def _watched(session: Session, work: Callable[..., RecordT], *arguments: Any, **settings: Any) -> RecordT:
    """Run ``work`` with progress, show its plan, and keep its record if ``--strict`` objects."""
    from vu_core import pipeline, sequence

    with session.watching() as watch:
        try:
            record = work(*arguments, plugins=session.plugins, on_event=watch, on_plan=session.announce, **settings)
        except UnlearnError as objection:
            if not settings["strict"] or objection.code != NOT_OK:
                raise
            session.objection = objection
            folder = Path(objection.where)
            found = sequence if sequence.holds_sequence(folder) else pipeline
            record = cast(RecordT, found.read_record(folder))
    return session.untold(record)


def _refuse_with_resume(context: click.Context) -> None:
    """Raise a ConfigError if anything is set beside ``--resume``: an interrupted run goes on as it began."""
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in context.params
        and parameter.name not in _WITH_RESUME
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            "VU-C123",
            f"--resume continues a run as it began, so {', '.join(given)} cannot be given with it.",
            "Leave it out, or start a new run with -c RUN/run.toml and the change.",
            where="--resume",
        )
