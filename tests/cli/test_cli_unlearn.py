"""`vu unlearn`: flags become overrides, the plan comes first, the record last; Ctrl-C leaves a run to resume."""

import json
import os

import attrs
import pytest

from vu_core import Event, UnlearnError, pipeline


@pytest.fixture
def calls(monkeypatch, plan, record):
    """Replace the pipeline; remembers how it was called."""
    seen = {}

    def execute(raw, *, plugins, on_event, on_plan, **settings):
        seen.update(raw=raw, settings=settings)
        record.folder.mkdir(exist_ok=True)
        (record.folder / "run.toml").write_text("")
        on_plan(plan, record.folder)
        on_event(Event("note", "plan", {"text": "said with the plan"}))
        on_event(Event("stage", "unlearn", {"state": "begin"}))
        on_event(Event("warning", "unlearn", {"text": "a warning of the run"}))
        if "during" in seen:
            seen["during"]()
        on_event(Event("stage", "unlearn", {"state": "end", "seconds": 29.4}))
        return record

    def dry_run(raw, *, plugins, **settings):
        seen.update(raw=raw, settings=settings)
        return plan

    def resume(folder, *, plugins, on_event, on_plan, strict):
        seen.update(resumed=folder, settings={"strict": strict})
        on_plan(plan, folder)
        return record

    monkeypatch.setattr(pipeline, "execute", execute)
    monkeypatch.setattr(pipeline, "dry_run", dry_run)
    monkeypatch.setattr(pipeline, "resume", resume)
    return seen


def test_flags_are_short_names_of_keys_and_win_over_set_and_file(vu, calls, tmp_path):
    (tmp_path / "my.toml").write_text("[run]\nseed = 1\n[measure]\nseeds = 5\n")
    line = (
        "unlearn --method fade --model M=ref --data D --forget style:neon --forget object:star --overwrite style:flat"
    )
    line += " --weighting munba --parameters lora --regularizer barrier --regularizer l2 --seed 3 --device cpu --out O"
    line += " --set run.seed=2 --set unlearner.training.lr=1e-3"
    done = vu(*line.split(), "-c", tmp_path / "my.toml")
    assert done.status == 0, done.err
    raw = calls["raw"]
    assert raw.values == {
        "run": {"seed": 3, "device": "cpu", "out": "O"},
        "measure": {"seeds": 5},
        "unlearner": {"method": "fade", "parameters": {"name": "lora"}, "training": {"lr": 1e-3}},
        "model": {"name": "M=ref"},
        "data": {"name": "D", "forget": ["style:neon", "object:star"], "overwrite": ["style:flat"]},
        "weighting": {"name": "munba"},
        "regularizer": {"barrier": {}, "l2": {}},
    }
    assert raw.origins["run.seed"] == "--seed"
    assert raw.origins["unlearner.training.lr"] == "--set"
    assert raw.origins["measure.seeds"].endswith("my.toml:4")


def test_what_is_not_said_is_not_set(vu, calls):
    assert vu("unlearn").status == 0
    assert calls["raw"].values == {}
    assert calls["settings"] == {"strict": False, "max_minutes": None, "max_gb": None}
    vu("unlearn", "--strict", "--max-minutes", "2.5", "--max-gb", "8")
    assert calls["settings"] == {"strict": True, "max_minutes": 2.5, "max_gb": 8.0}


def test_a_run_shows_plan_then_table_then_files_and_progress_on_the_other_stream(vu, calls, record):
    done = vu("unlearn")
    assert done.status == 0
    order = [
        "Plan 0123456789ab",
        "about 1 min 15 s",
        "400 to generate",
        "Run 0123456789ab",
        "metric",
        "ua",
        "Written to",
    ]
    places = [done.out.index(word) for word in order]
    assert places == sorted(places)
    assert done.out.count("style:flat takes its place") == 1
    assert f"stop        Ctrl-C; vu unlearn --resume {record.folder} goes on" in done.out.split("Run 0123456789ab")[0]
    assert "report.html" in done.out
    assert "warning: a warning of the run" in done.err
    assert "unlearn: done in 29.4 s" in done.err
    assert "said with the plan" not in done.err


def test_quiet_shows_the_record_only(vu, calls):
    done = vu("unlearn", "--quiet")
    assert "Plan" not in done.out
    assert done.out.startswith("Run 0123456789ab")
    assert "style:flat takes its place" in done.out
    assert done.err == ""


def test_json_is_one_document_on_standard_output(vu, calls, record):
    document = json.loads(vu("unlearn", "--json").out)
    assert document["run_id"] == record.run_id
    assert document["folder"] == str(record.folder)
    assert document["scorecard"]["scores"][0]["after"] == 0.97
    assert document["notes"] == list(record.notes)


