"""Listing, help and completion import nothing heavy; the core names no plugin."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate", "peft")
MODULES = [
    "vu_core",
    "vu_core.hookspecs",
    "vu_core.registry",
    "vu_core.config",
    "vu_core.plugins",
    "vu_cli.main",
    *sorted(f"{path.parent.name}.plugin" for path in ROOT.glob("plugins/*/src/*/plugin.py")),
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_pulls_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_core_names_no_plugin() -> None:
    distributions = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
    words = re.compile("|".join(rf"\b{name}\b|\b{name.replace('-', '_')}\b" for name in distributions))
    files = [*ROOT.glob("vu_core/**/*.py"), *ROOT.glob("vu_cli/**/*.py")]
    hits = [f"{p.relative_to(ROOT)}: {words.search(p.read_text())[0]}" for p in files if words.search(p.read_text())]
    assert hits == []
