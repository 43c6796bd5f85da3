"""`vu inspect` through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import inspect_adapters as hand
import pytest
import torch
from inspect_adapters import OUT

from vu_core import Edit, LowRank, Replace, Sparse
from vu_core.adapters import load_edit, save_edit
from vu_core.plugins import discover
from vu_core.testing import CommandTests, toy_plugin
from vu_core.testing.toy_painter import ToyPainter
from vu_elastic_lora import plugin
from vu_elastic_lora.inspect import COLUMNS


class TestInspect(CommandTests):
    target = "vu_elastic_lora.inspect:inspect"


@pytest.fixture
def vu(tmp_path, capsys, monkeypatch):
    """Run a command line with toys and this plugin; returns status, out and err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    installed = [("vu-toys", "0.1", toy_plugin), ("vu-elastic-lora", "0.1", plugin)]

    def run(*words) -> SimpleNamespace:
        from vu_cli import main

        status = main.run([str(word) for word in words], plugins=discover(extra=installed, installed=False))
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def told(vu):
    """The two tables of ``vu inspect --json``: rows by module, and values by what they are."""

    def ask(*words):
        answer = vu("inspect", *words, "--json")
        assert answer.status == 0, answer.err
        modules, together = json.loads(answer.out)
        rows = {row["module"]: row for row in modules["rows"]}
        return rows, {row["what"]: row["value"] for row in together["rows"]}, modules["notes"] + together["notes"]

    return ask


@pytest.mark.parametrize("style", hand.STYLES)
def test_every_style_gives_the_same_tables(style, told, tmp_path):
    rows, together, _ = told(hand.STYLES[style](tmp_path))
    assert all(tuple(row) == COLUMNS for row in rows.values())
    for key, golden in hand.GOLDEN.items():
        row = next(row for name, row in rows.items() if ("conv" in name) == (key == "conv"))
        assert {name: row[name] for name in golden} == pytest.approx(golden, rel=1e-12)
    assert {name: together[name] for name in hand.TOTAL} == pytest.approx(hand.TOTAL, rel=1e-12)
    assert together["ranks"] == "2 (1 module), 1 (1 module)"


def test_an_edit_says_method_model_and_base(told, tmp_path):
    _, together, _ = told(hand.vu(tmp_path))
    assert together["method"] == "fade"
    assert together["model"] == "canvas-diffusion"
    assert together["base"] == "f" * 64
    assert together["file"] == str(tmp_path / "edit.safetensors")


def test_a_file_that_does_not_say_them_gets_no_empty_rows(told, tmp_path):
    _, together, _ = told(hand.kohya(tmp_path))
    assert not {"method", "model", "base"} & set(together)


def test_masks_sparse_and_replaced_tensors_in_one_edit(told, tmp_path):
    mask = torch.tensor([[True, False], [False, False]])
    parts = {
        "unet.a.weight": LowRank(torch.ones(4, 2), torch.ones(2, 4), 8.0, mask),
        "unet.b.weight": Sparse(torch.tensor([3]), torch.tensor([2.0]), (2, 2)),
        "unet.c.running_mean": Replace(torch.ones(5)),
    }
    save_edit(Edit(parts), tmp_path / "edit.safetensors")
    rows, together, notes = told(tmp_path)
    assert rows["unet.a"] == {
        "module": "unet.a",
        "kind": "low-rank",
        "rank": 4,
        "alpha": 8.0,
        "gamma": 2.0,
        "density": 0.25,
        "zero_percent": 75.0,
        "norm": 8.0,
        "bytes": 16 * 4 + 1,
    }
    assert (rows["unet.b"]["kind"], rows["unet.b"]["rank"], rows["unet.b"]["density"]) == ("sparse", None, 0.25)
    assert [rows["unet.c.running_mean"][name] for name in ("kind", "zero_percent", "norm")] == ["replace", None, None]
    assert together["delta_zero_fraction"] == 0.75
    assert together["bytes"] == sum(row["bytes"] for row in rows.values())
    assert any(note.startswith("1 of 3 tensors are replaced as a whole") for note in notes)


def test_an_edit_of_nothing_but_replaced_tensors_has_no_percents(told, tmp_path):
    save_edit(Edit({"a": Replace(torch.ones(2))}), tmp_path / "edit.safetensors")
    _, together, _ = told(tmp_path)
    assert together["zero_percent overall"] is None
    assert "ranks" not in together


