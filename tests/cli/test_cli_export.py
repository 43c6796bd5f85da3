"""vu export: flags, what is printed, what a failure says."""

import json
import shlex
from pathlib import Path

import pytest

from vu_cli.group import COMMANDS
from vu_core import Check, EditError, Event, exporting
from vu_core.config import Override
from vu_core.plugins import discover

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "tests/core/runs/toys"
USAGE = "from toylib import load\n\nload('path/to/toy', '.')  # " + "a comment that is wider than any terminal " * 4


@pytest.fixture
def made(tmp_path):
    return exporting.Export(
        folder=tmp_path / "out",
        format="toy-right",
        title="toy without colour:red",
        checks=(Check("denoiser", 2.4e-7, 1e-4), Check("image", 0.0, 1.0)),
        usage=USAGE,
        files={"weights/edit.safetensors": 3600, "README.md": 2900},
        facts={"scale": 0.5, "refit_rank": 4, "refit_error": 0.0312},
    )


@pytest.fixture
def asked(monkeypatch, made):
    """What the core was asked for; it answers with ``made``."""
    seen = {}

    def export(run, to, out, host, on_event, **changes):
        seen.update(run=run, to=to, out=out, plugins=host.plugins, **changes)
        on_event(Event("stage", "export", {"state": "end", "seconds": 1.5}))
        on_event(Event("warning", "load", {"text": "The data has changed."}))
        return made

    monkeypatch.setattr(exporting, "export", export)
    return seen


def test_export_hands_everything_on(vu, asked):
    words = "export runs/x --to toy-right --out there --scale -0.5 --densify 0.1 --refit-rank 4 --set a=1 --set b=x"
    done = vu(*words.split())
    assert done.status == 0, done.err
    asked.pop("plugins")
    assert asked == {
        "run": Path("runs/x"),
        "to": "toy-right",
        "out": Path("there"),
        "settings": {"a": 1, "b": "x"},
        "scale": -0.5,
        "densify": 0.1,
        "refit_rank": 4,
    }
    assert "export: done in 1.5 s" in done.err
    vu("export", "runs/x", "--to", "toy-right", "--out", "there")
    changes = {name: asked[name] for name in ("settings", "scale", "densify", "refit_rank")}
    assert changes == {"settings": {}, "scale": 1.0, "densify": None, "refit_rank": None}


def test_what_was_written_compared_and_how_it_is_loaded_is_printed(vu, asked, made):
    done = vu("export", "runs/x", "--to", "toy-right", "--out", "there", "--quiet")
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "toy without colour:red, as toy-right"
    assert [" ".join(line.split()) for line in lines if "error" in line and "limit" in line] == [
        "denoiser error 2.4e-07 limit 0.0001",
        "image error 0 limit 1",
    ]
    assert "    weights/edit.safetensors  3.6 kB" in lines
    text = " ".join(done.out.split())
    assert "its strength is 0.5 of the trained one" in text
    assert "refitted to rank 4 by truncated SVD: the change of the weights is off by 3.1 %" in text
    assert "warning: The data has changed." in text
    assert [f"    {line}".rstrip() for line in USAGE.splitlines()] == lines[-5:-2]  # no line is broken
    assert all(line == line.rstrip() for line in lines)


