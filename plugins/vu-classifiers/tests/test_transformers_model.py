"""Image classifiers of transformers: what their files tell, what is wrong with them, and hub ids without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vu_classifiers.hub import wanted
from vu_classifiers.image_classifier import ImageClassifier
from vu_classifiers.pretrained_folder import (
    Preprocessing,
    class_names,
    image_size,
    read_licence,
    read_preprocessing,
)
from vu_classifiers.quiet import quiet
from vu_classifiers.transformers_model import Transformers, TransformersConfig
from vu_core import Capability, ModelError, stored_tensors

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def plugin(ref: Path | str, **settings: Any) -> Transformers:
    return Transformers(str(ref), TransformersConfig(**settings))


def load(ref: Path | str, **settings: Any) -> ImageClassifier:
    return plugin(ref, **settings).load(device="cpu", precision="fp32")


def error_of(ask: Callable[[], Any]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        ask()
    return caught.value


@pytest.fixture
def vit(tiny_vit: Path, tmp_path: Path) -> Path:
    """A copy of the tiny vision transformer that may be damaged."""
    return Path(shutil.copytree(tiny_vit, tmp_path / "vit"))


def change(file: Path, **values: Any) -> None:
    """Write keys of a JSON file; ``None`` removes one."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    content = {key: value for key, value in {**content, **values}.items() if value is not None}
    file.write_text(json.dumps(content))


# ---- What it tells and computes --------------------------------------------------------------------------------------


def test_it_answers_as_the_library_does(tiny_vit: Path) -> None:
    with quiet():
        from transformers import AutoModelForImageClassification

        theirs = AutoModelForImageClassification.from_pretrained(tiny_vit)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = load(tiny_vit)
    with torch.no_grad():
        assert torch.allclose(ours.logits(images), theirs(images).logits, atol=1e-6)
        hidden = theirs.vit(images).last_hidden_state[:, 0]
        assert torch.allclose(ours.features(images), hidden, atol=1e-6)
    assert (ours.head, ours.classes) == ("classifier.classifier", ("a", "b", "c"))


def test_facts_of_a_vision_transformer(tiny_vit: Path) -> None:
    facts = plugin(tiny_vit).inspect()
    assert facts.capabilities == {Capability.CLASSIFY, Capability.BLOCKS, Capability.FRESH}
    assert (facts.resolution, facts.downloads, facts.licence) == (16, 0, "")
    assert [len(block.attention) for block in load(tiny_vit).blocks()] == [4, 4]


def test_facts_of_a_convolutional_network(tiny_convnext: Path) -> None:
    facts = plugin(tiny_convnext).inspect()
    assert facts.capabilities == {Capability.CLASSIFY, Capability.FRESH}
    assert facts.resolution == 32
    assert load(tiny_convnext).blocks() == ()


def test_it_is_recognised_by_its_architecture(vit: Path, tmp_path: Path) -> None:
    assert Transformers.recognises(vit)
    for architectures in (["ViTModel"], [], None, "ViTForImageClassification"):
        change(vit / "config.json", architectures=architectures)
        assert not Transformers.recognises(vit)
    (vit / "config.json").write_text("{")
    assert not Transformers.recognises(vit)
    assert not Transformers.recognises(vit / "config.json")


def test_a_fresh_network_has_the_first_weights_of_its_kind(tiny_vit: Path) -> None:
    fresh = load(tiny_vit).fresh(0)
    assert torch.equal(fresh["classifier.vit.layernorm.weight"], torch.ones(16))
    assert 0.01 < float(fresh["classifier.vit.layers.0.mlp.fc1.weight"].std()) < 0.03  # initializer_range


def test_a_network_for_brightness(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.random.fork_rng(), quiet():
        config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        ResNetForImageClassification(config).save_pretrained(tmp_path)
    model = load(tmp_path, size=32)
    assert (model.normalisation.channels, model.head) == (1, "classifier.classifier.1")
    assert model.logits(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


# ---- Preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"size": 384}, 384),
        ({"size": {"height": 96, "width": 96}}, 96),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256),
        ({"size": [48, 48]}, 48),
        ({"size": 384, "do_resize": False}, 0),
        ({}, 0),
    ],
)
def test_the_size_of_the_images(told: Mapping[str, Any], size: int, tmp_path: Path) -> None:
    change(tmp_path / "p.json", **told)
    assert read_preprocessing(tmp_path / "p.json").size == size


