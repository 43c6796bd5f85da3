"""The toy plugins of this folder, and nothing else that is installed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """Discover the toys alone: even the built-ins of the core are switched off; the cache is an empty folder."""
    from vu_config_toys import plugin

    from vu_core.plugins import discover

    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    return discover(extra=[("vu-config-toys", "1.2", plugin)], installed=False)
