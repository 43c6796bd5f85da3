"""Fixtures: the toy denoiser, its data, and runs with all axes."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_core import ForgetRetain, Run
from vu_core.adapters import Lora, LoraConfig
from vu_core.plugins import discover
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training, fit
from vu_fade.fade import Distillation, FadeConfig


@pytest.fixture
def model() -> ToyDenoiser:
    return ToyDenoiser()


@pytest.fixture
def data() -> ForgetRetain:
    return toy_data()


@pytest.fixture
def make_axis():
    """A built-in plugin of an axis by name, with settings."""
    registry = discover(installed=False).registry

    def make(kind: str, name: str, **settings):
        plugin = registry.get(kind, name).load()
        return plugin(plugin.Config(**settings))

    return make


@pytest.fixture
def make_run(tmp_path, make_axis):
    """A run with its own folder, rank-2 LoRA, the weighting of FADE and saliency; everything can be replaced."""
    count = iter(range(1000))

    def make(seed: int = 7, **fields) -> Run:
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        axes = {
            "training": Training(steps=4, lr=1e-2, schedule="constant"),
            "parameters": Lora(LoraConfig(rank=2, alpha=4.0)),
            "weighting": make_axis("weighting", "simple", forget_weight=0.3, retain_weight=1.0),
            "attribution": Saliency(SaliencyConfig()),
        }
        fields = {"device": "cpu", "precision": "fp32", "folder": folder, "cache": tmp_path / "cache", **axes, **fields}
        return Run(seed=seed, **fields)

    return make


class FirstMoment:
    """Keeps the gradient of the first AdamW step: its first moment is then 0.1 times that."""

    side = "outside"

    def __init__(self):
        self.gradient = None

    def prepare(self, model, theta, data, run):
        pass

    def penalty(self):
        return None

    def after_step(self, optimizer):
        if self.gradient is None:
            moments = [optimizer.state[p]["exp_avg"] for group in optimizer.param_groups for p in group["params"]]
            self.gradient = torch.cat([moment.flatten() for moment in moments]) / 0.1

    def state(self):
        return {}


@pytest.fixture
def first_gradient(make_run):
    """Fit FADE for a step, from a moved adapter: ``(the gradient it used, gradients of the losses it was shown)``."""

    def make(data: ForgetRetain, training: Training, **fields):
        model, watching = ToyDenoiser(), FirstMoment()
        limit = {"steps": 1, "epochs": None, "max_grad_norm": 0.0}
        run = make_run(training=attrs.evolve(training, **limit), regularizers=(watching,), **fields)
        theta = run.parameterise(model)
        with torch.no_grad():
            for index, tensor in enumerate(theta.parameters()):
                tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        losses, parts = Distillation.of(model, theta, FadeConfig()), {}

        def watched(batches):
            found = losses(batches)
            for side, loss in found.items():
                gradient = torch.autograd.grad(loss, theta.parameters(), retain_graph=True)
                parts[side] = torch.cat([g.flatten() for g in gradient])
            return found

        fit(theta, watched, data, run)
        run.release()
        return watching.gradient, parts

    return make
