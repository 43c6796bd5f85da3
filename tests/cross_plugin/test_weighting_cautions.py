"""Acceptance truth 9 of gradient weighting: a run with a rule kept for parity says that it is known incorrect."""

import json

import pytest

from vu_cli import main
from vu_core.config import FLAG_KEYS, Override
from vu_core.plugins import discover
from vu_core.stages.plan import plan
from vu_core.stages.read import read
from vu_core.stages.structure import structure


@pytest.mark.parametrize("name", ["munba-v1-compat", "munba-official-compat", "munba"])
def test_parity_is_told_with_the_plan(name):
    plugins = discover()
    flags = {"method": "fade", "forget": ("style:neon",), "weighting": name, "seed": 1}
    overrides = [Override(FLAG_KEYS[f"--{flag}"], value, f"--{flag}") for flag, value in flags.items()]
    drawn = plan(structure(read(None, overrides), plugins), plugins)
    told = [note for note in drawn.notes if "known incorrect" in note and "reproduces historical behaviour" in note]
    assert len(told) == (name != "munba")
    assert all(f"'{name}'" in note for note in told)


@pytest.mark.slow
def test_parity_is_told_by_the_record_and_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    quick = ("data.max_forget=2", "data.max_retain=2", "unlearner.training.steps=1", "measure.samples=0")
    sets = [f"--set={each}" for each in (*quick, 'measure.metrics=["edit-size"]')]
    words = ["unlearn", "--method", "fade", "--forget", "style:neon", "--weighting", "munba-v1-compat", *sets]
    out = tmp_path / "run"
    assert main.run([*words, "--out", str(out)]) == 0, capsys.readouterr().err
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [event["values"]["text"] for event in events if event["type"] == "note"]
    assert any("'munba-v1-compat'" in text and "known incorrect" in text for text in told)
    assert "known incorrect" in (out / "report.html").read_text(encoding="utf-8")
