"""``report.html`` and ``README.md`` of a sequence: how its scores change from task to task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import PurePath

from vu_core.atomic import write_text
from vu_core.report import short_name, template
from vu_core.run_folder import CARD, REPORT, SEQUENCE, writing
from vu_core.sequence_record import SequenceRecord, mean_and_deviation

_WIDTH, _HEIGHT = 200, 110
"""Of what is plotted in one panel, in its own units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 24, 24, 34
"""Around it."""
_IN_A_ROW = 3
"""So many panels stand side by side."""
_FLOOR = _TOP + _HEIGHT
_TICKS = ((0.0, "0"), (0.5, "50"), (1.0, "100"))

Numbers = Sequence[float | None]


def write_report(record: SequenceRecord) -> None:
    """Write ``report.html`` and, last of all files of a sequence, ``README.md``."""
    for name, text in ((REPORT, report_html(record)), (CARD, card(record))):
        with writing(record.folder / name):
            write_text(record.folder / name, text)


def report_html(record: SequenceRecord) -> str:
    """Return the report: one file without scripts, fonts or links to anywhere."""
    doubts = [f'<p class="doubt">{escape(doubt)}</p>' for doubt in record.doubts()]
    heads = ["score", *(f"task {number}" for number in _numbers(record))]
    return template("sequence.html").substitute(
        style=template("report.css").template,
        title=escape(title(record)),
        claim=escape(claim(record)),
        status="\n".join(doubts) or '<p class="ok">No metric doubts any task.</p>',
        scores=_table(heads, score_rows(record)),
        legend=escape(_legend(record)),
        plot=plot(record),
        tasks=_table(["task", "forget", "folders"], _task_rows(record)),
        configuration=escape(_configuration(record)),
    )


def card(record: SequenceRecord) -> str:
    """Return ``README.md``."""
    heads = ["score", *(f"task {number}" for number in _numbers(record))]
    listed = {**record.files, REPORT: "the report: how the scores change from task to task", CARD: "this card"}
    return template("sequence.md").substitute(
        title=title(record),
        claim=claim(record),
        status="\n\n".join(record.doubts()) or "No metric doubts any task.",
        scores=_lines(heads, score_rows(record)),
        spread=_spread(record),
        tasks=_lines(["task", "forget", "folders"], _task_rows(record)),
        files="\n".join(f"- `{name}`: {what}" for name, what in listed.items()),
    )


def title(record: SequenceRecord) -> str:
    """Return such as ``canvas-vit: 4 tasks of gs-lora``."""
    tasks = "1 task" if record.planned == 1 else f"{record.planned} tasks"
    return f"{short_name(record.model)}: {tasks} of {record.method}"


def claim(record: SequenceRecord) -> str:
    """Return one sentence that says what was done."""
    forgotten = sum(len(record.of(number)[0].run.forget) for number in _numbers(record))
    seeds = "one seed" if len(record.seeds) == 1 else f"{len(record.seeds)} seeds"
    return f"{forgotten} concepts forgotten in {len(_numbers(record))} tasks, with {seeds}."


def score_rows(record: SequenceRecord) -> list[list[str]]:
    """Return a row per score that is a share, in percent, and one with the seconds: of several seeds their mean."""
    rows = []
    for name in record.shares():
        cells = [_percent([task.score(name) for task in record.of(number)]) for number in _numbers(record)]
        rows.append([f"{name} %", *cells])
    seconds = [mean_and_deviation([task.seconds for task in record.of(number)])[0] for number in _numbers(record)]
    return [*rows, ["seconds", *(f"{number:.1f}" if number is not None else "" for number in seconds)]]


