"""``vu tune-uce`` from the command line on toys, and the rules by which it chooses."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import residual_metric
from residual_metric import Residual

import vu_concept_editing.plugin as ours
from vu_cli import main
from vu_concept_editing.scales import Scales, Trial, chosen, grid
from vu_concept_editing.tune_uce import configuration
from vu_core import ConfigError, RecordError, Score, Scorecard, UnlearnError
from vu_core.plugins import Plugins, discover
from vu_core.testing import CommandTests, toy_plugin

LINE = ["unlearn", "--model", "toy", "--data", "toy", "--forget", "colour:red", "--seed", "3", "--quiet"]
LINE += ["--set", "measure.seeds=1", "--set", "measure.samples=0"]
UCE = ["--method", "uce", "--set", "unlearner.tokens=after"]
KNOWN = ["--set", 'measure.metrics=["residual"]']
GRID = ["--erase", "0.1,1,10", "--preserve", "1", "--regularization", "0.5"]


class TestTuneUce(CommandTests):
    target = "vu_concept_editing.tune_uce:tune_uce"


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The toys, the metric and this distribution."""
    extra = [("vu-toys", "0.1", toy_plugin), ("vu-known", "0.1", residual_metric), ("vu-concept-editing", "0.1", ours)]
    return discover(extra=extra, installed=False)


