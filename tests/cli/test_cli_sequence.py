"""Sequences of runs on the command line: plan, table, JSON, resuming, and what other commands make of their folders."""

import io
import json
from pathlib import Path

import pytest

from vu_cli.render import LiveWatcher, console
from vu_core import Event
from vu_core.adapters import apply_edit, load_edit
from vu_core.plugins import discover
from vu_core.testing import toy_plugin

TASKS = """
run.seed = 3
unlearner.kind = "{kind}"
[[tasks]]
forget = ["slot:0"]
name = "zero"
[[tasks]]
forget = ["slot:1"]
[[tasks]]
forget = ["slot:2"]
unlearner.strength = 0.5
"""


def shown(run: Path) -> list[float]:
    """Return what every slot shows under the edit of a run."""
    from vu_toy_slots.parts import Slots, SlotsConfig

    model = Slots("", SlotsConfig()).load(device="cpu", precision="fp32")
    with apply_edit(model.network, load_edit(run / "edit.safetensors")):
        return [round(float(each), 6) for each in model.shown()]


@pytest.fixture
def chained(vu, slots, tmp_path):
    """Make a finished sequence of three tasks in the folder ``chain``."""

    def make(kind: str = "low-rank") -> Path:
        (tmp_path / "chain.toml").write_text(TASKS.format(kind=kind))
        done = vu("unlearn", "-c", "chain.toml", "--out", "chain", plugins=slots)
        assert done.status == 0, done.err
        return Path("chain")

    return make


def test_the_plan_names_every_task_and_what_all_cost(vu, slots, tmp_path):
    (tmp_path / "chain.toml").write_text(TASKS.format(kind="low-rank"))
    done = vu("unlearn", "-c", "chain.toml", "--dry-run", plugins=slots)
    assert done.status == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert any(line.startswith("0 1 0 0 ") and line.endswith("zero: slot:0") for line in lines)
    assert any(line.startswith("2 1 2 0 ") and line.endswith("slot:2") for line in lines)
    assert any("for all 3 runs" in line for line in lines)
    assert not Path("runs").exists()
    told = json.loads(vu("unlearn", "-c", "chain.toml", "--dry-run", "--json", plugins=slots).out)
    assert [task["leave_out"] for task in told["tasks"]] == [[], ["slot:0"], ["slot:0", "slot:1"]]
    assert len(told["plans"]) == 3
    assert told["cost"]["seconds"] == pytest.approx(sum(plan["cost"]["seconds"] for plan in told["plans"]))


def test_scores_of_all_tasks_stand_side_by_side(vu, slots, tmp_path):
    (tmp_path / "chain.toml").write_text(TASKS.format(kind="low-rank"))
    done = vu("unlearn", "-c", "chain.toml", "--out", "chain", plugins=slots)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "score task 0 task 1 task 2" in lines
    assert any(line.startswith("ua 100.0 100.0 ") for line in lines)
    assert "task 2 of 3 done in" in done.err
    assert "sequence.json" in done.out


def test_the_record_is_printed_as_json(vu, slots, chained, tmp_path):
    folder = chained()
    done = vu("unlearn", "-c", "chain.toml", "--out", "again", "--json", plugins=slots)
    told, kept = json.loads(done.out), json.loads((folder / "sequence.json").read_text())
    assert told["tasks"][1]["runs"][0]["measured"] == kept["tasks"][1]["runs"][0]["measured"]
    assert (told["status"], told["id"]) == ("complete", kept["id"])


def test_ctrl_c_names_the_sequence_and_resume_ends_it(vu, slots, stopper, tmp_path):
    (tmp_path / "chain.toml").write_text(TASKS.format(kind="low-rank"))
    stopper.stage = "measure"
    stopped = vu("unlearn", "-c", "chain.toml", "--out", "chain", plugins=slots)
    assert stopped.status == 130
    assert "vu unlearn --resume chain\n" in stopped.err
    for words in (["compose", "chain"], ["revoke", "chain", "0"]):
        early = vu(*words, "--out", "rest", plugins=slots)
        assert (early.status, "VU-R131" in early.err, "vu unlearn --resume chain`" in early.err) == (7, True, True)
        assert not Path("rest").exists()
    stopper.stage = ""
    done = vu("unlearn", "--resume", "chain", plugins=slots)
    assert done.status == 0, done.err
    assert json.loads(Path("chain/sequence.json").read_text())["status"] == "complete"


