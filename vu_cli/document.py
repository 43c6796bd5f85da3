"""Nouns as JSON documents."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_cli.session import Evidence, Measurement, Page
from vu_core import Plan, Scorecard, Table
from vu_core.config import as_dict
from vu_core.score import scorecard_to_json
from vu_core.sequence_record import SequencePlan, SequenceRecord
from vu_core.sequence_record import to_json as sequence_to_json


def text(noun: Any) -> str:
    """Return the one JSON document that ``--json`` prints for a noun; no NaN, no shortened numbers.

    Raises:
        ValueError: a score or a fact is not finite. Cells of tables may be: see `content`.
    """
    return json.dumps(content(noun), indent=2, ensure_ascii=False, allow_nan=False)


def content(noun: Any) -> Any:
    """Return a noun as JSON values."""
    if isinstance(noun, Scorecard):
        return scorecard_to_json(noun)
    if isinstance(noun, Measurement):
        return {**scorecard_to_json(noun.scorecard), "files": list(noun.files), "warnings": list(noun.warnings)}
    if isinstance(noun, Page):
        return content(noun.facts)
    if isinstance(noun, Evidence):
        return content({**noun.facts, "warnings": noun.warnings})
    if isinstance(noun, Table):
        rows = [dict(zip(noun.columns, map(_cell, row), strict=True)) for row in noun.rows]
        return {"title": noun.title, "rows": rows, "notes": list(noun.notes)}
    if isinstance(noun, Plan):
        return _plan(noun)
    if isinstance(noun, SequencePlan):
        plans = [_plan(plan) for plan in noun.plans]
        told = {key: content(value) for key, value in _fields(noun).items() if key not in ("plans", "text")}
        return {**told, "plans": plans}
    if isinstance(noun, SequenceRecord):
        return {"folder": str(noun.folder), **sequence_to_json(noun), "files": dict(noun.files)}
    if attrs.has(type(noun)):
        return {key: content(value) for key, value in _fields(noun).items()}
    return _plain(noun)


def _plan(plan: Plan) -> dict[str, Any]:
    fields = {key: content(value) for key, value in _fields(plan).items() if key != "config"}
    return {**fields, "config": as_dict(plan.config)}


def _cell(cell: Any) -> Any:
    """Return a cell of a table; NaN and infinity, for which JSON has no word, become null as empty cells do."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else content(cell)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): content(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [content(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _fields(noun: Any) -> dict[str, Any]:
    return {attribute.name: getattr(noun, attribute.name) for attribute in attrs.fields(type(noun))}