def plot(record: SequenceRecord) -> str:
    """Return a drawing with one panel per score that is a share: tasks to the right, percent upwards."""
    names = record.shares()
    panels = []
    for place, name in enumerate(names):
        row, column = divmod(place, _IN_A_ROW)
        x, y = column * (_LEFT + _WIDTH + _RIGHT), row * (_FLOOR + _BOTTOM)
        panels.append(f"<g transform='translate({x} {y})'>{''.join(_panel(record, name))}</g>")
    columns, rows = min(len(names), _IN_A_ROW), -(-len(names) // _IN_A_ROW)
    width, height = columns * (_LEFT + _WIDTH + _RIGHT), rows * (_FLOOR + _BOTTOM)
    return (
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'font-size="11" fill="currentColor" aria-label="Scores from task to task">{"".join(panels)}</svg></div>'
    )


def _panel(record: SequenceRecord, name: str) -> Iterator[str]:
    numbers = _numbers(record)
    yield f"<text x='{_LEFT}' y='14' font-weight='600'>{escape(name)}</text>"
    for tick, word in _TICKS:
        yield _line(_LEFT, _y(tick), _LEFT + _WIDTH, _y(tick), "opacity='.2'")
        yield _text(_LEFT - 6, _y(tick) + 4, word, "end")
    for place, number in enumerate(numbers):
        yield _text(_x(place, len(numbers)), _FLOOR + 14, str(number), "middle")
    yield _text(_LEFT + _WIDTH / 2, _FLOOR + 28, "task", "middle")
    before = [_mean([task.score(name, before=True) for task in record.of(number)]) for number in numbers]
    after = [_mean([task.score(name) for task in record.of(number)]) for number in numbers]
    yield _curve(before, "stroke-dasharray='3 3' opacity='.6'")
    yield _curve(after, "")
    for place, number in enumerate(numbers):
        for task in record.of(number):
            share = task.score(name)
            if share is not None:
                told = f"task {number}, seed {task.seed}: {100 * share:.1f} %"
                at = f"cx='{_x(place, len(numbers)):.1f}' cy='{_y(share):.1f}'"
                yield f"<circle {at} r='2.5'><title>{escape(told)}</title></circle>"


def _curve(shares: Numbers, look: str) -> str:
    known = [(_x(place, len(shares)), _y(share)) for place, share in enumerate(shares) if share is not None]
    points = [f"{x:.1f},{y:.1f}" for x, y in known]
    style = "fill='none' stroke='currentColor' stroke-width='1.5' stroke-linejoin='round'"
    return f"<polyline points='{' '.join(points)}' {style} {look}/>" if len(points) > 1 else ""


def _mean(values: Numbers) -> float | None:
    return mean_and_deviation(values)[0]


def _x(place: int, count: int) -> float:
    return _LEFT + (place + 0.5) * _WIDTH / count


def _y(share: float) -> float:
    return _FLOOR - min(max(share, 0.0), 1.0) * _HEIGHT


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='currentColor' {look}/>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' opacity='.75'>{escape(text)}</text>"


def _numbers(record: SequenceRecord) -> list[int]:
    """Return the numbers of the tasks that are finished with any seed."""
    return [number for number in range(record.planned) if record.of(number)]


def _percent(values: Numbers) -> str:
    mean, deviation = mean_and_deviation(values)
    spread = f" ± {100 * deviation:.1f}" if deviation is not None else ""
    return "" if mean is None else f"{100 * mean:.1f}{spread}"


def _spread(record: SequenceRecord) -> str:
    if len(record.seeds) == 1:
        return "One seed: nothing is said about how the numbers vary."
    return f"Mean and standard deviation over {len(record.seeds)} seeds."


def _legend(record: SequenceRecord) -> str:
    dots = "the line is their mean" if len(record.seeds) > 1 else "the line joins them"
    return f"In %. A dot is a task with one seed, {dots}; dashed is the same score before the task."


def _task_rows(record: SequenceRecord) -> list[list[str]]:
    rows = []
    for number in _numbers(record):
        tasks = record.of(number)
        name = f"{number}: {tasks[0].name}" if tasks[0].name else str(number)
        rows.append([name, ", ".join(tasks[0].run.forget), ", ".join(task.place for task in tasks)])
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _configuration(record: SequenceRecord) -> str:
    """Return ``sequence.toml`` without the folders of this machine, which are nobody else's business."""
    lines = []
    for line in (record.folder / SEQUENCE).read_text(encoding="utf-8").splitlines():
        head, quote, rest = line.partition(' = "/')
        lines.append(f'{head} = ".../{PurePath(rest.partition(chr(34))[0]).name}"' if quote else line)
    return "\n".join(lines)
