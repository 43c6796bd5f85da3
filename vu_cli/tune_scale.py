"""``vu tune-scale``: the smallest strength of an edit that forgets enough, before anyone trains again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vu_cli import session as sessions
from vu_cli.command import Command, FiniteRange
from vu_cli.options import shared
from vu_cli.session import Evidence
from vu_cli.tuning import Tuned
from vu_core import RecordError, RunRecord, Scorecard
from vu_core.contracts import Host
from vu_core.event import Event
from vu_core.tuning import Bound, check_bounds, tune

if TYPE_CHECKING:
    from vu_core.components import Mixture

EPILOG = """\b
Examples:
  vu tune-scale runs/0123456789ab --target ua=0.95 --keep ira=-0.02,cra=-0.02
  vu tune-scale runs/0123456789ab --target ua=95% --trials 12 --out runs/gentle
"""


def _bounds(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[Bound, ...]:
    """Return what ``ua=0.95,ira=95%`` asks; a comma inside brackets belongs to the name of a score.

    Raises:
        click.BadParameter: something has no name or no number, or a score is named twice.
    """
    found: dict[str, Bound] = {}
    for part in re.split(r",(?![^\[]*\])", text) if text is not None else ():
        name, equals, value = (each.strip() for each in part.rpartition("="))
        share = value.endswith("%")
        try:
            number = float(value.removesuffix("%")) / (100 if share else 1)
        except ValueError:
            number = math.nan
        if not (name and equals and math.isfinite(number)):
            raise click.BadParameter(f"{part!r} is not like ua=0.95 or ua=95%.", context, parameter)
        if name in found:
            raise click.BadParameter(f"{name!r} is named more than once.", context, parameter)
        found[name] = Bound(name, number)
    return tuple(found.values())


@click.command(cls=Command, short_help="Find the smallest strength that forgets enough.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    required=True,
    callback=_bounds,
    metavar="SCORE=VALUE,...",
    help="What must be reached: the least value after the edit, or the largest where low is healthy.",
)
@click.option(
    "--keep",
    "keeps",
    callback=_bounds,
    metavar="SCORE=CHANGE,...",
    help="What it may cost: the least change against the untouched model, such as ira=-0.02.",
)
@click.option("--low", type=FiniteRange(min=0), metavar="S", default=0.0, show_default=True, help="Smallest scale.")
@click.option("--high", type=FiniteRange(min=0), metavar="S", default=2.0, show_default=True, help="Largest scale.")
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", default=8, show_default=True, help="Scales to measure at most."
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds per item; those of the run when absent.")
@click.option("--out", metavar="DIR", help="Make a run of the edit at the scale that was found.")
@shared(quiet=True)
@click.pass_context
def tune_scale(
    context: click.Context, /, run: Path, targets: tuple[Bound, ...], keeps: tuple[Bound, ...], **flags: Any
) -> list[Evidence | RunRecord]:
    """Find the smallest scale of the edit of RUN that reaches every --target, on validation seeds.

    The scale multiplies the edit: 0 is the untouched model, 1 what was trained. Scale 1 is measured first; then the
    range is halved, which assumes that a larger scale forgets more and keeps less. What was measured is written into
    RUN. Exit status 6 when no scale does what is asked.
    """
    from vu_core import components, pipeline, run_folder

    if not flags["low"] < flags["high"]:
        raise click.BadParameter(f"it must be above --low, which is {flags['low']:g}.", context, param_hint="'--high'")
    session = sessions.of(context)
    recorded = pipeline.read_record(run).scorecard
    if recorded is not None:  # a wrong name is told before anything is loaded, and so is a folder that is taken
        check_bounds(recorded, targets, keeps)
    if flags["out"] is not None:
        run_folder.check_vacant(Path(flags["out"]))
    with session.watching() as heard:
        mixture = components.taken_apart(run, session.plugins)[0] if flags["out"] is not None else None
        tuned = _tuned(run, targets, keeps, session, heard, flags)
        file = None
        try:
            file = tuned.write()
        except RecordError as error:  # what was measured is shown, and then the error
            session.objection = error
        evidence = tuned.evidence(file, tuple(heard.warnings))
        session.objection = session.objection or tuned.objection()
        if mixture is None or session.objection is not None:
            return [evidence]
        record = _run_of(run, mixture.times(tuned.scale), flags["out"], session, heard)
    return [evidence, session.untold(record)]


OnEvent = Callable[[Event], None]


def _tuned(
    run: Path,
    targets: tuple[Bound, ...],
    keeps: tuple[Bound, ...],
    host: Host,
    on_event: OnEvent,
    flags: Mapping[str, Any],
) -> Tuned:
    """Measure scales of the edit of a run until the search is content."""
    from vu_core.adapters import scaled
    from vu_core.event import stage
    from vu_core.workbench import opened

    settings = {"measure.split": "validation", **({} if flags["seeds"] is None else {"measure.seeds": flags["seeds"]})}
    cards: list[Scorecard] = []
    with opened(run, host, on_event, settings=settings) as bench:

        def measure(scale: float) -> Scorecard:
            with stage(bench.emit, f"measure at scale {scale:g}"):
                cards.append(bench.measure(scaled(bench.edit, scale, bench.model.network)))
            return cards[-1]

        found = tune(measure, targets, keeps, low=flags["low"], high=flags["high"], trials=flags["trials"])
        seeds = bench.bench.plan.config.measure.seeds
    return Tuned(run, found, cards[0], seeds)


def _run_of(run: Path, mixture: Mixture, out: str, host: Host, on_event: OnEvent) -> RunRecord:
    """Make a run of the scaled edit; of a composition, all of its edits are scaled, so that it stays one."""
    from vu_core.workbench import compose

    return compose(run, mixture.components, host, on_event, weights=mixture.weights, strategy=mixture.strategy, out=out)