@pytest.mark.parametrize(
    ("config", "seen", "size"), [({"image_size": 64}, 96, 96), ({"image_size": [64, 64]}, 0, 64), ({}, 0, 224)]
)
def test_the_preprocessing_decides_before_the_configuration(config: Any, seen: int, size: int) -> None:
    assert image_size(config, Preprocessing(seen), "here") == size


@pytest.mark.parametrize(
    "told",
    [
        IMAGENET,
        {**IMAGENET, "rescale_factor": 1 / 127.5},
        {**IMAGENET, "do_rescale": False},
        {"do_normalize": False},
        {"image_mean": 0.4, "image_std": 0.2},
    ],
)
def test_pixels_are_normalised_as_the_library_does(told: Mapping[str, Any], tiny_vit: Path, tmp_path: Path) -> None:
    """``(v factor - mean) / std`` of bytes v."""
    folder = Path(shutil.copytree(tiny_vit, tmp_path / "vit"))
    change(folder / "preprocessor_config.json", **told)
    v = torch.arange(3 * 256.0).reshape(1, 3, 16, 16) % 256
    factor = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0
    mean, std = (torch.tensor(told.get(key, usual)) for key, usual in (("image_mean", 0.0), ("image_std", 1.0)))
    wanted = (v * factor - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    assert torch.allclose(load(folder).normalisation(v / 127.5 - 1), wanted, atol=1e-4)


def test_without_a_preprocessing_pixels_are_signed() -> None:
    assert read_preprocessing(None) == Preprocessing(0, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ({"do_flip_channel_order": True}, "VU-M113", "asks for do_flip_channel_order"),
        ({"rescale_offset": True, "include_top": True}, "VU-M113", "rescale_offset and include_top"),
        ({"size": {"height": 96, "width": 128}}, "VU-M113", "are not square"),
        ({"size": 0}, "VU-M112", "'size' is no size in pixels"),
        ({"size": {}}, "VU-M112", "'size' is no size"),
        ({"size": {"shortest_edge": "big"}}, "VU-M112", "is no size in pixels"),
        ({"crop_size": True}, "VU-M112", "'crop_size' is no size"),
        ({"rescale_factor": 0}, "VU-M112", "'rescale_factor' is no positive number"),
        ({"image_mean": [0.1, 0.2]}, "VU-M112", "'image_mean' is not one number or three"),
        ({"image_std": ["a"]}, "VU-M112", "'image_std' is not one number or three"),
        ({"image_std": [0.0]}, "VU-M112", "'image_std' is not positive"),
    ],
)
def test_preprocessings_that_are_not_understood(told: Any, code: str, words: str, vit: Path) -> None:
    change(vit / "preprocessor_config.json", **told)
    error = error_of(plugin(vit).inspect)
    assert error.code == code
    assert words in error.problem


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_names_of_the_classes() -> None:
    assert class_names({}, "here") == ("LABEL_0", "LABEL_1")
    assert class_names({"num_labels": 3}, "here") == ("LABEL_0", "LABEL_1", "LABEL_2")
    many = {str(place): f"class {place}" for place in range(12)}
    assert class_names({"id2label": dict(sorted(many.items()))}, "here") == tuple(many.values())  # 10 follows 9
    assert class_names({"id2label": {"0": "crane", "1": "duck", "2": "crane"}}, "x") == ("crane 0", "duck", "crane 2")


