"""The page on continual forgetting: every command in a ``console`` block is run, in order, in one folder.

So that this takes seconds, the test appends settings: one epoch on one image per class. What is tested is that the page
works as it is written.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vu_cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "continual-forgetting.md"
SHORT = ("--set=unlearner.training.epochs=1", "--set=unlearner.training.warmup_steps=0", "--set=subset.per_class=1")
FILES = {"faces": 4, "chain": 2}


def _commands() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vu ")]


@pytest.mark.slow
def test_every_command_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    toml = re.search(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert toml is not None
    (tmp_path / "chain.toml").write_text(toml.group(1).replace("epochs = 40", "epochs = 1"))
    for words in _commands():
        status = main.run([*words, *(SHORT if words[0] == "unlearn" else ())])
        told = capsys.readouterr()
        assert status == 0, f"vu {shlex.join(words)}\n{told.out}\n{told.err}"
        out = tmp_path / words[words.index("--out") + 1]
        if out.name in FILES:
            assert {"sequence.toml", "sequence.json", "report.html", "README.md"} <= {
                path.name for path in out.iterdir()
            }
            assert len(list(out.glob("tasks/*/edit.safetensors"))) == FILES[out.name]
        else:
            assert (out / "edit.safetensors").exists()
