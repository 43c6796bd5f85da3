from __future__ import annotations

from pathlib import Path

import pytest

from vu_core import Run
from vu_diffusers.tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Path]:
    """One written pipeline per (prediction, variant); tests that damage one copy it first."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        (prediction, variant): tiny_pipeline(root / f"{prediction}-{variant}", prediction=prediction, variant=variant)
        for prediction in ("epsilon", "v_prediction")
        for variant in (None, "fp16")
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(seed=7, device="cpu", precision="fp32", folder=tmp_path / "run", cache=tmp_path / "cache")
