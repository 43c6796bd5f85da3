"""`vu revoke`: concepts come back, and the rest is what it would have been without them."""

import json
from pathlib import Path

import pytest

from vu_core.workbench import CONCEPTS


@pytest.fixture
def composed(vu, slots, erased):
    """Three slots forgotten in one edit, in three ways, one of them at a quarter of its strength."""
    runs = [erased("0", kind="low-rank"), erased("1", leak=0.1), erased("2", kind="low-rank", strength=0.9)]
    done = vu("compose", *runs, "--weights", "1,0.25,1", "--no-interference", "--out", "all", plugins=slots)
    assert done.status == 0, done.err
    return Path("all")


def edit(folder) -> bytes:
    return Path(folder, "edit.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("concept", "rest", "weights"), [("slot:0", "12", "0.25,1"), ("slot:1", "02", "1,1"), ("slot:2", "01", "1,0.25")]
)
def test_the_rest_is_byte_for_byte_the_composition_made_without_it(vu, slots, composed, concept, rest, weights):
    done = vu("revoke", composed, concept, "--out", "rest", plugins=slots)
    assert done.status == 0, done.err
    assert vu("compose", *rest, "--weights", weights, "--out", "scratch", plugins=slots).status == 0
    assert edit("rest") == edit("scratch")
    assert edit("rest") != edit("all")
    for file in (CONCEPTS, "0.safetensors", "1.safetensors"):
        assert Path("rest/sources", file).read_bytes() == Path("scratch/sources", file).read_bytes()


def test_the_rest_keeps_its_strategy(vu, slots, erased):
    for slot in "012":
        erased(slot, leak=0.2)
    vu("compose", *"012", "--strategy", "orthogonal", "--out", "all", plugins=slots)
    assert vu("revoke", "all", "slot:0", "--out", "rest", plugins=slots).status == 0
    vu("compose", *"12", "--strategy", "orthogonal", "--out", "scratch", plugins=slots)
    assert edit("rest") == edit("scratch")


def test_concepts_come_back_one_after_the_other(vu, slots, composed):
    assert vu("revoke", composed, "slot:0", "--out", "two", plugins=slots).status == 0
    assert vu("revoke", "two", "slot:2", "--out", "one", plugins=slots).status == 0
    assert vu("compose", "1", "--weights", "0.25", "--out", "scratch", plugins=slots).status == 0
    assert edit("one") == edit("scratch")
    last = vu("revoke", "one", "slot:1", plugins=slots)
    assert (last.status, "VU-C134" in last.err, "base model" in last.err) == (2, True, True)


def test_the_old_evaluation_says_that_the_concept_is_back(vu, slots, composed):
    before = sorted(path.name for path in composed.iterdir()), edit(composed)
    done = vu("revoke", composed, "slot:0", "--out", "rest", plugins=slots)
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "slot:0, asked about as in all (held-out)" in lines
    table = lines[lines.index("score unit untouched with slot:0 without") + 2 :]
    assert table[0] == "ua[slot:0] % 0.0 100.0 2.5"  # the leak of slot:1 at a quarter
    assert "ua[slot:2] % 0.0 92.5 92.5" in table
    assert "ua[slot:0] is 2.5 points from the untouched model." in lines
    assert not any(line.startswith("size ") for line in table)
    assert (sorted(path.name for path in composed.iterdir()), edit(composed)) == before


def test_json_tells_the_same(vu, slots, composed):
    record, evidence = json.loads(vu("revoke", composed, "slot:1", "--json", plugins=slots).out)
    assert record["forget"] == ["slot:0", "slot:2"]
    assert record["folder"] == f"runs/{record['run_id']}"
    assert (evidence["concepts"], evidence["run"], evidence["split"]) == (["slot:1"], "all", "held-out")
    first = evidence["scores"][0]
    assert (first["name"], first["own"], first["untouched"], first["without"]) == ("ua[slot:1]", True, 0.0, 0.0)
    assert first["with"] == pytest.approx(0.25)
    assert not any(score["own"] for score in evidence["scores"][1:])


def refused(vu, slots, *words):
    done = vu("revoke", *words, "--out", "new", plugins=slots)
    assert not Path("new").exists()
    return done.status, done.err


def test_a_run_that_was_not_composed_is_one_piece(vu, slots, erased):
    status, err = refused(vu, slots, erased("0"), "slot:0")
    assert (status, "VU-R130" in err, "vu compose" in err, "toy-erase" in err) == (7, True, True, True)
    status, err = refused(vu, slots, "nowhere", "slot:0")
    assert (status, "VU-R052" in err) == (7, True)


