"""What a run is doing right now: one live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

from vu_cli import numbers
from vu_core import Event

if TYPE_CHECKING:
    from vu_core import RunRecord

PLAIN_SECONDS = 15.0
"""A plain line at least this often while something moves."""
PLAIN_SHARE = 0.1
"""A plain line at every further tenth of the work ..."""
PLAIN_GAP = 2.0
"""... but not sooner than this many seconds after the last one."""
PLAIN_SHORTEST = 1.0
"""A task that took fewer seconds than this is not worth a line."""
_WINDOW = 30.0
_OWN_KEYS = {"what", "step", "total"}


@attrs.define
class Task:
    """One long piece of work, such as the training steps of a stage.

    The rate is measured over the last half minute, from the steps that were really done (a resumed task starts at the
    step it continues from).
    """

    stage: str
    what: str
    began: float
    total: int = 0
    step: int = 0
    values: dict[str, float] = attrs.field(factory=dict)
    ticks: deque[tuple[float, int]] = attrs.field(factory=deque)

    def update(self, values: dict[str, Any], now: float) -> None:
        """Take the values of a ``progress`` event."""
        self.step, self.total = int(values.get("step", 0)), int(values.get("total", 0))
        numeric = {k: v for k, v in values.items() if k not in _OWN_KEYS and isinstance(v, int | float)}
        self.values = {key: float(number) for key, number in numeric.items()}
        self.ticks.append((now, self.step))
        while len(self.ticks) > 2 and now - self.ticks[0][0] > _WINDOW:
            self.ticks.popleft()

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return 0 < self.total <= self.step

    @property
    def share(self) -> float:
        """Part of the work that is done, in [0, 1]."""
        return min(1.0, self.step / self.total) if self.total > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Steps per second, when at least two events were seen."""
        if len(self.ticks) < 2:
            return None
        (first_time, first_step), (last_time, last_step) = self.ticks[0], self.ticks[-1]
        if last_time <= first_time or last_step <= first_step:
            return None
        return (last_step - first_step) / (last_time - first_time)

    def pace(self) -> str:
        """Return rate and time left, such as ``4.1/s, 0:15 left``."""
        rate = self.rate
        if rate is None:
            return ""
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return speed if self.finished else f"{speed}, {numbers.clock((self.total - self.step) / rate)} left"

    def figures(self) -> str:
        """Return losses and other numbers, such as ``loss_forget 0.213, lr 9.1e-05``; losses come first."""
        keys = sorted(self.values, key=lambda key: (not key.startswith("loss"), key))
        return ", ".join(f"{key} {_short(self.values[key])}" for key in keys)

    def line(self, now: float) -> str:
        """Return the state in one plain line."""
        where = f"{self.stage}: {self.what}" if self.what else self.stage
        steps = f"{self.step}/{self.total} ({100 * self.share:.0f} %)" if self.total else str(self.step)
        if self.finished:
            steps += f" in {numbers.duration(now - self.began)}"
        return ", ".join(part for part in (f"{where} {steps}", self.pace(), self.figures()) if part)


def _short(number: float) -> str:
    if not math.isfinite(number):
        return str(number)
    if number != 0 and abs(number) < 1e-3:
        return f"{number:.1e}"
    return f"{number:.4g}"


