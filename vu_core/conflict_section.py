"""The section "Gradient conflict" of a report: histograms and curves without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate

from vu_core.conflict import BINS, COSINES, Conflict, Spread, decimals
from vu_core.run import Section

TITLE = "Gradient conflict"
NAMES = {
    "cos_rf": "retain and forget gradient",
    "cos_g_r": "update and retain gradient",
    "cos_g_f": "update and forget gradient",
}
"""What each cosine lies between."""

_WIDTH, _HEIGHT = 240, 120
"""Of what is plotted in one panel of a drawing, in its own units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 24, 34
"""Around it."""
_FLOOR = _TOP + _HEIGHT
_COLUMNS = 240
"""Longer curves are drawn as the mean and the range of neighbouring steps."""
_TEXT = (
    "Cosines between the gradients of one step, as the weighting sees them: before clipping and the optimiser. Below 0 "
    "(red), the retain and the forget gradient conflict: what helps one side hurts the other. Where the cosine of the "
    "update with the gradient of a side is below 0, the update leads to where the loss of this side rises. The cosine "
    "with a gradient of zero is undefined, and left out."
)


def conflict_section(found: Conflict) -> Section:
    """Return the section for the report: a table, per cosine a histogram and a curve over the steps.

    Args:
        found: the steps of a run, at least one.
    """
    panels, curves = [], []
    for number, (name, spread) in enumerate(found.spreads.items()):
        left = number * (_LEFT + _WIDTH + _RIGHT) + _LEFT
        panels.append(_histogram(left, NAMES[name], spread))
        curves.append(_curve(left, NAMES[name], found, [step.cosines[name] for step in found.steps]))
    parts = [
        f"<p>{escape(found.sentence)}</p>",
        _table(found.spreads),
        _drawing("How many steps have which cosine", panels),
        _drawing("The cosines over the steps", curves),
        *(f'<p class="quiet">{escape(text)}</p>' for text in _remarks(found)),
    ]
    return Section(TITLE, "\n".join(parts))


