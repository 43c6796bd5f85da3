"""Which runs teach the estimate how fast this machine is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core.config import RawConfig
from vu_core.cost import remember_speed
from vu_core.pipeline import Interrupted, dry_run, execute, resume
from vu_core.plugins import Plugins

Raw = Callable[..., RawConfig]


@pytest.fixture
def speed(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "speed.json"


def test_a_run_whose_attribution_came_from_the_cache_teaches_nothing(plugins: Plugins, raw: Raw, speed: Path) -> None:
    execute(raw(), plugins=plugins)
    assert speed.exists()
    speed.unlink()
    again = execute(raw(unlearner__training__lr=0.01), plugins=plugins)
    assert any("scores come from the cache" in note for note in again.notes)
    assert not speed.exists()


def test_a_resumed_run_teaches_nothing(
    plugins: Plugins, raw: Raw, speed: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(toys.Push, "unlearn", interrupt)
        with pytest.raises(Interrupted) as caught:
            execute(raw(), plugins=plugins)
    resume(caught.value.folder, plugins=plugins)
    assert not speed.exists()


def test_a_full_disk_leaves_the_old_speed_and_no_litter(
    plugins: Plugins, raw: Raw, speed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dry_run(raw(), plugins=plugins)
    remember_speed(plan, 10.0)
    before = speed.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        remember_speed(plan, 20.0)
    assert speed.read_bytes() == before
    assert [path.name for path in speed.parent.iterdir() if "speed" in path.name] == ["speed.json"]
