"""The line in the README of a distribution that installs it names every distribution of the clone that it needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
LINE = re.compile(r"`pip install -c constraints\.txt \. ([^`]*)`")


def needed(name: str) -> Iterator[str]:
    """Yield a distribution of the clone and those that it depends on, some of them twice."""
    yield name
    project = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for entry in project["dependencies"]:
        other = re.split(r"[\s<>=!~;\[]", entry)[0]
        if other.startswith("vu-") and other != "vu-core":
            yield from needed(other)


@pytest.mark.parametrize("directory", PLUGINS, ids=lambda value: value.name)
def test_the_readme_installs_what_is_needed(directory: Path) -> None:
    (line,) = LINE.findall((directory / "README.md").read_text(encoding="utf-8"))
    assert sorted(line.split()) == sorted({f"./plugins/{name}" for name in needed(directory.name)})
