"""Networks made anew: what a factory draws, and factories that draw nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vu_classifiers.image_classifier import ImageClassifier
from vu_classifiers.torch_module import TorchModule
from vu_core import ModelError, ModelFacts
from vu_core.adapters import Lora, LoraConfig
from vu_core.testing import toy_run

FACTS = ModelFacts("mine", "", "hash", frozenset(), parameters=14, bytes=56, resolution=2)


class Net(nn.Module):
    """A head that is tied to another name, and a buffer that no file keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.fc = nn.Linear(12, 2)
        self.same = self.fc
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.norm(images.flatten(1)))
        return found


def model(make: Callable[[], nn.Module] | None) -> ImageClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return ImageClassifier(Net(), FACTS, classes=("a", "b"), head="fc", make=make)


def test_a_fresh_network_is_that_of_its_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wanted = Net().state_dict()
    found = model(Net).fresh(3)
    assert found.keys() == {f"classifier.{name}" for name in wanted if not name.startswith("same.")}
    assert all(torch.equal(tensor, wanted[name.removeprefix("classifier.")]) for name, tensor in found.items())
    assert "classifier.norm.running_var" in found


def test_it_is_in_the_precision_of_the_model() -> None:
    half = model(Net)
    half.network.to(torch.bfloat16)
    half.dtype = torch.bfloat16
    dtypes = {tensor.dtype for tensor in half.fresh(0).values() if tensor.is_floating_point()}
    assert dtypes == {torch.bfloat16}


def test_it_is_what_it_was_under_an_adapter(tmp_path: Path) -> None:
    loaded: Any = model(Net)
    before = loaded.fresh(0)
    run = toy_run(tmp_path, parameters=Lora(LoraConfig()))
    run.parameterise(loaded)
    again = loaded.fresh(0)
    run.release()
    assert before.keys() == again.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)


def trained() -> nn.Module:
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    return net


@pytest.mark.parametrize(
    ("make", "words"), [(None, "nothing makes its network anew"), (trained, "the same tensors for every seed")]
)
def test_networks_that_cannot_be_made_anew(make: Callable[[], nn.Module] | None, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        model(make).fresh(0)
    assert caught.value.code == "VU-M110"


def test_a_factory_is_called_again(make: Callable[..., TorchModule]) -> None:
    loaded = make().load(device="cpu", precision="fp32")
    stored = loaded.network.state_dict()
    found = loaded.fresh(0)
    assert found.keys() == stored.keys()
    assert not torch.equal(found["classifier.fc.weight"], loaded.fresh(1)["classifier.fc.weight"])
    assert float(found["classifier.norm.running_mean"].abs().max()) == 0.0