def test_an_unknown_concept_is_told_with_those_that_are_there(vu, slots, composed):
    status, err = refused(vu, slots, composed, "slot:9")
    assert (status, "VU-C133" in err) == (2, True)
    assert "Did you mean" in err
    assert "It forgets: slot:0, slot:1, slot:2." in err


def test_what_one_edit_forgets_together_cannot_be_separated(vu, slots, erased):
    vu("compose", erased("0", "1"), erased("2"), "--no-interference", "--out", "all", plugins=slots)
    status, err = refused(vu, slots, "all", "slot:0")
    assert (status, "VU-C134" in err) == (2, True)
    assert "slot:0 was forgotten together with slot:1" in err
    assert "Take out all that it forgets: `vu revoke all slot:0 slot:1`." in " ".join(err.split())
    assert vu("revoke", "all", "slot:2", "--out", "new", plugins=slots).status == 0


def test_all_that_one_edit_forgets_is_taken_out_together(vu, slots, erased):
    """As the message names it: in any order, and every concept is told to be back."""
    vu("compose", erased("0", "1"), erased("2", leak=0.1), "--no-interference", "--out", "all", plugins=slots)
    done = vu("revoke", "all", "slot:1", "slot:0", "--out", "rest", plugins=slots)
    assert done.status == 0, done.err
    source = Path("rest/sources/0.safetensors")
    assert source.read_bytes() == Path("all/sources/1.safetensors").read_bytes() == edit("2")
    assert json.loads(Path("rest", "sources", CONCEPTS).read_text())["edits"] == [
        {"forget": ["slot:2"], "overwrite": ["slot:3"]}
    ]
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "slot:0, slot:1, asked about as in all (held-out)" in lines
    table = lines[lines.index("score unit untouched with them without") + 2 :]
    assert table[:2] == ["ua[slot:0] % 0.0 100.0 10.0", "ua[slot:1] % 0.0 100.0 10.0"]
    assert "ua[slot:1] is 10.0 points from the untouched model." in lines


def test_several_edits_are_taken_out_at_once(vu, slots, composed):
    assert vu("revoke", composed, "slot:2", "slot:0", "--out", "one", plugins=slots).status == 0
    assert vu("compose", "1", "--weights", "0.25", "--out", "scratch", plugins=slots).status == 0
    assert edit("one") == edit("scratch")
    status, err = refused(vu, slots, composed, "slot:2", "slot:0", "slot:1")
    assert (status, "VU-C134" in err, "base model" in err) == (2, True, True)


def test_a_part_with_all_other_edits_leaves_nothing(vu, slots, erased):
    vu("compose", erased("0", "1"), erased("2"), "--no-interference", "--out", "two", plugins=slots)
    status, err = refused(vu, slots, "two", "slot:0", "slot:2")
    assert (status, "VU-C134" in err, "slot:0 was forgotten together with slot:1" in err) == (2, True, True)
    assert "Nothing would remain without that edit: use the base model" in " ".join(err.split())


@pytest.mark.parametrize("line", [["all"], ["all", ""], ["all", "slot:0", ""], ["all", "slot:0", "--out", ""]])
def test_wrong_usage(vu, slots, line):
    done = vu("revoke", *line, plugins=slots)
    assert (done.status, "VU-C120" in done.err) == (2, True)


def test_a_source_that_was_swapped_is_refused_and_leaves_nothing(vu, slots, composed):
    Path("all/sources/0.safetensors").write_bytes(edit("1"))
    status, err = refused(vu, slots, composed, "slot:2")
    assert (status, "VU-E065" in err) == (9, True), err


def test_a_run_is_shown_although_the_old_evaluation_fails(vu, slots, composed, monkeypatch):
    from vu_core import MeasureError
    from vu_core.workbench import Workbench

    def fails(*_others):
        raise MeasureError("VU-S091", "There is nothing to measure.", "Try again.")

    monkeypatch.setattr(Workbench, "measure", fails)
    done = vu("revoke", composed, "slot:0", "--out", "rest", "--json", plugins=slots)
    assert (done.status, "Error VU-S091" in done.err) == (10, True)
    (record,) = json.loads(done.out)
    assert record["folder"] == "rest"


def test_ctrl_c_leaves_a_run_that_resume_completes(vu, slots, composed, stopper):
    vu("revoke", composed, "slot:0", "--out", "whole", plugins=slots)
    stopper.stage = "unlearn"
    stopped = vu("revoke", composed, "slot:0", "--out", "new", plugins=slots)
    last = stopped.err.splitlines()[-1]
    assert (stopped.status, last) == (130, "interrupted; continue with: vu unlearn --resume new")
    stopper.stage = ""
    resumed = vu("unlearn", "--resume", "new", plugins=slots)
    assert resumed.status == 0, resumed.err
    assert edit("new") == edit("whole")
