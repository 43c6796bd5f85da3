"""``vu compose``: several erased concepts in one edit, and which of the edits hurts which concept."""

from __future__ import annotations

from pathlib import Path

import click

from vu_cli import numbers
from vu_cli import session as sessions
from vu_cli.command import Command, FiniteNumber
from vu_cli.options import measuring, seeds_option, set_measuring_option, shared
from vu_cli.session import Evidence
from vu_core import RunRecord, Table, VuError
from vu_core.interference import Interference

EPILOG = """\b
Examples:
  vu compose runs/neon runs/ring runs/rust --out runs/three
  vu compose runs/neon runs/ring --weights 1,0.8 --seeds 10
"""


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Return numbers with commas between them. Raises: click.BadParameter for anything else."""
    if text is None:
        return None
    return tuple(FiniteNumber().convert(each.strip(), parameter, context) for each in text.split(","))


@click.command(cls=Command, short_help="Put the edits of several runs into one.", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--weights", callback=_numbers, metavar="W,W,...", help="Strength of each edit, in the order of the runs."
)
@click.option(
    "--strategy",
    type=click.Choice(("sum", "orthogonal")),
    default="sum",
    show_default=True,
    help="sum: all changes as they are; orthogonal: what several share counts once.",
)
@click.option("--no-interference", is_flag=True, help="Do not measure the edits one by one.")
@seeds_option
@set_measuring_option
@click.option("--out", metavar="DIR", help="The run folder itself; runs/<id> when absent.")
@shared(quiet=True)
@click.pass_context
def compose(
    context: click.Context,
    runs: tuple[Path, ...],
    weights: tuple[float, ...] | None,
    strategy: str,
    no_interference: bool,
    seeds: int | None,
    settings: tuple[str, ...],
    out: str | None,
) -> list[RunRecord | Evidence]:
    """Make a run whose edit is the sum of the edits of RUNS: it forgets what each of them forgets.

    The folder of a sequence stands for all of its tasks.

    The runs must have one model and one kind of data; of a run that was composed, every edit takes part by itself, so
    that `vu revoke` can take each out again. Everything is measured as in the first run; --set takes the keys of
    [measure] and [metric.NAME]. Then every edit is measured alone, and left out once.
    """
    from vu_core import components, pipeline, workbench

    session = sessions.of(context)
    changes = measuring(settings, seeds=seeds)
    pipeline.check_only_measuring(changes)
    runs = components.runs_in(runs)
    with session.watching() as heard:
        mixture = components.gathered(runs, session.plugins, weights=weights, strategy=strategy)
        alone = no_interference or len(mixture.components) < 2
        if not alone:
            chosen = f" --strategy {strategy}" if strategy != "sum" else ""
            session.interruption.further = f"vu compose{chosen}"  # of the finished run, taken apart again
        record = workbench.compose(
            runs[0],
            mixture.components,
            session,
            heard,
            weights=mixture.weights,
            strategy=strategy,
            out=out,
            settings={change.key: change.value for change in changes},
        )
        if alone:
            return [session.untold(record)]
        try:
            with workbench.opened(record.folder, session, heard) as bench:
                found = components.interference(bench, mixture)
            found.write(record.folder)
        except VuError as error:  # the run is whole: it is shown, and then the error
            session.objection = error
            return [session.untold(record)]
        record = pipeline.read_record(record.folder)
    return [session.untold(record), Evidence(tables_of(found), found.as_json(), heard.warned_besides(record))]


def tables_of(found: Interference) -> tuple[Table, Table]:
    """Return the scores of each edit alone and of all, and what each edit adds to the others."""
    names = [", ".join(forget) for forget in found.edits]
    scores, effects = [], []
    for score in found.scores:
        before = found.untouched.get(score.name)

        def cell(after: float | None, before: float | None = before, unit: str = score.unit) -> str:
            change = numbers.difference(None if before is None or after is None else after - before, unit)
            return numbers.value(after, unit) + (f" ({change})" if change else "")

        label = (score.name, numbers.unit(score.unit))
        alone = (cell(values.get(score.name)) for values in found.alone)
        scores.append((*label, numbers.value(before, score.unit), *alone, cell(found.together.get(score.name))))
        added = (numbers.difference(found.effect(place, score.name), score.unit) for place in range(len(names)))
        effects.append((*label, *added))
    seeds = f"{found.split}, {found.seeds} {'seed' if found.seeds == 1 else 'seeds'}"
    return (
        Table(
            f"Each edit alone, and all together ({seeds})",
            ("score", "unit", "untouched", *names, "together"),
            tuple(scores),
            ("In parentheses: the change against the untouched model.",),
        ),
        Table(
            "What each edit adds: all together, minus all but it",
            ("score", "unit", *names),
            tuple(effects),
            (_worst(found, names),),
        ),
    )


def _worst(found: Interference, names: list[str]) -> str:
    harm = found.harm
    if not found.scores:
        return "No score that was measured can be better or worse."
    if harm is None:
        return "Beside the others, no edit costs any score anything."
    unit = "points" if harm.score.unit == "fraction" else harm.score.unit
    loss = numbers.value(harm.loss, harm.score.unit)
    return f"Beside the others, {names[harm.edit]} costs most: {loss} {unit} of {harm.score.name}."
