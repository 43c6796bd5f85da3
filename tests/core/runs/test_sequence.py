"""Sequences of runs: what they forget, how they go on, what they record."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from vu_core import ConfigError, EditError, Event, PlanError, RecordError, UnlearnError, VuError, sequence
from vu_core.adapters import edit_digest, load_edit
from vu_core.config import Override, RawConfig
from vu_core.pipeline import Interrupted
from vu_core.pipeline import execute as execute_run
from vu_core.plugins import Plugins
from vu_core.run_folder import state_of
from vu_core.stages.read import read

Make = Callable[..., RawConfig]
FILES = ("edit.safetensors", "scores.json")
CONFIG = """
[run]
seed = 3
threads = 1
[unlearner]
method = "toy-push"
[unlearner.training]
steps = 6
[[tasks]]
name = "first"
forget = ["sign:plus"]
[[tasks]]
forget = ["axis:x"]
unlearner.training.steps = 9
"""
START = """
import sys
from pathlib import Path
from vu_core import sequence
from vu_core.config import Override
from vu_core.plugins import discover
from vu_core.stages.read import read
out = Override("run.out", sys.argv[2], "--out")
sequence.execute(read(Path(sys.argv[1]), [out]), plugins=discover())
"""


@pytest.fixture
def chain(place: Path) -> Make:
    """Make the configuration of two tasks from dotted keys with ``__`` for dots."""
    file = place / "chain.toml"
    file.write_text(CONFIG)

    def make(**values: Any) -> RawConfig:
        return read(file, [Override(key.replace("__", "."), value, "--set") for key, value in values.items()])

    return make


def _equal(folder: Path, other: Path) -> None:
    for number in (0, 1):
        for name in FILES:
            assert (folder / f"tasks/{number}/{name}").read_bytes() == (other / f"tasks/{number}/{name}").read_bytes()


def test_every_task_begins_with_the_model_that_the_one_before_has_left(plugins: Plugins, chain: Make) -> None:
    record = sequence.execute(chain(), plugins=plugins)
    first, second = (load_edit(record.folder / f"tasks/{number}/edit.safetensors") for number in (0, 1))
    assert (first.parents, second.parents) == ((), (edit_digest(first),))
    assert record.folder.parts[0] == "runs"
    assert record.complete
    scores = [task.run.scorecard["forget_size"] for task in record.tasks if task.run.scorecard]
    assert [score.before for score in scores][1:] == [score.after for score in scores][:-1], (
        "after one is before the next"
    )


def test_its_file_and_those_of_its_tasks_repeat_it_bit_for_bit(plugins: Plugins, chain: Make, place: Path) -> None:
    record = sequence.execute(chain(run__out="whole"), plugins=plugins)
    again = sequence.execute(
        read(place / "whole/sequence.toml", [Override("run.out", "again", "--out")]), plugins=plugins
    )
    _equal(place / "whole", place / "again")
    assert again.run_id == record.run_id
    second = read(place / "whole/tasks/1/run.toml", [Override("run.out", "second", "--out")])
    execute_run(second, plugins=plugins)
    for name in FILES:
        assert (place / "second" / name).read_bytes() == (place / "whole/tasks/1" / name).read_bytes()


def test_edits_that_the_model_carries_lie_below_every_task(plugins: Plugins, chain: Make, raw: Any) -> None:
    execute_run(raw(run__out="base", data__forget=["axis:y"]), plugins=plugins)
    record = sequence.execute(chain(model__edits=["base"], run__out="out"), plugins=plugins)
    base, first, second = (
        load_edit(folder / "edit.safetensors")
        for folder in (Path("base"), record.folder / "tasks/0", record.folder / "tasks/1")
    )
    assert first.parents == (edit_digest(base),)
    assert second.parents == (edit_digest(base), edit_digest(first))
    again = sequence.dry_run(read(Path("out/sequence.toml")), plugins=plugins)
    assert again.run_id == record.run_id


def test_keys_of_a_task_hold_for_it_alone(plugins: Plugins, chain: Make) -> None:
    plan = sequence.dry_run(chain(), plugins=plugins)
    assert [each.config.unlearner.config.training.steps for each in plan.plans] == [6, 9]
    assert [each.config.forget for each in plan.plans] == [("sign:plus",), ("axis:x",)]
    assert [each.config.subset.leave_out for each in plan.plans] == [(), ("sign:plus",)]
    assert [each.config.run.task for each in plan.plans] == [0, 1]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "moment", ["load/stage:begin", "unlearn/progress:4", "measure/stage:begin", "record/stage:end"]
)
def test_ctrl_c_anywhere_leaves_a_sequence_that_goes_on(
    plugins: Plugins, chain: Make, place: Path, moment: str, number: int
) -> None:
    sequence.execute(chain(run__out="whole"), plugins=plugins)
    begun: list[int] = []

    def stop(event: Event) -> None:
        if event.type == "task" and event.values["state"] == "begin":
            begun.append(event.values["number"])
        at = f"{event.stage}/{event.type}:{event.values.get('step', event.values.get('state'))}"
        if at == moment and begun == list(range(number + 1)):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sequence.execute(chain(run__out="stopped"), plugins=plugins, on_event=stop)
    assert caught.value.folder == Path("stopped")
    record = sequence.resume(Path("stopped"), plugins=plugins)
    assert record.complete
    _equal(place / "stopped", place / "whole")


def test_killed_in_the_middle_of_a_task_it_ends_with_the_same_result(
    plugins: Plugins, chain: Make, place: Path, process: Any
) -> None:
    sequence.execute(chain(run__out="whole"), plugins=plugins)
    killed = process(START, "chain.toml", "killed", VU_TOY_KILL_AT="unlearn/progress:8")  # only task 1 gets there
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (state_of(place / "killed/tasks/0"), state_of(place / "killed/tasks/1")) == ("complete", "incomplete")
    sequence.resume(Path("killed"), plugins=plugins)
    _equal(place / "killed", place / "whole")


def test_finished_tasks_are_not_run_again(plugins: Plugins, chain: Make, toys: Any) -> None:
    def stop(event: Event) -> None:
        if event.type == "task" and (event.values["number"], event.values["state"]) == (1, "begin"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        sequence.execute(chain(run__out="stopped"), plugins=plugins, on_event=stop)
    toys.ToyPoints.built.clear()
    told: list[float] = []

    def hear(event: Event) -> None:
        if event.type == "task" and event.values["state"] == "end":
            told.append(event.values["seconds"])

    record = sequence.resume(Path("stopped"), plugins=plugins, on_event=hear)
    assert toys.ToyPoints.built.count("train") == 1
    assert told == [pytest.approx(task.seconds) for task in record.tasks], "what it took, not what reading it took"


def test_a_sequence_that_cannot_go_on_keeps_its_configuration(plugins: Plugins, chain: Make, place: Path) -> None:
    def stop(event: Event) -> None:
        if event.type == "task":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        sequence.execute(chain(run__out="stopped"), plugins=plugins, on_event=stop)
    file = place / "stopped/sequence.toml"
    text = file.read_text()
    file.write_text(text.replace("toy-push", "toy-unknown"))
    with pytest.raises(VuError, match="toy-unknown"):
        sequence.resume(Path("stopped"), plugins=plugins)
    file.write_text(text)
    assert sequence.resume(Path("stopped"), plugins=plugins).complete


def test_several_seeds_have_mean_and_deviation(plugins: Plugins, chain: Make, place: Path) -> None:
    record = sequence.execute(chain(sequence__seeds=3, run__out="out"), plugins=plugins)
    assert record.seeds == (3, 4, 5)
    gaps = [json.loads((place / f"out/seeds/{s}/tasks/1/scores.json").read_text()) for s in record.seeds]
    values = [card["scores"][0]["after"] for card in gaps]
    assert len(set(values)) == 3
    told = json.loads((place / "out/sequence.json").read_text())["tasks"][1]
    name = gaps[0]["scores"][0]["name"]
    assert told["scores"][name] == {"mean": pytest.approx(mean(values)), "deviation": pytest.approx(stdev(values))}
    assert [run["seed"] for run in told["runs"]] == [3, 4, 5]


def test_it_is_read_back_as_it_was_made(plugins: Plugins, chain: Make) -> None:
    made = sequence.execute(chain(), plugins=plugins)
    found = sequence.read_record(made.folder)
    assert [task.run for task in found.tasks] == [task.run for task in made.tasks]
    assert (found.run_id, found.files, found.complete) == (made.run_id, made.files, True)
    report = (made.folder / "report.html").read_text()
    assert "<svg" in report
    assert "<script" not in report
    assert str(made.folder.absolute()) not in report


def test_a_limit_of_time_counts_all_tasks(plugins: Plugins, chain: Make) -> None:
    plan = sequence.dry_run(chain(sequence__seeds=2), plugins=plugins)
    assert plan.cost.seconds == pytest.approx(2 * sum(each.cost.seconds for each in plan.plans))
    minutes = plan.cost.seconds / 60
    sequence.dry_run(chain(sequence__seeds=2), plugins=plugins, max_minutes=1.01 * minutes)
    with pytest.raises(PlanError) as caught:
        sequence.dry_run(chain(sequence__seeds=2), plugins=plugins, max_minutes=0.99 * minutes)
    assert caught.value.code == "VU-L003"


def test_strict_objects_after_everything_is_recorded(plugins: Plugins, chain: Make) -> None:
    doubtful = chain(unlearner__training__lr=1e-9, measure__metrics=["toy-size-of-change"], run__out="out")
    with pytest.raises(UnlearnError, match="Task 0") as caught:
        sequence.execute(doubtful, plugins=plugins, strict=True)
    assert caught.value.code == "VU-U052"
    assert sequence.read_record(Path("out")).complete


def test_a_seed_is_drawn_once_for_all_tasks(plugins: Plugins, place: Path) -> None:
    (place / "chain.toml").write_text(CONFIG.replace("seed = 3", ""))
    plan = sequence.dry_run(read(place / "chain.toml"), plugins=plugins)
    assert {each.config.run.seed for each in plan.plans} == set(plan.seeds)
    assert any("was drawn" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("sequence = 5\n", "VU-C156", "must be a table"),
        ("[sequence]\nname = 'x'\n[[tasks]]\nforget = ['sign:plus']", "VU-C156", "Keep one"),
        ("data.forget = ['axis:y']\n[[tasks]]\nforget = ['sign:plus']", "VU-C157", "data.forget"),
        ("tasks = []\n", "VU-C159", "one table or more"),
        ("[[tasks]]\nname = 'x'\n", "VU-C159", r"tasks\[0\].forget"),
        ("[[tasks]]\nforget = 'sign:plus'\n", "VU-C159", "list of texts"),
        ("[[tasks]]\nforget = ['sign:plus']\nname = 3\n", "VU-C159", "must be text"),
        ("[[tasks]]\nforget = ['sign:plus']\nrun.seed = 3\n", "VU-C159", "is set by the sequence"),
        ("[[tasks]]\nforget = ['sign:plus']\ndata.forget = ['axis:x']\n", "VU-C159", r"written as tasks\[0\].forget"),
        ("[[tasks]]\nforget = ['sign:plus']\nsubset.leave_out = ['axis:x']\n", "VU-C159", r"tasks\[0\].leave_out"),
        ("[[tasks]]\nforget = ['sign:plus']\nsubset.missing = ['axis:x']\n", "VU-C159", r"tasks\[0\].missing"),
        (
            "[[tasks]]\nforget = ['sign:plus']\n[[tasks]]\nforget = ['axis:x']\nmissing = ['sign:plus']\n",
            "VU-C159",
            "an earlier task forgets",
        ),
        ("[[tasks]]\nforget = ['sign:plus']\nunlearner.foo = 3\n", "VU-C001", "unlearner.foo"),
        ("[sequence]\nseeds = 0\n[[tasks]]\nforget = ['sign:plus']\n", "VU-C001", "sequence.seeds"),
        ("[sequence]\nfoo = 0\n[[tasks]]\nforget = ['sign:plus']\n", "VU-C001", "sequence.foo"),
    ],
)
def test_what_is_wrong_is_told(plugins: Plugins, place: Path, text: str, code: str, said: str) -> None:
    head = "unlearner.method = 'toy-push'\nrun.seed = 1\n"
    (place / "wrong.toml").write_text(head + text)
    with pytest.raises(VuError, match=said) as caught:
        sequence.execute(read(place / "wrong.toml"), plugins=plugins)
    assert caught.value.code == code
    assert not (place / "runs").exists()


def test_a_first_task_that_fails_early_leaves_no_folder(plugins: Plugins, place: Path) -> None:
    file = place / "chain.toml"
    file.write_text("run.seed = 1\nunlearner.method = 'toy-misfit'\n[[tasks]]\nforget = ['sign:plus']\n")
    with pytest.raises(EditError):
        sequence.execute(read(file), plugins=plugins)
    assert not list(place.glob("runs/*"))


def test_a_task_that_fails_says_how_the_sequence_goes_on(
    plugins: Plugins, chain: Make, toys: Any, monkeypatch: Any
) -> None:
    unlearn = toys.Push.unlearn

    def failing(self: Any, model: Any, data: Any, run: Any) -> Any:
        if run.task == 1:
            raise UnlearnError("VU-U999", "It broke.", "Mend it.")
        return unlearn(self, model, data, run)

    monkeypatch.setattr(toys.Push, "unlearn", failing)
    with pytest.raises(UnlearnError, match="It broke") as caught:
        sequence.execute(chain(run__out="out"), plugins=plugins)
    assert "vu unlearn --resume out" in caught.value.remedy
    monkeypatch.setattr(toys.Push, "unlearn", unlearn)
    assert sequence.resume(Path("out"), plugins=plugins).complete


def test_what_is_complete_or_changed_does_not_go_on(plugins: Plugins, chain: Make, place: Path) -> None:
    sequence.execute(chain(run__out="out"), plugins=plugins)
    with pytest.raises(RecordError, match="is complete") as caught:
        sequence.resume(Path("out"), plugins=plugins)
    assert caught.value.code == "VU-R054"
    (place / "out/README.md").unlink()
    file = place / "out/sequence.toml"
    file.write_text(file.read_text().replace("lr = 0.05", "lr = 0.06"))
    with pytest.raises(RecordError) as caught:
        sequence.resume(Path("out"), plugins=plugins)
    assert caught.value.code == "VU-R053"
    with pytest.raises(RecordError) as caught:
        sequence.resume(place, plugins=plugins)
    assert caught.value.code == "VU-R052"


def test_the_folder_of_a_sequence_is_no_run_but_names_its_tasks(plugins: Plugins, chain: Make) -> None:
    from vu_core.pipeline import read_record

    sequence.execute(chain(run__out="out"), plugins=plugins)
    with pytest.raises(RecordError, match="a sequence of runs") as caught:
        read_record(Path("out"))
    assert caught.value.code == "VU-R142"
    assert "out/tasks/0, out/tasks/1" in caught.value.remedy
    with pytest.raises(RecordError, match="holds a sequence of runs") as caught:
        sequence.execute(chain(run__out="out"), plugins=plugins)
    assert caught.value.code == "VU-R050"


def test_one_run_cannot_be_made_of_a_sequence(plugins: Plugins, chain: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        execute_run(chain(data__forget=["sign:plus"]), plugins=plugins)
    assert caught.value.code in ("VU-C001", "VU-C005")
