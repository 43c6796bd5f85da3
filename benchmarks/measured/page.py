"""Kept numbers as lines of the page."""

from __future__ import annotations

import json
from typing import Any

from measured.making import KEPT


def kept(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers of a group, in the order of their files."""
    return [json.loads(file.read_text()) for file in sorted((KEPT / group["name"]).glob("*.json"))]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def score(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in card["scores"] if entry["name"] == name)


def score_cell(entry: dict[str, Any]) -> str:
    """Return before, after, interval and n of a score."""
    interval = "" if entry["ci_low"] is None else f" [{percent(entry['ci_low'])}, {percent(entry['ci_high'])}]"
    return f"{percent(entry['before'])} → **{percent(entry['after'])}**{interval}, n {entry['n']}"


def under(card: dict[str, Any], size: dict[str, Any]) -> list[str]:
    """Return the line below a heading: the split and the machine."""
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in size.items())
    return [f"Split: {card['split']}. Machine: {words}.", ""]


def target(text: str, misses: list[str]) -> str:
    """Return a target with its outcome; each miss is named."""
    return f"- {text}: {'missed by ' + ', '.join(misses) if misses else 'reached'}."
