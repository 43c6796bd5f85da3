"""Whatever goes wrong: plain words, the right exit status, a report for bugs."""

import json
from pathlib import Path

import pytest

from vu_core import (
    ConfigError,
    DataError,
    EditError,
    MeasureError,
    ModelError,
    PlanError,
    PluginError,
    RecordError,
    UnlearnError,
    pipeline,
)

USAGE = [
    (["unlern"], "VU-C121", "Did you mean 'unlearn'?"),
    (["--versoin"], "VU-C122", "Did you mean '--version'"),
    (["unlearn", "--metod", "fade"], "VU-C122", "Did you mean '--method'"),
    (["unlearn", "--seed", "x"], "VU-C120", "'x' is not a valid integer"),
    (["unlearn", "--max-minutes", "0"], "VU-C120", "--max-minutes"),
    (["unlearn", "--method"], "VU-C120", "requires an argument"),
    (["unlearn", "stray"], "VU-C120", "stray"),
    (["unlearn", "--set", "novalue"], "VU-C004", "novalue"),
    (["unlearn", "-c", "missing.toml"], "VU-C003", "missing.toml"),
    (["measure"], "VU-C120", "RUN"),
    (["compare", "one"], "VU-R", "one"),
    (["explain", "VU-X999"], "VU-C124", "VU-X999"),
    (["cache", "lst"], "VU-C121", "Did you mean 'list'?"),
    (["unlearn", "--max-minutes", "nan"], "VU-C120", "--max-minutes"),
    (["unlearn", "--max-minutes", "inf"], "VU-C120", "--max-minutes"),
    (["unlearn", "--max-gb", "-1"], "VU-C120", "--max-gb"),
    (["unlearn", "--max-gb", "nan"], "VU-C120", "--max-gb"),
    (["unlearn", "--out", ""], "VU-C120", "--out"),
    (["unlearn", "--resume", " "], "VU-C120", "--resume"),
    (["unlearn", "--forget", "style:neon", "--forget="], "VU-C120", "--forget"),
    (["unlearn", "-c", ""], "VU-C120", "--config"),
    (["measure", ""], "VU-C120", "RUN"),
    (["compare", "", ""], "VU-C120", "RUNS"),
    (["generate", "run", "a star", "--out", ""], "VU-C120", "--out"),
    (["explain", ""], "VU-C120", "CODE"),
    (["unlearn", "--method", "a", "--method=b"], "VU-C120", "'a' and 'b'"),
    (["unlearn", "-c", "a.toml", "--config", "b.toml", "-cc.toml"], "VU-C120", "'a.toml' and 'b.toml' and 'c.toml'"),
    (["measure", "run", "--seeds", "1", "--seeds", "2"], "VU-C120", "'1' and '2'"),
    (["generate", "run", "--seed", "1", "--seed", "2", "--", "--seed"], "VU-C120", "as '1' and '2'."),
    (["generate", "run", "--out", "--seed", "--seed=1", "--seed", "2", "a"], "VU-C120", "as '1' and '2'."),
    (["unlearn", "--resume", "r", "--method", "fade", "--set", "run.seed=1"], "VU-C123", "--method, --set"),
]


