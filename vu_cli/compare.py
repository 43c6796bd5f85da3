"""``vu compare``: several runs side by side."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vu_cli.command import Command
from vu_cli.comparison import Comparison, Row
from vu_cli.options import shared
from vu_core import RecordError, RunRecord, Score

EPILOG = """\b
Example:
  vu compare runs/0123456789ab runs/ba9876543210
"""


@click.command(cls=Command, short_help="Show the scores and settings of several runs side by side.", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@shared()
def compare(runs: tuple[Path, ...]) -> Comparison:
    """Show the scores of RUNS side by side, and the settings in which they differ.

    Only numbers of the same definition (metric, version, judge, items, sampling) stand in one row.
    """
    from vu_core import pipeline

    records = [pipeline.read_record(run) for run in runs]
    if len(records) < 2:
        raise click.UsageError("Name at least two runs.")
    rows = _rows([_scores(record) for record in records])
    notes = (*_repeated(runs), *_notes(records, rows))
    return Comparison(_labels(records), rows, _differences([_settings(run) for run in runs]), notes)


def _scores(record: RunRecord) -> tuple[Score, ...]:
    return record.scorecard.scores if record.scorecard is not None else ()


def _rows(runs: Sequence[tuple[Score, ...]]) -> tuple[Row, ...]:
    """Give every (name, unit, fingerprint, seeds) a row, in order of first appearance, rows of one name together."""
    found: dict[tuple[str, str, str, tuple[int, ...]], list[Score | None]] = {}
    for place, scores in enumerate(runs):
        for score in scores:
            cells = found.setdefault((score.name, score.unit, score.fingerprint, score.seeds), [None] * len(runs))
            cells[place] = score
    names = list(dict.fromkeys(name for name, *_ in found))
    ordered = sorted(found.items(), key=lambda item: names.index(item[0][0]))
    return tuple(Row(name, unit, print_, tuple(cells)) for (name, unit, print_, _), cells in ordered)


def _labels(records: Sequence[RunRecord]) -> tuple[str, ...]:
    return tuple(f"{record.folder.name}\n{record.method}\n{', '.join(record.forget)}" for record in records)


def _repeated(runs: Sequence[Path]) -> list[str]:
    """Return a note per run that was named more than once."""
    places = [run.resolve() for run in runs]
    return [
        f"{place.name} was named {places.count(place)} times: its columns are one run."
        for place in dict.fromkeys(places)
        if places.count(place) > 1
    ]


def _notes(records: Sequence[RunRecord], rows: Sequence[Row]) -> tuple[str, ...]:
    names = [row.name for row in rows]
    split = sorted({name for name in names if names.count(name) > 1})
    notes = [f"{name} was measured in different ways, so its numbers stand in rows of their own." for name in split]
    for record in records:
        if record.scorecard is None:
            notes.append(f"{record.folder.name} has no scores yet.")
        elif record.scorecard.status != "ok":
            words = record.scorecard.status.replace("_", " ")
            notes.append(f"{record.folder.name}: {words}. {' '.join(record.scorecard.reasons)}".rstrip())
    return tuple(notes)


def _settings(run: Path) -> dict[str, str]:
    path = run / "run.toml"
    try:
        return dict(_flat(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise RecordError(
            "VU-R121",
            f"The configuration of {str(run)!r} cannot be read: {error}.",
            "Name folders of runs; repeat a run whose files were damaged.",
            where=str(path),
        ) from error


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found


def _differences(settings: Sequence[Mapping[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    keys = list(dict.fromkeys(key for table in settings for key in table))
    rows = ((key, tuple(table.get(key, "-") for table in settings)) for key in keys)
    return tuple((key, values) for key, values in rows if len(set(values)) > 1)