@pytest.fixture(scope="session")
def finished(plugins, tmp_path_factory):
    """Folders of finished runs: of UCE, of UCE without scores to go by, of another method. They are only read."""
    place = tmp_path_factory.mktemp("finished")
    ways = {
        "uce": [*UCE, *KNOWN],
        "unjudged": UCE,
        "other": ["--method", "toy-distillation", "--set", "unlearner.training.steps=1"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(place / "cache"))
        for name, words in ways.items():
            assert main.run([*LINE, *words, "--out", str(place / name)], plugins=plugins) == 0
    return {name: place / name for name in ways}


@pytest.fixture
def vu(plugins, capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; returns status, out and err."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Residual, "asked", [])

    def run(*words) -> SimpleNamespace:
        status = main.run([str(word) for word in words], plugins=plugins)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def rows_of(done):
    return json.loads(done.out)["rows"]


def test_every_combination_is_measured_on_validation_prompts(vu, finished):
    words = ["--erase", "0.5,1", "--preserve", "0,2", "--regularization", "0.5,1", "--seeds", "2", "--choose", "mean"]
    done = vu("tune-uce", finished["uce"], *words, "--out", "tuned.toml", "--json")
    assert done.status == 0, done.err
    rows = rows_of(done)
    points = {(row["erase"], row["preserve"], row["regularization"]) for row in rows}
    assert len(rows) == len(points) == 7  # 0.5, 0, 0.5 and 1, 0, 1 are the same
    assert len(Residual.asked) == 8  # the untouched model once
    assert {split for split, _ in Residual.asked} == {"validation"}
    assert {len(seeds) for _, seeds in Residual.asked} == {2}


def test_the_best_is_chosen_and_its_configuration_runs(vu, finished):
    done = vu("tune-uce", finished["uce"], *GRID, "--max-fall", "1", "--out", "tuned.toml", "--json")
    assert done.status == 0, done.err
    rows = rows_of(done)
    assert [row[""] for row in rows] == ["", "", "chosen"]
    settings = tomllib.loads(Path("tuned.toml").read_text())
    before = tomllib.loads((finished["uce"] / "run.toml").read_text())
    chosen_scales = {"erase_scale": 10.0, "preserve_scale": 1.0, "regularization": 0.5}
    assert settings == {**before, "unlearner": {**before["unlearner"], **chosen_scales}}
    again = vu("unlearn", "-c", "tuned.toml", "--set", "measure.split=validation", "--out", "again", "--json")
    assert again.status == 0, again.err
    record = json.loads(again.out)
    ua = next(score["after"] for score in record["scorecard"]["scores"] if score["name"] == "ua")
    assert rows[-1]["ua"] == f"{100 * ua:.1f} %"


def test_a_bound_on_the_fall_chooses_gentler_scales(vu, finished):
    every = vu("tune-uce", finished["uce"], *GRID, "--max-fall", "1", "--out", "a.toml", "--json")
    lost = [float(row["points lost"]) for row in rows_of(every)]
    assert lost == sorted(lost)
    assert lost[1] + 0.2 < lost[2]
    bound = (lost[1] + lost[2]) / 200
    done = vu("tune-uce", finished["uce"], *GRID, "--max-fall", bound, "--out", "b.toml", "--json")
    assert [row[""] for row in rows_of(done)] == ["", "chosen", ""]
    none = vu("tune-uce", finished["uce"], *GRID, "--max-fall", "0", "--out", "c.toml")
    assert (none.status, "VU-U106" in none.err, "--choose mean" in none.err) == (6, True, True)
    assert sorted(path.name for path in Path().iterdir()) == ["a.toml", "b.toml"]


BAD = {
    "no number": (["--erase", "a"], 2, "'a' is no number above 0"),
    "zero": (["--erase", "0.5,0"], 2, "'0' is no number above 0"),
    "negative": (["--preserve", "-1"], 2, "no number of at least 0"),
    "not finite": (["--regularization", "inf"], 2, "'inf' is no number above 0"),
    "empty": (["--regularization", ""], 2, "no number above 0"),
    "no seeds": (["--seeds", "0"], 2, "VU-C120"),
    "fall without a value": (["--max-fall", "nan"], 2, "no finite number"),
    "fall above 1": (["--max-fall", "2"], 2, "VU-C120"),
    "unknown rule": (["--choose", "best"], 2, "VU-C120"),
}


@pytest.mark.parametrize(("words", "status", "said"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_told_and_nothing_is_written(vu, finished, words, status, said):
    refused = vu("tune-uce", finished["uce"], *words, "--out", "tuned.toml")
    assert (refused.status, said in refused.err) == (status, True), refused.err
    assert list(Path().iterdir()) == []


def test_runs_that_cannot_be_searched_are_told(vu, finished):
    for run, status, code in (("nowhere", 7, "VU-R052"), (finished["other"], 2, "VU-C108")):
        refused = vu("tune-uce", run, *GRID, "--out", "tuned.toml")
        assert (refused.status, code in refused.err) == (status, True), refused.err
    unjudged = vu("tune-uce", finished["unjudged"], *GRID, "--out", "tuned.toml")
    assert (unjudged.status, "VU-C109" in unjudged.err, "judge" in unjudged.err) == (2, True, True)
    assert not Residual.asked
    assert list(Path().iterdir()) == []


def test_a_file_that_is_there_stays(vu, finished):
    Path("mine.toml").write_text("mine")
    refused = vu("tune-uce", finished["uce"], *GRID, "--out", "mine.toml")
    assert (refused.status, "VU-R050" in refused.err) == (7, True)
    assert Path("mine.toml").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(vu, finished):
    Path("mine.toml").write_text("mine")
    refused = vu("tune-uce", finished["uce"], *GRID, "--out", "mine.toml/deep/tuned.toml")
    assert (refused.status, "VU-R055" in refused.err, "is no folder" in refused.err) == (7, True, True), refused.err
    assert not Residual.asked
    assert [path.name for path in Path().iterdir()] == ["mine.toml"]


def test_a_folder_that_is_missing_is_made(vu, finished):
    words = ["--erase", "1", "--preserve", "1", "--regularization", "0.5", "--max-fall", "1"]
    done = vu("tune-uce", finished["uce"], *words, "--out", "new/tuned.toml")
    assert done.status == 0, done.err
    assert [path.name for path in Path("new").iterdir()] == ["tuned.toml"]


def test_a_run_whose_configuration_has_no_scales_is_told_before_anything_is_measured(vu, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished["uce"], copy)
    text = (copy / "run.toml").read_text()
    (copy / "run.toml").write_text(re.sub(r"(?m)^regularization = .*\n", "", text))
    refused = vu("tune-uce", copy, *GRID, "--out", "tuned.toml")
    assert (refused.status, "VU-R056" in refused.err) == (7, True), refused.err
    assert not Residual.asked


def test_scales_with_equal_ratios_are_measured_once():
    assert len(grid((0.3, 0.5, 0.7, 0.9), (0.5, 1, 1.5, 2.5), (0.3, 0.5, 0.8))) == 47
    assert grid((0.3, 0.5), (1.5, 2.5), (0.3, 0.5))[0] == Scales(0.3, 1.5, 0.3)
    assert Scales(0.5, 2.5, 0.5) not in grid((0.3, 0.5), (1.5, 2.5), (0.3, 0.5))
    assert len(grid((0.3,), (1.0,), (0.1, 0.1 + 1e-17))) == 1
    assert len(grid((1e-10, 2e-10), (1e-10, 2e-10), (1.0,))) == 4  # small ones are no zeros


def trial(e, ua, ira, cra, before=1.0):
    kept = {"ira": ira, "cra": cra}
    return Trial(Scales(e, 1.0, 0.5), ua, kept, before - min(kept.values()))


def test_the_rules():
    gentle, good, harsh = trial(0.3, 0.7, 1.0, 1.0), trial(0.5, 0.9, 0.96, 0.99), trial(0.9, 1.0, 0.8, 0.99)
    trials = [gentle, good, harsh]
    assert chosen(trials, "kept", 0.05) is good
    assert chosen(trials, "kept", 0.2) is harsh
    assert chosen(trials, "kept", 0.0) is gentle
    assert chosen(trials, "mean", 0.0) is good
    assert chosen([*trials, trial(0.7, 0.9, 0.97, 0.99)], "kept", 0.05).scales.erase == 0.7  # keeps more
    assert chosen([trial(0.7, 0.9, 0.96, 0.99), good], "kept", 0.05) is good  # erases with less
    with pytest.raises(UnlearnError, match=r"within 5 points.*10\.0 points"):
        chosen([trial(0.3, 0.7, 0.9, 1.0), harsh], "kept", 0.05)


def test_scores_that_say_too_little_are_told():
    def card(*names, before=1.0):
        return Scorecard("validation", "ok", tuple(Score(n, 0.9, "fraction", "up", 9, before=before) for n in names))

    assert Trial.of(Scales(1, 1, 1), card("ua", "cra")) == Trial(Scales(1, 1, 1), 0.9, {"cra": 0.9}, 1.0 - 0.9)
    for wrong in (card("ira", "cra"), card("ua"), card("ua", "ira", before=None), card()):
        with pytest.raises(ConfigError) as caught:
            Trial.of(Scales(1, 1, 1), wrong)
        assert caught.value.code == "VU-C109"


@pytest.mark.parametrize("text", ["", "[unlearner]\nerase_scale = 1.0\n", "[unlearner]\nerase_scale = \n", "x = 1"])
def test_a_configuration_without_scales_is_told(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(RecordError) as caught:
        configuration(tmp_path, Scales(1.0, 1.0, 0.7))
    assert caught.value.code == "VU-R056"


def test_only_the_table_of_the_method_is_changed(tmp_path):
    (tmp_path / "run.toml").write_text(
        "[run]\nregularization = 9\n\n[unlearner]\nerase_scale = 1.0  # default\npreserve_scale = 1.0\n"
        "regularization = 0.5\n\n[metric.x]\nerase_scale = 3\n"
    )
    found = tomllib.loads(configuration(tmp_path, Scales(0.7, 2.5, 1e-5)))
    assert found["unlearner"] == {"erase_scale": 0.7, "preserve_scale": 2.5, "regularization": 1e-5}
    assert (found["run"], found["metric"]) == ({"regularization": 9}, {"x": {"erase_scale": 3}})