@pytest.mark.parametrize(
    "named",
    [
        {"0": "a", "2": "b"},
        {"a": "0", "b": "1"},
        ["a", "b"],
        {"0": "a"},
        {},
        {"0": "a", "1": "a", "2": "a 0"},
    ],
)
def test_names_that_are_none(named: Any) -> None:
    assert error_of(lambda: class_names({"id2label": named}, "here")).code == "VU-M112"


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "VU-M111", "it has no config.json"),
        (lambda f: change(f / "config.json", architectures=["ViTModel"]), "VU-M111", "names ViTModel, nothing that"),
        (lambda f: change(f / "config.json", architectures=None), "VU-M111", "names no architecture"),
        (lambda f: (f / "config.json").write_text("{"), "VU-M112", "no valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "VU-M112", "no JSON object"),
        (lambda f: change(f / "config.json", image_size="big"), "VU-M112", "'image_size' is no size"),
        (lambda f: (f / "model.safetensors").unlink(), "VU-M114", "has no weights 'model.safetensors'"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "VU-M114", "could run any program"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "VU-M074", "is damaged"),
    ],
)
def test_folders_that_are_none(spoil: Callable[[Path], Any], code: str, words: str, vit: Path) -> None:
    spoil(vit)
    for ask in (plugin(vit).inspect, lambda: load(vit)):
        error = error_of(ask)
        assert error.code == code
        assert words in error.problem


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: _without(f, "classifier.bias"), "1 tensors are missing, such as 'classifier.bias'"),
        (lambda f: change(f / "config.json", intermediate_size=64), "damaged"),
        (lambda f: change(f / "config.json", hidden_size="wide"), "damaged"),
        (lambda f: change(f / "config.json", model_type="unheard-of"), "damaged"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(spoil: Callable[[Path], Any], words: str, vit: Path) -> None:
    spoil(vit)
    error = error_of(lambda: load(vit))
    assert error.code == "VU-M112"
    assert words in error.problem


def _without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_shards(vit: Path, tiny_vit: Path) -> None:
    tensors = load_file(vit / "model.safetensors")
    (vit / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, vit / file, {"format": "pt"})
    table = {name: file for file, chosen in parts.items() for name in chosen}
    change(vit / "model.safetensors.index.json", metadata={}, weight_map=table)
    assert plugin(vit).inspect().base_hash == plugin(tiny_vit).inspect().base_hash
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(load(vit).logits(images), load(tiny_vit).logits(images))
    (vit / "model-00002-of-00002.safetensors").unlink()
    assert "'model-00002-of-00002.safetensors' is missing" in error_of(plugin(vit).inspect).problem
    change(vit / "model.safetensors.index.json", weight_map={"a": "../elsewhere"})
    assert "no table from tensors to file names" in error_of(plugin(vit).inspect).problem


def test_the_licence_is_that_of_the_model_card(vit: Path) -> None:
    (vit / "README.md").write_text("---\ntags: []\nlicense: 'mit'\n---\nlicense: other\n")
    assert plugin(vit).inspect().licence == "mit"
    assert read_licence(vit / "nothing.md") == ""


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"classes": ("a", "b")}, "VU-M096", "2 classes are named"),
        ({"size": 20}, "VU-M096", "cannot read an image"),
        ({"head": "classifer"}, "VU-M097", "Did you mean 'classifier'?"),
        ({"revision": "v2"}, "VU-M077", "model.revision is for hub ids"),
        ({"local_files_only": True}, "VU-M077", "model.local_files_only is for hub ids"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], code: str, words: str, tiny_vit: Path) -> None:
    error = error_of(lambda: load(tiny_vit, **settings))
    assert error.code == code
    assert words in error.problem


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ("a",)}, "at least two classes"),
        ({"classes": ("a", "a")}, "more than once"),
        ({"mean": (0.1, 0.2)}, "must have 1 or 3 numbers"),
        ({"std": (0.0,)}, "must be > 0"),
        ({"size": 0}, "must be >= 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformersConfig(**settings)


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("", "Nothing says which classifier"),
        ("vti", "no folder 'vti'. Did you mean 'vit'?"),
        ("vit/config.json", "is a single file"),
        ("vit/tiny", "no folder 'vit/tiny'"),
        ("a/b/c", "no folder 'a/b/c'"),
    ],
)
def test_places_that_are_none(ref: str, words: str, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vit.parent)
    error = error_of(plugin(ref).inspect)
    assert error.code == "VU-M070"
    assert words in error.problem
    assert ("The hub is not asked" in error.remedy) == (ref == "vit/tiny")


# ---- Hub -------------------------------------------------------------------------------------------------------------

REPO, COMMIT = "someone/tiny-vit", "a" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a network that fails at the first touch."""
    from huggingface_hub import constants

    def no_network(*_: object, **__: object) -> Any:
        raise OSError("no network in this test")

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    return cache


def fill_cache(cache: Path, source: Path) -> Path:
    """Lay a folder into the cache as the hub client does."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(source, repo / "snapshots" / COMMIT))


def test_without_network_and_cache(hub_cache: Path) -> None:
    for settings in ({}, {"local_files_only": True}):
        error = error_of(plugin(REPO, **settings).inspect)
        assert error.code == "VU-M075"
        assert REPO in error.problem


def test_a_cached_model_needs_no_network(hub_cache: Path, tiny_vit: Path) -> None:
    fill_cache(hub_cache, tiny_vit)
    facts = plugin(REPO, local_files_only=True).inspect()
    assert (facts.ref, facts.downloads) == (REPO, 0)
    assert facts.base_hash == plugin(tiny_vit).inspect().base_hash
    assert load(REPO).facts == facts


def test_a_model_that_is_cached_in_part(hub_cache: Path, tiny_vit: Path) -> None:
    (fill_cache(hub_cache, tiny_vit) / "model.safetensors").unlink()
    for settings in ({}, {"local_files_only": True}):
        assert error_of(plugin(REPO, **settings).inspect).code == "VU-M075"
    assert "for the rest" in error_of(plugin(REPO, local_files_only=True).inspect).problem


def test_another_revision_is_not_in_the_cache(hub_cache: Path, tiny_vit: Path) -> None:
    fill_cache(hub_cache, tiny_vit)
    assert error_of(plugin(REPO, revision="v2").inspect).code == "VU-M075"


class FakeHub:
    """Answers as the hub would for a repository that lies in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool = False, timeout: float) -> Any:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        siblings = [SimpleNamespace(rfilename=f.name, size=f.stat().st_size, blob_id=f.name) for f in files]
        return SimpleNamespace(siblings=siblings, sha=COMMIT, card_data=SimpleNamespace(license="mit"))

    def parse_safetensors_file_metadata(self, repo: str, name: str, *, revision: str | None) -> Any:
        tensors = stored_tensors(self.root / name)
        return SimpleNamespace(tensors={t.name: SimpleNamespace(dtype=t.dtype, shape=t.shape) for t in tensors})


def answering(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(root))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, revision: str(root / name))


def test_what_must_be_fetched_is_told(hub_cache: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(vit / "preprocessor_config.json", size=16)
    needed = sum(path.stat().st_size for path in vit.iterdir())
    (vit / "pytorch_model.bin").write_bytes(b"0" * 1_000_000)  # what a repository has besides
    answering(monkeypatch, vit)
    facts = plugin(REPO).inspect()
    assert (facts.downloads, facts.licence, facts.resolution) == (needed, "mit", 16)
    assert facts.base_hash.startswith("hub:")
    local = plugin(vit).inspect()
    assert (facts.parameters, facts.capabilities) == (local.parameters, local.capabilities)
    assert plugin(REPO, size=48).inspect().resolution == 48


def test_loading_fetches_only_what_is_needed(hub_cache: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (vit / "pytorch_model.bin").write_bytes(b"0")
    answering(monkeypatch, vit)
    asked: list[list[str]] = []

    def snapshot(repo: str, *, revision: str | None, local_files_only: bool = False, allow_patterns: Any = None) -> str:
        if local_files_only:
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("nothing here")
        asked.append(allow_patterns)
        return str(vit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert not load(REPO).facts.base_hash.startswith("hub:")
    assert asked == [["config.json", "model.safetensors"]]


def test_wanted_files() -> None:
    settings = ("README.md", "config.json", "preprocessor_config.json")
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    besides = ("tf_model.h5", "pytorch_model.bin", "onnx/model.safetensors", "runs/config.json")
    assert wanted(REPO, (*settings, "model.safetensors", *besides)) == (*settings, "model.safetensors")
    assert wanted(REPO, (*settings, *shards, *besides)) == (*settings, *shards)
    assert error_of(lambda: wanted(REPO, ("model.safetensors",))).code == "VU-M111"
    error = error_of(lambda: wanted(REPO, ("config.json", "pytorch_model.bin")))
    assert error.code == "VU-M114"
    assert "pytorch_model.bin" in error.problem


def test_refusals_of_the_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    class Refusing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def model_info(self, *_: object, **__: object) -> Any:
            raise self.error

    for kind, said in (
        (errors.GatedRepoError, "licence"),
        (errors.RepositoryNotFoundError, "does not exist"),
        (errors.RevisionNotFoundError, "no such revision"),
    ):
        refusal = kind.__new__(kind)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda refusal=refusal: Refusing(refusal))
        error = error_of(plugin(REPO, revision="v9").inspect)
        assert error.code == "VU-M076"
        assert said in error.problem
