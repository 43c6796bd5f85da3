"""The model `canvas-vit`: its weights know unseen drawings, its classes are the identities of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vu_canvas import classifier as canvas_classifier
from vu_canvas.classifier import CanvasViTConfig, CanvasViTModel
from vu_canvas.dataset import Canvas, CanvasConfig
from vu_canvas.identities import IDENTITIES, identity
from vu_canvas.training.check_vit import Named, measure, write_page
from vu_canvas.training.export import WEIGHTS, export_vit
from vu_canvas.training.loop import TrainingError
from vu_core import Batch, Capability, ModelError
from vu_core.testing import ModelTests, toy_run


class TestCanvasViT(ModelTests):
    plugin = CanvasViTModel

    def examples(self, model: Any, count: int = 3) -> Any:
        return drawings(count, "object:circle")  # the first classes, in their order


def drawings(count: int, forget: str, tmp_path: Path = Path()) -> Any:
    data = Canvas("", CanvasConfig(forget_per_pair=1))
    selection = data.parse([forget], [])
    forget = data.build(selection, resolution=64, run=toy_run(tmp_path)).forget
    return forget.take(range(count))


def shipped() -> Any:
    return CanvasViTModel("", CanvasViTConfig()).load(device="cpu", precision="fp32")


def test_weights_are_small() -> None:
    assert (WEIGHTS / "vit.safetensors").stat().st_size <= 6_000_000


def test_unseen_drawings_are_named_right() -> None:
    named = measure(WEIGHTS, 10)
    assert named.total == 1000
    assert named.misses() == []


def test_the_classes_are_those_of_the_data() -> None:
    assert shipped().classes == tuple(Canvas("", CanvasConfig()).classes())
    assert list(IDENTITIES)[:2] == ["circle-flat", "circle-outline"]
    assert IDENTITIES["star-neon"] == "object:star+style:neon"
    assert len(IDENTITIES) == 100


def test_each_concept_of_the_classes_names_just_its_identity(tmp_path: Path) -> None:
    data = Canvas("", CanvasConfig(forget_per_pair=1, retain_per_pair=1))
    for name in ("star-neon", "moon-dots"):
        built = data.build(data.parse([IDENTITIES[name]], []), resolution=64, run=toy_run(tmp_path))
        assert set(built.forget.labels["identity"]) == {name}
        assert name not in built.retain.labels["identity"]


def test_labels_follow_the_identity(tmp_path: Path) -> None:
    model, run = shipped(), toy_run(tmp_path)
    table = model.prepare(drawings(3, "style:neon"), run)
    batch = Batch(table, (0, 1, 2), 0, (0, 1, 2), run, torch.device("cpu"))
    names = [model.classes[label] for label in model.labels(batch)]
    assert names == [identity((word, "neon")) for word in table.labels["object"]]


def test_it_has_six_blocks_with_both_maps_of_the_feed_forward_network() -> None:
    model = shipped()
    assert {Capability.CLASSIFY, Capability.BLOCKS, Capability.FRESH} <= model.facts.capabilities
    blocks = model.blocks()
    assert len(blocks) == 6
    assert blocks[2].ffn == ("classifier.blocks.2.ffn.0.weight", "classifier.blocks.2.ffn.2.weight")
    assert model.head == "classifier.head"


def test_the_facts_count_its_weights() -> None:
    model = shipped()
    assert model.facts.parameters == sum(p.numel() for p in model.network.parameters()) == 840_932


def test_it_takes_no_place() -> None:
    with pytest.raises(ModelError, match="takes no place: 'folder'") as caught:
        CanvasViTModel("folder", CanvasViTConfig())
    assert caught.value.code == "VU-M090"


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(canvas_classifier, "files", lambda package: tmp_path)
    with pytest.raises(ModelError, match=r"vit\.safetensors is missing") as caught:
        CanvasViTModel("", CanvasViTConfig()).inspect()
    assert caught.value.code == "VU-M091"


def test_a_low_accuracy_is_told() -> None:
    named = Named([10] * 99 + [0], 10)
    assert named.misses() == []
    assert Named([9] * 100, 10).misses() == ["test accuracy 90.00% is below 97%"]
    assert "| star-neon |" not in named.text()
    assert f"| {list(IDENTITIES)[-1]} | 0.0 % (0.0 to 27.8) |" in named.text()


def test_a_folder_without_weights_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"python -m vu_canvas\.train export vit"):
        measure(tmp_path, 1)


def test_training_export_and_check_in_small(tmp_path: Path) -> None:
    from vu_canvas.training import vit
    from vu_canvas.training.loop import Schedule

    lines: list[str] = []
    schedule = Schedule(steps=2, learning_rate=1e-3, warmup=1)
    vit.train(tmp_path, lines.append, schedule, images_per_pair=1)
    export_vit(tmp_path, tmp_path / "weights", lines.append)
    named = measure(tmp_path / "weights", 1)
    assert named.total == 100
    assert named.misses()
    write_page(tmp_path, tmp_path / "weights", named)
    page = (tmp_path / "weights" / "vit.md").read_text(encoding="utf-8")
    assert "2 steps of" in page
    assert named.text() in page
    assert str(tmp_path) not in page
