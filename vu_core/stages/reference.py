"""The run that another one is compared with: ``measure.reference``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from vu_core import run_folder
from vu_core.errors import MeasureError, RecordError
from vu_core.score import Score, Scorecard

REMEDY = "Name the folder of a finished run with --reference or measure.reference, such as that of a retrained model."


def read_reference(place: str) -> Scorecard:
    """Return the scores of a stored run.

    Args:
        place: its folder.

    Raises:
        RecordError: there is no run with scores (``VU-R140``), or a file cannot be read (``VU-R056``).
    """
    from vu_core.stages.record import read_record

    folder = Path(place).expanduser()
    if run_folder.state_of(folder) in ("absent", "empty", "foreign"):
        raise RecordError("VU-R140", f"The reference {place!r} is no run.", REMEDY, where="measure.reference")
    card = read_record(folder).scorecard
    if card is None:
        raise RecordError("VU-R140", f"The reference {place!r} has no scores yet.", REMEDY, where="measure.reference")
    return card


def comparable(card: Scorecard, fingerprints: Callable[[str], Iterable[str]]) -> Scorecard:
    """Return the part of a reference that answers the questions of this run.

    Args:
        card: of the reference.
        fingerprints: tells for the name of a score the fingerprints that metrics of this run would give it.

    Raises:
        MeasureError: there is none (``VU-S112``).
    """
    kept = tuple(score for score in card.scores if score.fingerprint in set(fingerprints(score.name)))
    if kept:
        return attrs.evolve(card, scores=kept)
    raise other_questions([score.name for score in card.scores])


def beside(scores: Sequence[Score], card: Scorecard, reference: Scorecard) -> tuple[Score, ...]:
    """Return the scores, each with that of the reference where both were asked the same.

    Args:
        scores: of this run.
        card: all scores of the reference.
        reference: its comparable part.

    Raises:
        MeasureError: the reference has a score of that name, but of another question (``VU-S112``).
    """
    known = {(score.name, score.fingerprint): score.after for score in reference.scores}
    names = {score.name for score in card.scores}
    found = [attrs.evolve(score, reference=known.get((score.name, score.fingerprint))) for score in scores]
    strangers = [score.name for score in found if score.reference is None and score.name in names]
    if strangers:
        raise other_questions(strangers)
    return tuple(found)


def other_questions(names: Sequence[str]) -> MeasureError:
    """Return the error about scores that were not asked the same."""
    return MeasureError(
        "VU-S112",
        f"The reference was measured on something else: {', '.join(names)} there has another fingerprint than here.",
        "Measure both runs with the same data, forget and [measure] settings and versions, or leave the metrics out.",
        where="measure.reference",
    )
