"""Class-wise and random forgetting on digits, each beside a model that was retrained without the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from vu_core import MeasureError, RunRecord, Scorecard
from vu_core.config import Override
from vu_core.pipeline import execute, measure_run
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read
from vu_core.testing import toy_run

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 10))
"""
TRAINING = {"epochs": 25, "batch_size": 64, "lr": 3e-3, "optimizer": "adamw", "weight_decay": 0.0}
COMPARED = ("ua", "ra", "ta", "mia_efficacy")

Execute = Callable[..., RunRecord]


def trained(folder: Path) -> nn.Module:
    """The network of the test after some passes over the training images of digits."""
    from vu_classifiers.digits import Digits, DigitsConfig

    data = Digits("", DigitsConfig())
    tables = data.build(data.parse(["class:0"], []), resolution=8, run=toy_run(folder))
    pixels = torch.cat([table.tensors["pixels"] for table in (tables.forget, tables.retain)]).float() / 127.5 - 1
    names = [name for table in (tables.forget, tables.retain) for name in table.labels["class"]]
    labels = torch.tensor([int(name) for name in names])
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec(NETWORK, namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = namespace["make"]()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(25):
            for rows in torch.randperm(len(pixels)).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
                optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "tiny_net.py").write_text(NETWORK)
    save_file(trained(folder).state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture
def run(place: Path, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    monkeypatch.setenv("VU_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def unlearn(method: str, forget: str, **values: Any) -> RunRecord:
        settings = {
            "model.name": "torch-module=tiny_net:make",
            "model.weights": "weights.safetensors",
            "model.classes": [str(number) for number in range(10)],
            "model.size": 8,
            "data.name": "digits",
            "data.forget": (forget,),
            "unlearner.method": method,
            "run.seed": 1,
            "run.threads": 1,
            "run.out": str(tmp_path / method),
            **{f"unlearner.training.{key}": value for key, value in TRAINING.items()},
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        return execute(read(None, [Override(key, value, "--set") for key, value in settings.items()]), plugins=plugins)

    return unlearn


def after(record: RunRecord) -> dict[str, float]:
    assert record.scorecard is not None
    return {score.name: score.after for score in record.scorecard.scores}


def beside(record: RunRecord) -> dict[str, float | None]:
    assert record.scorecard is not None
    return {score.name: score.reference for score in record.scorecard.scores}


def test_a_class_beside_retraining(run: Execute) -> None:
    retrained = run("retrain", "class:3")
    target = after(retrained)
    assert target["ua"] == 1.0
    assert target["test_forget_accuracy"] == 0.0
    assert target["ra"] > 0.95
    assert target["ta"] > 0.85
    assert "avg_gap" not in target
    record = run("fine-tune", "class:3", measure__reference=str(retrained.folder), unlearner__training__epochs=1)
    own = after(record)
    assert {name: beside(record)[name] for name in COMPARED} == {name: target[name] for name in COMPARED}
    gap = sum(abs(own[name] - target[name]) for name in COMPARED) / 4
    assert own["avg_gap"] == pytest.approx(gap)
    assert own["avg_gap"] > 0.2
    assert record.scorecard is not None
    assert record.scorecard.status == "not_forgotten"


def test_a_random_part_beside_retraining(run: Execute) -> None:
    """No unseen image is forgotten; UA is about what unseen images are to a model that never saw the part."""
    retrained = run("retrain", "random:10%")
    target = after(retrained)
    assert "test_forget_accuracy" not in target
    assert 0 < target["ua"] < 0.2
    assert abs(target["ua"] - (1 - target["ta"])) < 0.1
    record = run("fine-tune", "random:10%", measure__reference=str(retrained.folder), unlearner__training__epochs=1)
    own = after(record)
    assert own["ua"] < target["ua"]
    assert 0 < own["avg_gap"] < 0.2
    assert {name: beside(record)[name] for name in COMPARED} == {name: target[name] for name in COMPARED}


def test_another_class_is_no_reference_and_a_run_is_its_own(run: Execute, plugins: Plugins) -> None:
    """Measured again after the run: beside a run of another class, and beside itself."""
    retrained = run("retrain", "class:3", unlearner__training__epochs=1)
    other = run("fine-tune", "class:4", unlearner__training__epochs=1)

    def measured(reference: RunRecord) -> Scorecard:
        asked = Override("measure.reference", str(reference.folder), "--reference")
        return measure_run(other.folder, plugins=plugins, overrides=[asked])

    with pytest.raises(MeasureError, match="measured on something else") as caught:
        measured(retrained)
    assert caught.value.code == "VU-S112"
    card = measured(other)
    assert card["avg_gap"].after == 0
    assert card["ua"].reference == card["ua"].after
