"""The only place that builds rich objects: every noun of `vu`, the plan, errors and the live block."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table as Grid
from rich.text import Text

from vu_cli import document, facts, numbers, outline, sequences
from vu_cli.comparison import Comparison
from vu_cli.progress import PlainWatcher, SilentWatcher, State, Watcher, sentence
from vu_cli.session import Evidence, Measurement, Page, Session
from vu_core import Event, Plan, RunRecord, Score, Scorecard, Table, VuError
from vu_core.hookspecs import KINDS
from vu_core.registry import Entry
from vu_core.sequence_record import SequencePlan, SequenceRecord

if TYPE_CHECKING:
    from vu_core.describe import Description, Parameter

WIDE, VERY_WIDE = 100, 160
"""From this many columns on, lists put more side by side, and every field in a column of its own."""
FILE_WIDTH = 120
"""Width where nobody says: output into files and pipes."""
DUMB_WIDTH = 80
"""Width of a terminal that does not know its own."""
UNLIMITED = 1_000_000
"""Width that breaks no line."""
GAP = 2
"""Blanks between the columns of a table."""
INDENT = "  "
"""What stands before a name below the words that it shares with others."""

_STATE_STYLE = {"ready": "green", "slow": "yellow", "blocked": "yellow", "conflict": "red", "broken": "red"}
_NUMBER = re.compile(r"([+-]?\d[\d.,]*( \([+-]?\d[\d.,]*\))?)?")
_ARROW = {"up": "higher is better", "down": "lower is better", "none": ""}


def console(stream: TextIO, *, wrap_files: bool = True) -> Console:
    """Return a console for ``stream`` that honours NO_COLOR and COLUMNS and changes no character of the text.

    Args:
        stream: where to print.
        wrap_files: break lines also where nobody reads on a terminal.
    """
    asked = _columns()
    if stream.isatty():
        width = asked if asked is not None or "COLUMNS" not in os.environ else _terminal_width(stream)
    else:
        width = (asked or FILE_WIDTH) if wrap_files else UNLIMITED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _columns() -> int | None:
    """Return COLUMNS, unless it is absent or no width."""
    try:
        width = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        return None
    return width if width > 0 else None


def _terminal_width(stream: TextIO) -> int:
    """Return what the terminal says of itself."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or DUMB_WIDTH
    except (OSError, ValueError):
        return DUMB_WIDTH


def _print(target: Console, what: RenderableType) -> None:
    """Print without the blanks that fill up lines; a reader that went away is the caller's `BrokenPipeError`."""
    with target.capture() as captured:
        target.print(what, crop=False)
    target.file.write("\n".join(line.rstrip() for line in captured.get().split("\n")))
    target.file.flush()


def show(noun: Any, session: Session) -> int:
    """Print what a command returned, as text or as one JSON document; return the exit status.

    Args:
        noun: `Table`, `Scorecard`, `RunRecord`, `Plan`, a list of them, a list of `Entry`, a description, or ``None``.
        session: says how and where to print.
    """
    if session.json:
        session.out.write(document.text(noun) + "\n")
    elif noun is not None:
        target = console(session.out)
        first = noun[0] if isinstance(noun, list | tuple) and noun else noun
        watched = isinstance(first, RunRecord | SequenceRecord) and target.is_terminal and not session.quiet
        lead = [Text()] if watched else []
        _print(target, Group(*lead, _renderable(noun, target.width)))
    session.out.flush()
    if session.objection is None:
        return 0
    show_error(session.objection, session)
    return session.objection.exit_status


def show_plan(plan: Plan | SequencePlan, folder: Path, session: Session) -> None:
    """Print the plan before a real run, and how to stop it, unless only results are wanted."""
    if not (session.json or session.quiet):
        stop = ("stop", f"Ctrl-C; vu unlearn --resume {shlex.quote(str(folder))} goes on")
        target = console(session.out)
        shown = _plan(plan, stop) if isinstance(plan, Plan) else _sequence_plan(plan, target.width, stop)
        _print(target, Group(shown, Text()))


def show_error(error: VuError, session: Session, report: str = "") -> None:
    """Print what is wrong, where and what to do, on the stream for errors.

    Lines are wrapped on terminals only, so that logs and searches find whole sentences.

    Args:
        error: what was raised.
        session: says where to print.
        report: where the traceback was kept, if it was.
    """
    first, *others = error.problem.splitlines() or [""]
    headline = Text.assemble((f"Error {error.code}: ", "bold red"), first)
    rows = [("where", error.where), ("what to do", error.remedy), ("report", report)]
    rows.append(("details", f"vu explain {error.code}"))
    lines = [Padding(Text(line), (0, 0, 0, 2)) for line in others]
    _print(console(session.err, wrap_files=False), Group(headline, *lines, _facts(rows)))