def test_json_is_complete(vu, asked, made):
    document = json.loads(vu("export", "runs/x", "--to", "toy-right", "--out", "there", "--json").out)
    assert document == {
        "folder": str(made.folder),
        "format": "toy-right",
        "title": "toy without colour:red",
        "checks": [
            {"what": "denoiser", "error": 2.4e-7, "limit": 1e-4},
            {"what": "image", "error": 0.0, "limit": 1.0},
        ],
        "usage": USAGE,
        "address": "",
        "files": {"weights/edit.safetensors": 3600, "README.md": 2900},
        "facts": {"scale": 0.5, "refit_rank": 4, "refit_error": 0.0312},
        "warnings": ["The data has changed."],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export runs/x --out there", "--to"),
        ("export runs/x --to toy-right", "--out"),
        ("export --to toy-right --out there", "RUN"),
        ("export runs/x --to toy-right --out there --scale much", "--scale"),
        ("export runs/x --to toy-right --out there --refit-rank 1.5", "--refit-rank"),
        ("export runs/x --to toy-right --out there --scale 1 --scale 2", "--scale"),
        ("export runs/x --to '' --out there", "empty"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(vu, asked, words, said):
    done = vu(*shlex.split(words))
    assert done.status == 2
    assert said in done.err
    assert asked == {}


def test_a_setting_without_value_is_refused(vu, asked):
    done = vu("export", "runs/x", "--to", "toy-right", "--out", "there", "--set", "precision")
    assert (done.status, asked) == (2, {})
    assert "VU-C004" in done.err


def test_export_is_a_command_with_help():
    from vu_cli.export import export

    assert "export" in COMMANDS
    assert "--refit-rank" in {name for parameter in export.params for name in parameter.opts}


# With the toys


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.syspath_prepend(str(TOYS))
    import vu_toy_export.plugin as exporters

    from vu_core.testing import toy_plugin

    extra = [("vu-toys", "1.0", toy_plugin), ("vu-toy-export", "1.0", exporters)]
    return discover(extra=extra, installed=False)


@pytest.fixture
def run(toys, tmp_path, monkeypatch):
    from vu_core.pipeline import execute
    from vu_core.stages.read import read

    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    values = {
        "model.name": "toy",
        "data.name": "toy",
        "data.forget": ("colour:red",),
        "unlearner.method": "toy-distillation",
        "unlearner.training.steps": 2,
        "run.seed": 3,
        "run.threads": 1,
        "run.out": str(tmp_path / "run"),
        "measure.seeds": 1,
        "measure.samples": 0,
    }
    return execute(read(None, [Override(key, value, "test") for key, value in values.items()]), plugins=toys).folder


def test_a_run_is_exported_and_failures_are_told(vu, toys, run, tmp_path):
    def export(name, *words):
        return vu("export", run, "--to", name, "--out", tmp_path / "out", *words, plugins=toys)

    failed = export("toy-half", "--json")
    assert failed.status == EditError.exit_status
    assert "denoiser: error 0.031, limit 0.0001 (too large)" in failed.err
    assert json.loads(failed.out)["error"]["code"] == "VU-E055"
    assert not (tmp_path / "out").exists()

    refused = export("toy-refuses")
    assert refused.status == EditError.exit_status
    assert "--refit-rank 8" in refused.err

    unknown = export("toy-rigth")
    assert (unknown.status, "Did you mean 'toy-right'" in unknown.err) == (3, True)
    assert "stm" in export("toy-right", "--set", "stm=x").err

    assert vu("export", tmp_path / "none", "--to", "toy-right", "--out", tmp_path / "out", plugins=toys).status == 7

    done = export("toy-right", "--scale", "0.5", "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert document["facts"] == {"scale": 0.5}
    for name, size in document["files"].items():
        assert (tmp_path / "out" / name).stat().st_size == size

    again = export("toy-right")
    assert again.status == 7
    assert "VU-R124" in again.err


def test_ctrl_c_says_interrupted_and_leaves_nothing(vu, toys, run, tmp_path):
    there = sorted(tmp_path.rglob("*"))
    done = vu("export", run, "--to", "toy-stopped", "--out", tmp_path / "out", plugins=toys)
    assert done.status == 130
    assert done.err.splitlines()[-1] == "interrupted"
    assert sorted(tmp_path.rglob("*")) == there


def test_formats_are_completed_without_importing_torch(process, distribution):
    code = """
from vu_core import hookimpl

@hookimpl
def vu_register_exporters(register):
    register("toy-shape", "absent:Shape", summary="a shape")
"""
    done = process(
        path=distribution("vu-toy-shapes", "vu_toy_shapes", code),
        _VU_COMPLETE="bash_complete",
        COMP_WORDS="vu export runs/x --to toy-sh",
        COMP_CWORD="4",
    )
    assert "toy-shape" in done.stdout
