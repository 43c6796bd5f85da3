"""Progress: plain lines elsewhere, a live block on terminals, nothing when quiet."""

import io

import pytest
from rich.console import Console

from vu_cli.progress import PlainWatcher, State, Task
from vu_cli.render import LiveWatcher, watcher
from vu_cli.session import Session
from vu_core import Event


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(step: int, total: int = 100, what: str = "training", stage: str = "unlearn", **values: float) -> Event:
    return Event("progress", stage, {"what": what, "step": step, "total": total, **values}, durable=False)


@pytest.fixture
def plain():
    clock, lines = Clock(), []
    return clock, lines, PlainWatcher(lines.append, State(clock))


def run(clock, watch, steps, seconds, total=100, **values):
    for step in steps:
        clock.now += seconds
        watch(progress(step, total, **values))


def test_a_plain_line_per_tenth_with_what_step_losses_rate_and_time_left(plain):
    clock, lines, watch = plain
    run(clock, watch, range(1, 101), 0.5, loss_retain=0.5, lr=1e-4, loss_forget=0.25)
    assert len(lines) == 10
    assert (
        lines[0] == "unlearn: training 10/100 (10 %), 2.0/s, 0:45 left, loss_forget 0.25, loss_retain 0.5, lr 1.0e-04"
    )
    assert lines[-1].startswith("unlearn: training 100/100 (100 %) in 49.5 s, 2.0/s, loss_forget 0.25")


def test_a_slow_task_gets_a_line_every_few_seconds(plain):
    clock, lines, watch = plain
    run(clock, watch, range(1, 8), 5.0, total=10_000)
    assert [line.split(",")[0] for line in lines] == [
        "unlearn: training 4/10000 (0 %)",
        "unlearn: training 7/10000 (0 %)",
    ]
    assert "5.0 s each" in lines[-1]


def test_a_quick_task_is_not_worth_a_line(plain):
    clock, lines, watch = plain
    run(clock, watch, range(1, 101), 0.001)
    assert lines == []


def test_repeated_last_events_and_restarts_are_understood(plain):
    clock, lines, watch = plain
    run(clock, watch, [1, 50, 100, 100, 100], 3.0)
    assert sum("(100 %)" in line for line in lines) == 1
    run(clock, watch, [1, 100], 3.0)
    assert sum("(100 %)" in line for line in lines) == 2


def test_a_resumed_task_measures_its_own_steps_only():
    task = Task("unlearn", "training", began=0.0)
    task.update({"step": 900, "total": 1000}, 0.0)
    task.update({"step": 910, "total": 1000}, 5.0)
    assert task.rate == 2.0
    assert task.pace() == "2.0/s, 0:45 left"


def test_stages_notes_warnings_and_resumes_get_a_line(plain):
    _, lines, watch = plain
    watch(Event("stage", "load", {"state": "begin"}))
    watch(Event("note", "load", {"text": "from the cache"}))
    watch(Event("warning", "load", {"text": "careful"}))
    watch(Event("resume", "run", {"from": "unlearn"}))
    watch(Event("resume", "unlearn", {"phase": "main", "step": 40, "total": 120}))
    watch(Event("checkpoint", "unlearn", {"step": 3}))
    watch(Event("log", "load", {"message": "a library"}))
    watch(Event("stage", "load", {"state": "end", "seconds": 1.25}))
    assert lines == [
        "note: from the cache",
        "warning: careful",
        "continues with unlearn",
        "continues with unlearn after step 40 of 120",
        "load: done in 1.2 s",
    ]


def live(width: int) -> tuple[io.StringIO, Clock, LiveWatcher]:
    stream, clock = io.StringIO(), Clock()
    target = Console(
        file=stream, force_terminal=True, width=width, color_system=None, highlight=False, legacy_windows=False
    )
    return stream, clock, LiveWatcher(target, State(clock))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_block_fits_the_terminal(width):
    stream, clock, watch = live(width)
    with watch:
        watch(Event("stage", "unlearn", {"state": "begin"}))
        for step in (1, 30, 60):
            clock.now += 10
            watch(progress(step, 120, loss_forget=0.21, loss_retain=0.01, lr=0.00091, grad_norm=0.4))
        plain = Console(file=io.StringIO(), width=width, color_system=None)
        with plain.capture() as captured:
            plain.print(watch)
        watch(progress(120, 120, loss_forget=0.2))
        watch(Event("stage", "unlearn", {"state": "end", "seconds": 40.0}))
    block = captured.get().splitlines()
    assert len(block) == 2
    assert max(map(len, block)) <= width
    assert "unlearn  training" in block[0]
    assert "60/120" in block[0]
    assert "0:20 left" in block[0] or width < 80
    assert "loss_forget 0.21, loss_retain 0.01" in block[1]
    assert "40.0 s   training 120, loss_forget 0.2" in stream.getvalue()


def test_quiet_is_silent_and_other_streams_than_terminals_get_plain_lines():
    stream = io.StringIO()
    for quiet in (True, False):
        with watcher(Session(out=stream, err=stream, quiet=quiet)) as watch:
            watch(Event("stage", "load", {"state": "end", "seconds": 2.0}))
        assert stream.getvalue() == ("" if quiet else "load: done in 2.0 s\n")