def _remarks(found: Conflict) -> Iterator[str]:
    yield _TEXT
    if (size := _per_column(found)) > 1:
        yield f"The curves join means over {size} steps each; behind them the range of these steps."
    if len(found.phases) > 1:
        phases = ", ".join(f"{name} ({_steps(count)})" for name, count in found.phases)
        yield f"Phases of the training, divided by dashes: {phases}."
    if found.flags:
        flags = ", ".join(f"{flag} in {_steps(count)}" for flag, count in found.flags.items())
        yield f"The weighting says: {flags}."


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _table(spreads: dict[str, Spread]) -> str:
    heads = ("below 0", "mean", "median", "5 % to 95 %", "steps", "undefined")
    head = "<th>cosine between</th>" + "".join(f'<th class="number">{name}</th>' for name in heads)
    rows = []
    for name in COSINES:
        cells = "".join(f'<td class="number">{cell}</td>' for cell in _cells(spreads[name]))
        rows.append(f"<tr><td>{NAMES[name]}</td>{cells}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _cells(spread: Spread) -> list[str]:
    def text(cosine: float | None) -> str:
        return "" if cosine is None else decimals(cosine)

    below = "" if spread.negative is None else f"{100 * spread.negative:.1f} %"
    percentiles = f"{text(spread.low)} to {text(spread.high)}" if spread.defined else ""
    numbers = [f"{spread.defined:,}", f"{spread.undefined:,}"]
    return [below, text(spread.mean), text(spread.median), percentiles, *numbers]


def _drawing(label: str, panels: Sequence[str]) -> str:
    width, height = len(panels) * (_LEFT + _WIDTH + _RIGHT), _FLOOR + _BOTTOM
    return (
        f'<div class="wide" style="margin-top:1rem"><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-size="11" fill="currentColor" aria-label="{label}">'
        f"{''.join(panels)}</svg></div>"
    )


def _histogram(left: float, name: str, spread: Spread) -> str:
    """Return one drawing: cosines to the right, how many steps have them upwards."""
    most, width = max(spread.histogram), _WIDTH / BINS
    bars = []
    for place, count in enumerate(spread.histogram):
        if count:
            height = count / most * _HEIGHT
            look = "fill='var(--bad)'" if place < BINS // 2 else "opacity='.6'"
            low, high = 2 * place / BINS - 1, 2 * (place + 1) / BINS - 1
            bars.append(
                f"<rect x='{left + place * width:.1f}' y='{_FLOOR - height:.1f}' width='{width - 0.6:.1f}' "
                f"height='{height:.1f}' {look}><title>{low:.2f} to {high:.2f}: {_steps(count)}</title></rect>"
            )
    ticks = [
        _text(left + share * _WIDTH, _FLOOR + 14, word, "middle") for share, word in ((0, "-1"), (0.5, "0"), (1, "1"))
    ]
    ticks += [_text(left - 6, _FLOOR + 4, "0", "end"), _text(left - 6, _TOP + 4, f"{most:,}" if most else "", "end")]
    middle = _line(left + _WIDTH / 2, _FLOOR, left + _WIDTH / 2, _TOP, "opacity='.3'")
    return "".join([*_frame(left, name, "cosine", "steps"), middle, *bars, *ticks])


def _curve(left: float, name: str, found: Conflict, cosines: Sequence[float | None]) -> str:
    """Return one drawing: steps to the right, cosines upwards."""
    per_step, size = _WIDTH / len(cosines), _per_column(found)
    ranges, pieces = "", [""]  # the curve breaks where no cosine is defined
    for start in range(0, len(cosines), size):
        column = cosines[start : start + size]
        known = [cosine for cosine in column if cosine is not None]
        if not known:
            pieces.append("")
            continue
        x = left + (start + len(column) / 2) * per_step
        if size > 1:
            ranges += f"M{x:.1f},{_height(min(known)):.1f}V{_height(max(known)):.1f}"
        pieces[-1] += f" {x:.1f},{_height(sum(known) / len(known)):.1f}"
    behind = f"<path d='{ranges}' stroke='currentColor' stroke-width='{size * per_step:.2f}' opacity='.25'/>"
    look = "fill='none' stroke='currentColor' stroke-width='1.5' stroke-linejoin='round' stroke-linecap='round'"
    # A line from a point to itself is a dot, with round ends.
    lines = [f"<polyline points='{piece.strip()} {piece.split()[-1]}' {look}/>" for piece in pieces if piece]
    ends = [left + end * per_step for end in list(accumulate(steps for _, steps in found.phases))[:-1]]
    divided = [_line(end, _FLOOR, end, _TOP, "stroke-dasharray='2 3' opacity='.6'") for end in ends]
    ticks = [_text(left - 6, _height(cosine) + 4, str(cosine), "end") for cosine in (-1, 0, 1)]
    ticks += [_text(left, _FLOOR + 14, "0", "middle"), _text(left + _WIDTH, _FLOOR + 14, f"{len(cosines):,}", "end")]
    zero = _line(left, _height(0), left + _WIDTH, _height(0), "opacity='.3'")
    return "".join([*_frame(left, name, "step", "cosine"), zero, *divided, behind, *lines, *ticks])


def _per_column(found: Conflict) -> int:
    return -(-len(found.steps) // _COLUMNS)


def _height(cosine: float) -> float:
    return _FLOOR - (cosine + 1) / 2 * _HEIGHT


def _frame(left: float, name: str, across: str, upwards: str) -> list[str]:
    """Return the heading of a panel, its two axes and what they stand for."""
    x, y = left - 30, _TOP + _HEIGHT / 2
    return [
        f"<text x='{left}' y='14' font-weight='600'>{escape(name)}</text>",
        _line(left, _FLOOR, left + _WIDTH, _FLOOR, "opacity='.5'"),
        _line(left, _FLOOR, left, _TOP, "opacity='.5'"),
        _text(left + _WIDTH / 2, _FLOOR + 28, across, "middle"),
        f"<text x='{x}' y='{y}' text-anchor='middle' opacity='.75' transform='rotate(-90 {x} {y})'>{upwards}</text>",
    ]


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='currentColor' {look}/>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' opacity='.75'>{text}</text>"
