"""A tiny model, data and run for the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import nn

from vu_core import Examples, ForgetRetain, Run
from vu_core.adapters import Lora, LoraConfig
from vu_core.training import Training


class Net(nn.Module):
    """Two linear maps and a convolution with names as in a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.attn = nn.ModuleDict({"to_q": nn.Linear(4, 6), "to_out": nn.ModuleList([nn.Linear(6, 3)])})
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        h = torch.tanh(self.conv(x)).mean(dim=(2, 3))
        return self.norm(self.attn["to_out"][0](torch.tanh(self.attn["to_q"](h))))


@attrs.define(eq=False)
class ToyModel:
    network: nn.Module
    denoiser: str = "unet"
    facts: object = None

    def prepare(self, examples, run):
        return examples


def toy_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> ToyModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.ModuleDict({"unet": Net(), "text_encoder": nn.Sequential(nn.Linear(3, 3))})
    return ToyModel(network.to(dtype).requires_grad_(False).eval())


def toy_data(forget: int = 5, retain: int = 7) -> ForgetRetain:
    def table(side, n, seed):
        g = torch.Generator().manual_seed(seed)
        return Examples(side, ("",) * n).with_tensors(
            x=torch.randn(n, 2, 4, 4, generator=g), y=torch.randn(n, 3, generator=g)
        )

    return ForgetRetain(
        table("forget", forget, 1), table("retain", retain, 2), table("forget", 1, 3), table("retain", 1, 4)
    )


def toy_run(folder: Path, **changes) -> Run:
    settings = {
        "seed": 3,
        "device": "cpu",
        "precision": "fp32",
        "training": Training(steps=6, lr=0.02),
        "parameters": Lora(LoraConfig(rank=2, targets=("to_q", "to_out.0"))),
    }
    return Run(folder=folder, cache=folder, **{**settings, **changes})


def toy_losses(model, noise: float = 0.1):
    """Regression losses with a random draw per example."""

    def losses(batches):
        out = {}
        for side, batch in batches.items():
            x = batch["x"] + noise * batch.normal("noise", (2, 4, 4))
            y = model.network["unet"](x.to(next(model.network.parameters()).dtype)).float()
            out[side] = ((y - batch["y"]) ** 2).mean()
        return out

    return losses


class Pull:
    """Penalty ``strength / 2 * |delta|^2`` on a side."""

    def __init__(self, side, strength=5.0):
        self.side, self.strength, self.prepared = side, strength, 0

    def prepare(self, model, theta, data, run):
        self.theta, self.data, self.prepared = theta, data, self.prepared + 1
        self.untouched = model.network["unet"](data.forget.tensors["x"])

    def penalty(self):
        return self.strength / 2 * sum((tensor**2).sum() for tensor in self.theta.parameters())

    def after_step(self, optimizer):
        pass

    def state(self):
        return {}

    def load_state(self, state, theta):
        self.theta = theta
