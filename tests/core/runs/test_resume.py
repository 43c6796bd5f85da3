"""Killed, interrupted and resumed runs."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core import Event, RecordError
from vu_core.config import RawConfig, flat
from vu_core.pipeline import Interrupted, execute, resume
from vu_core.plugins import Plugins
from vu_core.run_folder import lock, read_events, state_of

Raw = Callable[..., RawConfig]
STEPS = 12

START = """
import sys
from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import discover
from vu_core.stages.read import read
settings = {"unlearner.method": "toy-push", "run.seed": 3, "data.forget": ["sign:plus"], "run.threads": 1}
settings["run.out"] = sys.argv[1]
execute(read(None, [Override(key, value, "--set") for key, value in settings.items()]), plugins=discover())
"""

RESUME = """
import sys
from pathlib import Path
from vu_core.pipeline import resume
from vu_core.plugins import discover
resume(Path(sys.argv[1]), plugins=discover())
"""

# The n-th checkpoint: its bytes lie under the temporary name, the rename never happens.
KILL_WHILE_WRITING = """
import os, signal
from pathlib import Path
rename, seen = Path.replace, []
def replace(self, target):
    if "checkpoints" in str(target) and str(target).endswith(os.environ["VU_TOY_KILL_SUFFIX"]):
        seen.append(target)
        if len(seen) == int(os.environ["VU_TOY_KILL_COUNT"]):
            os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = replace
"""


HOLD = """
import sys
from pathlib import Path
from vu_core.run_folder import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def whole(plugins: Plugins, raw: Raw) -> Path:
    """The same run without interruption."""
    return execute(raw(run__threads=1, run__out="whole"), plugins=plugins).folder


def _resumed_at(folder: Path) -> list[int]:
    return [e["values"]["step"] for e in read_events(folder) if e["type"] == "resume" and e["stage"] == "unlearn"]


