"""Forgetting classes of digits task after task with GS-LoRA: what is trained on, what is told, what the edits add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vu_cli import main
from vu_core import Edit, LowRank, RunRecord, sequence
from vu_core.adapters import apply_edit, load_edit
from vu_core.config import Override
from vu_core.plugins import Plugins, discover
from vu_core.sequence_record import SequenceRecord
from vu_core.stages.load import load
from vu_core.stages.read import read
from vu_core.testing import toy_run

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.ffn = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.ffn(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.position = nn.Parameter(torch.zeros(1, 16, 16))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))
"""
NAMES = [str(number) for number in range(10)]
ALWAYS = {"acc_f", "acc_r", "acc_m", "drop", "h_mean", "h_mean_task_start", "h_star", "zero_group_ratio", "tunable_ratio"}


def trained(folder: Path) -> nn.Module:
    """The network after some passes over the training images of digits."""
    from vu_classifiers.digits import Digits, DigitsConfig

    data = Digits("", DigitsConfig())
    tables = data.build(data.parse(["class:0"], []), resolution=8, run=toy_run(folder))
    pixels = torch.cat([table.tensors["pixels"] for table in (tables.forget, tables.retain)]).float() / 127.5 - 1
    names = [name for table in (tables.forget, tables.retain) for name in table.labels["class"]]
    labels = torch.tensor([int(name) for name in names])
    namespace: dict[str, type[nn.Module]] = {"__name__": "tiny_transformer"}
    exec(NETWORK, namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = namespace["Network"]()
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        for _ in range(12):
            for rows in torch.randperm(len(pixels)).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
                optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "tiny_transformer.py").write_text(NETWORK)
    save_file(trained(folder).state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def record(place: Path, plugins: Plugins) -> SequenceRecord:
    """Two tasks of three classes each; one of the four others has no training image."""
    settings = {
        "model.name": "torch-module=tiny_transformer:Network",
        "model.weights": "weights.safetensors",
        "model.classes": NAMES,
        "model.size": 8,
        "data.name": "digits",
        "sequence.name": "continual",
        "sequence.tasks": 2,
        "sequence.classes_per_task": 3,
        "sequence.missing": 1,
        "unlearner.method": "gs-lora",
        "unlearner.forget_weight": [1.0, 0.5],
        "unlearner.per_sample": True,
        "unlearner.training.steps": 60,
        "unlearner.training.batch_size": 32,
        "unlearner.training.lr": 2e-2,
        "regularizer.group-lasso.weight": [0.0, 1e3],
        "run.seed": 1,
        "run.threads": 1,
        "run.out": "faces",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(place / "cache"))
        patch.chdir(place)
        raw = read(None, [Override(key, value, "--set") for key, value in settings.items()])
        return sequence.execute(raw, plugins=plugins)


def runs_of(record: SequenceRecord) -> list[RunRecord]:
    return [task.run for task in record.tasks]


def test_every_task_tells_all_that_is_asked_of_it(record: SequenceRecord, place: Path) -> None:
    first, second = (run.scorecard for run in runs_of(record))
    assert first is not None
    assert second is not None
    names = [{score.name for score in card.scores} for card in (first, second)]
    assert names[0] >= ALWAYS
    assert names[1] >= {*ALWAYS, "acc_o"}
    assert "acc_o" not in names[0]
    assert (first["acc_f"].before or 0) > 0.8
    assert first["acc_f"].after < 0.2
    assert first["acc_r"].after > 0.6
    # All test images, whose classes are all still candidates: forgotten, kept, and those of the first task.
    asked = first["acc_f"].n + first["acc_r"].n
    assert second["acc_f"].n + second["acc_r"].n + second["acc_o"].n == asked
    assert second["acc_o"].n == first["acc_f"].n
    assert second["acc_o"].before == first["acc_f"].after
    assert first["acc_m"].n < second["acc_r"].n, "missing classes are among those that are kept"
    told = json.loads((place / "faces/sequence.json").read_text())["tasks"]
    assert all(run["seconds"]["unlearn"] > 0 for task in told for run in task["runs"])


def test_both_references_of_the_mean(record: SequenceRecord) -> None:
    """The second task begins with a model that has lost some of what it is to forget."""
    for run in runs_of(record):
        card = run.scorecard
        assert card is not None
        r, start, end = card["acc_r"].after, card["acc_f"].before or 0.0, card["acc_f"].after
        drop = start - end
        wanted = 2 * r * drop / (r + drop) if drop > 0 else 0.0
        assert card["h_mean_task_start"].after == pytest.approx(wanted)
        fall = card["drop"].after
        assert card["h_mean"].after == pytest.approx(2 * r * fall / (r + fall) if fall > 0 else 0.0)
    second = runs_of(record)[1].scorecard
    assert second is not None
    assert second["h_mean"].after != second["h_mean_task_start"].after


def test_zero_groups_and_the_share_that_was_tuned(record: SequenceRecord, place: Path) -> None:
    """No lasso in the first task, and one that nothing withstands in the second."""
    total = sum(p.numel() for p in trained(place).parameters())
    for number, (run, ratio) in enumerate(zip(runs_of(record), (0.0, 1.0), strict=True)):
        card, groups = run.scorecard, load_edit(place / f"faces/tasks/{number}/edit.safetensors").facts["groups"]
        assert card is not None
        assert card["zero_group_ratio"].after == groups["zero_group_ratio"] == ratio
        assert card["zero_group_ratio"].n == 2
        assert "0.0001" in card["zero_group_ratio"].help
        assert len(groups["zero"]) + len(groups["kept"]) == 2
        assert card["tunable_ratio"].after == pytest.approx(2 * 2 * 8 * (16 + 24) / total)


def test_no_image_of_a_missing_or_forgotten_class_is_trained_on(
    record: SequenceRecord, place: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vu_core.pipeline import dry_run

    monkeypatch.chdir(place)
    seen = set[str]()
    for number, run in enumerate(runs_of(record)):
        plan = dry_run(read(run.folder / "run.toml", []), plugins=plugins)
        subset = plan.config.subset
        gone = {text.removeprefix("class:") for text in subset.leave_out}
        (missing,) = (text.removeprefix("class:") for text in subset.missing)
        assert gone == seen
        data = load(plan, plugins, place / f"again{number}", lambda event: None).data
        forget, retain = set(data.forget.labels["class"]), set(data.retain.labels["class"])
        assert retain == set(NAMES) - forget - gone - {missing}
        seen |= forget
    assert len(seen) == 6


def weights_under(place: Path, *edits: Edit) -> dict[str, Tensor]:
    """The weights of the network with edits, applied one after the other."""
    network = nn.ModuleDict({"classifier": trained(place)})
    if not edits:
        return {name: p.detach().clone() for name, p in network.named_parameters()}
    with apply_edit(network, edits[0]):
        if len(edits) == 1:
            return {name: p.detach().clone() for name, p in network.named_parameters()}
        with apply_edit(network, edits[1]):
            return {name: p.detach().clone() for name, p in network.named_parameters()}


def sequence_of(place: Path, folder: str) -> tuple[Edit, Edit]:
    first, second = (load_edit(place / folder / f"tasks/{number}/edit.safetensors") for number in (0, 1))
    return first, second


def test_the_edits_of_the_tasks_add_up_and_one_of_them_comes_off(
    record: SequenceRecord, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged at once or one after the other: the same within 1e-6; without one of them, its change is gone."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("VU_CACHE", str(place / "cache"))
    settings = ["--set", "regularizer.group-lasso.weight=0", "--set", "unlearner.training.steps=10"]
    words = ["unlearn", "-c", "faces/sequence.toml", *settings, "--out", "both", "--quiet"]
    assert main.run(words) == 0
    for out, parts in (("merged", ["both"]), ("without", ["both/tasks/1"])):
        assert main.run(["compose", *parts, "--no-interference", "--out", out, "--quiet"]) == 0
    first, second = sequence_of(place, "both")
    merged, without = (load_edit(place / out / "edit.safetensors") for out in ("merged", "without"))
    untouched, in_turn = weights_under(place), weights_under(place, first, second)
    at_once, rest = weights_under(place, merged), weights_under(place, without)
    moved = 0
    for name, weight in untouched.items():
        deltas = [part.delta() if isinstance(part := edit.parts.get(name), LowRank) else 0 * weight for edit in (first, second)]
        moved += sum(bool(delta.any()) for delta in deltas)
        assert torch.allclose(at_once[name], in_turn[name], atol=1e-6)
        assert torch.allclose(at_once[name], weight + deltas[0] + deltas[1], atol=1e-6)
        assert torch.allclose(rest[name], at_once[name] - deltas[0], atol=1e-6)
    assert moved == 2 * 4, "both maps of both blocks, in both tasks"
