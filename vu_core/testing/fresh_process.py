"""Running a plugin where nothing has been imported yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft")

_PROGRAM = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[2])
task = json.loads(sys.argv[1])
plugin = importlib.import_module(task["module"])
for part in task["name"].split("."):
    plugin = getattr(plugin, part)
config = plugin.Config(**task["settings"])
made = plugin(config) if task["ref"] is None else plugin(task["ref"], config)
for name, arguments in task["calls"]:
    value = getattr(made, name)(*[value if a == "<previous>" else a for a in arguments])
print(json.dumps([name for name in task["heavy"] if name in sys.modules]))
"""


def heavy_imports(
    plugin: type[Any], ref: str | None, settings: Mapping[str, Any], calls: Sequence[Sequence[Any]]
) -> list[str]:
    """Make the plugin in a new process, call methods, and return which heavy libraries were imported on the way.

    Args:
        plugin: class at the top level of an importable module.
        ref: what follows ``NAME=``; ``None`` for plugins that take none.
        settings: fields of its ``Config``; JSON values.
        calls: ``[name, [arguments]]`` in order; ``"<previous>"`` stands for the value of the call before.
    """
    task = {
        "module": plugin.__module__,
        "name": plugin.__qualname__,
        "ref": ref,
        "settings": dict(settings),
        "calls": list(calls),
        "heavy": HEAVY,
    }
    command = [sys.executable, "-c", _PROGRAM, json.dumps(task), json.dumps([p for p in sys.path if p])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"failed in a new process:\n{done.stderr}"
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found