def _equal(folder: Path, whole: Path) -> None:
    for name in ("edit.safetensors", "scores.json", "run.toml", "environment.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_killed_at_random_steps_ends_with_the_same_edit(
    plugins: Plugins, process: Any, place: Path, whole: Path
) -> None:
    first, second = sorted(random.Random(os.urandom(8)).sample(range(2, STEPS), 2))
    killed = process(START, "killed", VU_TOY_KILL_AT=f"unlearn/progress:{first}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state_of(place / "killed") == "incomplete"
    again = process(RESUME, "killed", VU_TOY_KILL_AT=f"unlearn/progress:{second}")
    assert again.returncode == -signal.SIGKILL, again.stderr
    resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", whole)
    starts = _resumed_at(place / "killed")
    assert len(starts) == 2, f"killed at {first} and {second}"
    assert 0 < starts[0] <= first
    assert starts[0] <= starts[1] <= second


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_run_killed_while_a_checkpoint_is_written(
    plugins: Plugins, process: Any, place: Path, whole: Path, suffix: str
) -> None:
    settings = {"VU_TOY_KILL_SUFFIX": suffix, "VU_TOY_KILL_COUNT": "4"}
    killed = process(KILL_WHILE_WRITING + START, "killed", **settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    torn = [path.name for path in (place / "killed" / "checkpoints").iterdir() if path.name.endswith(".tmp")]
    assert torn, "the kill must hit between writing and renaming"
    resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", whole)
    assert len(_resumed_at(place / "killed")) == 1
    assert _resumed_at(place / "killed")[0] > 0


@pytest.mark.parametrize("moment", ["measure/stage:begin", "measure/score:None", "record/stage:begin"])
def test_a_run_killed_after_unlearning_only_measures_again(
    plugins: Plugins, process: Any, place: Path, whole: Path, moment: str
) -> None:
    killed = process(START, "killed", VU_TOY_KILL_AT=moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", whole)
    begun = [e["stage"] for e in read_events(place / "killed") if e["values"].get("state") == "begin"]
    assert begun.count("unlearn") == 1


def test_a_run_killed_while_it_loads_starts_over(plugins: Plugins, process: Any, place: Path, whole: Path) -> None:
    killed = process(START, "killed", VU_TOY_KILL_AT="load/stage:begin")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", whole)


def test_a_torn_last_event_is_no_obstacle(plugins: Plugins, process: Any, place: Path, whole: Path) -> None:
    process(START, "killed", VU_TOY_KILL_AT="unlearn/progress:6")
    log = place / "killed" / "events.jsonl"
    with log.open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", "type": "prog')
    resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", whole)
    assert all(json.loads(line) for line in log.read_text().splitlines())


class _Stop:
    """A listener that presses Ctrl-C when an event comes."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def __call__(self, event: Event) -> None:
        if f"{event.stage}/{event.type}:{event.values.get('step', event.values.get('state'))}" == self.moment:
            raise KeyboardInterrupt


MOMENTS = [
    "load/stage:begin", "load/stage:end", "unlearn/stage:begin", "unlearn/progress:1", "unlearn/progress:7",
    "unlearn/stage:end", "measure/stage:begin", "measure/progress:4", "measure/stage:end", "record/stage:begin",
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_stage_leaves_a_run_that_can_be_resumed(
    plugins: Plugins, raw: Raw, place: Path, moment: str
) -> None:
    whole = execute(raw(), plugins=plugins)
    with pytest.raises(Interrupted) as caught:
        execute(raw(run__out="stopped"), plugins=plugins, on_event=_Stop(moment))
    assert caught.value.folder == Path("stopped")
    assert state_of(place / "stopped") == "incomplete"
    assert not (place / "stopped" / ".lock").exists()
    record = resume(Path("stopped"), plugins=plugins)
    for name in ("edit.safetensors", "scores.json"):
        assert (place / "stopped" / name).read_bytes() == (whole.folder / name).read_bytes()
    assert record.run_id == whole.run_id
    steps = _resumed_at(place / "stopped")
    if moment == "unlearn/progress:7":
        assert steps
        assert 6 <= steps[0] <= 7, "Ctrl-C writes a checkpoint"


def test_sections_of_the_report_survive_an_interruption(
    plugins: Plugins, raw: Raw, place: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlearn = toys.Push.unlearn

    def with_section(self: Any, model: Any, data: Any, run: Any) -> Any:
        run.report.add("Layers", "<p>which layers moved</p>")
        return unlearn(self, model, data, run)

    monkeypatch.setattr(toys.Push, "unlearn", with_section)
    with pytest.raises(Interrupted):
        execute(raw(run__out="stopped"), plugins=plugins, on_event=_Stop("measure/stage:begin"))
    resume(Path("stopped"), plugins=plugins)
    assert (place / "stopped" / "report.html").read_text().count("which layers moved") == 1


def test_resuming_continues_from_the_step_it_says(plugins: Plugins, raw: Raw, place: Path) -> None:
    with pytest.raises(Interrupted):
        execute(raw(run__out="stopped"), plugins=plugins, on_event=_Stop("unlearn/progress:5"))
    seen: list[int] = []

    def watch(event: Event) -> None:
        if event.type == "progress" and event.stage == "unlearn" and "loss_forget" in event.values:
            seen.append(event.values["step"])

    resume(Path("stopped"), plugins=plugins, on_event=watch)
    start = _resumed_at(place / "stopped")[0]
    assert seen == list(range(start + 1, STEPS + 1))


def test_a_complete_run_is_not_resumed(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    with pytest.raises(RecordError, match="is complete") as caught:
        resume(record.folder, plugins=plugins)
    assert caught.value.code == "VU-R054"


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_no_run_is_not_resumed(plugins: Plugins, place: Path, make: Any) -> None:
    make(place / "x")
    with pytest.raises(RecordError) as caught:
        resume(place / "x", plugins=plugins)
    assert caught.value.code == "VU-R052"


def _stopped(plugins: Plugins, raw: Raw) -> Path:
    with pytest.raises(Interrupted):
        execute(raw(run__out="stopped"), plugins=plugins, on_event=_Stop("unlearn/progress:5"))
    return Path("stopped")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: e["versions"].update({"vu-toy-run": "0.9"}), r"vu-toy-run \(was 0.9, is 1.0\)"),
        (lambda e: e["versions"].update({"gone": "1.0"}), r"gone \(was 1.0, is absent\)"),
        (lambda e: e.update(torch="1.0"), r"torch \(was 1.0"),
        (lambda e: e.update(base_hash="0" * 64), "the weights of the model"),
        (lambda e: e["data"].update(digest="0"), "the data 'toy-points'"),
    ],
)
def test_a_changed_surrounding_is_named(plugins: Plugins, raw: Raw, change: Any, named: str) -> None:
    folder = _stopped(plugins, raw)
    path = folder / "environment.json"
    then = json.loads(path.read_text())
    change(then)
    path.write_text(json.dumps(then))
    with pytest.raises(RecordError, match=named) as caught:
        resume(folder, plugins=plugins)
    assert caught.value.code == "VU-R053"
    assert state_of(folder) == "incomplete"


def test_a_changed_configuration_is_not_mixed_with_the_old_one(plugins: Plugins, raw: Raw) -> None:
    folder = _stopped(plugins, raw)
    path = folder / "run.toml"
    text = path.read_text()
    assert "lr = 0.05" in text
    path.write_text(text.replace("lr = 0.05", "lr = 0.5"))
    with pytest.raises(RecordError, match=r"the configuration in run\.toml") as caught:
        resume(folder, plugins=plugins)
    assert caught.value.code == "VU-R053"
    path.write_text(text)
    assert resume(folder, plugins=plugins).scorecard


def test_a_table_that_was_added_is_a_change(plugins: Plugins, raw: Raw) -> None:
    full = raw(run__out="stopped", unlearner__parameters__name="full")
    with pytest.raises(Interrupted):
        execute(full, plugins=plugins, on_event=_Stop("unlearn/progress:5"))
    folder = Path("stopped")
    path = folder / "run.toml"
    path.write_text(path.read_text() + "\n[regularizer.hard-mask]\n")
    with pytest.raises(RecordError, match=r"the configuration in run\.toml \(.*regularizer\.hard-mask") as caught:
        resume(folder, plugins=plugins)
    assert caught.value.code == "VU-R053"


def test_an_empty_table_is_a_value() -> None:
    assert dict(flat({"regularizer": {"hard-mask": {}}, "run": {"seed": 1}})) == {
        "regularizer.hard-mask": {},
        "run.seed": 1,
    }


def test_a_damaged_event_is_told_before_anything_is_loaded(plugins: Plugins, raw: Raw, toys: Any) -> None:
    folder = _stopped(plugins, raw)
    log = folder / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], "no event\n", *lines[1:]]))
    toys.ToyPoints.built.clear()
    with pytest.raises(RecordError, match="line 2 is no event") as caught:
        resume(folder, plugins=plugins)
    assert caught.value.code == "VU-R056"
    assert not toys.ToyPoints.built
    assert log.read_text().splitlines()[1] == "no event", "the damage is not made larger"


def test_another_thread_count_is_a_warning(plugins: Plugins, raw: Raw) -> None:
    folder = _stopped(plugins, raw)
    path = folder / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 77}))
    record = resume(folder, plugins=plugins)
    assert any("77 CPU threads" in warning for warning in record.warnings)


def test_a_folder_in_use_by_a_living_process_is_refused(plugins: Plugins, raw: Raw, place: Path) -> None:
    folder = _stopped(plugins, raw)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecordError, match=f"process {holder.pid}") as caught:
        resume(folder, plugins=plugins)
    assert caught.value.code == "VU-R051"
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert (folder / ".lock").exists(), "a killed process leaves its file"
    assert resume(folder, plugins=plugins).scorecard


def test_a_lock_is_taken_once(place: Path) -> None:
    with lock(place):
        with pytest.raises(RecordError), lock(place):
            pass
        assert (place / ".lock").exists()
    assert not (place / ".lock").exists()


def test_time_is_added_up_over_sittings(plugins: Plugins, raw: Raw) -> None:
    folder = _stopped(plugins, raw)
    record = resume(folder, plugins=plugins)
    assert set(record.seconds) == {"load", "unlearn", "measure", "record"}
    assert all(seconds >= 0 for seconds in record.seconds.values())