class Watcher(Protocol):
    """Shows events of a run while entered; calling it takes an event."""

    def __call__(self, event: Event) -> None:
        """Follow one event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@attrs.define
class State:
    """What the events so far say, for every way of showing it.

    Args:
        clock: returns seconds; replaced in tests.
        stage: the stage that runs, or empty; began: when it began.
        task: the task of the last progress event.
        done: tasks of this stage that are finished.
        sequence: what was told when a task of a sequence ended, for each that did.
    """

    clock: Callable[[], float] = time.monotonic
    stage: str = ""
    began: float = 0.0
    task: Task | None = None
    done: list[Task] = attrs.field(factory=list)
    sequence: list[Mapping[str, Any]] = attrs.field(factory=list)

    def worth_telling(self) -> list[Task]:
        """Return the finished tasks of this stage that took a while."""
        return [task for task in self.done if task.ticks[-1][0] - task.began >= PLAIN_SHORTEST]

    def take(self, event: Event) -> None:
        """Follow one event."""
        now = self.clock()
        if event.type == "stage" and event.values.get("state") == "begin":
            self.stage, self.began, self.task, self.done = event.stage, now, None, []
        elif event.type == "stage" and event.values.get("state") == "end":
            self.stage, self.task = "", None
        elif event.type == "task" and event.values.get("state") == "end":
            self.sequence.append(event.values)
        elif event.type == "progress":
            self._progress(event, now)

    def _progress(self, event: Event, now: float) -> None:
        what = str(event.values.get("what", ""))
        task = self.task
        same = task is not None and (task.stage, task.what) == (event.stage, what)
        if task is None or not same or int(event.values.get("step", 0)) < task.step:
            task = Task(event.stage, what, began=now)
        elif task.finished:
            return
        task.update(dict(event.values), now)
        self.task = task
        if task.finished:
            self.done.append(task)


def sentence(event: Event) -> str:
    """Return the line that an event other than progress deserves, or nothing.

    Notes of the stage ``plan`` were printed with the plan.
    """
    if event.stage == "plan":
        return ""
    text = str(event.values.get("text") or event.values.get("message") or "")
    if event.type == "note":
        return f"note: {text}"
    if event.type == "warning":
        return f"warning: {text}"
    if event.type == "task":
        return _task_sentence(event)
    if event.type == "resume":
        step, total = event.values.get("step"), event.values.get("total")
        where = f" after step {step} of {total}" if step is not None else ""
        return f"continues with {event.values.get('from', event.stage)}{where}"
    return ""


def _task_sentence(event: Event) -> str:
    """Return the line that begins or ends a task of a sequence."""
    values = event.values
    seed = f", seed {values['seed']}" if values.get("seeds", 1) > 1 else ""
    name = f": {values['name']}" if values.get("name") else ""
    title = f"task {values['number'] + 1} of {values['planned']}{seed}"
    if values["state"] == "begin":
        return f"{title}{name}"
    scores = (f"{key} {numbers.value(share, 'fraction')}" for key, share in values["scores"].items())
    return f"{title} done in {numbers.duration(values['seconds'])}: {', '.join(scores)}".removesuffix(": ")


@attrs.define
class Heard:
    """Hands events on and keeps what belongs to the result: files that were written, and warnings.

    A note that was handed on already, such as one about every edit that is measured, is not repeated.

    Args:
        watch: who shows the events.
        files: names from ``written`` events; warnings: texts of ``warning`` events, each once.
        noted: texts of ``note`` events.
    """

    watch: Callable[[Event], None]
    files: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    noted: set[str] = attrs.field(factory=set)

    def __call__(self, event: Event) -> None:
        """Keep and hand on."""
        if event.type == "note":
            text = str(event.values.get("text", ""))
            if text in self.noted:
                return
            self.noted.add(text)
        if event.type == "written":
            self.files.append(str(event.values["file"]))
        elif event.type == "warning" and (text := str(event.values.get("text", ""))) not in self.warnings:
            self.warnings.append(text)
        self.watch(event)

    def warned_besides(self, record: RunRecord) -> tuple[str, ...]:
        """Return the warnings that are not those of a run."""
        return tuple(text for text in self.warnings if text not in record.warnings)


@attrs.define
class PlainWatcher:
    """Writes a line when a stage ends, every tenth of a long task, and every few seconds while it lasts."""

    write: Callable[[str], None]
    state: State = attrs.field(factory=State)
    _last: tuple[Task | None, float, float] = (None, 0.0, 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Event) -> None:
        """Write what this event makes worth a line."""
        self.state.take(event)
        if event.type == "progress":
            self._progress()
        elif event.type == "stage" and event.values.get("state") == "end":
            seconds = event.values.get("seconds")
            self.write(f"{event.stage}: done" + (f" in {numbers.duration(seconds)}" if seconds is not None else ""))
        elif line := sentence(event):
            self.write(line)

    def _progress(self) -> None:
        task = self.state.task
        if task is None:
            return
        now = self.state.clock()
        seen, since, share = self._last
        if seen is not task:
            since, share = task.began, 0.0
            self._last = (task, since, share)
        elif share >= 1.0:
            return
        gone = now - since
        ended = task.finished and now - task.began >= PLAIN_SHORTEST
        if ended or gone >= PLAIN_SECONDS or (gone >= PLAIN_GAP and task.share - share >= PLAIN_SHARE):
            self.write(task.line(now))
            self._last = (task, now, task.share)


class SilentWatcher:
    """Shows nothing, for ``--quiet``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Event) -> None:
        """Ignore the event."""
