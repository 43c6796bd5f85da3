from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch

from vu_core import Edit, Run
from vu_core.adapters import Lora, LoraConfig
from vu_core.testing.watching import Snapshot
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_model, tiny_pipeline

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


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


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def loaded(request: pytest.FixtureRequest) -> StableDiffusion:
    return tiny_model(prediction=request.param)


@pytest.fixture
def model(loaded: StableDiffusion) -> Iterator[StableDiffusion]:
    """A model that has to be the very one of before, bit for bit, after the test."""
    before = Snapshot.of(loaded.network)
    attributes = {name: set(vars(module)) for name, module in loaded.network.named_modules()}
    yield loaded
    assert not before.differences(loaded.network)
    assert attributes == {name: set(vars(module)) for name, module in loaded.network.named_modules()}


class MakeEdit(Protocol):
    def __call__(self, model: StableDiffusion, *, rank: int, alpha: float, targets: tuple[str, ...] = ...) -> Edit: ...


@pytest.fixture
def make_edit(run: Run) -> MakeEdit:
    """A trained LoRA in all but name: factors of random numbers."""

    def make(model: StableDiffusion, *, rank: int, alpha: float, targets: tuple[str, ...] = ATTENTION) -> Edit:
        theta = Lora(LoraConfig(rank=rank, alpha=alpha, targets=targets)).attach(model, run)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in theta.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        edit = theta.edit()
        theta.detach()
        return edit

    return make
