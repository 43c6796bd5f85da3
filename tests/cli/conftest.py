"""Nouns of one invented run, and two ways of running `vu`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from vu_core import (
    Capability,
    Concept,
    Cost,
    Event,
    Manifest,
    ModelFacts,
    Plan,
    RunRecord,
    Score,
    Scorecard,
    Selection,
    Source,
    hookimpl,
    setting,
)
from vu_core.config import Choice, MeasureSettings, RunConfig, RunSettings
from vu_core.plugins import Plugins, discover
from vu_core.registry import Entry


@attrs.frozen
class Empty:
    """A plugin without settings."""


@attrs.frozen
class Rank:
    rank: int = setting(4, help="rank")


class Toy:
    Config = Empty
    source = Source("none", "", "own")


@pytest.fixture
def entry() -> Callable[..., Entry]:
    def make(kind: str, name: str, **others: object) -> Entry:
        facts = {"target": "toy:Toy", "summary": f"the {name} of the tests", "distribution": "toys", "version": "1.2"}
        return Entry(kind, name, **{**facts, **others})  # type: ignore[arg-type]

    return make


@pytest.fixture
def config(entry: Callable[..., Entry]) -> RunConfig:
    def choice(kind: str, name: str, settings: object = None) -> Choice:
        return Choice(entry(kind, name), settings or Empty())

    return RunConfig(
        run=RunSettings(seed=7),
        model=choice("model", "toy-model"),
        data=choice("dataset", "toy-data"),
        forget=("style:neon",),
        overwrite=(),
        unlearner=choice("unlearner", "toy-method"),
        measure=MeasureSettings(),
        parameters=choice("parameters", "lora", Rank(8)),
    )


@pytest.fixture
def plan(config: RunConfig) -> Plan:
    capabilities = frozenset({Capability.GENERATE})
    return Plan(
        config=config,
        model=ModelFacts("toy-model", "", "a" * 64, capabilities, 4_190_000, 16_760_000, 64, "v_prediction"),
        manifest=Manifest("toy-data", "", "b" * 64, {"train/forget": 10, "train/retain": 90}, "by index"),
        selection=Selection((Concept("style:neon", {"style": "neon"}, "style:flat", {"style": "flat"}),)),
        cost=Cost(seconds=75, memory=1_300_000_000, disk=2_000_000, images=400, downloads=0),
        run_id="0123456789ab",
        versions={"vu-core": "0.1.0"},
        notes=("No overwrite was named: style:flat takes its place.",),
    )


@pytest.fixture
def scorecard() -> Scorecard:
    return Scorecard(
        "held-out",
        "ok",
        (
            Score(
                "ua",
                0.97,
                "fraction",
                "up",
                100,
                0.01,
                0.9155,
                0.9897,
                (10_000,),
                "f1",
                "forgotten prompts answered with something else",
            ),
            Score("ira", 0.952, "fraction", "up", 900, 0.961, 0.94, 0.962, (10_000,), "f2", "other styles still right"),
            Score("edit_bytes", 86_016, "bytes", "none", 1),
            Score("changed_parameters", 21_504, "parameters", "none", 1),
        ),
    )


@pytest.fixture
def record(tmp_path: Path, scorecard: Scorecard) -> RunRecord:
    return RunRecord(
        folder=tmp_path / "run",
        run_id="0123456789ab",
        method="toy-method",
        model="toy-model",
        data="toy-data",
        forget=("style:neon",),
        overwrite=("style:flat",),
        scorecard=scorecard,
        edit_bytes=86_016,
        seconds={"unlearn": 29.4, "measure": 51.0},
        files={"edit.safetensors": "the edit, 86.0 kB", "report.html": "scores and images to look at"},
        notes=("No overwrite was named: style:flat takes its place.",),
    )


@pytest.fixture
def vu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Run a command line in this process; returns status, out and err."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str | Path, **others: object) -> SimpleNamespace:
        from vu_cli import main

        status = main.run([str(word) for word in arguments], **others)  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line as a process, in an empty folder with a cache of its own."""

    def run(*arguments: str | Path, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vu_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment(tmp_path, path, **variables),
        )

    return run


@pytest.fixture
def environment_of(tmp_path: Path) -> Callable[..., dict[str, str]]:
    def make(path: Path | None = None, **variables: str) -> dict[str, str]:
        return environment(tmp_path, path, **variables)

    return make


def environment(tmp_path: Path, path: Path | None, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}}
    search = [str(each) for each in (path, os.environ.get("PYTHONPATH")) if each]
    return {**kept, "VU_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(search), **variables}


@pytest.fixture
def distribution(tmp_path: Path) -> Callable[..., Path]:
    """Install an invented distribution into a folder that a process can have on its path."""
    site = tmp_path / "site"

    def install(name: str, module: str, code: str, version: str = "1.2") -> Path:
        info = site / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[vu.plugins]\n{module} = {module}\n")
        (site / f"{module}.py").write_text(code)
        return site

    return install


# A world of four slots, in which every score is known beforehand: see vu_toy_slots.


class Stopper:
    """A listener that presses Ctrl-C when a stage begins: the one of the name in `stage`."""

    stage = ""

    @hookimpl
    def vu_on_event(self, event: Event) -> None:
        if event.type == "stage" and event.stage == self.stage:
            raise KeyboardInterrupt


@pytest.fixture
def stopper() -> Stopper:
    return Stopper()


@pytest.fixture
def slots(stopper: Stopper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """The toy slots and what the core brings, in an empty folder with a cache of its own."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "core" / "runs" / "toys"))
    import vu_toy_slots
    from vu_toy_slots.parts import Shown

    Shown.asked.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    return discover(extra=[("vu-toy-slots", "1.0", vu_toy_slots), ("stopper", "1.0", stopper)], installed=False)


@pytest.fixture
def erased(vu: Callable[..., SimpleNamespace], slots: Plugins) -> Callable[..., Path]:
    """Make a finished run that forgets a slot: ``erased("0", leak=0.1)`` lies in the folder ``0``."""

    def make(slot: str, *others: str, **settings: object) -> Path:
        words = [word for each in (slot, *others) for word in ("--forget", f"slot:{each}")]
        keys = {(key if "__" in key else f"unlearner__{key}").replace("__", "."): settings[key] for key in settings}
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        done = vu("unlearn", *words, "--seed", "3", "--out", "+".join((slot, *others)), *sets, plugins=slots)
        assert done.status == 0, done.err
        return Path("+".join((slot, *others)))

    return make
