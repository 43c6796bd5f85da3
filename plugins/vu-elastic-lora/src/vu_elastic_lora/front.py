"""The front of a search, as a table and as a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import attrs

from vu_core import Section, Table
from vu_elastic_lora.trials import Objective, Search, Trial

TITLE = "Adapters by size and scores"

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 300, 200, 56, 12, 28, 40, 16
"""Of one panel of the drawing, in its own units."""


def front_table(found: Search, split: str, seeds: int) -> Table:
    """Return the assignments that no other one beats, small first, and why one was chosen.

    Args:
        found: a search that has ended.
        split: what was measured on.
        seeds: how many per item.
    """
    whole, chosen = found.trials[0], found.chosen()
    names = tuple(each.name for each in found.objectives)
    shown = found.front() if whole in found.front() else (*found.front(), whole)
    rows = tuple(
        (
            "chosen" if trial is chosen else "",
            found.name_of(trial),
            trial.bytes,
            f"{100 * trial.bytes / whole.bytes:.0f} %",
            *(value_text(trial.scores[each.name], each) for each in found.objectives),
        )
        for trial in shown
    )
    count = f"{len(found.trials)} of {found.distinct} assignments measured on {split}, {_seeds(seeds)}"
    return Table(
        TITLE,
        ("", "ranks", "bytes", "share", *names),
        rows,
        (
            f"{count}: {found.stopped}.",
            f"chosen: the smallest whose scores are at most {found.tolerance:g} worse than those of the maximal one.",
        ),
    )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def value_text(value: float, objective: Objective) -> str:
    """Return a score as people read it: fractions in per cent."""
    return f"{100 * value:.1f} %" if objective.unit == "fraction" else f"{value:.4g}"


def front_section(found: Search, split: str, seeds: int) -> Section:
    """Return a section for the report: per score a drawing of all assignments over their size, without scripts."""
    panels = [_panel(found, each, number) for number, each in enumerate(found.objectives)]
    width = len(panels) * (_WIDTH + _GAP) - _GAP
    drawing = (
        f'<svg viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" role="img" font-size="11" '
        f'fill="currentColor" aria-label="{escape(TITLE)}">{"".join(panels)}</svg>'
    )
    text = (
        f"Each dot is an assignment of ranks, measured on {split} data ({_seeds(seeds)}); {len(found.trials)} of "
        f"{found.distinct}. Filled: no other one is as small and as good. Ringed: the chosen one. Dashed: the worst "
        "score that is tolerated."
    )
    return Section("Search for ranks", f'<div class="wide">{drawing}</div>\n<p class="quiet">{escape(text)}</p>')


@attrs.frozen
class _Scale:
    """A straight line from values to places."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.at_low + share * (self.at_high - self.at_low), 1)


def _panel(found: Search, objective: Objective, number: int) -> str:
    """Return one drawing: size to the right, a score upwards."""
    left = number * (_WIDTH + _GAP)
    whole, name = found.trials[0], objective.name
    limit = whole.scores[name] - objective.sign * objective.margin(whole.scores[name], found.tolerance)
    values = [limit, *(trial.scores[name] for trial in found.trials)]
    x = _Scale(0, max(trial.bytes for trial in found.trials), left + _LEFT, left + _WIDTH - _RIGHT)
    y = _Scale(min(values), max(values), _HEIGHT - _BOTTOM, _TOP)
    front = found.front()
    frame = [
        f'<text x="{left + _LEFT}" y="14" font-weight="600">{escape(name)}</text>',
        _line(x.at_low, y.at_low, x.at_high, y.at_low, "opacity='.5'"),
        _line(x.at_low, y.at_low, x.at_low, y.at_high, "opacity='.5'"),
        _line(x.at_low, y(limit), x.at_high, y(limit), "stroke-dasharray='4 3' opacity='.6'"),
        *(_tick(x.at_low - 6, y(v) + 4, value_text(v, objective), "end") for v in (y.low, y.high)),
        _tick(x.at_low, y.at_low + 16, "0", "start"),
        _tick(x.at_high, y.at_low + 16, f"{x.high:,.0f} bytes", "end"),
    ]
    behind = sorted(found.trials, key=lambda trial: trial in front)
    return "".join([*frame, *(_dot(found, trial, x(trial.bytes), y(trial.scores[name]), front) for trial in behind)])


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='currentColor' {look}/>"


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}' opacity='.75'>{escape(text)}</text>"


def _dot(found: Search, trial: Trial, x: float, y: float, front: Sequence[Trial]) -> str:
    fill = "currentColor" if trial in front else "none"
    dot = f"<circle cx='{x}' cy='{y}' r='4' fill='{fill}' stroke='currentColor'>"
    dot += f"<title>{escape(found.name_of(trial))}</title></circle>"
    if trial is found.chosen():
        dot += f"<circle cx='{x}' cy='{y}' r='8' fill='none' stroke='currentColor' stroke-width='1.5'/>"
    return dot