def test_the_threshold_changes_percents_and_not_the_fraction(told, tmp_path):
    path = hand.kohya(tmp_path)
    low, high = told(path)[1], told(path, "--threshold", "2")[1]
    assert low["delta_zero_fraction"] == high["delta_zero_fraction"] == pytest.approx(16 / 36)
    # Besides the zeros: 2, 2, -2 in the first module; 1, 2, 1, 2 and 2, 2 in the second.
    assert high["zero_percent overall"] == pytest.approx(100 * (16 + 3 + 6) / 36)


def test_people_see_the_same(vu, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    answer = vu("inspect", hand.vu(tmp_path))
    assert answer.status == 0, answer.err
    assert answer.err == ""
    line = next(line for line in answer.out.splitlines() if line.startswith(OUT))
    assert line.split() == [OUT, "low-rank", "2", "4", "2", "50", "7.746", "56"]
    for words in ("edit of vu", "delta_zero_fraction", "zero_percent counts changes of at most 1e-06"):
        assert words in answer.out


def test_on_a_narrow_terminal_long_names_stand_above_what_they_share(vu, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = vu("inspect", hand.vu(tmp_path)).out.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("  ") and "to_out.0 " in line)
    rest, kind = lines[place].split()[:2]
    assert (f"{lines[place - 1]}.{rest}", kind) == (OUT, "low-rank")
    assert max(map(len, lines)) <= 80


def test_a_run_of_vu_from_its_training_on(vu, told, tmp_path):
    words = "unlearn --method toy-distillation --model toy --data toy --forget colour:red --seed 3 --out run"
    assert vu(*words.split(), "--parameters", "lora").status == 0
    rows, together, notes = told("run")
    edit, painter = load_edit(tmp_path / "run" / "edit.safetensors"), ToyPainter(0)
    assert sorted(rows) == sorted(name.removesuffix(".weight") for name, _ in edit)
    assert (together["format"], together["method"], together["model"]) == ("run of vu", "toy-distillation", "toy")
    assert 0 <= together["zero_percent overall"] <= 100  # fault 17: never empty, never NaN
    tuned = sum(part.A.numel() + part.B.numel() for _, part in edit)
    denoiser = painter.network.get_submodule(painter.denoiser)
    assert together["tuned parameters"] == tuned
    share = together[f"tuned parameters, % of {painter.denoiser}"]
    assert share == pytest.approx(100 * tuned / sum(p.numel() for p in denoiser.parameters()))
    for name, row in rows.items():
        delta = edit.parts[f"{name}.weight"].delta()
        assert row["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
    assert notes == ["zero_percent counts changes of at most 1e-06; delta_zero_fraction counts exact zeros."]


@pytest.mark.parametrize("facts", [{}, {"denoiser": "unet"}, {"denoiser": "unet", "denoiser_parameters": 0}])
def test_a_share_is_never_guessed(facts, told, tmp_path):
    save_edit(Edit({"unet.a": Replace(torch.ones(2))}, facts=facts), tmp_path / "edit.safetensors")
    assert not any("%" in name for name in told(tmp_path)[1])


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_error_names_file_and_key_without_a_traceback(as_json, vu, tmp_path):
    path = hand.save(tmp_path / "half.safetensors", {"a.lora_A.weight": torch.ones(1, 1)})
    answer = vu("inspect", path, *as_json)
    assert answer.status == 9
    for word in ("VU-E099", str(path), "a.lora_A.weight"):
        assert word in answer.out + answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("words", [["--threshold", "nan"], ["--threshold", "-1"], ["--threshold", "inf"], ["-t", "1"]])
def test_a_threshold_that_is_none(words, vu, tmp_path):
    answer = vu("inspect", hand.kohya(tmp_path), *words)
    assert answer.status == 2
    assert answer.out == ""


def test_no_path_at_all(vu):
    assert vu("inspect", "").status == 2
    assert vu("inspect").status == 2


def test_the_help_says_what_the_columns_mean_one_per_line(vu):
    lines = [line.strip() for line in vu("inspect", "--help").out.splitlines()]
    assert any("RUN|FILE" in line for line in lines)
    for word in ("--threshold", "density", "zero_percent", "norm", "vu inspect runs/"):
        assert any(line.startswith(word) for line in lines), word


def test_importing_the_command_imports_no_torch():
    code = "import sys, vu_elastic_lora.inspect; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
