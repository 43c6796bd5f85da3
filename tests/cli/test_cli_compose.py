"""`vu compose`: several erased concepts in one edit, measured together, one by one and without each."""

import json
import shutil
from pathlib import Path

import pytest

from vu_core.adapters import apply_edit, load_edit


def scores(path: Path) -> dict[str, float]:
    return {score["name"]: score["after"] for score in json.loads((path / "scores.json").read_text())["scores"]}


def shown(run: Path, edit: Path | None = None) -> list[float]:
    """Return what every slot shows under the edit of a run."""
    from vu_toy_slots.parts import Slots, SlotsConfig

    model = Slots("", SlotsConfig()).load(device="cpu", precision="fp32")
    with apply_edit(model.network, load_edit(edit or run / "edit.safetensors")):
        return [round(float(each), 6) for each in model.shown()]


def test_the_new_run_forgets_what_each_run_forgets(vu, slots, erased):
    done = vu(
        "compose", erased("0"), erased("1", kind="low-rank"), erased("2", kind="replace"), "--out", "all", plugins=slots
    )
    assert done.status == 0, done.err
    assert shown(Path("all")) == [0.0, 0.0, 0.0, 1.0]
    found = scores(Path("all"))
    assert found["ua[slot:0]"] == found["ua[slot:1]"] == found["ua[slot:2]"] == 1.0
    assert found["ira"] == 1.0
    assert "composition on toy-slots" in done.out
    assert "interference.json" in done.out
    assert "stop" in done.out.split("Run ")[0]


def test_the_tables_tell_which_edit_hurts_which_concept(vu, slots, erased):
    runs = [erased("0", leak=0.1), erased("1", strength=0.9), erased("2", strength=0.8)]
    done = vu("compose", *runs, "--out", "all", plugins=slots)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "Each edit alone, and all together (held-out, 2 seeds)" in lines
    assert "score unit untouched slot:0 slot:1 slot:2 together" in lines
    assert "ua[slot:1] % 0.0 10.0 (+10.0) 90.0 (+90.0) 0.0 (0.0) 100.0 (+100.0)" in lines
    assert "ira % 100.0 90.0 (-10.0) 100.0 (0.0) 100.0 (0.0) 90.0 (-10.0)" in lines
    assert lines.count("ua[slot:2] % +10.0 0.0 +80.0") == 1
    assert lines.count("ua[slot:1] % +10.0 +90.0 0.0") == 1
    assert lines.count("ira % -10.0 0.0 0.0") == 1
    assert not any(line.startswith(("size %", "slots %")) for line in lines)
    assert "Beside the others, slot:0 costs most: 10.0 points of ira." in lines


def test_the_numbers_of_the_tables_are_kept_and_printed_as_json(vu, slots, erased):
    done = vu("compose", erased("0", leak=0.1), erased("1"), "--out", "both", "--seeds", "1", "--json", plugins=slots)
    record, interference = json.loads(done.out)
    assert record["method"] == "composition"
    assert record["forget"] == ["slot:0", "slot:1"]
    assert interference == {**json.loads(Path("both/interference.json").read_text()), "warnings": []}
    assert (interference["split"], interference["seeds"]) == ("held-out", 1)
    first, second = interference["edits"]
    assert first["alone"] == second["all_without_it"]  # of two, each is what the other one leaves
    assert first["alone"]["ua[slot:1]"] == pytest.approx(0.1)
    assert interference["untouched"]["ira"] == 1.0
    assert [score["name"] for score in interference["scores"]] == ["ua", "shown", "ua[slot:0]", "ua[slot:1]", "ira"]


def test_each_edit_is_measured_alone_and_left_out_once(vu, slots, erased):
    from vu_toy_slots.parts import Shown

    runs = [erased(slot) for slot in "012"]
    for words, times in (
        ([runs[0], "--weights", "2"], 1),
        (runs[:2], 1 + 2),
        (runs, 1 + 3 + 3),
        ([*runs, "--no-interference"], 1),
    ):
        Shown.asked.clear()
        assert vu("compose", *words, plugins=slots).status == 0
        assert len(Shown.asked) == times
    told = vu("compose", *runs, plugins=slots).err
    assert told.count("comes from the cache") == 1  # and not once per edit
    assert told.count("measure all but slot:1: done in") == 1
    assert "interference.json" not in vu("compose", *runs, "--no-interference", plugins=slots).out


def test_weights_scale_the_edits_as_they_are_measured(vu, slots, erased):
    done = vu("compose", erased("0"), erased("1"), "--weights", "1, 0.25", "--out", "both", "--json", plugins=slots)
    assert shown(Path("both")) == [0.0, 0.75, 1.0, 1.0]
    _, second = json.loads(done.out)[1]["edits"]
    assert (second["weight"], second["alone"]["ua[slot:1]"]) == (0.25, 0.25)
    assert vu("compose", "0", "--weights", "-0.5", "--out", "one", plugins=slots).status == 0
    assert shown(Path("one")) == [1.5, 1.0, 1.0, 1.0]


