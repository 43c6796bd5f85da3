"""Making runs with the command line, and keeping their numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / ".results"
KEPT = ROOT / "docs/reference/results"
VU = Path(sys.executable).with_name("vu")


class Cost(NamedTuple):
    """What a run with its quick measurement took, cache empty.

    ``seconds`` is wall time; ``peak_bytes`` the largest resident set of the process of `vu`: Python with its libraries,
    the weights, the data, and whatever training and measuring had in memory at once.
    """

    seconds: float
    peak_bytes: int


class Ended(NamedTuple):
    """What a command printed, and the largest resident set of its process in bytes."""

    text: str
    peak_bytes: int


def vu(*words: str, cache: Path = RUNS / "cache") -> str:
    """Run a command in the root of the repository and return what it printed."""
    return watched(*words, cache=cache).text


def watched(*words: str, cache: Path = RUNS / "cache") -> Ended:
    """Run a command in the root of the repository.

    Linux counts what this process holds when it starts the other one, so whoever calls should not have loaded PyTorch.
    """
    environment = {**os.environ, "VU_CACHE": str(cache)}
    with subprocess.Popen([str(VU), *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        text = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"vu {' '.join(words)} ended with status {process.returncode}")
    return Ended(text, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def shown(folder: Path) -> str:
    """Return a folder as commands name it: from the root of the repository."""
    return str(folder.relative_to(ROOT))


def unlearn(folder: Path, *words: str) -> Cost:
    """Make a run with an empty cache unless it is there; return what it took."""
    told = folder.parent / f"{folder.name}.cost.json"
    if not (folder / "README.md").exists() or not told.exists():
        shutil.rmtree(folder, ignore_errors=True)
        cold = RUNS / "cold-cache"
        shutil.rmtree(cold, ignore_errors=True)
        started = time.monotonic()
        ended = watched("unlearn", *words, "--out", shown(folder), "--quiet", cache=cold)
        keep(told, Cost(round(time.monotonic() - started, 1), ended.peak_bytes)._asdict())
    return Cost(**json.loads(told.read_text()))


def measure(folder: Path, seeds: int) -> Any:
    """Measure a run with many held-out seeds; return the scorecard."""
    return json.loads(vu("measure", shown(folder), "--set", f"measure.seeds={seeds}", "--json"))


def machine(folder: Path) -> dict[str, Any]:
    """Return the size of the machine that a run was made on."""
    environment = json.loads((folder / "environment.json").read_text())
    return {key: environment[key] for key in ("cores", "memory_gib", "threads") if key in environment}


def keep(path: Path, value: dict[str, Any]) -> None:
    """Write numbers that the page is rendered from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
