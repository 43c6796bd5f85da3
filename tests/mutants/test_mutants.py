"""The list of mutants fits the code, and the machinery tells killed from surviving ones."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture
def runner(monkeypatch):
    """The module ``run`` of this folder; under that name, because the processes it starts import it again."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("run", "red"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("run")
    for name in ("run", "red"):
        sys.modules.pop(name, None)


def test_every_mutant_fits_its_file_and_names_tests_that_exist(runner):
    problems = []
    for mutant in runner.load():
        count = (
            (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) if (ROOT / mutant.file).exists() else -1
        )
        if count != 1:
            problems.append(f"{mutant.name}: text found {count} times in {mutant.file}")
        if mutant.old == mutant.new:
            problems.append(f"{mutant.name}: changes nothing")
        files = [test.partition("::")[0] for test in mutant.tests if test.startswith(("tests/", "plugins/"))]
        problems += [f"{mutant.name}: no file {file}" for file in files if not (ROOT / file).exists()]
        if not files:
            problems.append(f"{mutant.name}: names no test file")
    assert problems == []


def test_names_are_unique(runner):
    names = [mutant.name for mutant in runner.load()]
    assert len(names) == len(set(names))


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "half.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "test_half.py").write_text("from half import half\n\n\ndef test_half():\n    assert half(4) == 2\n")
    return tmp_path


def test_a_mutant_that_a_test_notices_is_killed_and_one_that_none_notices_survives(runner, tree):
    caught = runner.Mutant("caught", "half.py", "x / 2", "x / 3", ["test_half.py"])
    missed = runner.Mutant("missed", "half.py", "x / 2", "x * 0.5", ["test_half.py"])
    assert runner.survivors([caught, missed], tree) == [missed]
    assert (tree / "half.py").read_text() == "def half(x):\n    return x / 2\n"


def test_a_mutant_whose_text_is_gone_is_an_error(runner, tree):
    with pytest.raises(ValueError, match="0 times"):
        runner.Mutant("stale", "half.py", "x / 5", "x", ["test_half.py"]).apply(tree)


def test_a_selection_without_tests_is_an_error(runner, tree):
    with pytest.raises(RuntimeError, match="status"):
        runner.is_red(tree, ("test_half.py", "-k", "nothing_has_this_name"))
