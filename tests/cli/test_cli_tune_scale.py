"""`vu tune-scale`: the smallest scale that forgets enough, on validation seeds, or what stands in its way."""

import json
import shlex
from pathlib import Path

import pytest


def tune(vu, slots, *words):
    return vu("tune-scale", *words, plugins=slots)


def lines_of(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_smallest_scale_is_found_and_told_with_what_uses_it(vu, slots, erased):
    run = erased("0", strength=0.9, leak=0.01)
    done = tune(vu, slots, run, "--target", "ua=0.6", "--keep", "ira=-0.02")
    assert done.status == 0, done.err
    lines = lines_of(done.out)
    assert lines[0] == "Scales of the edit of 0 (validation, 2 seeds)"
    assert lines[1] == "scale ua change of ira reached kept"
    assert lines[3] == "0 0.0 0.0 no yes"
    assert "1 90.0 -1.0 yes yes" in lines
    assert "Asked for: ua >= 60.0 %, change of ira >= -2.0 points." in lines
    assert "Scale 0.6719 is the smallest one tried that does what is asked; 0.6562 does not." in lines
    assert "Written to 0/tuned-scale.json." in lines
    command = next(line for line in lines if line.startswith("vu generate"))
    made = vu(*shlex.split(command.replace("PROMPT", "'slot 0'"))[1:], plugins=slots)
    assert made.status == 0, made.err
    assert "vu export 0 --to FORMAT --out DIR --scale 0.6719" in lines


def test_only_validation_is_asked_whatever_the_run_was_measured_on(vu, slots, erased):
    from vu_toy_slots.parts import Shown

    run = erased("0")
    assert Shown.asked == ["held-out"]
    tune(vu, slots, run, "--target", "ua=0.5")
    assert set(Shown.asked[1:]) == {"validation"}


def test_json_and_the_file_hold_every_trial(vu, slots, erased):
    run = erased("0", strength=0.8)
    words = (run, "--target", "ua=95%,shown=0.1", "--keep", "ira=-2%", "--seeds", "3", "--high", "1.5", "--json")
    (evidence,) = json.loads(tune(vu, slots, *words).out)
    stored = json.loads(Path("0/tuned-scale.json").read_text())
    assert evidence == {**stored, "file": "0/tuned-scale.json", "warnings": []}
    assert (stored["format"], stored["split"], stored["seeds"]) == (1, "validation", 3)
    assert stored["targets"] == {"ua": 0.95, "shown": 0.1}
    assert stored["keeps"] == {"ira": -0.02}
    assert stored["scale"] == pytest.approx(0.95 / 0.8, abs=0.02)
    first, untouched = stored["trials"][:2]
    assert (first["scale"], first["reached"], first["kept"]) == (1.0, False, True)
    assert first["targets"] == pytest.approx({"ua": 0.8, "shown": 0.2})
    assert (untouched["scale"], untouched["targets"]) == (0.0, {"ua": 0.0, "shown": 1.0})
    tune(vu, slots, *words)
    assert sorted(path.name for path in run.glob("tuned-scale*")) == ["tuned-scale.2.json", "tuned-scale.json"]


def test_what_was_measured_is_shown_although_it_cannot_be_written(vu, slots, erased, monkeypatch):
    from vu_core import RecordError

    def full(folder, stem, text):
        raise RecordError("VU-R055", "The disk is full.", "Free some space.", where=str(folder))

    monkeypatch.setattr("vu_core.stages.record.write_beside", full)
    done = tune(vu, slots, erased("0"), "--target", "ua=0.6", "--out", "new", "--json")
    assert (done.status, "Error VU-R055" in done.err) == (7, True)
    (evidence,) = json.loads(done.out)
    assert evidence["file"] is None
    assert evidence["scale"] == pytest.approx(0.6, abs=0.02)
    assert not Path("new").exists()


@pytest.mark.parametrize("words", [["--json"], ["--quiet"]])
def test_data_that_has_changed_is_a_warning_whatever_is_printed(vu, slots, erased, words):
    run = erased("0")
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["digest"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    done = tune(vu, slots, run, "--target", "ua=0.6", *words)
    assert done.status == 0, done.err
    told = json.loads(done.out)[0]["warnings"] if words == ["--json"] else [" ".join(done.out.split())]
    assert len(told) == 1
    assert "The data 'toy-slots' has changed since the run" in told[0]


def test_a_target_that_no_scale_reaches_ends_with_6_after_the_table(vu, slots, erased):
    run = erased("0", strength=0.3)
    done = tune(vu, slots, run, "--target", "ua=0.95")
    assert done.status == 6
    assert "2 60.0 no" in lines_of(done.out)
    assert "Error VU-U120" in done.err
    assert "No scale that was tried, up to 2, reaches ua >= 95.0 %: ua is 60.0 % at 2." in done.err
    assert "vu generate" not in done.out
    assert json.loads(Path("0/tuned-scale.json").read_text())["scale"] is None


def test_a_target_that_costs_too_much_is_told_with_both_ends(vu, slots, erased):
    run = erased("0", leak=0.1)
    done = tune(vu, slots, run, "--target", "ua=0.75", "--keep", "ira=-0.05", "--out", "new")
    assert (done.status, "VU-U120" in done.err) == (6, True)
    assert "at scale 0.75, the smallest tried that reaches it, ira changes by -7.5 points" in done.err
    assert "The largest scale tried that holds --keep is 0.4844: ua is 48.4 %." in done.err
    assert not Path("new").exists()


def test_a_target_that_the_untouched_model_reaches_asks_nothing(vu, slots, erased):
    done = tune(vu, slots, erased("0"), "--target", "ira=0.9")
    assert (done.status, "The untouched model reaches ira >= 90.0 % already" in done.err) == (6, True)


def test_out_makes_a_measured_run_of_the_scaled_edit(vu, slots, erased):
    run = erased("0", strength=0.8, kind="replace")
    done = tune(vu, slots, run, "--target", "ua=0.7", "--out", "new", "--json")
    evidence, record = json.loads(done.out)
    assert record["folder"] == "new"
    assert record["scorecard"]["split"] == "held-out"
    after = {score["name"]: score["after"] for score in record["scorecard"]["scores"]}
    assert after["ua"] == pytest.approx(0.8 * evidence["scale"])
    assert after["ua"] >= 0.7


def test_a_scaled_composition_stays_revocable(vu, slots, erased):
    vu("compose", erased("0"), erased("1"), "--weights", "1,0.5", "--no-interference", "--out", "two", plugins=slots)
    done = tune(vu, slots, "two", "--target", "ua[slot:0]=0.5", "--out", "new", "--json")
    assert done.status == 0, done.err
    scale = json.loads(done.out)[0]["scale"]
    assert vu("revoke", "new", "slot:0", "--out", "one", plugins=slots).status == 0
    vu("compose", "1", "--weights", repr(0.5 * scale), "--out", "scratch", plugins=slots)
    assert Path("one/edit.safetensors").read_bytes() == Path("scratch/edit.safetensors").read_bytes()


def test_trials_that_run_out_are_told(vu, slots, erased):
    done = tune(vu, slots, erased("0"), "--target", "ua=0.3", "--trials", "2")
    assert done.status == 0
    assert "Scale 0.5 is the smallest one tried that does what is asked; 0 does not." in lines_of(done.out)
    assert "More --trials would look in between." in done.out


def test_scores_that_contradict_the_search_are_told(vu, slots, erased, monkeypatch):
    from vu_toy_slots.parts import LoadedSlots

    run = erased("0")
    honest = LoadedSlots.shown
    # At scale 0.625, where 0.375 of slot 0 is left, it seems to shine more than at 0.5.
    monkeypatch.setattr(LoadedSlots, "shown", lambda self: (s := honest(self)) + 0.5 * ((s > 0.3) & (s < 0.4)))
    done = tune(vu, slots, run, "--target", "ua=0.7")
    assert "ua is worse at 0.625 than at 0.5" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), "VU-C120", "--target"),
        (("--target", "ua"), "VU-C120", "'ua' is not like ua=0.95"),
        (("--target", "ua="), "VU-C120", "is not like"),
        (("--target", "=0.9"), "VU-C120", "is not like"),
        (("--target", "ua=high"), "VU-C120", "is not like"),
        (("--target", "ua=nan"), "VU-C120", "is not like"),
        (("--target", "ua=0.9,"), "VU-C120", "is not like"),
        (("--target", "ua=0.9,ua=0.8"), "VU-C120", "named more than once"),
        (("--target", "ua=0.9", "--keep", "ira"), "VU-C120", "is not like"),
        (("--target", "ua=0.9", "--trials", "0"), "VU-C120", "--trials"),
        (("--target", "ua=0.9", "--seeds", "0"), "VU-C120", "--seeds"),
        (("--target", "ua=0.9", "--low", "-1"), "VU-C120", "--low"),
        (("--target", "ua=0.9", "--high", "inf"), "VU-C120", "no finite number"),
        (("--target", "ua=0.9", "--low", "2"), "VU-C120", "it must be above --low, which is 2"),
        (("--target", "iraa=0.9"), "VU-C131", "There is no score 'iraa' here. Did you mean 'ira'?"),
        (("--target", "ua=95"), "VU-C131", "write 0.95 or 95%"),
        (("--target", "slots=3"), "VU-C131", "is a fact"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(vu, slots, erased, monkeypatch, words, code, text):
    run = erased("0")
    monkeypatch.setattr("vu_core.workbench.opened", lambda *_args, **_settings: pytest.fail("too late"))
    done = tune(vu, slots, run, *words)
    assert (done.status, code in done.err, text in done.err) == (2, True, True), done.err
    assert not list(run.glob("tuned-scale*"))


def test_a_folder_that_is_taken_is_told_before_anything_is_measured(vu, slots, erased):
    run, other = erased("0"), erased("1")
    done = tune(vu, slots, run, "--target", "ua=0.6", "--out", other)
    assert (done.status, "VU-R050" in done.err) == (7, True)
    assert "measure at scale" not in done.err


def test_a_folder_without_a_run(vu, slots):
    done = tune(vu, slots, "nowhere", "--target", "ua=0.9")
    assert (done.status, "VU-R052" in done.err) == (7, True)


def test_ctrl_c_leaves_the_run_as_it_was(vu, slots, erased, stopper):
    run = erased("0")
    before = sorted(path.name for path in run.iterdir())
    stopper.stage = "measure at scale 0.5"
    stopped = tune(vu, slots, run, "--target", "ua=0.6", "--out", "new")
    assert (stopped.status, stopped.err.splitlines()[-1]) == (130, "interrupted")
    assert sorted(path.name for path in run.iterdir()) == before
    assert not Path("new").exists()