def test_what_several_edits_share_counts_once_under_orthogonal(vu, slots, erased):
    runs = erased("0", leak=0.5), erased("1", leak=0.5)
    assert vu("compose", *runs, "--strategy", "orthogonal", "--out", "both", plugins=slots).status == 0
    assert vu("compose", *runs, "--out", "sum", plugins=slots).status == 0
    assert shown(Path("sum"))[3] == 0.0
    assert shown(Path("both"))[3] > 0.0


def test_a_composition_is_taken_apart_so_that_all_stays_revocable(vu, slots, erased):
    a, b, c = (erased(slot) for slot in "012")
    vu("compose", a, b, "--weights", "1,0.5", "--out", "two", plugins=slots)
    assert vu("compose", "two", c, "--weights", "0.5,1", "--out", "nested", plugins=slots).status == 0
    assert vu("compose", a, b, c, "--weights", "0.5,0.25,1", "--out", "flat", plugins=slots).status == 0
    assert Path("nested/edit.safetensors").read_bytes() == Path("flat/edit.safetensors").read_bytes()
    assert len(list(Path("nested/sources").glob("*.safetensors"))) == 3


def test_a_run_that_forgets_two_concepts_stays_one_edit(vu, slots, erased):
    assert vu("compose", erased("0", "1"), erased("2"), "--out", "all", plugins=slots).status == 0
    assert json.loads(Path("all/sources/concepts.json").read_text())["edits"] == [
        {"forget": ["slot:0", "slot:1"], "overwrite": ["slot:3", "slot:3"]},
        {"forget": ["slot:2"], "overwrite": ["slot:3"]},
    ]


def test_overwrites_that_are_forgotten_by_another_edit_do_not_stand_in_the_way(vu, slots, erased):
    a, b = erased("0"), erased("3")
    done = vu("compose", a, b, "--out", "both", plugins=slots)
    assert done.status == 0, done.err
    assert shown(Path("both")) == [0.0, 1.0, 1.0, 0.0]
    assert "The overwrites of the edits do not go together. An overwrite is forgotten itself." in " ".join(
        done.out.split()
    )
    told = [each["overwrite"] for each in json.loads(Path("both/sources/concepts.json").read_text())["edits"]]
    assert told == [["slot:3"], ["slot:2"]]
    assert vu("revoke", "both", "slot:3", "--out", "one", plugins=slots).status == 0
    assert shown(Path("one")) == [0.0, 1.0, 1.0, 1.0]


def test_a_composed_run_repeats_itself_bit_for_bit(vu, slots, erased):
    vu("compose", erased("0"), erased("1", kind="low-rank"), "--out", "both", plugins=slots)
    assert vu("unlearn", "-c", "both/run.toml", "--out", "again", plugins=slots).status == 0
    assert Path("again/edit.safetensors").read_bytes() == Path("both/edit.safetensors").read_bytes()


def refused(vu, slots, *words):
    done = vu("compose", *words, "--out", "new", plugins=slots)
    assert not Path("new").exists()
    assert done.status != 0
    return done.status, done.err


def test_wrong_usage_is_told_before_anything_is_made(vu, slots, erased):
    a, b = erased("0"), erased("1")
    for words, code, text in (
        ((), "VU-C120", "Missing argument"),
        ((a,), "VU-C128", "'0' is a single edit"),
        ((a, b, "--weights", "1"), "VU-C127", "2 runs, but 1 weights"),
        ((a, b, "--weights", "1,0"), "VU-C127", "The weight of '1' is 0"),
        ((a, b, "--weights", "1,x"), "VU-C120", "'x' is not a valid float"),
        ((a, b, "--weights", "1,nan"), "VU-C120", "no finite number"),
        ((a, b, "--strategy", "mean"), "VU-C120", "orthogonal"),
        ((a, a), "VU-C129", "named more than once"),
        ((a, b, "--set", "run.seed=1"), "VU-C050", "run.seed"),
        ((a, b, "--seeds", "0"), "VU-C001", "measure.seeds"),
    ):
        status, err = refused(vu, slots, *words)
        assert (status, code in err, text in err) == (2, True, True), err
    status, err = refused(vu, slots, a, "nowhere")
    assert (status, "VU-R052" in err) == (7, True)


def test_an_unfinished_run_is_refused_with_what_finishes_it(vu, slots, erased):
    a, b = erased("0"), erased("1")
    (b / "README.md").unlink()
    status, err = refused(vu, slots, a, b)
    assert (status, "VU-R131" in err, "vu unlearn --resume 1" in err) == (7, True, True)


