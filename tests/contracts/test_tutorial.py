"""The tutorial is tested as it is written: its page, its tests, its installation, a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "docs" / "tutorial" / "vu-tutorial-plugin"
PAGE = ROOT / "docs" / "tutorial" / "write-a-plugin.md"
BLOCK = re.compile(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

VU = ("-c", "from vu_cli.main import main; main()")

RUN = """
import json, sys
from pathlib import Path
from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import discover
from vu_core.stages.read import read
from vu_core.testing import toy_plugin

plugins = discover(extra=[("vu-toys", "0.1", toy_plugin)])
settings = {
    "model.name": "toy",
    "data.name": "toy",
    "data.forget": ("colour:red",),
    "unlearner.method": "mute",
    "unlearner.training.steps": 5,
    "measure.metrics": ("contrast",),
    "run.seed": 1,
    "run.out": sys.argv[1],
}
raw = read(None, [Override(key, value, "the test") for key, value in settings.items()])
record = execute(raw, plugins=plugins)
print(json.dumps([record.method, [score.name for score in record.scorecard.scores]]))
"""


def files() -> list[str]:
    kinds = (".py", ".toml", ".md")
    found = (path.relative_to(PLUGIN) for path in PLUGIN.rglob("*") if path.suffix in kinds)
    return sorted(str(path) for path in found if "egg-info" not in str(path) and "build" not in path.parts)


def test_the_page_shows_exactly_the_files() -> None:
    shown = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    assert sorted(shown) == files()
    for name, text in shown.items():
        assert text == (PLUGIN / name).read_text(encoding="utf-8"), f"{name} differs between page and folder"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's distribution, installed by pip into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "vu-tutorial-plugin"
    for name in files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((PLUGIN / name).read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def in_process(arguments: list[str], installed: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "VU_CACHE": str(folder / "cache"), "COLUMNS": "120"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_installed_it_is_listed_like_any_other(installed: Path, tmp_path: Path) -> None:
    listed = in_process([*VU, "list-plugins", "--json"], installed, tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in ("mute", "contrast", "vu-tutorial-plugin"):
        assert f'"{name}"' in listed.stdout
    described = in_process([*VU, "describe", "mute"], installed, tmp_path)
    assert described.returncode == 0, described.stderr
    assert "share of what the caption changes" in described.stdout


def test_installed_it_runs(installed: Path, tmp_path: Path) -> None:
    done = in_process(["-c", RUN, str(tmp_path / "run")], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["mute", ["retain_contrast"]]


def test_uninstalled_it_is_gone(tmp_path: Path) -> None:
    listed = in_process([*VU, "list-plugins", "--json"], tmp_path, tmp_path)
    assert "vu-tutorial-plugin" not in listed.stdout
