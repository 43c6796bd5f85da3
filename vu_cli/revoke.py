"""``vu revoke``: take a concept out of a composed run again."""

from __future__ import annotations

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
Example:
  vu revoke runs/three object:ring --out runs/two
"""


@click.command(cls=Command, short_help="Take a concept out of a composed run again.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("concept")
@click.option("--out", metavar="DIR", help="The new run folder itself; runs/<id> when absent.")
@shared(quiet=True)
@click.pass_context
def revoke(context: click.Context, run: Path, concept: str, out: str | None) -> list[RunRecord | Evidence]:
    """Make a run from RUN, which was composed, without the edit that forgets CONCEPT.

    The rest is added up anew from the edits in RUN: its edit is byte for byte what `vu compose` makes without the
    edit of CONCEPT. RUN stays as it is. The new edit is also measured as RUN was, to see whether CONCEPT is back.
    """
    from vu_core import components, workbench
    from vu_core.adapters import load_edit
    from vu_core.event import stage
    from vu_core.run_folder import EDIT

    session = sessions.of(context)
    with session.watching() as heard:
        rest = components.revocable(run, concept, session.plugins)
        record = workbench.compose(
            run, rest.components, session, heard, weights=rest.weights, strategy=rest.strategy, out=out
        )
        try:
            with workbench.opened(run, session, heard) as bench, stage(bench.emit, "measure as before"):
                card = bench.measure(load_edit(record.folder / EDIT))
        except VuError as error:  # the new run is whole: it is shown, and then the error
            session.objection = error
            return [session.untold(record)]
    evidence = _evidence(concept, run, bench.record.scorecard, card)
    return [session.untold(record), attrs.evolve(evidence, warnings=heard.warned_besides(record))]


def _evidence(concept: str, run: Path, with_it: Scorecard | None, without: Scorecard) -> Evidence:
    """Return the scores of one evaluation with and without the edit of a concept, its own scores first.

    Args:
        concept: what was revoked.
        run: the composed run, whose evaluation asks about the concept.
        with_it: what was recorded of the composed run.
        without: what the same evaluation says about the new edit.
    """
    known = {(score.name, score.fingerprint): score.after for score in (with_it.scores if with_it else ())}
    scores = [score for score in without.scores if score.direction != "none" and score.unit != "bytes"]
    own = [score for score in scores if f"[{concept}]" in score.name]
    ordered = [*own, *(score for score in scores if score not in own)]
    rows, facts = [], []
    for score in ordered:
        was = known.get((score.name, score.fingerprint))  # absent where the metric has changed since
        values = (score.before, was, score.after)
        rows.append((score.name, numbers.unit(score.unit), *(numbers.value(value, score.unit) for value in values)))
        told = {"name": score.name, "unit": score.unit, "direction": score.direction, "own": score in own}
        facts.append({**told, "untouched": score.before, "with": was, "without": score.after})
    table = Table(
        f"{concept}, asked about as in {run.resolve().name} ({without.split})",
        ("score", "unit", "untouched", f"with {concept}", "without"),
        tuple(rows),
        tuple(_distance(score) for score in own if score.change is not None),
    )
    return Evidence((table,), {"concept": concept, "run": str(run), "split": without.split, "scores": facts})


def _distance(score: Score) -> str:
    unit = "points" if score.unit == "fraction" else score.unit
    return f"{score.name} is {numbers.value(abs(score.change or 0.0), score.unit)} {unit} from the untouched model."