def test_finished_tasks_are_rows_of_the_live_table():
    events = [
        Event("task", "sequence", {"number": n, "planned": 2, "seed": 3, "seeds": 1, "state": state, **more})
        for n in (0, 1)
        for state, more in (("begin", {"name": ""}), ("end", {"seconds": 61.0, "scores": {"acc_f": n / 4}}))
    ]
    target = console(io.StringIO())
    with LiveWatcher(target) as watch:
        for event in events:
            watch(event)
        with target.capture() as captured:
            target.print(watch)
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert [lines[0], *lines[2:4]] == ["task acc_f time", "0 0.0 1 min 1 s", "1 25.0 1 min 1 s"]


def test_strict_shows_the_record_and_ends_with_6(vu, slots, tmp_path):
    (tmp_path / "chain.toml").write_text(TASKS.format(kind="low-rank").replace("0.5", "1e-6"))
    done = vu("unlearn", "-c", "chain.toml", "--out", "chain", "--strict", plugins=slots)
    assert (done.status, "VU-U052" in done.err) == (6, True)
    assert "score" in done.out


def test_a_composition_of_the_tasks_is_what_they_made_together(vu, slots, chained):
    chained()
    tasks = ["chain/tasks/0", "chain/tasks/1", "chain/tasks/2"]
    for out, words in (("all-1", ["chain"]), ("all-3", tasks), ("turned", tasks[::-1])):
        done = vu("compose", *words, "--no-interference", "--out", out, plugins=slots)
        assert done.status == 0, done.err
        assert shown(Path(out)) == [0.0, 0.0, 0.5, 1.0]
        assert load_edit(Path(out) / "edit.safetensors").parents == (), "it lies on the original model"
    done = vu("revoke", "all-1", "slot:0", "--out", "rest", plugins=slots)
    assert done.status == 0, done.err
    assert shown(Path("rest")) == [1.0, 0.0, 0.5, 1.0]


def test_whole_tensors_of_later_tasks_are_not_added_up(vu, slots, chained):
    chained("replace")
    done = vu("compose", "chain", "--out", "all", plugins=slots)
    assert "VU-L127" in done.err
    for others in (("0",), ("0", "1")):
        done = vu("revoke", "chain", *others, "--out", "all", plugins=slots)
        assert "VU-L127" in done.err, "the tensor that would remain holds what task 0 has changed"
    assert not Path("all").exists()
    assert vu("revoke", "chain", "1", "2", "--out", "all", plugins=slots).status == 0
    assert shown(Path("all")) == [0.0, 1.0, 1.0, 1.0]


PAIR = """
run.seed = 3
unlearner.kind = "low-rank"
[[tasks]]
forget = ["slot:0", "slot:1"]
[[tasks]]
forget = ["slot:2"]
unlearner.strength = 0.5
"""


@pytest.fixture
def pair(vu, slots, tmp_path):
    """Make a finished sequence of two tasks, the first of which forgets two slots."""
    (tmp_path / "pair.toml").write_text(PAIR)
    done = vu("unlearn", "-c", "pair.toml", "--out", "pair", plugins=slots)
    assert done.status == 0, done.err
    return Path("pair")


def test_of_two_tasks_either_is_taken_out(vu, slots, pair):
    """By its number or by all of its concepts; the other one lies on the original model, unchanged."""
    first, second = [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.5, 1.0]
    for number, (named, kept, after) in enumerate(
        ((["0"], 1, second), (["slot:1", "slot:0"], 1, second), (["1"], 0, first), (["slot:2"], 0, first))
    ):
        rest = Path(f"rest-{number}")
        done = vu("revoke", pair, *named, "--out", rest, plugins=slots)
        assert done.status == 0, done.err
        assert shown(rest) == after
        (source,) = rest.glob("sources/*.safetensors")
        assert source.read_bytes() == (pair / f"tasks/{kept}/edit.safetensors").read_bytes()
        assert load_edit(rest / "edit.safetensors").parents == ()
        assert json.loads((rest / "environment.json").read_text())["edits"] == []
        scores = {score["name"]: score["after"] for score in json.loads((rest / "scores.json").read_text())["scores"]}
        assert scores["ira"] == 1.0, "what was revoked is asked about with what stays"


def test_a_composition_of_two_tasks_gives_the_first_back(vu, slots, pair):
    assert vu("compose", pair, "--no-interference", "--out", "all", plugins=slots).status == 0
    done = vu("revoke", "all", "slot:0", "slot:1", "--out", "rest", plugins=slots)
    assert done.status == 0, done.err
    assert shown(Path("rest")) == [1.0, 1.0, 0.5, 1.0]
    assert "slot:0, slot:1, asked about as in all" in " ".join(done.out.split())
    assert vu("revoke", pair, "0", "--out", "direct", plugins=slots).status == 0
    direct, rest = (Path(run, "edit.safetensors").read_bytes() for run in ("direct", "rest"))
    assert direct == rest


