"""Which runs teach the estimate how fast this machine is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core import cost
from vu_core.config import RawConfig
from vu_core.cost import remember_speed, speed_of
from vu_core.pipeline import Interrupted, dry_run, execute, resume
from vu_core.plugins import Plugins

Raw = Callable[..., RawConfig]


@pytest.fixture
def speed(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "speed.json"


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short runs count, too."""
    monkeypatch.setattr(cost, "TELLING_SECONDS", 0.0)
    monkeypatch.setattr(cost, "TELLING_STEPS", 1)


def test_a_short_training_teaches_nothing(plugins: Plugins, raw: Raw, speed: Path) -> None:
    long = dry_run(raw(unlearner__training__steps=20), plugins=plugins)
    short = dry_run(raw(unlearner__training__steps=19), plugins=plugins)
    remember_speed(short, 1000.0)
    remember_speed(long, 19.9)
    assert not speed.exists()
    remember_speed(long, 20.0)
    assert speed.exists()


def test_a_method_without_steps_teaches_nothing(plugins: Plugins, raw: Raw, speed: Path) -> None:
    remember_speed(dry_run(raw(unlearner__method="toy-empty"), plugins=plugins), 1000.0)
    assert not speed.exists()


def test_more_threads_than_cores_make_no_estimate_small(
    plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert speed_of("cpu", 1) < speed_of("cpu", 2) == speed_of("cpu", 64) == speed_of("cpu", None)
    plans = [dry_run(raw(run__threads=threads), plugins=plugins) for threads in (2, 64)]
    assert plans[0].cost.seconds == plans[1].cost.seconds
    assert [any("this machine has 2 cores" in note for note in plan.notes) for plan in plans] == [False, True]


@pytest.mark.usefixtures("telling")
def test_a_run_whose_attribution_came_from_the_cache_teaches_nothing(plugins: Plugins, raw: Raw, speed: Path) -> None:
    execute(raw(), plugins=plugins)
    assert speed.exists()
    speed.unlink()
    again = execute(raw(unlearner__training__lr=0.01), plugins=plugins)
    assert any("scores come from the cache" in note for note in again.notes)
    assert not speed.exists()


@pytest.mark.usefixtures("telling")
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
    plan = dry_run(raw(unlearner__training__steps=20), plugins=plugins)
    remember_speed(plan, 100.0)
    before = speed.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        remember_speed(plan, 200.0)
    assert speed.read_bytes() == before
    assert [path.name for path in speed.parent.iterdir() if "speed" in path.name] == ["speed.json"]