def test_two_runs_that_forget_the_same_are_named(vu, slots, erased):
    a = erased("0")
    shutil.copytree(a, "copy")
    status, err = refused(vu, slots, a, erased("1"), "copy")
    assert (status, "VU-C129" in err) == (2, True)
    assert "'0' and 'copy' both forget slot:0" in err


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"model__brightness": 2.0}, "model.brightness is 1.0 in 0 and 2.0 in 1"),
        ({"data__caption": "'a {}'"}, "data.caption"),
    ],
)
def test_runs_of_other_models_or_data_do_not_belong_together(vu, slots, erased, settings, key):
    status, err = refused(vu, slots, erased("0"), erased("1", **settings))
    assert (status, "VU-C130" in err, key in err) == (2, True, True), err


def test_a_run_whose_configuration_was_edited_is_refused(vu, slots, erased):
    a, b = erased("0"), erased("1")
    path = b / "run.toml"
    path.write_text(path.read_text().replace("strength = 1.0", "strength = 2.0"))
    status, err = refused(vu, slots, a, b)
    assert (status, "VU-R053" in err, "unlearner.strength" in err) == (7, True, True)


def test_a_composition_under_another_strategy_is_not_added_up(vu, slots, erased):
    a, b, c = (erased(slot) for slot in "012")
    vu("compose", a, b, "--strategy", "orthogonal", "--out", "two", plugins=slots)
    status, err = refused(vu, slots, "two", c)
    assert (status, "VU-C132" in err, "--strategy orthogonal" in err) == (2, True, True)
    assert vu("compose", "two", c, "--strategy", "orthogonal", plugins=slots).status == 0


def test_damaged_sources_are_told(vu, slots, erased):
    vu("compose", erased("0"), erased("1"), "--out", "two", plugins=slots)
    third = erased("2")
    concepts = Path("two/sources/concepts.json")
    for text in ("{}", "no json", '{"format": 1, "edits": [{"forget": 3}]}', '{"format": 1, "edits": []}'):
        concepts.write_text(text)
        status, err = refused(vu, slots, "two", third)
        assert (status, "VU-R056" in err) == (7, True), err


def test_ctrl_c_leaves_a_run_that_resume_completes(vu, slots, erased, stopper):
    a, b = erased("0"), erased("1")
    vu("compose", a, b, "--out", "whole", plugins=slots)
    stopper.stage = "measure"
    stopped = vu("compose", a, b, "--out", "new", plugins=slots)
    assert stopped.status == 130
    last = stopped.err.splitlines()[-1]
    assert last == "interrupted; continue with: vu unlearn --resume new, then: vu compose new"
    stopper.stage = ""
    resumed = vu("unlearn", "--resume", "new", plugins=slots)
    assert resumed.status == 0, resumed.err
    assert Path("new/edit.safetensors").read_bytes() == Path("whole/edit.safetensors").read_bytes()
    assert not Path("new/interference.json").exists()
    again = vu("compose", "new", "--out", "again", plugins=slots)
    assert again.status == 0, again.err
    for file in ("edit.safetensors", "interference.json"):
        assert Path("again", file).read_bytes() == Path("whole", file).read_bytes()


@pytest.mark.parametrize("strategy", ["sum", "orthogonal"])
def test_ctrl_c_while_edits_are_measured_alone_leaves_a_complete_run(vu, slots, erased, stopper, strategy):
    a, b = erased("0"), erased("1")
    stopper.stage = "measure slot:0 alone"
    stopped = vu("compose", a, b, "--strategy", strategy, "--out", "new", plugins=slots)
    assert stopped.status == 130
    assert scores(Path("new"))["ua"] == 1.0
    assert not Path("new/interference.json").exists()
    line = stopped.err.splitlines()[-1]
    assert line.startswith("interrupted; continue with: vu compose ")
    stopper.stage = ""
    again = vu(*line.split(": vu ")[1].split(), "--out", "again", plugins=slots)
    assert again.status == 0, again.err
    assert Path("again/edit.safetensors").read_bytes() == Path("new/edit.safetensors").read_bytes()
    assert Path("again/interference.json").exists()


def test_ctrl_c_without_interference_asks_for_nothing_further(vu, slots, erased, stopper):
    a, b = erased("0"), erased("1")
    stopper.stage = "measure"
    stopped = vu("compose", a, b, "--no-interference", "--out", "new", plugins=slots)
    assert stopped.err.splitlines()[-1] == "interrupted; continue with: vu unlearn --resume new"


def test_a_run_is_shown_although_its_edits_cannot_be_measured_alone(vu, slots, erased, monkeypatch):
    from vu_core import MeasureError

    def fails(*_others):
        raise MeasureError("VU-S091", "There is nothing to measure.", "Try again.")

    monkeypatch.setattr("vu_core.components.interference", fails)
    done = vu("compose", erased("0"), erased("1"), "--out", "new", "--json", plugins=slots)
    assert (done.status, "Error VU-S091" in done.err) == (10, True)
    (record,) = json.loads(done.out)
    assert record["folder"] == "new"
    assert not Path("new/interference.json").exists()
