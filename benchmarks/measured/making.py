"""Making runs with the command line, and keeping their numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / ".results"
KEPT = ROOT / "docs/reference/results"
VU = Path(sys.executable).with_name("vu")


def vu(*words: str, cache: Path = RUNS / "cache") -> str:
    """Run a command in the root of the repository and return what it printed."""
    environment = {**os.environ, "VU_CACHE": str(cache)}
    done = subprocess.run([str(VU), *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vu {' '.join(words)} ended with status {done.returncode}")
    return done.stdout


def shown(folder: Path) -> str:
    """Return a folder as commands name it: from the root of the repository."""
    return str(folder.relative_to(ROOT))


def unlearn(folder: Path, *words: str) -> float:
    """Make a run with an empty cache unless it is there; return its seconds."""
    told = folder.parent / f"{folder.name}.seconds"
    if not (folder / "scores.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        cold = RUNS / "cold-cache"
        shutil.rmtree(cold, ignore_errors=True)
        started = time.monotonic()
        vu("unlearn", *words, "--out", shown(folder), "--quiet", cache=cold)
        told.write_text(f"{time.monotonic() - started:.1f}")
    return float(told.read_text())


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