@pytest.mark.parametrize(("line", "code", "fragment"), USAGE, ids=lambda value: str(value)[:40])
def test_usage_errors_name_the_problem_and_the_remedy(vu, line, code, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = vu(*line)
    assert done.status == (7 if code == "VU-R" else 2), done.err
    assert f"Error {code}" in done.err
    assert fragment in done.err
    assert "what to do" in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


COMPLETE = ("run.toml", "edit.safetensors", "scores.json", "README.md")

CLASSES = [
    (ConfigError, 2),
    (PluginError, 3),
    (PlanError, 4),
    (DataError, 5),
    (UnlearnError, 6),
    (RecordError, 7),
    (ModelError, 8),
    (EditError, 9),
    (MeasureError, 10),
]


@pytest.mark.parametrize(("kind", "status"), CLASSES)
def test_each_class_of_error_has_its_exit_status(vu, monkeypatch, kind, status):
    def fail(*_args, **_settings):
        raise kind("VU-Z999", "Something is wrong:\nthis\nand that.", "Do something.\nThen more.", where="data.ref")

    monkeypatch.setattr(pipeline, "dry_run", fail)
    done = vu("unlearn", "--dry-run")
    assert done.status == status
    assert done.err.splitlines() == [
        "Error VU-Z999: Something is wrong:",
        "  this",
        "  and that.",
        "  where       data.ref",
        "  what to do  Do something.",
        "              Then more.",
        "  details     vu explain VU-Z999",
    ]

    done = vu("unlearn", "--dry-run", "--json")
    error = json.loads(done.out)["error"]
    assert (error["code"], error["kind"], error["exit_status"]) == ("VU-Z999", kind.__name__, status)


def test_long_sentences_are_not_broken_where_nobody_reads_on_a_terminal(vu, monkeypatch):
    def fail(*_args, **_settings):
        raise DataError("VU-Z999", "word " * 60 + "end", "pip install vu-fade " * 20)

    monkeypatch.setattr(pipeline, "dry_run", fail)
    done = vu("unlearn", "--dry-run")
    assert "word " * 60 + "end" in done.err
    assert "pip install vu-fade " * 19 in done.err


def test_a_bug_leaves_one_sentence_and_a_report(vu, monkeypatch, tmp_path):
    def fail(*_args, **_settings):
        raise ZeroDivisionError("a secret of arithmetic")

    monkeypatch.setenv("VU_CACHE", str(tmp_path))
    monkeypatch.setattr(pipeline, "dry_run", fail)
    done = vu("unlearn", "--dry-run", "--seed", "7")
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert "ZeroDivisionError: a secret of arithmetic" in done.err
    (report,) = (tmp_path / "reports").iterdir()
    assert str(report) in done.err
    text = report.read_text()
    for fragment in ("Traceback", "'--seed' '7'", "vu-core", "python: 3.", "torch"):
        assert fragment in text

    done = vu("unlearn", "--dry-run", "--json")
    assert done.status == 1
    assert Path(json.loads(done.out)["error"]["report"]).exists()


def test_a_bug_is_told_even_when_no_report_can_be_written(vu, monkeypatch, tmp_path):
    def fail(*_args, **_settings):
        raise ZeroDivisionError("oh")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr(pipeline, "dry_run", fail)
    done = vu("unlearn", "--dry-run")
    assert done.status == 1
    assert "no report could be written" in done.err
    assert "Traceback" in done.err


@pytest.mark.parametrize("code", ["VU-P007", "VU-P009"])
def test_a_plugin_that_failed_leaves_a_report_for_its_authors(vu, monkeypatch, tmp_path, code):
    def shade():
        raise ZeroDivisionError("a secret of arithmetic")

    def fail(*_args, **_settings):
        try:
            shade()
        except ZeroDivisionError as error:
            raise PluginError(code, "The metric 'shade' failed.", "Tell the authors of vu-shades.") from error

    monkeypatch.setenv("VU_CACHE", str(tmp_path))
    monkeypatch.setattr(pipeline, "dry_run", fail)
    done = vu("unlearn", "--dry-run")
    assert done.status == 3
    (report,) = (tmp_path / "reports").iterdir()
    assert done.err.splitlines() == [
        f"Error {code}: The metric 'shade' failed.",
        "  what to do  Tell the authors of vu-shades.",
        f"  report      {report}",
        f"  details     vu explain {code}",
    ]
    text = report.read_text()
    assert "in shade" in text
    assert "ZeroDivisionError: a secret of arithmetic" in text

    error = json.loads(vu("unlearn", "--dry-run", "--json").out)["error"]
    assert (error["code"], error["exit_status"]) == (code, 3)
    assert Path(error["report"]).exists()


def test_the_traceback_of_a_plugin_is_shown_when_it_cannot_be_written(vu, monkeypatch, tmp_path):
    def fail(*_args, **_settings):
        raise PluginError("VU-P009", "It failed.", "Tell its authors.") from KeyError("grey")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr(pipeline, "dry_run", fail)
    err = vu("unlearn", "--dry-run").err
    assert "  report      none could be written\n" in err
    assert "KeyError: 'grey'" in err


def test_other_errors_leave_no_report(vu, monkeypatch, tmp_path):
    def fail(*_args, **_settings):
        raise DataError("VU-Z999", "There is no folder.", "Check the path.") from OSError("gone")

    monkeypatch.setenv("VU_CACHE", str(tmp_path))
    monkeypatch.setattr(pipeline, "dry_run", fail)
    assert "report" not in vu("unlearn", "--dry-run").err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("files", "goes_on"), [(("run.toml",), True), ((), False), (COMPLETE, False)], ids=str)
def test_a_bug_says_how_a_run_goes_on_that_can(vu, monkeypatch, tmp_path, files, goes_on):
    def fail(*_args, on_plan, **_settings):
        (tmp_path / "mine").mkdir(exist_ok=True)
        for name in files:
            (tmp_path / "mine" / name).write_text("")
        on_plan(None, tmp_path / "mine")
        raise ZeroDivisionError("ours")

    monkeypatch.setenv("VU_CACHE", str(tmp_path))
    monkeypatch.setattr("vu_cli.render.show_plan", lambda *_: None)
    monkeypatch.setattr(pipeline, "execute", fail)
    done = vu("unlearn")
    assert done.status == 1
    assert (f"vu unlearn --resume {tmp_path / 'mine'}\n" in done.err) == goes_on
    error = json.loads(vu("unlearn", "--json").out)["error"]
    assert error["resume"] == (str(tmp_path / "mine") if goes_on else None)


def test_an_empty_prompt_is_a_prompt(vu, tmp_path):
    done = vu("generate", tmp_path, "")
    assert "VU-R052" in done.err  # it got as far as the run


JSON_ERRORS = [
    ["nonsense"],
    ["unlearn", "--method", "a", "--method", "b"],
    ["unlearn", "--method", "nobody-has-this-name"],
    ["unlearn", "-c", "missing.toml"],
    ["unlearn", "--resume", "nowhere"],
    ["measure"],
    ["measure", "nowhere"],
    ["generate", "nowhere", "a star"],
    ["generate", "nowhere", "a star", "--as", "forgotten"],
    ["tune-scale", "nowhere", "--target", "ua=0.9"],
    ["tune-scale", "nowhere", "--target", "ua"],
    ["compose"],
    ["compose", "nowhere", "elsewhere"],
    ["compose", "nowhere", "--weights", "1,2"],
    ["revoke", "nowhere", "style:neon"],
    ["compare", "nowhere", "elsewhere"],
    ["compare", "nowhere"],
    ["list-plugins", "--kind", "metrc"],
    ["describe", "nobody-has-this-name"],
    ["explain", "VU-X999"],
    ["cache", "lst"],
    ["cache", "list", "--nonsense"],
]


@pytest.mark.parametrize("line", JSON_ERRORS, ids=" ".join)
def test_with_json_every_error_is_one_object_on_standard_output(vu, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = vu(*line, "--json")
    document = json.loads(done.out)
    assert list(document) == ["error"]
    assert document["error"]["code"].startswith("VU-")
    assert document["error"]["exit_status"] == done.status != 0