def test_dry_run_prints_the_plan_and_hands_the_budget_on(vu, calls):
    done = vu("unlearn", "--dry-run", "--max-gb", "8")
    assert calls["settings"] == {"max_minutes": None, "max_gb": 8.0}
    assert "Ctrl-C" not in done.out
    for fragment in ("style:neon -> style:flat", "about 1.3 GB", "none", "seed        7", "lora: rank 8", "note:"):
        assert fragment in done.out
    document = json.loads(vu("unlearn", "--dry-run", "--json").out)
    assert document["cost"] == {
        "seconds": 75,
        "memory": 1_300_000_000,
        "disk": 2_000_000,
        "images": 400,
        "downloads": 0,
    }
    assert document["config"]["run"]["seed"] == 7
    assert document["model"]["capabilities"] == ["generate"]


def test_strict_shows_the_record_and_exits_with_6(vu, calls, monkeypatch, record, scorecard):
    bad = attrs.evolve(scorecard, status="not_forgotten", reasons=("ua is 12.0 %, below 50 %.",))

    def during():
        raise UnlearnError(
            "VU-U052", "Forgetting did not happen: ua is 12.0 %.", "Train longer.", where=str(record.folder)
        )

    calls["during"] = during
    monkeypatch.setattr(pipeline, "read_record", lambda folder: attrs.evolve(record, folder=folder, scorecard=bad))
    done = vu("unlearn", "--strict")
    assert done.status == 6
    assert "Warning: forgetting did not happen." in done.out
    assert "ua is 12.0 %, below 50 %." in done.out
    assert "Error VU-U052" in done.err

    done = vu("unlearn", "--strict", "--json")
    assert done.status == 6
    assert json.loads(done.out)["scorecard"]["status"] == "not_forgotten"


def test_an_unlearn_error_without_strict_is_just_an_error(vu, calls):
    def during():
        raise UnlearnError("VU-U052", "Something.", "Nothing.", where="nowhere")

    calls["during"] = during
    done = vu("unlearn")
    assert done.status == 6
    assert "Run 0123456789ab" not in done.out


def test_ctrl_c_says_how_to_continue(vu, calls, record):
    def during():
        raise pipeline.Interrupted(record.folder)

    calls["during"] = during
    done = vu("unlearn")
    assert done.status == 130
    assert done.err.splitlines()[-1] == f"interrupted; continue with: vu unlearn --resume {record.folder}"
    assert "Traceback" not in done.err


def test_ctrl_c_before_there_is_a_run_says_so_without_a_command(vu, monkeypatch):
    def interrupted(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "execute", interrupted)
    done = vu("unlearn")
    assert (done.status, done.err) == (130, "interrupted\n")


def test_resume_takes_the_folder_and_refuses_changes(vu, calls, record):
    assert vu("unlearn", "--resume", record.folder, "--strict", "--quiet").status == 0
    assert calls["resumed"] == record.folder
    assert calls["settings"] == {"strict": True}
    for flag in (["--seed", "1"], ["--dry-run"], ["-c", "x.toml"], ["--max-gb", "3"], ["--out", "there"]):
        done = vu("unlearn", "--resume", record.folder, *flag)
        assert done.status == 2
        assert "VU-C123" in done.err


def test_what_libraries_print_never_reaches_the_terminal(vu, calls):
    def during():
        import logging
        import sys
        import warnings

        print("a library prints")
        print("a progress bar\r\x1b[A", end="", file=sys.stderr)
        sys.stderr.write("an unfinished line")
        warnings.warn("a library warns", stacklevel=1)
        logging.getLogger("library").error("a library logs")
        handler = logging.StreamHandler()
        logging.getLogger("noisy").addHandler(handler)
        logging.getLogger("noisy").warning("its own handler")

    calls["during"] = during
    done = vu("unlearn")
    assert done.status == 0, done.err
    for text in ("library", "progress bar", "unfinished", "own handler"):
        assert text not in done.out + done.err


def test_the_environment_asks_libraries_to_be_quiet_but_the_user_wins(monkeypatch):
    from vu_cli.silence import prepare_libraries

    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "debug")
    prepare_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["TQDM_DISABLE"] == "1"
    assert os.environ["DIFFUSERS_VERBOSITY"] == "debug"


def test_what_libraries_say_becomes_events_of_the_run():
    import sys
    import warnings

    from vu_cli.silence import silenced
    from vu_core.log_events import logs_as_events

    seen: list[Event] = []
    with silenced(), logs_as_events(seen.append):
        print("one\rtwo")
        warnings.warn("three", stacklevel=1)
        print("four", file=sys.stderr)
    messages = [str(event.values["message"]) for event in seen]
    assert [message.split(": ")[-1].splitlines()[0] for message in messages] == ["two", "three", "four"]
    assert {event.type for event in seen} == {"log"}
    assert [event.values["logger"] for event in seen] == ["stdout", "py.warnings", "stderr"]


def test_the_help_says_first_that_no_option_starts_a_run(vu):
    head = " ".join(vu("unlearn", "--help").out.split("What:")[0].split())
    assert "Without options it starts the default run at once" in head
    assert "disk" in vu("unlearn", "--help").out.split("--max-gb")[1].split("--strict")[0]
