"""A workplace for tests of the pipeline: toy plugins, an empty cache, an empty working folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core.config import Override, RawConfig
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package of toy plugins, importable."""
    monkeypatch.syspath_prepend(str(TOYS))
    import vu_toy_run.parts as parts

    for calls in (parts.ToyPoints.built, parts.Size.calls, parts.Gap.calls):
        calls.clear()
    return parts


@pytest.fixture
def plugins(toys: Any) -> Plugins:
    """Only the toys and what the core brings."""
    import vu_toy_run.plugin as plugin

    return discover(extra=[("vu-toy-run", "1.0", plugin)], installed=False)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def raw() -> Callable[..., RawConfig]:
    """Make a configuration from dotted keys with ``__`` for dots; the method is toy-push, the seed 3."""

    def make(**values: Any) -> RawConfig:
        settings = {"unlearner__method": "toy-push", "run__seed": 3, "data__forget": ("sign:plus",), **values}
        overrides = [Override(key.replace("__", "."), value, "--set") for key, value in settings.items()]
        return read(None, overrides)

    return make


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own, where the toys are an installed distribution."""
    info = tmp_path / "site" / "vu_toy_run-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vu-toy-run\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vu.plugins]\ntoy-run = vu_toy_run.plugin\n")
    # Only the toys: what else is installed here would only cost time.
    others = "vu-canvas,vu-diffusers,vu-fade,vu-folders,vu-metrics,vu-attribution,vu-elastic-lora"

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path / "site"), str(TOYS)]
        settings = {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "VU_DISABLE_PLUGINS": others,
            "VU_CACHE": str(tmp_path / "cache"),
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