def show_line(text: str, session: Session, style: str = "") -> None:
    """Print one line on the stream for progress and errors."""
    console(session.err).print(Text(text, style), soft_wrap=True)


def watcher(session: Session) -> Watcher:
    """Return what shows the events of a run: live on a terminal, plain lines elsewhere, nothing when quiet."""
    if session.quiet:
        return SilentWatcher()
    target = console(session.err)
    if target.is_terminal and not target.is_dumb_terminal:
        return LiveWatcher(target)
    return PlainWatcher(lambda line: target.print(Text(line), soft_wrap=True))


class LiveWatcher:
    """A block at the bottom of the terminal; finished stages and notes scroll by above it."""

    def __init__(self, target: Console, state: State | None = None) -> None:
        self._console = target
        self._state = state or State()
        self._spinner = Spinner("line")
        self._live = Live(
            self, console=target, refresh_per_second=4, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Follow one event; the first one makes the block appear."""
        if not self._live.is_started:
            self._live.start()
        if event.type == "stage" and event.values.get("state") == "end":
            self._console.print(self._ended(event), no_wrap=True, overflow="ellipsis")
        elif event.type == "task" and event.values.get("state") == "end":
            pass  # it becomes a row of the live table
        elif line := sentence(event):
            self._console.print(Text(f"  {line}", "yellow" if event.type == "warning" else ""))
        self._state.take(event)

    def _ended(self, event: Event) -> Text:
        seconds = event.values.get("seconds")
        line = Text.assemble("  ", (f"{event.stage:<10}", "bold"))
        line.append(f"{numbers.duration(seconds):>12}" if seconds is not None else "")
        for task in self._state.worth_telling():
            details = ", ".join(part for part in (f"{task.what} {task.total}", task.figures()) if part)
            line.append(f"   {details}", "dim")
        return line

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        state, task = self._state, self._state.task
        if state.sequence:
            yield _table(sequences.live(state.sequence), options.max_width)
        if not state.stage and task is None:
            return
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        if task is None or not task.total:
            elapsed = numbers.clock(state.clock() - state.began)
            what = Text(task.what if task is not None else "", "dim")
            grid.add_row(self._spinner, Text(state.stage, "bold"), what, Text(elapsed))
            yield grid
            return
        bar = ProgressBar(total=task.total, completed=task.step, width=max(10, min(40, options.max_width - 60)))
        name = Text.assemble((state.stage or task.stage, "bold"), f"  {task.what}")
        grid.add_row(self._spinner, name, bar, Text(f"{task.step}/{task.total}"), Text(task.pace()))
        yield grid
        if task.values:
            yield Text(f"   {task.figures()}", "dim", no_wrap=True, overflow="ellipsis")


def _renderable(noun: Any, width: int) -> RenderableType:
    if isinstance(noun, Page):
        return Text(noun.text) if noun.wrapped else Text(noun.text, no_wrap=True, overflow="ignore")
    if isinstance(noun, Table):
        return _table(noun, width)
    if isinstance(noun, Evidence):
        warnings = [Text(), _remarks("warning", noun.warnings, "yellow")] if noun.warnings else []
        return Group(_renderable(noun.tables, width), *warnings)
    if isinstance(noun, Scorecard):
        return Group(_scorecard(noun), Text(), *_verdict(noun))
    if isinstance(noun, Measurement):
        return _measurement(noun)
    if isinstance(noun, RunRecord):
        return _record(noun)
    if isinstance(noun, Plan):
        return _plan(noun)
    if isinstance(noun, SequencePlan):
        return _sequence_plan(noun, width)
    if isinstance(noun, SequenceRecord):
        return _sequence_record(noun, width)
    if isinstance(noun, Comparison):
        return _comparison(noun, width)
    if isinstance(noun, Sequence) and not noun:
        return Text("There is nothing to show.")
    if isinstance(noun, Sequence) and all(isinstance(item, Entry) for item in noun):
        return _entries(noun, width)
    if isinstance(noun, Sequence) and not isinstance(noun, str):
        parts = [part for item in noun for part in (Text(), _renderable(item, width))]
        return Group(*parts[1:])
    from vu_core.describe import Description

    if isinstance(noun, Description):
        return _description(noun)
    raise TypeError(f"no way to show a {type(noun).__name__}; a command returns the nouns of vu_core")


def _grid(columns: Iterable[tuple[str, dict[str, Any]]], title: str = "") -> Grid:
    grid = Grid(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for name, options in columns:
        grid.add_column(name, header_style="bold", **options)
    return grid


def _facts(rows: Iterable[tuple[str, str]]) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(f"  {label}", text)
    return grid


def _table(table: Table, width: int) -> RenderableType:
    rows = [tuple(_cell(cell) for cell in row) for row in table.rows]
    names = [row[0] for row in rows if row]
    longest = max(map(cell_len, names), default=0)
    heads: Sequence[str] = table.columns
    if longest > _room(heads, rows, width):
        heads = [head.replace("_", "_\n") for head in heads]
    columns: list[tuple[str, dict[str, Any]]] = []
    for place, head in enumerate(heads):
        numeric = bool(table.rows) and all(_is_number(row[place]) for row in table.rows)
        columns.append((head, {"justify": "right" if numeric else "left", "overflow": "fold"}))
    notes = [Text(f"  {note}", "dim") for note in table.notes]
    room = _room(heads, rows, width)
    headings = outline.split(names, room - len(INDENT)) if longest > room else []
    if any(heading for heading, _ in headings):
        return Group(*_outlined(table.title, columns, headings, rows), *notes)
    grid = _grid(columns)
    for row in rows:
        grid.add_row(*row)
    title = [Text(table.title, "bold")] if table.title else []  # one of the grid would be no wider than its columns
    return Group(*title, grid, *notes)


def _widths(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[int]:
    columns = zip(heads, *rows, strict=True)
    return [max(cell_len(line) for text in column for line in text.split("\n")) for column in columns]


def _room(heads: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> int:
    """Return how much of the width the other columns leave for the first one."""
    return width - sum(each + GAP for each in _widths(heads, rows)[1:])


def _outlined(
    title: str,
    columns: Sequence[tuple[str, dict[str, Any]]],
    headings: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, ...]],
) -> Iterator[RenderableType]:
    """Lay out a table whose names are too long: what several share stands once above them."""
    indented = [f"{INDENT if heading else ''}{rest}" for heading, rest in headings]
    lines = [(name, *row[1:]) for name, row in zip(indented, rows, strict=True)]
    widths = _widths([head for head, _ in columns], lines)
    sized = [(head, {**options, "width": size}) for (head, options), size in zip(columns, widths, strict=True)]
    yield _grid(sized, title)
    for heading, group in groupby(zip(headings, lines, strict=True), key=lambda pair: pair[0][0]):
        if heading:
            yield Text(heading, "bold")
        grid = _grid(sized)
        grid.show_header = False
        for _, line in group:
            grid.add_row(*line)
        yield grid


def _is_number(cell: Any) -> bool:
    """Tell whether a cell is a number or nothing, or the text of one, with its change such as ``97.0 (+1.2)``."""
    return isinstance(cell, int | float | None) or (isinstance(cell, str) and _NUMBER.fullmatch(cell) is not None)


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _scorecard(card: Scorecard) -> RenderableType:
    right: dict[str, Any] = {"justify": "right", "no_wrap": True}
    compared = any(score.reference is not None for score in card.scores)
    grid = _grid(
        [
            ("metric", {"overflow": "fold", "min_width": 18}),
            ("before", right),
            ("after", {**right, "style": "bold"}),
            ("change", right),
            *([("reference", right)] if compared else []),
            ("unit", {"no_wrap": True}),
            ("n", right),
            ("95 % interval", {"justify": "right"}),
        ],
    )
    for score in card.scores:
        grid.add_row(
            score.name,
            numbers.value(score.before, score.unit),
            numbers.value(score.after, score.unit),
            Text(numbers.change(score), _change_style(score)),
            *([numbers.value(score.reference, score.unit)] if compared else []),
            numbers.unit(score.unit),
            f"{score.n:,}",
            numbers.interval(score),
        )
    return Group(Padding(grid, (0, 0, 0, 2)), *_legend(card.scores))


def _change_style(score: Score) -> str:
    if score.change is None or score.direction == "none" or not score.change:
        return ""
    return "green" if (score.change > 0) == (score.direction == "up") else ""


def _legend(scores: Sequence[Score]) -> list[RenderableType]:
    rows = []
    for score in scores:
        text = "; ".join(part for part in (score.help, _ARROW[score.direction]) if part)
        rows.append((score.name, text))
    return [Text(), _facts(rows)] if any(text for _, text in rows) else []


def _verdict(card: Scorecard) -> list[RenderableType]:
    if card.status == "ok":
        return [Text(f"  Measured on the {card.split} split; nothing alarming.")]
    headline = {
        "not_forgotten": "Warning: forgetting did not happen.",
        "retain_collapsed": "Warning: the model lost what it should keep.",
    }[card.status]
    reasons = [Padding(Text(reason, "yellow"), (0, 0, 0, 4)) for reason in card.reasons]
    return [Text(f"  Measured on the {card.split} split.", "dim"), Text(f"  {headline}", "bold yellow"), *reasons]


def _record(record: RunRecord) -> RenderableType:
    parts: list[RenderableType] = [
        Text.assemble((f"Run {record.run_id}", "bold"), f"  {record.method} on {record.model}"),
        _facts(facts.of_record(record)),
    ]
    if record.scorecard is not None:
        parts += [Text(), _scorecard(record.scorecard)]
    if record.files:
        parts += [Text(), Text.assemble("  Written to ", (f"{record.folder}/", "bold")), _facts(record.files.items())]
    parts += [_remarks("note", record.notes), _remarks("warning", record.warnings, "yellow")]
    return Group(*parts, *([Text(), *_verdict(record.scorecard)] if record.scorecard is not None else []))


def _measurement(measured: Measurement) -> RenderableType:
    card = measured.scorecard
    files: list[RenderableType] = []
    if measured.files:
        files = [Text(), _facts([("written to", path) for path in measured.files])]
    warnings = _remarks("warning", measured.warnings, "yellow")
    return Group(_scorecard(card), *files, warnings, Text(), *_verdict(card))


def _remarks(label: str, sentences: Sequence[str], style: str = "") -> RenderableType:
    """Return one line per sentence, set in under its label."""
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style=style or "dim")
    grid.add_column(overflow="fold", style=style)
    for text in sentences:
        grid.add_row(f"  {label}:", text)
    return grid if sentences else Group()


def _plan(plan: Plan, *further: tuple[str, str]) -> RenderableType:
    heading = Text(f"Plan {plan.run_id}", "bold")
    return Group(heading, _facts([*facts.of_plan(plan), *further]), _remarks("note", plan.notes))


def _sequence_plan(plan: SequencePlan, width: int, *further: tuple[str, str]) -> RenderableType:
    heading = Text(f"Plan of sequence {plan.run_id}", "bold")
    rows = [*facts.of_sequence_plan(plan), *further]
    return Group(heading, _facts(rows), Text(), _table(sequences.planned(plan), width), _remarks("note", plan.notes))


def _sequence_record(record: SequenceRecord, width: int) -> RenderableType:
    heading = Text.assemble((f"Sequence {record.run_id}", "bold"), f"  {record.method} on {record.model}")
    parts: list[RenderableType] = [heading, Text(), _table(sequences.finished(record), width)]
    if record.files:
        parts += [Text(), Text.assemble("  Written to ", (f"{record.folder}/", "bold")), _facts(record.files.items())]
    return Group(*parts, _remarks("note", record.notes))


def _entries(entries: Sequence[Entry], width: int) -> RenderableType:
    order = {kind: place for place, kind in enumerate(KINDS)}
    rows = sorted(entries, key=lambda e: (order.get(e.kind, len(order)), e.name))
    listing = _entries_in_columns(rows) if width >= VERY_WIDE else _entries_in_groups(rows, wide=width >= WIDE)
    starred = [Text("  * is used when nothing is said", "dim")] if any(entry.default for entry in rows) else []
    return Group(listing, *starred)


def _entries_in_columns(rows: Sequence[Entry]) -> Grid:
    """Lay out every field in a column of its own."""
    fixed: dict[str, Any] = {"no_wrap": True}
    names = [("kind", fixed), ("name", fixed), ("aliases", {"max_width": 30}), ("summary", {"ratio": 1})]
    grid = _grid([*names, ("distribution", fixed), ("version", fixed), ("state", fixed)])
    last = ""
    for entry in rows:
        kind, last = ("" if entry.kind == last else entry.kind), entry.kind
        aliases = ", ".join(entry.aliases)
        grid.add_row(kind, _name(entry), aliases, _summary(entry), entry.distribution, entry.version, _state(entry))
    return grid


def _entries_in_groups(rows: Sequence[Entry], *, wide: bool) -> Grid:
    """Give each kind a heading, put aliases under the name and the version beside or under the distribution."""
    grid = _grid(
        [
            ("name", {"overflow": "fold", "max_width": 38 if wide else 26}),
            ("summary", {"ratio": 1, "overflow": "fold"}),
            ("distribution", {"no_wrap": True}),
            ("state", {"no_wrap": True}),
        ]
    )
    last = ""
    for entry in rows:
        if entry.kind != last:
            if last:
                grid.add_row()
            grid.add_row(Text(entry.kind, "bold cyan"))
        last = entry.kind
        name = _name(entry)
        name.append("".join(f"\n  {alias}" for alias in entry.aliases), "dim")
        by = f"{entry.distribution}{' ' if wide else chr(10)}{entry.version}"
        grid.add_row(Padding(name, (0, 0, 0, 2)), _summary(entry), by, _state(entry))
    return grid


def _name(entry: Entry) -> Text:
    return Text(f"{entry.name}{' *' if entry.default else ''}")


def _summary(entry: Entry) -> Text:
    text = Text(entry.summary)
    if entry.cause:
        text.append(("\n" if entry.summary else "") + entry.cause, _STATE_STYLE[entry.state])
    return text


def _state(entry: Entry) -> Text:
    return Text(entry.state, _STATE_STYLE[entry.state])


def _description(description: Description) -> RenderableType:
    entry = description.entry
    parts: list[RenderableType] = [
        Text.assemble((entry.name, "bold"), f"  {entry.kind}"),
        Padding(Text(facts.prose(description.text)), (0, 0, 1, 2)),
        _facts(facts.of_description(description)),
        _remarks("note", description.notes),
    ]
    for parameter in description.parameters:
        parts += _parameter(parameter)
    if description.toml.strip():
        block = Text(description.toml.rstrip(), "dim", no_wrap=True, overflow="ignore")
        parts += [Text("\nFor a configuration file:\n", "bold"), block]
    return Group(*parts, Text())


def _parameter(parameter: Parameter) -> list[RenderableType]:
    value = "(required)" if parameter.required else facts.value_text(parameter.default)
    limits = ", ".join(part for part in (parameter.type, parameter.range) if part)
    head = Text.assemble("\n  ", (parameter.key, "bold"), f" = {value}", (f"  {limits}", "dim"))
    remarks = [parameter.help, "changes time or memory only" if parameter.speed_only else "", parameter.origin]
    return [head, Padding(Text("; ".join(part for part in remarks if part)), (0, 0, 0, 6))]


def _comparison(comparison: Comparison, width: int) -> RenderableType:
    fits = _narrowest(comparison) <= width
    parts: list[RenderableType] = [_side_by_side(comparison)] if fits else list(_one_below_the_other(comparison))
    notes = [Text(), _remarks("note", comparison.notes, "yellow")] if comparison.notes else []
    return Group(*parts, *notes)


def _narrowest(comparison: Comparison) -> int:
    """Return the least width of the table in which no number is broken."""
    names = [max((len(word) for word in row.name.split()), default=0) for row in comparison.rows]
    units = [len(row.unit_label) for row in comparison.rows]
    cells = [max(map(len, column)) for column in zip(*(row.cells for row in comparison.rows), strict=True)]
    gaps = len(cells) + 1
    return max([*names, len("metric")]) + max([*units, len("unit")]) + sum(max(cell, 8) for cell in cells) + gaps


def _side_by_side(comparison: Comparison) -> RenderableType:
    runs = comparison.labels
    widths = [max((len(row.cells[place]) for row in comparison.rows), default=0) for place in range(len(runs))]
    options = [{"justify": "right", "overflow": "fold", "min_width": width} for width in widths]
    unit = {"no_wrap": True, "min_width": max([len(row.unit_label) for row in comparison.rows] or [0])}
    grid = _grid([("metric", {"overflow": "fold"}), ("unit", unit), *zip(runs, options, strict=True)])
    for row in comparison.rows:
        grid.add_row(row.name, row.unit_label, *row.cells)
    if not comparison.differences:
        return grid
    settings = _grid([("setting", {"overflow": "fold"}), *((label, {"overflow": "fold"}) for label in runs)])
    for key, values in comparison.differences:
        settings.add_row(key, *values)
    return Group(grid, Text(), settings)


def _one_below_the_other(comparison: Comparison) -> Iterator[RenderableType]:
    """Lay out a comparison for a terminal that is too narrow for a column per run."""
    names = [label.partition("\n")[0] for label in comparison.labels]
    rows = [(f"{row.name} {row.unit_label}".strip(), row.cells) for row in comparison.rows]
    for title, values in (*rows, *comparison.differences):
        yield Text(title, "bold")
        for name, value in zip(names, values, strict=True):
            yield Text(f"  {name}  {value}")
