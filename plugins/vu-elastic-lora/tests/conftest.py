"""Fixtures: a toy denoiser that is trained with elastic parameters, and finished toy runs of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vu_core import ForgetRetain, Run
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training, fit
from vu_elastic_lora.elastic import ElasticLora, ElasticLoraConfig

sys.path.insert(0, str(Path(__file__).parent))

from elastic_toys import SPACE, toy_losses


@pytest.fixture
def model() -> ToyDenoiser:
    return ToyDenoiser()


@pytest.fixture
def data() -> ForgetRetain:
    return toy_data()


@pytest.fixture
def make_run(tmp_path):
    """A run with its own folder, four steps and elastic parameters of the ranks 8, 4, 2; all can be replaced."""
    count = iter(range(1000))

    def make(seed: int = 7, **fields) -> Run:
        folder = fields.pop("folder", None) or tmp_path / f"run{next(count)}"
        folder.mkdir(exist_ok=True)
        axes = {
            "training": Training(steps=4, lr=1e-2, schedule="constant"),
            "parameters": ElasticLora(ElasticLoraConfig(SPACE)),
        }
        places = {"device": "cpu", "precision": "fp32", "folder": folder, "cache": tmp_path / "cache"}
        return Run(seed=seed, **{**places, **axes, **fields})

    return make


@pytest.fixture
def trained(make_run):
    """Fit toy losses; returns the detached theta's edit, its state, and what ``see`` noted at every loss."""

    def train(config: ElasticLoraConfig | None = None, *, masks=None, see=None, losses=toy_losses, data=None, **fields):
        model = ToyDenoiser()
        if config is not None:
            fields["parameters"] = ElasticLora(config)
        run = fields.pop("run", None) or make_run(**fields)
        theta = run.parameterise(model, targets=None if masks is None else list(masks), masks=masks)
        inner, seen = losses(model), []

        def watched(batches):
            if see is not None:
                seen.append((next(iter(batches.values())).step, see(theta)))
            return inner(batches)

        try:
            fit(theta, watched, toy_data() if data is None else data, run)
            return SimpleNamespace(edit=theta.edit(), theta=theta, seen=seen, run=run)
        finally:
            theta.detach()

    return train


@pytest.fixture
def ranks_now():
    """The rank that every layer computes with at this moment."""
    return lambda theta: {name: layer.factors.A.shape[0] for name, layer in theta.whole.layers.items()}


@pytest.fixture
def answer():
    """What a model predicts for fixed questions."""

    def ask(model) -> torch.Tensor:
        z = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            return model.predict(z, torch.tensor([3, 30, 60, 90]), model.embed(["a", "b", "c", "d"]))

    return ask


@pytest.fixture
def moved():
    """Give every factor other numbers, so that B is not zero."""

    def move(theta, scale: float = 0.3):
        with torch.no_grad():
            for index, tensor in enumerate(theta.parameters()):
                tensor.copy_(scale * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
        return theta

    return move


@pytest.fixture
def attached(make_run, moved):
    """Elastic factors with a change, attached to a toy."""

    def attach(config: ElasticLoraConfig | None = None, *, seed: int = 7, **limits):
        return moved(ElasticLora(config or ElasticLoraConfig(SPACE)).attach(ToyDenoiser(), make_run(seed), **limits))

    return attach
