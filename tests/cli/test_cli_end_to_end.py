"""The real pipeline behind the command line: with toys in this process, with Stable Diffusion in one of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from vu_core import hookimpl
from vu_core.plugins import discover
from vu_core.testing import toy_plugin


class Stopper:
    """A listener that presses Ctrl-C when training has come some way."""

    def __init__(self) -> None:
        self.at: int | None = None

    @hookimpl
    def vu_on_event(self, event) -> None:
        if event.type == "progress" and event.stage == "unlearn" and event.values["step"] == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def stopper():
    return Stopper()


@pytest.fixture
def toys(stopper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    return discover(extra=[("vu-toys", "0.1", toy_plugin), ("stopper", "0.1", stopper)], installed=False)


LINE = "unlearn --method toy-distillation --model toy --data toy --forget colour:red --seed 3"


def test_a_run_its_plan_and_everything_that_can_be_done_with_it(vu, toys, tmp_path):
    words = LINE.split()
    planned = vu(*words, "--dry-run", plugins=toys)
    assert planned.status == 0, planned.err
    assert not (tmp_path / "runs").exists()

    done = vu(*words, "--out", "one", plugins=toys)
    assert done.status == 0, done.err
    assert "Written to one/" in done.out
    assert re.search(r"^unlearn: done in ", done.err, re.M)
    scores = json.loads((tmp_path / "one" / "scores.json").read_text())

    again = vu(*words, "--out", "one", plugins=toys)
    assert again.status == 7
    assert "VU-R050" in again.err
    assert json.loads((tmp_path / "one" / "scores.json").read_text()) == scores

    other = vu(*words, "--out", "two", "--set", "unlearner.training.lr=0.03", "--json", plugins=toys)
    assert other.status == 0, other.err
    assert json.loads(other.out)["scorecard"]["status"] == "ok"

    compared = vu("compare", "one", "two", plugins=toys)
    assert compared.status == 0, compared.err
    assert "unlearner.training.lr" in compared.out

    measured = vu("measure", "one", "--seeds", "3", "--json", plugins=toys)
    assert measured.status == 0, measured.err
    assert len(json.loads(measured.out)["scores"][0]["seeds"]) == 3

    assert json.loads(measured.out)["files"] == [str(next(tmp_path.glob("one/scores-*.json")).relative_to(tmp_path))]

    image = vu("generate", "one", "a red dot", "--out", "dot.png", plugins=toys)
    assert image.status == 0, image.err
    assert (tmp_path / "dot.png").exists()

    refused = vu("unlearn", "--resume", "one", plugins=toys)
    assert (refused.status, "VU-R054" in refused.err) == (7, True)


def test_ctrl_c_leaves_a_run_that_the_printed_command_completes(vu, toys, stopper, tmp_path):
    words = [*LINE.split(), "--out", "run", "--set", "unlearner.training.checkpoint_every=0"]
    stopper.at = 2
    stopped = vu(*words, plugins=toys)
    assert stopped.status == 130
    last = stopped.err.splitlines()[-1]
    assert last == "interrupted; continue with: vu unlearn --resume run"
    assert not (tmp_path / "run" / "scores.json").exists()

    stopper.at = None
    resumed = vu(*last.split("vu ")[1].split(), plugins=toys)
    assert resumed.status == 0, resumed.err
    assert "continues with unlearn after step" in resumed.err
    assert (tmp_path / "run" / "scores.json").exists()


SLEEPER = """
import os, time
from pathlib import Path
from vu_core import hookimpl
from vu_core.testing.toy_plugin import *

@hookimpl
def vu_on_event(event):
    at = os.environ.get("SLEEP_AT") == str(event.values.get("step"))
    if at and event.stage == "unlearn" and event.type == "progress":
        Path("asleep").write_text("")
        time.sleep(300)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_in_a_real_process_leaves_a_run_that_the_printed_command_completes(
    distribution, environment_of, process, tmp_path
):
    site = distribution("sleepers", "sleeper", SLEEPER)
    words = [*LINE.split(), "--out", "run", "--set", "unlearner.training.checkpoint_every=0"]
    child = subprocess.Popen(
        [sys.executable, "-m", "vu_cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment_of(site, SLEEP_AT="2"),
    )
    while not (tmp_path / "asleep").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    try:
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    last = err.splitlines()[-1]
    assert last == "interrupted; continue with: vu unlearn --resume run"
    assert err.count("interrupted") == 1
    assert "Traceback" not in err
    assert "Ctrl-C; vu unlearn --resume run goes on" in out

    resumed = process(*last.split("vu ")[1].split(), path=site)
    assert resumed.returncode == 0, resumed.stderr
    assert "continues with unlearn after step" in resumed.stderr
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["status"] == "ok"


def test_diffusers_and_friends_are_not_heard(process, tmp_path):
    tiny = pytest.importorskip("vu_diffusers.tiny")
    image = pytest.importorskip("PIL.Image")
    tiny.tiny_pipeline(tmp_path / "pipeline")
    for side, shade in (("forget", 200), ("retain", 50)):
        folder = tmp_path / "images" / side
        folder.mkdir(parents=True)
        for number in range(12):
            image.new("RGB", (32, 32), (shade, number, 0)).save(folder / f"{number}.png")
        rows = [{"file_name": f"{number}.png", "text": f"a {side} image"} for number in range(12)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = "unlearn --method fade --model ./pipeline --data ./images --overwrite dog --out run"
    settings = ["unlearner.training.steps=2", "measure.seeds=1", "measure.samples=1"]
    done = process(*line.split(), *(word for each in settings for word in ("--set", each)))
    assert done.returncode == 0, done.stderr
    ours = re.compile(r"(load|unlearn|measure|record): .+|note: .+")
    assert [text for text in done.stderr.splitlines() if not ours.fullmatch(text)] == []
    assert done.stdout.startswith("Plan ")
