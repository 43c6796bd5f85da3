"""The embedded default through the command line: killed and resumed, and repeated from its run.toml, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STEPS = 40
SETTINGS = {
    "run.threads": 2,
    "unlearner.training.steps": STEPS,
    "unlearner.training.batch_size": 2,
    "unlearner.training.checkpoint_every": 0,
    "data.max_forget": 10,
    "data.max_retain": 20,
    "measure.seeds": 1,
    "measure.steps": 2,
    "measure.samples": 1,
}
FLAGS = [f"--set={key}={value}" for key, value in SETTINGS.items()]

# The third checkpoint after the start: its bytes lie under the temporary name, the rename never happens.
KILL_WHILE_WRITING = """
import os, signal
from pathlib import Path
rename, seen = Path.replace, []
def replace(self, target):
    if "checkpoints" in str(target):
        seen.append(target)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = replace
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canvas run")


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Start `vu` in a process of its own; none survives the test."""
    begun: list[subprocess.Popen[str]] = []

    def go(*arguments: str, cache: str = "cache", before: str = "") -> subprocess.Popen[str]:
        code = f"{before}\nimport sys\nfrom vu_cli.main import main\nsys.exit(main())"
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                cwd=place,
                env={**os.environ, "VU_CACHE": str(place / cache)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield go
    for process in begun:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True)[:-1]] if path.exists() else []


def last_checkpoint(folder: Path) -> int:
    return max((e["values"]["step"] for e in events(folder) if e["type"] == "checkpoint"), default=0)


def kill_after(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """SIGKILL once the checkpoint of ``step`` is safe."""
    while last_checkpoint(folder) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def forgetting() -> list[str]:
    return ["unlearn", "--method", "fade-sparse", "--forget", "style:neon", "--seed", "5", *FLAGS]


def same(one: Path, other: Path) -> None:
    for name in ("edit.safetensors", "scores.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_killed_three_times_ends_as_an_uninterrupted_one_and_repeats(
    start: Start, place: Path, forgetting: list[str]
) -> None:
    whole, killed = place / "whole", place / "killed"
    finish(start(*forgetting, "--out", "whole"))
    first, second = sorted(random.Random(20).sample(range(2, STEPS - 12), 2))

    kill_after(start(*forgetting, "--out", "killed"), killed, first)
    torn = start("unlearn", "--resume", "killed", before=KILL_WHILE_WRITING)
    torn.communicate(timeout=600)
    assert torn.returncode == -signal.SIGKILL
    assert list((killed / "checkpoints").glob(".*.tmp")), "the kill must hit between writing and renaming"
    kill_after(start("unlearn", "--resume", "killed"), killed, max(second, last_checkpoint(killed) + 2))
    assert not (killed / "edit.safetensors").exists(), f"killed at {first} and {second}"
    finish(start("unlearn", "--resume", "killed"))

    same(killed, whole)
    resumed = [e["values"]["step"] for e in events(killed) if e["type"] == "resume" and e["stage"] == "unlearn"]
    assert len(resumed) == 3
    assert 0 < first <= resumed[0] <= resumed[1] < resumed[2] < STEPS

    finish(start("unlearn", "-c", "whole/run.toml", "--out", "again", cache="another cache"))
    same(place / "again", whole)