def test_tasks_are_taken_out_as_a_composition_of_the_others_is_made(vu, slots, chained):
    chained()
    assert vu("revoke", "chain", "1", "--out", "rest", plugins=slots).status == 0
    words = ["chain/tasks/0", "chain/tasks/2"]
    assert vu("compose", *words, "--no-interference", "--out", "scratch", plugins=slots).status == 0
    for file in ("edit.safetensors", "sources/concepts.json"):
        assert Path("rest", file).read_bytes() == Path("scratch", file).read_bytes()
    assert vu("revoke", "chain", "0", "slot:1", "--out", "last", plugins=slots).status == 0
    assert shown(Path("last")) == [1.0, 1.0, 0.5, 1.0]
    assert vu("unlearn", "-c", "last/run.toml", "--out", "again", plugins=slots).status == 0
    assert Path("again/edit.safetensors").read_bytes() == Path("last/edit.safetensors").read_bytes()


def test_what_cannot_be_taken_out_of_a_sequence_is_told(vu, slots, pair):
    for named, code, text in (
        (["slot:0"], "VU-C134", "Take out all that it forgets: `vu revoke pair 0`."),
        (["slot:0", "1"], "VU-C134", "slot:0 was forgotten together with slot:1"),
        (["0", "1"], "VU-C134", "Without 0, 1, nothing of the run 'pair' would remain."),
        (["2"], "VU-C133", "It forgets: slot:0, slot:1, slot:2. Its tasks: 0, 1."),
    ):
        done = vu("revoke", pair, *named, "--out", "rest", plugins=slots)
        assert (done.status, code in done.err, text in " ".join(done.err.split())) == (2, True, True), done.err
        assert not Path("rest").exists()


def test_a_single_task_that_is_composed_is_told_what_keeps_it_alone(vu, slots, pair):
    done = vu("compose", "pair/tasks/1", plugins=slots)
    assert (done.status, "VU-C128" in done.err, "vu revoke SEQUENCE TASK" in done.err) == (2, True, True)
    done = vu("compose", "pair/tasks/0", plugins=slots)
    assert ("VU-C128" in done.err, "SEQUENCE" in done.err) == (True, False), "it lies on the original model"


def test_of_several_seeds_one_is_named(vu, slots, tmp_path):
    (tmp_path / "pair.toml").write_text(PAIR)
    done = vu("unlearn", "-c", "pair.toml", "--set", "sequence.seeds=2", "--out", "pair", plugins=slots)
    assert done.status == 0, done.err
    for words in (["revoke", "pair", "0"], ["compose", "pair"]):
        done = vu(*words, "--out", "rest", plugins=slots)
        assert (done.status, "VU-R142" in done.err) == (7, True)
        assert "Name one of its seeds: pair/seeds/3, pair/seeds/4." in " ".join(done.err.split())
    assert vu("revoke", "pair/seeds/4", "0", "--out", "rest", plugins=slots).status == 0
    assert vu("compose", "pair/seeds/4", "--no-interference", "--out", "all", plugins=slots).status == 0
    assert shown(Path("rest")) == [1.0, 1.0, 0.5, 1.0]
    assert shown(Path("all")) == [0.0, 0.0, 0.5, 1.0]


def test_the_edit_of_a_later_task_is_not_exported_alone(vu, slots, chained):
    import vu_toy_slots

    chained()
    both = discover(extra=[("vu-toy-slots", "1.0", vu_toy_slots), ("vu-toys", "0.1", toy_plugin)], installed=False)
    done = vu("export", "chain/tasks/1", "--to", "toy-file", "--out", "file", plugins=both)
    assert "VU-L128" in done.err
    assert not Path("file").exists()
    first = vu("export", "chain/tasks/0", "--to", "toy-file", "--out", "file", plugins=both)
    assert "VU-L128" not in first.err, "the first task was made on the base"


@pytest.mark.parametrize("words", [["measure", "chain"], ["compare", "chain", "chain/tasks/0"]])
def test_other_commands_name_the_tasks(vu, slots, chained, words):
    chained()
    done = vu(*words, plugins=slots)
    assert done.status != 0
    assert "chain/tasks/0, chain/tasks/1" in done.err


def test_one_task_is_measured_on_the_model_that_it_was_made_on(vu, slots, chained):
    chained()
    done = vu("measure", "chain/tasks/2", "--json", plugins=slots)
    assert done.status == 0, done.err
    again = {score["name"]: (score["before"], score["after"]) for score in json.loads(done.out)["scores"]}
    kept = json.loads(Path("chain/tasks/2/scores.json").read_text())["scores"]
    assert len(json.loads(Path("chain/tasks/2/environment.json").read_text())["edits"]) == 2
    assert again == {score["name"]: (score["before"], score["after"]) for score in kept}
