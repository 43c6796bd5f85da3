"""``vu extract`` from the command line, on finished runs of toys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import elastic_toys
import pytest
import torch
from elastic_toys import Known, known_scores

import vu_elastic_lora.plugin as ours
from vu_cli import main
from vu_core.adapters import load_edit
from vu_core.plugins import Plugins, discover
from vu_core.testing import toy_plugin
from vu_elastic_lora.reading import PICKLES

LINE = ["unlearn", "--method", "toy-distillation", "--model", "toy", "--data", "toy", "--forget", "colour:red"]
LINE += ["--seed", "3", "--quiet"]
KNOWN = ["--set", 'measure.metrics=["known"]', "--set", "measure.seeds=1", "--set", "measure.samples=0"]
ELASTIC = ["--parameters", "elastic-lora", "--set", "unlearner.parameters.search_space=[8,4,2]"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The toys, the known metric and this distribution."""
    extra = [("vu-toys", "0.1", toy_plugin), ("vu-known", "0.1", elastic_toys), ("vu-elastic-lora", "0.1", ours)]
    return discover(extra=extra, installed=False)


@pytest.fixture(scope="session")
def finished(plugins, tmp_path_factory):
    """Folders of finished runs: elastic, lora, full. They are only read."""
    place = tmp_path_factory.mktemp("finished")
    ways = {"elastic": ELASTIC, "lora": ["--set", "unlearner.parameters.rank=4"], "full": ["--parameters", "full"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(place / "cache"))
        for name, words in ways.items():
            assert main.run([*LINE, *KNOWN, *words, "--out", str(place / name)], plugins=plugins) == 0
    return {name: place / name for name in ways}


@pytest.fixture
def vu(plugins, capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; returns status, out and err."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Known, "asked", [])
    monkeypatch.setattr(Known, "ends_after", None)

    def run(*words: str | Path) -> SimpleNamespace:
        status = main.run([str(word) for word in words], plugins=plugins)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def ranks_of(path):
    return {name: part.rank for name, part in load_edit(path)}


@pytest.mark.parametrize(("version", "rank"), [("maximal", 8), ("heuristic", 4), ("minimal", 2)])
def test_a_version_is_a_run_of_its_own(vu, finished, version, rank):
    done = vu("extract", finished["elastic"], "--rank", version, "--out", "out", "--json")
    assert done.status == 0, done.err
    whole, part = load_edit(Path("out/super/edit.safetensors")), load_edit(Path("out/sub/edit.safetensors"))
    assert (Path("out/super/edit.safetensors").read_bytes()) == (finished["elastic"] / "edit.safetensors").read_bytes()
    for name, small in part:
        large = whole.parts[name]
        assert torch.equal(small.A, large.A[:rank])
        assert torch.equal(small.B, large.B[:, :rank])
        assert small.alpha == 2 * rank  # the default scale is 2
        torch.testing.assert_close(small.delta(), 2 * large.B[:, :rank] @ large.A[:rank], rtol=0, atol=1e-6)
    assert set(part.parts) == set(whole.parts)
    record, table = json.loads(done.out)
    assert (record["method"], record["forget"]) == ("composition", ["colour:red"])
    assert record["scorecard"]["split"] == "held-out"
    scores = {score["name"]: score["after"] for score in record["scorecard"]["scores"]}
    assert scores == known_scores(ranks_of(Path("out/sub/edit.safetensors")))
    (row,) = table["rows"]
    assert (row["groups"], row["ranks"]) == (2, f"2 x {rank}")
    assert row["super bytes"] == Path("out/super/edit.safetensors").stat().st_size
    assert row["sub bytes"] == Path("out/sub/edit.safetensors").stat().st_size
    assert len(table["notes"]) == 1
    assert not {path.suffix for path in Path("out").rglob("*")} & set(PICKLES)


def test_the_folder_names_the_groups_and_the_run_repeats(vu, finished):
    assert vu("extract", finished["elastic"], "--rank", "minimal", "--out", "out").status == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["elastic_adapter_config.json", "sub", "super"]
    groups = json.loads(Path("out/elastic_adapter_config.json").read_text())
    assert {target for group in groups for target in group["target"]} == {
        f"unet.attn{number}.{leaf}.lora_A" for number in (1, 2) for leaf in TARGETS
    }
    assert [group["search_space"] for group in groups] == [[8, 4, 2], [8, 4, 2]]
    settings = [tomllib.loads((path / "run.toml").read_text()) for path in (finished["elastic"], Path("out/sub"))]
    assert settings[0]["measure"] == settings[1]["measure"]
    again = vu("unlearn", "-c", "out/sub/run.toml", "--out", "again")
    assert again.status == 0, again.err
    assert ranks_of(Path("again/edit.safetensors")) == ranks_of(Path("out/sub/edit.safetensors"))


def test_a_file_says_the_rank_of_every_group(vu, finished):
    groups = json.loads(json.dumps([{"target": [f"unet.attn1.{leaf}.lora_A" for leaf in TARGETS]}]))
    Path("ranks.json").write_text(json.dumps([{**groups[0], "active_rank_value": 4}]))
    refused = vu("extract", finished["elastic"], "--rank", "ranks.json", "--out", "out")
    assert (refused.status, "VU-C093" in refused.err, "unet.attn2" in refused.err) == (2, True, True)
    assert not Path("out").exists()
    done = vu("extract", finished["elastic"], "--rank", "ranks.json", "--default", "minimal", "--out", "out")
    assert done.status == 0, done.err
    ranks = ranks_of(Path("out/sub/edit.safetensors"))
    assert {name: rank for name, rank in ranks.items() if "attn1" in name} == dict.fromkeys(
        [f"unet.attn1.{leaf}.weight" for leaf in TARGETS], 4
    )
    assert {rank for name, rank in ranks.items() if "attn2" in name} == {2}


@pytest.mark.parametrize("version", ["maximal", "minimal"])
def test_a_run_without_elasticity_has_one_rank(vu, finished, version):
    done = vu("extract", finished["lora"], "--rank", version, "--out", "out", "--json")
    assert done.status == 0, done.err
    assert "nothing was cut" in json.loads(done.out)[-1]["notes"][-1]
    whole, part = load_edit(finished["lora"] / "edit.safetensors"), load_edit(Path("out/sub/edit.safetensors"))
    assert all(torch.equal(part.parts[name].A, large.A) for name, large in whole)
    assert json.loads(Path("out/elastic_adapter_config.json").read_text())[0]["search_space"] == [4]


def test_an_extracted_run_can_be_extracted_from(vu, finished):
    assert vu("extract", finished["elastic"], "--rank", "heuristic", "--out", "out").status == 0
    assert vu("extract", "out/sub", "--rank", "minimal", "--out", "again").status == 0
    assert set(ranks_of(Path("again/sub/edit.safetensors")).values()) == {4}


def test_a_folder_that_holds_something_is_left_alone(vu, finished):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    for words in (["--rank", "minimal"], ["--search"]):
        refused = vu("extract", finished["elastic"], *words, "--out", "out")
        assert (refused.status, "VU-R050" in refused.err) == (7, True)
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]
    refused = vu("extract", finished["elastic"], "--rank", "minimal", "--out", "out/mine.txt")
    assert (refused.status, "VU-R050" in refused.err) == (7, True)
    assert Path("out/mine.txt").read_text() == "mine"
    Path("empty").mkdir()
    assert vu("extract", finished["elastic"], "--rank", "minimal", "--out", "empty").status == 0


BAD = {
    "nothing said": ([], 2, "VU-C091"),
    "both said": (["--rank", "minimal", "--search"], 2, "VU-C091"),
    "limits without search": (["--rank", "minimal", "--trials", "3"], 2, "--trials belongs to --search"),
    "two limits without search": (["--rank", "minimal", "--time", "3s", "--seeds", "2"], 2, "--time and --seeds"),
    "default of a version": (["--rank", "minimal", "--default", "maximal"], 2, "--default belongs to --rank FILE"),
    "default of a search": (["--search", "--default", "maximal"], 2, "--default belongs to --rank FILE"),
    "near miss": (["--rank", "minmal"], 2, "Did you mean 'minimal'"),
    "no such file": (["--rank", "ranks.json"], 2, "VU-C092"),
    "an empty name": (["--rank", ""], 2, "'' is no version of the adapter and no file"),
    "a folder": (["--rank", "."], 2, "VU-C092"),
    "a name that is too long": (["--rank", "x" * 5000], 2, "VU-C092"),
    "the default of a limit": (["--rank", "minimal", "--trials", "24"], 2, "VU-C091"),
    "no time": (["--search", "--time", "0m"], 2, "no time above zero"),
    "no word for a time": (["--search", "--time", "soon"], 2, "no time above zero"),
    "no trials": (["--search", "--trials", "0"], 2, "VU-C120"),
    "no seeds": (["--search", "--seeds", "0"], 2, "VU-C120"),
    "negative tolerance": (["--search", "--tolerance", "-1"], 2, "VU-C120"),
    "no number": (["--search", "--tolerance", "nan"], 2, "no finite number"),
    "infinite": (["--search", "--tolerance", "inf"], 2, "no finite number"),
    "unknown default": (["--rank", "x.json", "--default", "least"], 2, "VU-C120"),
}


@pytest.mark.parametrize(("words", "status", "said"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_told_and_nothing_is_written(vu, finished, words, status, said):
    refused = vu("extract", finished["elastic"], *words, "--out", "out")
    assert refused.status == status, refused.err
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert list(Path().iterdir()) == []


def test_a_run_is_needed_and_an_adapter_in_it(vu, finished):
    for words in (["--rank", "minimal"], ["--search"]):
        absent = vu("extract", "nowhere", *words, "--out", "out")
        assert (absent.status, "VU-R052" in absent.err) == (7, True)
        full = vu("extract", finished["full"], *words, "--out", "out")
        assert (full.status, "VU-E090" in full.err) == (9, True)
    assert list(Path().iterdir()) == []


def test_times_are_understood():
    from vu_elastic_lora.extract import _seconds

    told = {"90s": 90, "10m": 600, "1h": 3600, "1h30m": 5400, "1.5m": 90, "45": 45, " 2m10s ": 130}
    assert {text: _seconds(None, None, text) for text in told} == told


def test_what_fails_before_there_is_a_run_leaves_nothing(vu, finished, monkeypatch):
    def full(edit, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vu_core.adapters.save_edit", full)
    failed = vu("extract", finished["elastic"], "--rank", "minimal", "--out", "deep/out")
    assert (failed.status, "VU-R055" in failed.err) == (7, True)
    assert not Path("deep/out").exists()
    Path("empty").mkdir()
    assert vu("extract", finished["elastic"], "--rank", "minimal", "--out", "empty").status == 7
    assert list(Path("empty").iterdir()) == []


def test_a_run_that_cannot_be_measured_can_go_on(vu, finished, monkeypatch):
    monkeypatch.setattr(Known, "ends_after", (1, KeyboardInterrupt))
    stopped = vu("extract", finished["elastic"], "--rank", "minimal", "--out", "out")
    assert stopped.status == 130
    assert stopped.err.splitlines()[-1] == "interrupted; continue with: vu unlearn --resume out/sub"
    monkeypatch.setattr(Known, "ends_after", None)
    resumed = vu("unlearn", "--resume", "out/sub")
    assert resumed.status == 0, resumed.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["elastic_adapter_config.json", "sub", "super"]


# Searching


def test_a_search_finds_the_smallest_good_adapter(vu, finished):
    done = vu("extract", finished["elastic"], "--search", "--trials", "9", "--out", "out", "--json")
    assert done.status == 0, done.err
    ranks = ranks_of(Path("out/sub/edit.safetensors"))
    assert {rank for name, rank in ranks.items() if "attn1" in name} == {4}
    assert {rank for name, rank in ranks.items() if "attn2" in name} == {2}
    front, record, table = json.loads(done.out)
    assert record["scorecard"]["split"] == "held-out"
    assert {score["name"]: score["after"] for score in record["scorecard"]["scores"]} == {"ua": 0.99, "ira": 0.95}
    assert [row["ranks"] for row in front["rows"]] == ["minimal", "1 x 4, 1 x 2", "maximal"]
    assert front["rows"][1][""] == "chosen"
    assert table["rows"][0]["ranks"] == "1 x 4, 1 x 2"


def test_a_search_looks_at_validation_seeds_only(vu, finished):
    searched = vu("extract", finished["elastic"], "--search", "--trials", "4", "--seeds", "3", "--out", "out")
    assert searched.status == 0, searched.err
    before, after = Known.asked[:5], Known.asked[5:]
    assert before == [("validation", (0, 1, 2))] * 5, "the untouched model and four adapters"
    assert after == [("held-out", (10_000,))] * 2


def test_a_search_leaves_its_evidence(vu, finished):
    assert vu("extract", finished["elastic"], "--search", "--trials", "5", "--time", "1h", "--out", "out").status == 0
    told = json.loads(Path("out/search.json").read_text())
    assert told["state"] == "finished"
    assert (told["split"], told["seeds"], told["tolerance"]) == ("validation", 1, 0.02)
    assert told["budget"] == {"trials": 5, "seconds": 3600.0}
    assert set(told["versions"]) == {"vu-core", "vu-elastic-lora", "optuna", "torch"}
    assert [trial["ranks"] for trial in told["trials"][:3]] == [[8, 8], [4, 4], [2, 2]]
    for trial in told["trials"]:
        assert trial["scores"] == known_scores({"attn1": trial["ranks"][0], "attn2": trial["ranks"][1]})
    report = Path("out/sub/report.html").read_text()
    assert "Search for ranks" in report
    assert "<svg" in report
    assert "<script" not in report
    again = vu("extract", finished["elastic"], "--rank", "out/chosen_ranks.json", "--out", "again")
    assert again.status == 0, again.err
    assert ranks_of(Path("again/sub/edit.safetensors")) == ranks_of(Path("out/sub/edit.safetensors"))


def test_the_same_search_repeats(vu, finished):
    for out in ("one", "two"):
        assert vu("extract", finished["elastic"], "--search", "--trials", "6", "--out", out).status == 0
    assert Path("one/search.json").read_text() == Path("two/search.json").read_text()
    assert Path("one/sub/edit.safetensors").read_bytes() == Path("two/sub/edit.safetensors").read_bytes()


def test_ctrl_c_leaves_what_was_measured_and_says_that_it_is_not_all(vu, finished, monkeypatch):
    monkeypatch.setattr(Known, "ends_after", (3, KeyboardInterrupt))
    stopped = vu("extract", finished["elastic"], "--search", "--out", "out")
    assert stopped.status == 130
    assert [path.name for path in Path("out").iterdir()] == ["search.json"]
    told = json.loads(Path("out/search.json").read_text())
    assert (told["state"], len(told["trials"])) == ("unfinished", 2)


def test_a_search_that_fails_at_once_leaves_nothing(vu, finished, monkeypatch):
    monkeypatch.setattr(Known, "ends_after", (0, RuntimeError))
    assert vu("extract", finished["elastic"], "--search", "--out", "out").status != 0
    assert not Path("out").exists()


def test_a_choice_that_cannot_be_kept_leaves_the_evidence(vu, finished, monkeypatch):
    def full(edit, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vu_core.adapters.save_edit", full)
    failed = vu("extract", finished["elastic"], "--search", "--trials", "2", "--out", "out")
    assert (failed.status, "VU-R055" in failed.err) == (7, True)
    assert sorted(path.name for path in Path("out").iterdir()) == ["chosen_ranks.json", "search.json"]


def test_a_search_without_scores_to_go_by_is_refused(vu, plugins):
    assert vu(*LINE, *ELASTIC, "--out", "run").status == 0
    refused = vu("extract", "run", "--search", "--out", "out")
    assert (refused.status, "VU-C094" in refused.err, "brightness" in refused.err) == (2, True, True)
    assert not Path("out").exists()


# Settings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("search_space = [4, 8]", "must be strictly descending, but 8 follows 4"),
        ("search_space = [8, 8]", "must be strictly descending, but 8 follows 8"),
        ("search_space = []", "must name at least one rank"),
        ("search_space = [8, 0]", "must be >= 1"),
        ("search_space = [8, true]", "must be a whole number"),
        ("search_space = 8", "must be a list of whole numbers"),
        ('groups = "block"', "must be one of 'layer', 'pair'"),
        ("alpha = 0", "must be > 0"),
        ("rank = 4", "is unknown"),
    ],
)
def test_settings_that_cannot_be_are_told_with_their_line(vu, line, said):
    Path("run.toml").write_text(f'[unlearner.parameters]\nname = "elastic-lora"\n\n{line}\n')
    refused = vu(*LINE, "-c", "run.toml", "--dry-run")
    assert refused.status == 2
    assert said in refused.err
    assert "run.toml:4" in refused.err


def test_help_and_names_import_nothing_heavy():
    program = (
        "import sys, vu_elastic_lora.extract; print(*[n for n in ('torch', 'numpy', 'optuna') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == []
