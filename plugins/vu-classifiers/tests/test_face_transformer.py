"""The published face transformer: its size, its attention, its heads, and the files that tell of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vu_classifiers.architecture import Architecture, read_architecture
from vu_classifiers.blocks import find_blocks
from vu_classifiers.face_network import Attention, CosineHead
from vu_classifiers.face_network import FaceTransformer as Network
from vu_classifiers.face_transformer import FaceTransformer, FaceTransformerConfig
from vu_classifiers.image_classifier import ImageClassifier
from vu_core import ModelError, StoredTensor, stored_tensors

TINY = Architecture(classes=3, size=16, width=8, depth=2, heads=2, head_width=4, hidden=16)


def load(ref: Path, **settings: Any) -> ImageClassifier:
    return FaceTransformer(str(ref), FaceTransformerConfig(**settings)).load(device="cpu", precision="fp32")


def copied(tiny_face: Path, folder: Path) -> Path:
    return Path(shutil.copytree(tiny_face, folder / "face"))


# ---- Size ------------------------------------------------------------------------------------------------------------


def counts(**changes: Any) -> dict[str, int]:
    with torch.device("meta"):  # no weight is drawn
        return {name: p.numel() for name, p in Network(Architecture(**changes)).named_parameters()}


def test_the_published_numbers_of_parameters() -> None:
    """19,157,504 is without any LoRA."""
    found = counts()
    assert sum(found.values()) == 19_157_504
    assert sum(count for name, count in found.items() if not name.startswith("head.")) == 19_106_304
    lower = ("patches.", "position", "cls", "blocks.0.", "blocks.1.", "blocks.2.", "norm.", "head.")
    assert sum(count for name, count in found.items() if name.startswith(lower)) == 9_704_960


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"depth": 12}, 19_157_504 + 6 * 3_150_848),
        ({"depth": 18}, 19_157_504 + 12 * 3_150_848),
        ({"head": "softmax"}, 19_157_504 + 100),
        ({"head": "arcface"}, 19_157_504),
        ({"patch": 12, "pad": 4}, 19_157_504 + 512 * 3 * (144 - 64)),
    ],
)
def test_variants(changes: dict[str, Any], parameters: int) -> None:
    assert sum(counts(**changes).values()) == parameters


def test_lora_of_rank_8_on_the_feed_forward_networks() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Network(Architecture()).named_parameters()}
    blocks = find_blocks(shapes.items())
    per_block = [sum(8 * sum(shapes[name]) for name in block.ffn) for block in blocks]
    assert per_block == [40_960] * 6


def test_published_settings_are_the_defaults() -> None:
    a = Architecture()
    assert (a.size, a.patch, a.stride, a.tokens, a.dropout) == (112, 8, 8, 197, 0.1)
    assert (a.width, a.depth, a.heads, a.head_width, a.hidden) == (512, 6, 8, 64, 2048)
    assert (a.head, a.scale, a.margin) == ("cosface", 64.0, 0.35)
    assert (Architecture(head="arcface").margin, Architecture(head="softmax").margin) == (0.5, 0.0)
    assert Architecture(patch=12, pad=4).tokens == 197


# ---- Network ---------------------------------------------------------------------------------------------------------


def test_attention_is_scaled_by_the_width_of_the_model() -> None:
    a = Architecture(width=8, heads=2, head_width=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = Attention(a)
        x = torch.randn(1, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    mixed = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8)).softmax(dim=-1)
        mixed.append(weights @ v[..., part])
    assert torch.allclose(attention(x), attention.out(torch.cat(mixed, dim=-1)), atol=1e-6)
    assert attention.qkv.bias is None


def test_features_are_the_normed_first_token(tiny_face: Path) -> None:
    model = load(tiny_face)
    network: Any = model.network["classifier"]
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = network.patches((images + 1) / 2).flatten(2).transpose(1, 2)
    x = torch.cat([network.cls.expand(2, -1, -1), x], dim=1) + network.position
    for block in network.blocks:
        x = x + block.attention(block.norm1(x))
        x = x + block.ffn[3](functional.gelu(block.ffn[0](block.norm2(x))))
    assert torch.allclose(model.features(images), network.norm(x)[:, 0], atol=1e-6)


def test_dropout_is_for_training_alone(tiny_face: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(attrs.evolve(TINY, dropout=0.5))
        x = torch.rand(2, 3, 16, 16)
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 1 + 3 * TINY.depth


def head_of(kind: str, scale: float = 64.0, margin: float = 0.35) -> CosineHead:
    head = CosineHead(2, 3, kind, scale, margin)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 4.0]]))
    return head


H, LABELS = torch.tensor([[3.0, 4.0], [0.0, -5.0]]), torch.tensor([0, 1])


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_logits_are_scaled_cosines_without_labels(kind: str) -> None:
    wanted = 64 * torch.tensor([[0.6, 0.8, 0.28], [0.0, -1.0, -0.8]])
    assert torch.allclose(head_of(kind)(H), wanted, atol=1e-4)
    assert torch.allclose(head_of(kind)(7 * H), wanted, atol=1e-4)  # their length says nothing


def test_the_margin_of_cosface() -> None:
    found = head_of("cosface").with_margin(H, LABELS)
    assert torch.allclose(found, 64 * torch.tensor([[0.25, 0.8, 0.28], [0.0, -1.35, -0.8]]), atol=1e-4)


def test_a_feature_along_its_row_has_a_gradient() -> None:
    head = head_of("arcface", margin=0.5)
    along = head.weight.detach()[:1].clone().requires_grad_()
    head.with_margin(along, torch.tensor([0])).sum().backward()
    assert along.grad is not None
    assert torch.isfinite(along.grad).all()


def test_the_margin_of_arcface() -> None:
    """The angle grows by m; where it would pass pi, the cosine falls by m sin m instead."""
    found = head_of("arcface", margin=0.5).with_margin(H, LABELS)
    turned = math.cos(math.acos(0.6) + 0.5)
    wanted = 64 * torch.tensor([[turned, 0.8, 0.28], [0.0, -1 - 0.5 * math.sin(0.5), -0.8]])
    assert torch.allclose(found, wanted, atol=1e-3)


def test_a_model_gives_logits_with_its_margin(tiny_face: Path) -> None:
    model = load(tiny_face)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    usual, labels = model.logits(images), torch.tensor([2, 0])
    change = usual - model.margin_logits(images, labels)
    wanted = torch.zeros(2, 3)
    wanted[0, 2] = wanted[1, 0] = 64 * 0.35
    assert torch.allclose(change, wanted, atol=1e-3)


def test_a_head_without_margin_gives_its_logits() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.fc(x.flatten(1))
            return found

    from vu_core import ModelFacts

    facts = ModelFacts("mine", "", "hash", frozenset(), parameters=26, bytes=104, resolution=2)
    model, images = ImageClassifier(Plain(), facts, classes=("a", "b")), torch.rand(3, 3, 2, 2)
    assert torch.equal(model.margin_logits(images, torch.tensor([0, 1, 0])), model.logits(images))


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch": 12, "pad": 4}, {"head": "softmax", "margin": 0.0}, {"depth": 3, "classes": 5, "hidden": 300}],
)
def test_shapes_tell_the_architecture(changes: dict[str, Any], tmp_path: Path) -> None:
    wanted = Architecture(**{"classes": 4, "depth": 2, "width": 128, "heads": 2, "hidden": 256, **changes})
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Network(wanted).named_parameters()}
    stored = [StoredTensor(name, "F32", shape) for name, shape in shapes.items()]
    assert read_architecture(tmp_path / "model.safetensors", stored) == wanted


def test_a_file_alone_with_named_classes(tiny_face: Path, tmp_path: Path) -> None:
    """What no shape tells is as published: of the tiny network, patches every 8 pixels, but not its two heads."""
    lone = Path(shutil.copy(tiny_face / "model.safetensors", tmp_path / "lone.safetensors"))
    with pytest.raises(ModelError, match="Nothing names the 3 classes") as caught:
        load(lone)
    assert caught.value.code == "VU-M116"
    model = load(lone, classes=("x", "y", "z"))
    assert (model.classes, model.facts.resolution) == (("x", "y", "z"), 16)
    assert model.facts.base_hash == load(tiny_face).facts.base_hash
    (tmp_path / "face_transformer.json").write_text(json.dumps(attrs.asdict(TINY)))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load(lone, classes=("x", "y", "z")).logits(images), load(tiny_face).logits(images))


def test_it_is_recognised_by_its_architecture(tiny_face: Path, tmp_path: Path) -> None:
    assert FaceTransformer.recognises(tiny_face)
    assert not FaceTransformer.recognises(tiny_face / "model.safetensors")
    assert not FaceTransformer.recognises(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "holds no JSON object"),
        ('{"deep": 6}', "unknown key 'deep'"),
        ('{"depth": 0}', "depth must be a whole number from 1, but is 0"),
        ('{"depth": true}', "depth must be a whole number"),
        ('{"pad": -1}', "pad must be a whole number from 0"),
        ('{"scale": "64"}', "scale must be a number"),
        ('{"margin": -1}', "margin must be a number from 0"),
        ('{"dropout": 1.0}', "dropout must be below 1, but is 1.0"),
        ('{"head": "sphere"}', r"head must be one of cosface, arcface, softmax, but is 'sphere'\."),
        ('{"head": ["cosface"]}', "head must be one of cosface"),
        ('{"size": 4}', "smaller than patch 8"),
    ],
)
def test_architectures_that_are_none(content: str, words: str, tiny_face: Path, tmp_path: Path) -> None:
    folder = copied(tiny_face, tmp_path)
    (folder / "face_transformer.json").write_text(content)
    with pytest.raises(ModelError, match=words) as caught:
        FaceTransformer(str(folder), FaceTransformerConfig()).inspect()
    assert caught.value.code == "VU-M115"


def test_tensors_of_another_network(tmp_path: Path) -> None:
    for tensors, words in (
        ({"fc.weight": torch.zeros(2, 2)}, "lacks 'patches.weight'"),
        (
            {"patches.weight": torch.zeros(8, 3, 8, 8), "position": torch.zeros(1, 5, 8)},
            "have no transformer blocks",
        ),
    ):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=words) as caught:
            FaceTransformer(str(tmp_path), FaceTransformerConfig()).inspect()
        assert caught.value.code == "VU-M115"


def test_weights_that_do_not_fit_the_architecture(tiny_face: Path, tmp_path: Path) -> None:
    folder = copied(tiny_face, tmp_path)
    (folder / "face_transformer.json").write_text(json.dumps({**attrs.asdict(TINY), "hidden": 32}))
    with pytest.raises(ModelError, match="does not fit") as caught:
        load(folder)
    assert caught.value.code == "VU-M095"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("[", "no valid JSON"),
        ('{"0": "a"}', "is no list of names"),
        ("[1, 2, 3]", "is no list of names"),
        ('["a", "b", "a"]', "names 'a' more than once"),
        ('["a", "b"]', "2 classes are named, where the weights have 3"),
    ],
)
def test_names_that_are_none(names: str, words: str, tiny_face: Path, tmp_path: Path) -> None:
    folder = copied(tiny_face, tmp_path)
    (folder / "classes.json").write_text(names)
    with pytest.raises(ModelError, match=words) as caught:
        FaceTransformer(str(folder), FaceTransformerConfig()).inspect()
    assert caught.value.code == "VU-M116"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("", "VU-M070", "Nothing says where"),
        ("nowhere", "VU-M070", "There is no file or folder"),
        ("model.pth", "VU-M114", "is a pickle"),
        (".", "VU-M114", "has no 'model.safetensors'"),
    ],
)
def test_places_without_weights(name: str, code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=words) as caught:
        FaceTransformer(str(tmp_path / name) if name else "", FaceTransformerConfig()).inspect()
    assert caught.value.code == code


def test_settings_out_of_range() -> None:
    for settings, words in (
        ({"mean": (0.1, 0.2)}, "mean must have 1 or 3 numbers"),
        ({"std": (0.0,)}, "must be > 0"),
        ({"classes": ("a",)}, "at least two classes"),
    ):
        with pytest.raises(ValueError, match=words):
            FaceTransformerConfig(**settings)  # type: ignore[arg-type]


def test_the_tiny_weights_are_those_of_the_file(tiny_face: Path) -> None:
    stored = load_file(tiny_face / "model.safetensors")
    state = load(tiny_face).network.state_dict()
    assert {name.removeprefix("classifier.") for name in state} == stored.keys()
    assert all(torch.equal(state[f"classifier.{name}"], tensor) for name, tensor in stored.items())
    parameters = sum(math.prod(tensor.shape) for tensor in stored_tensors(tiny_face / "model.safetensors"))
    assert load(tiny_face).facts.parameters == parameters
