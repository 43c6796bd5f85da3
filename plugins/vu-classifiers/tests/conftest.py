"""A factory of a small network, and its weights as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vu_classifiers.architecture import Architecture
from vu_classifiers.cifar import Published
from vu_classifiers.face_network import FaceTransformer
from vu_classifiers.quiet import quiet
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


@pytest.fixture
def write_cifar() -> Callable[..., Path]:
    """Write files of noise as the authors of CIFAR do, labels in turn; of two kinds, five fine ones per coarse one."""

    def write(folder: Path, published: Published) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        train, test = published.records
        fine = len(published.names[-1])
        for name, count in [*((name, train) for name in published.train), (published.test, test)]:
            label = np.arange(count) % fine
            kinds = [label] if len(published.names) == 1 else [label // 5, label]
            pixels = random.integers(0, 256, (count, 3 * 32 * 32))
            np.column_stack([*kinds, pixels]).astype(np.uint8).tofile(folder / name)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vision transformer of transformers: 2 blocks, 16 pixels, 3 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, id2label={0: "a", 1: "b", 2: "c"})
    return _saved(ViTForImageClassification, config, tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def tiny_convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a convolutional network of transformers: 32 pixels, 3 classes."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, image_size=32, id2label={0: "a", 1: "b", 2: "c"}
    )
    return _saved(ConvNextForImageClassification, config, tmp_path_factory.mktemp("convnext"))


def _saved(kind: Any, config: Any, folder: Path) -> Path:
    """Write a network of random weights as transformers does."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        network = kind(config)
        for parameter in network.parameters():  # a fresh norm or bias would hide a mistake
            torch.nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(folder)
    return folder


TINY_FACE = Architecture(classes=3, size=16, width=8, depth=2, heads=2, head_width=4, hidden=16)


@pytest.fixture(scope="session")
def tiny_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a face transformer: 2 blocks, 16 pixels, 3 identities."""
    folder = tmp_path_factory.mktemp("face")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(FaceTransformer(TINY_FACE).state_dict(), folder / "model.safetensors")
    (folder / "face_transformer.json").write_text(json.dumps(attrs.asdict(TINY_FACE)))
    (folder / "classes.json").write_text('["a", "b", "c"]')
    return folder
