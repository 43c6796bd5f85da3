"""``vu revoke``: take concepts out of a composed run, or tasks out of a sequence, again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from vu_cli import numbers
from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.options import shared
from vu_cli.session import Evidence
from vu_core import RunRecord, Score, Scorecard, Table, VuError

EPILOG = """\b
Examples:
  vu revoke runs/three object:ring --out runs/two
  vu revoke runs/faces 1 --out runs/without-task-1
"""


@click.command(
    cls=Command, short_help="Take concepts out of a composed run, or tasks out of a sequence.", epilog=EPILOG
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("concepts", metavar="CONCEPT...", nargs=-1, required=True)
@click.option("--out", metavar="DIR", help="The new run folder itself; runs/<id> when absent.")
@shared(quiet=True)
@click.pass_context
def revoke(context: click.Context, run: Path, concepts: tuple[str, ...], out: str | None) -> list[RunRecord | Evidence]:
    """Make a run from RUN, which was composed, without the edits that forget each CONCEPT.

    The rest is added up anew from the edits in RUN: its edit is byte for byte what `vu compose` makes without the
    edits that were taken out. An edit that forgets several concepts goes as a whole: name all of them. RUN stays as
    it is. The new edit is also measured as RUN was, to see whether each CONCEPT is back.

    RUN may be the folder of a sequence, and CONCEPT then the number of a task. The other tasks are added up on the base
    model, and measured there.
    """
    from vu_core import components, workbench
    from vu_core.adapters import load_edit
    from vu_core.event import stage
    from vu_core.run_folder import EDIT

    session = sessions.of(context)
    with session.watching() as heard:
        left = components.revocable(run, concepts, session.plugins)
        rest = left.mixture
        record = workbench.compose(
            left.like,
            rest.components,
            session,
            heard,
            weights=rest.weights,
            strategy=rest.strategy,
            out=out,
            on_base=left.of_sequence,
        )
        if left.of_sequence:  # no evaluation has asked about all of its tasks at once
            return [session.untold(record)]
        try:
            with workbench.opened(run, session, heard) as bench, stage(bench.emit, "measure as before"):
                card = bench.measure(load_edit(record.folder / EDIT))
        except VuError as error:  # the new run is whole: it is shown, and then the error
            session.objection = error
            return [session.untold(record)]
    evidence = _evidence(left.gone, run, bench.record.scorecard, card)
    return [session.untold(record), attrs.evolve(evidence, warnings=heard.warned_besides(record))]


def _evidence(concepts: Sequence[str], run: Path, with_them: Scorecard | None, without: Scorecard) -> Evidence:
    """Return the scores of one evaluation with and without the edits of concepts, their own scores first.

    Args:
        concepts: what was revoked.
        run: the composed run, whose evaluation asks about the concepts.
        with_them: what was recorded of the composed run.
        without: what the same evaluation says about the new edit.
    """
    known = {(score.name, score.fingerprint): score.after for score in (with_them.scores if with_them else ())}
    scores = [score for score in without.scores if score.direction != "none" and score.unit != "bytes"]
    own = [score for score in scores if any(f"[{concept}]" in score.name for concept in concepts)]
    ordered = [*own, *(score for score in scores if score not in own)]
    rows, facts = [], []
    for score in ordered:
        was = known.get((score.name, score.fingerprint))  # absent where the metric has changed since
        values = (score.before, was, score.after)
        rows.append((score.name, numbers.unit(score.unit), *(numbers.value(value, score.unit) for value in values)))
        told = {"name": score.name, "unit": score.unit, "direction": score.direction, "own": score in own}
        facts.append({**told, "untouched": score.before, "with": was, "without": score.after})
    names = ", ".join(concepts)
    table = Table(
        f"{names}, asked about as in {run.resolve().name} ({without.split})",
        ("score", "unit", "untouched", f"with {names if len(concepts) == 1 else 'them'}", "without"),
        tuple(rows),
        tuple(_distance(score) for score in own if score.change is not None),
    )
    return Evidence((table,), {"concepts": list(concepts), "run": str(run), "split": without.split, "scores": facts})


def _distance(score: Score) -> str:
    unit = "points" if score.unit == "fraction" else score.unit
    return f"{score.name} is {numbers.value(abs(score.change or 0.0), score.unit)} {unit} from the untouched model."
