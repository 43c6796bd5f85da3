"""The core and the command line keep the rules that plugins keep: no pickle, no print, no swallowed error."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("vu_core", "vu_cli") for path in (ROOT / package).rglob("*.py"))
CALLS = ("print", "eval", "exec", "torch.load", "torch.save", "breakpoint")
PICKLES = ("pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")


def forbidden(source: str, *, may_assert: bool = False) -> Iterator[str]:
    """Yield the line and the name of everything that no file of the core may hold."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in CALLS:
            yield f"{line}: {called}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{name}" for name in modules]
            for module in modules:
                if module.split(".")[0] in PICKLES or module in ("torch.load", "torch.save"):
                    yield f"{line}: {module}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{line}: bare except"
        if isinstance(node, ast.Assert) and not may_assert:
            yield f"{line}: assert"


def test_there_is_something_to_look_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"vu_core/pipeline.py", "vu_core/stages/measure.py", "vu_core/training/loop.py", "vu_cli/main.py"} <= names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_forbidden(path: Path) -> None:
    """The conformance kit is tests that authors inherit, so only there `assert` is a statement to them."""
    is_kit = (ROOT / "vu_core" / "testing") in path.parents
    assert list(forbidden(path.read_text(encoding="utf-8"), may_assert=is_kit)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print('x')", ["1: print"]),
        ("def f():\n    return eval('1')", ["2: eval"]),
        ("exec('x = 1')", ["1: exec"]),
        ("import torch\ntorch.load('x')", ["2: torch.load"]),
        ("from torch import load", ["1: torch.load"]),
        ("import pickle", ["1: pickle"]),
        ("from pickle import loads", ["1: pickle.loads"]),
        ("import joblib.parallel", ["1: joblib.parallel"]),
        ("try:\n    x = 1\nexcept:\n    pass", ["3: bare except"]),
        ("assert x", ["1: assert"]),
        ("try:\n    x = 1\nexcept ValueError:\n    console.print('eval(')  # print('x')", []),
    ],
)
def test_the_rules_are_noticed(source: str, found: list[str]) -> None:
    assert list(forbidden(source)) == found


def test_only_assert_is_left_to_the_conformance_kit() -> None:
    assert list(forbidden("assert x\nprint(x)", may_assert=True)) == ["2: print"]
