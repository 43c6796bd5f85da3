"""GS-LoRA forgets classes of digits, task after task: what it trains on, what is told, what the edits add up to."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vu_cli import main
from vu_core import Edit, Scorecard, sequence
from vu_core.adapters import apply_edit, load_edit
from vu_core.config import Override
from vu_core.pipeline import dry_run
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
MEANS = {"drop", "h_mean", "h_mean_task_start", "h_star"}
ALWAYS = {"acc_f", "acc_r", "acc_m", *MEANS, "zero_group_ratio", "tunable_ratio"}
PAIR = 8 * (16 + 24)
"""Numbers in a LoRA of rank 8 on one map of a feed-forward network."""


def network_of() -> nn.Module:
    namespace: dict[str, type[nn.Module]] = {"__name__": "tiny_transformer"}
    exec(NETWORK, namespace)
    return namespace["Network"]()


def train(network: nn.Module, folder: Path) -> None:
    """Some passes over the training images of digits."""
    from vu_classifiers.digits import Digits, DigitsConfig

    data = Digits("", DigitsConfig())
    tables = data.build(data.parse(["class:0"], []), resolution=8, run=toy_run(folder))
    pixels = torch.cat([table.tensors["pixels"] for table in (tables.forget, tables.retain)]).float() / 127.5 - 1
    names = [name for table in (tables.forget, tables.retain) for name in table.labels["class"]]
    labels = torch.tensor([int(name) for name in names])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(20):
        for rows in torch.randperm(len(pixels)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "tiny_transformer.py").write_text(NETWORK)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_of()
        train(network, folder)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VU_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def record(place: Path, plugins: Plugins) -> SequenceRecord:
    """Three tasks of two classes each, one of the others without training images; the last task has a lasso."""
    settings = {
        "model.name": "torch-module=tiny_transformer:Network",
        "model.weights": "weights.safetensors",
        "model.classes": NAMES,
        "model.size": 8,
        "data.name": "digits",
        "sequence.name": "continual",
        "sequence.tasks": 3,
        "sequence.classes_per_task": 2,
        "sequence.missing": 1,
        "unlearner.method": "gs-lora",
        "unlearner.forget_weight": [1.0, 0.5, 0.5],
        "unlearner.per_sample": True,
        "unlearner.training.steps": 30,
        "unlearner.training.batch_size": 32,
        "unlearner.training.lr": 3e-2,
        "regularizer.group-lasso.weight": [0.0, 0.0, 6.0],
        "run.seed": 1,
        "run.threads": 1,
        "run.out": "faces",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(place / "cache"))
        patch.chdir(place)
        raw = read(None, [Override(key, value, "--set") for key, value in settings.items()])
        return sequence.execute(raw, plugins=plugins)


def cards(record: SequenceRecord) -> list[Scorecard]:
    return [task.run.scorecard for task in record.tasks if task.run.scorecard is not None]


def test_every_task_tells_all_that_is_asked_of_it(record: SequenceRecord, place: Path) -> None:
    first, second, third = cards(record)
    names = [{score.name for score in card.scores} for card in (first, second, third)]
    assert all(found >= ALWAYS for found in names)
    assert ["acc_o" in found for found in names] == [False, True, True]
    assert (first["acc_f"].before or 0) > 0.6
    assert first["acc_f"].after < 0.2
    assert first["acc_r"].after > 0.3
    # Every test image is asked about in every task: forgotten, kept, or of an earlier task.
    asked = first["acc_f"].n + first["acc_r"].n
    assert [card["acc_f"].n + card["acc_r"].n + card["acc_o"].n for card in (second, third)] == [asked, asked]
    assert second["acc_o"].n == first["acc_f"].n
    assert second["acc_o"].before == first["acc_f"].after
    assert first["acc_m"].n < third["acc_r"].n, "missing classes are among those that are kept"
    told = json.loads((place / "faces/sequence.json").read_text())["tasks"]
    assert all(run["seconds"]["unlearn"] > 0 for task in told for run in task["runs"])


def test_both_references_of_the_mean(record: SequenceRecord) -> None:
    """A later task begins with a model that has lost some of what it is to forget."""

    def mean(r: float, fall: float) -> float:
        return 2 * r * fall / (r + fall) if fall > 0 else 0.0

    for card in cards(record):
        r, start, end = card["acc_r"].after, card["acc_f"].before or 0.0, card["acc_f"].after
        assert card["h_mean_task_start"].after == pytest.approx(mean(r, start - end))
        assert card["h_mean"].after == pytest.approx(mean(r, card["drop"].after))
    first, *later = cards(record)
    assert first["h_mean"].after == pytest.approx(first["h_mean_task_start"].after)
    assert any(card["h_mean"].after != card["h_mean_task_start"].after for card in later)


def test_zero_groups_and_the_share_that_was_tuned(record: SequenceRecord, place: Path) -> None:
    total = sum(p.numel() for p in network_of().parameters())
    for number, card in enumerate(cards(record)):
        edit = load_edit(place / f"faces/tasks/{number}/edit.safetensors")
        groups, score = edit.facts["groups"], card["zero_group_ratio"]
        moved = {name.split(".ffn.")[0] for name, part in edit.parts.items() if part.delta().any()}
        assert set(groups["kept"]) == moved
        assert set(groups["zero"]) == {"classifier.blocks.0", "classifier.blocks.1"} - moved
        assert (score.after, score.n) == (1 - len(moved) / 2, 2)
        assert "0.0001" in score.help
        assert card["tunable_ratio"].after == pytest.approx(2 * 2 * PAIR / total)


def test_no_image_of_a_missing_or_forgotten_class_is_trained_on(
    record: SequenceRecord, here: Path, plugins: Plugins
) -> None:
    gone = set[str]()
    for number in range(3):
        plan = dry_run(read(here / f"faces/tasks/{number}/run.toml", []), plugins=plugins)
        subset = plan.config.subset
        assert {text.removeprefix("class:") for text in subset.leave_out} == gone
        (missing,) = (text.removeprefix("class:") for text in subset.missing)
        data = load(plan, plugins, here / f"again{number}", lambda event: None).data
        forget, retain = set(data.forget.labels["class"]), set(data.retain.labels["class"])
        assert len(forget) == 2
        assert retain == set(NAMES) - forget - gone - {missing}
        gone |= forget
    assert len(gone) == 6


def weights_under(place: Path, *edits: Edit) -> dict[str, Tensor]:
    """The weights of the network with edits, one laid over the other."""
    network = nn.ModuleDict({"classifier": network_of()})
    network["classifier"].load_state_dict(load_file(place / "weights.safetensors"))
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(apply_edit(network, edit))
        return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_the_edits_of_the_tasks_add_up_and_one_of_them_comes_off(record: SequenceRecord, here: Path) -> None:
    """Merged at once or one after the other: the same within 1e-6; without one of them, its change is gone."""
    tasks = [f"faces/tasks/{number}" for number in range(3)]
    for out, parts in (("merged", tasks), ("without", tasks[1:])):
        assert main.run(["compose", *parts, "--no-interference", "--out", out, "--quiet"]) == 0
    edits = [load_edit(here / folder / "edit.safetensors") for folder in tasks]
    merged, without = (load_edit(here / out / "edit.safetensors") for out in ("merged", "without"))
    untouched, in_turn = weights_under(here), weights_under(here, *edits)
    at_once, rest = weights_under(here, merged), weights_under(here, without)
    changed = {name for name, part in edits[0].parts.items() if part.delta().abs().max() > 1e-3}
    assert len(changed) == 4, "both maps of both blocks"
    for name, weight in untouched.items():
        deltas = [edit.parts[name].delta() if name in edit.parts else 0 * weight for edit in edits]
        torch.testing.assert_close(in_turn[name], weight + sum(deltas), atol=1e-6, rtol=0)
        torch.testing.assert_close(at_once[name], in_turn[name], atol=1e-6, rtol=0)
        torch.testing.assert_close(rest[name], in_turn[name] - deltas[0], atol=1e-6, rtol=0)
