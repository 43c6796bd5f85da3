"""The plugin of the README is installed as written there, listed, checked and used."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"`([\w.]+)`\n\n```\w+\n(.*?)```", re.S)


def blocks() -> dict[str, str]:
    """The files of the README's plugin by name, as written there."""
    files = dict(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert set(files) == {"pyproject.toml", "equal_length_plugin.py", "equal_length.py"}
    return files


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the blocks into a folder and let pip build and install it, without network."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in blocks().items():
        (project / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-cache-dir", "--target", str(site), str(project)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


def vu(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "vu_cli", *words], env=environment, cwd=site, capture_output=True, text=True, check=False
    )


def test_it_has_about_thirty_lines() -> None:
    code = [line for name, text in blocks().items() if name.endswith(".py") for line in text.splitlines()]
    assert len([line for line in code if line.strip()]) <= 30


def test_it_is_listed_and_its_target_imports(installed: Path) -> None:
    done = vu(installed, "list-plugins", "--kind", "weighting", "--check", "--json")
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert entries["equal-length"]["state"] == "ready"
    assert entries["equal-length"]["distribution"] == "equal-length"


def test_both_gradients_get_the_same_length(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(installed))
    from equal_length import EqualLength, EqualLengthConfig

    retain, forget = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.1])
    rows = torch.stack([retain, forget]).double()
    a_r, a_f = EqualLength(EqualLengthConfig(0.5)).coefficients(rows @ rows.T, {}, {})
    assert (a_r * retain).norm().item() == pytest.approx(0.5)
    assert (a_f * forget).norm().item() == pytest.approx(0.5)
