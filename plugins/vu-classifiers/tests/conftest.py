"""A factory of a small network, and its weights as a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vu_classifiers.torch_module import TorchModule, TorchModuleConfig

SOURCE = '''
from torch import nn


def make():
    """Batch normalisation, and a head that is not the last module."""
    return Net()


class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.extra = nn.Linear(3, 3)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean(dim=(2, 3))
        return self.extra(self.fc(x))


def grey():
    return Net(1)


def raises():
    raise RuntimeError("no such size\\nsecond line")


def nothing():
    return None


def empty():
    return nn.ReLU()


def pair():
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x
    return Pair()


def infinite():
    class Infinite(Net):
        def forward(self, x):
            return super().forward(x) / 0
    return Infinite()


def unused():
    class Unused(Net):
        def forward(self, x):
            return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
    return Unused()


def tied():
    net = Net()
    net.again = net.fc
    return net


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


A_NUMBER = 3
'''
CLASSES = ("red", "green", "blue")

Make = Callable[..., TorchModule]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with the factory and the weights."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("small_net.py").write_text(SOURCE)
    _save()


def _save(factory: str = "make", file: str = "weights.safetensors") -> None:
    """Write the state of a network that knows nothing, with statistics that are not those of a fresh one."""
    namespace: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(SOURCE, namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = namespace[factory]().state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor += 0.25
    save_file(state, file)


@pytest.fixture
def save_weights() -> Callable[..., None]:
    """Write the weights of another factory of `small_net.py`."""
    return _save


@pytest.fixture
def make() -> Make:
    """A plugin for `small_net.py`; settings as keywords."""

    def made(ref: str = "small_net:make", **changes: object) -> TorchModule:
        settings = {"weights": "weights.safetensors", "classes": CLASSES, "size": 8, **changes}
        return TorchModule(ref, TorchModuleConfig(**settings))  # type: ignore[arg-type]

    return made
