"""What a torch-module tells and computes, and what is wrong with refs, weights, networks and labels."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vu_classifiers.image_classifier import ImageClassifier, Normalisation
from vu_classifiers.state import fill
from vu_classifiers.torch_module import TorchModule, TorchModuleConfig, forward_gflops
from vu_core import Batch, Capability, Examples, ModelError, StoredTensor
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.testing import toy_run

CLASSES = ("red", "green", "blue")
Make = Callable[..., TorchModule]
Save = Callable[..., None]

# ---- What it tells and computes --------------------------------------------------------------------------------------


def load(plugin: TorchModule) -> ImageClassifier:
    return plugin.load(device="cpu", precision="fp32")


def table(labels: Mapping[str, tuple[str, ...]], pixels: Tensor | None = None, **fields: Any) -> Examples:
    """A table whose rows have these labels and pixels."""
    count = len(next(iter(labels.values()), ()))
    loader = None if pixels is None else lambda row, generator: pixels[row]
    return Examples("forget", ("",) * max(count, 1), labels=labels, **{"load": loader, **fields})


def test_facts_are_those_of_the_weights_file(make: Make) -> None:
    facts = make().inspect()
    assert facts.parameters == 4 * 27 + 4 + 8 + 15 + 12  # without the statistics of the normalisation
    assert facts.bytes == 4 * facts.parameters
    assert facts.capabilities == {Capability.CLASSIFY, Capability.FRESH}
    assert facts.ref == f"{Path.cwd() / 'small_net.py'}:make"
    assert facts.resolution == 8
    assert facts == load(make()).facts


def test_the_hash_is_that_of_the_tensors(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make().inspect().base_hash
    save_file(load_file("weights.safetensors"), "same.safetensors", {"note": "another file"})
    assert make(weights="same.safetensors").inspect().base_hash == first
    state = load_file("weights.safetensors")
    state["norm.running_var"][0] = 2.0
    save_file(state, "other.safetensors")
    assert make(weights="other.safetensors").inspect().base_hash != first


def test_the_cost_counts_every_matrix_at_its_places() -> None:
    conv, linear = StoredTensor("conv.weight", "F32", (4, 3, 3, 3)), StoredTensor("fc.weight", "F32", (10, 4))
    bias = StoredTensor("fc.bias", "F32", (10,))
    assert forward_gflops([linear, bias], 64) == pytest.approx(40e-9)
    assert forward_gflops([conv, linear, bias], 64) == pytest.approx((108 + 40) * 64 * 1e-9)
    assert forward_gflops([conv], 4) == pytest.approx(108e-9)  # no weight is used less than once


def test_the_weights_of_the_file_are_in_the_network_and_its_statistics_stay(make: Make) -> None:
    model = load(make())
    stored = load_file("weights.safetensors")
    found = model.network.state_dict()
    assert {name.removeprefix("classifier.") for name in found} == stored.keys()
    assert all(torch.equal(found[f"classifier.{name}"], tensor) for name, tensor in stored.items())
    model.logits(torch.ones(4, 3, 8, 8))
    assert all(torch.equal(found[f"classifier.{name}"], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("parameters", [Full(FullConfig()), Lora(LoraConfig())], ids=["full", "lora"])
def test_statistics_stay_while_it_is_trained(make: Make, parameters: Any, tmp_path: Path) -> None:
    model = load(make())
    run = toy_run(tmp_path, parameters=parameters)
    before = model.network["classifier"].norm.running_mean.clone()
    theta = run.parameterise(model)
    model.logits(torch.ones(4, 3, 8, 8)).sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in theta.parameters())
    assert torch.equal(model.network["classifier"].norm.running_mean, before)
    run.release()


def test_lora_reaches_every_linear_map_and_convolution_when_nothing_is_said(make: Make, tmp_path: Path) -> None:
    model = load(make())
    names = Lora(LoraConfig()).candidates(model)
    assert names == tuple(f"classifier.{name}.weight" for name in ("conv", "fc", "extra"))
    assert Lora(LoraConfig(targets=("fc",))).candidates(model) == ("classifier.fc.weight",)


@pytest.mark.parametrize(("head", "width"), [("", 3), ("extra", 3), ("fc", 4), ("norm", 4 * 64)])
def test_features_are_what_goes_into_the_head(make: Make, head: str, width: int) -> None:
    model = load(make(head=head))
    images = torch.rand(2, 3, 8, 8)
    features = model.features(images)
    assert features.shape == (2, width)
    if width == 3:
        assert torch.allclose(model.network["classifier"].extra(features), model.logits(images))


def test_features_under_an_adapter_are_those_of_the_adapted_network(make: Make, tmp_path: Path) -> None:
    """The head itself is wrapped, and what lies before it is changed."""
    model = load(make())
    run = toy_run(tmp_path, parameters=Lora(LoraConfig()))
    images = torch.rand(2, 3, 8, 8)
    before = model.features(images)
    theta = run.parameterise(model)
    assert torch.equal(model.features(images), before)
    with torch.no_grad():
        for parameter in theta.parameters():
            parameter.add_(0.5)
    assert not torch.allclose(model.features(images), before)
    with theta.base():
        assert torch.equal(model.features(images), before)
    run.release()


# ---- Images and labels -----------------------------------------------------------------------------------------------


def test_normalisation_is_that_of_pixels_in_0_to_1() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(Normalisation(mean, std)(x), wanted, atol=1e-6)
    assert torch.equal(Normalisation()(x), x)


def test_a_network_that_reads_brightness(make: Make, save_weights: Save) -> None:
    save_weights("grey", "grey.safetensors")
    model = load(make("small_net:grey", weights="grey.safetensors", channels=1))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    seen = Normalisation(channels=1)(images)
    assert seen.shape == (2, 1, 8, 8)
    assert torch.allclose(seen[:, 0], 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])
    assert torch.allclose(model.logits(images), model.network["classifier"](seen))


@pytest.mark.parametrize(("kind", "dtype"), [("levels", torch.uint8), ("mixed", torch.float32)])
def test_whole_levels_take_a_quarter_of_the_memory(make: Make, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    levels = torch.arange(256).repeat(3)[: 3 * 64 * 4].reshape(4, 3, 8, 8)
    pixels = levels.float() / 127.5 - 1
    if kind == "mixed":
        pixels[3] += 1e-6
    model, run = load(make()), toy_run(tmp_path)
    prepared = model.prepare(table({"class": ("red",) * 4}, pixels), run)
    assert prepared.tensors["pixels"].dtype == dtype
    batch = Batch(prepared, (0, 3), 0, (0, 1), run, torch.device("cpu"))
    assert torch.equal(model.images(batch), pixels[[0, 3]])


def test_images_are_read_once(make: Make, tmp_path: Path) -> None:
    read: list[int] = []

    def reads(row: int, generator: torch.Generator) -> Tensor:
        read.append(row)
        return torch.zeros(3, 8, 8)

    model, run = load(make()), toy_run(tmp_path)
    told: list[Any] = []
    run.emit_event = told.append
    prepared = model.prepare(table({"class": CLASSES}, load=reads), run)
    for _ in range(3):
        model.images(Batch(prepared, (0, 1, 2), 0, (0, 1, 2), run, torch.device("cpu")))
    assert read == [0, 1, 2]
    assert [event.values["step"] for event in told] == [1, 2, 3]
    assert model.prepare(prepared, run) is prepared


@pytest.mark.parametrize(
    ("axis", "labels", "wanted"),
    [
        ("", {"class": ("blue", "red")}, [2, 0]),
        ("", {"shape": ("dot", "bar"), "colour": ("green", "green")}, [1, 1]),
        ("", {"folder": ("green", "red"), "class": ("green", "red")}, [1, 0]),
        ("other", {"other": ("red", "blue"), "colour": ("green", "green")}, [0, 2]),
    ],
)
def test_the_label_that_names_the_class(
    make: Make, tmp_path: Path, axis: str, labels: dict[str, tuple[str, ...]], wanted: list[int]
) -> None:
    prepared = load(make(axis=axis)).prepare(table(labels, torch.zeros(2, 3, 8, 8)), toy_run(tmp_path))
    assert prepared.tensors["label"].tolist() == wanted
    assert prepared.tensors["label"].dtype == torch.int64


@pytest.mark.parametrize(
    ("axis", "labels", "code", "words"),
    [
        ("color", {"colour": ("red",)}, "VU-M098", "no label 'color'. Did you mean 'colour'?"),
        ("", {"a": ("red",), "b": ("blue",)}, "VU-M098", "more than one has values that are classes"),
        ("", {"a": ("dot",), "b": ("bar",)}, "VU-M098", "of none all values are classes"),
        ("", {}, "VU-M098", "have no labels"),
        ("", {"class": ("gren", "rot")}, "VU-M099", "'gren' (and 1 more) of the forget examples is none of the 3"),
        ("", {"class": ("gren",)}, "VU-M099", "Did you mean 'green'?"),
    ],
)
def test_labels_that_name_no_class(
    make: Make, tmp_path: Path, axis: str, labels: dict[str, tuple[str, ...]], code: str, words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load(make(axis=axis)).prepare(table(labels, torch.zeros(2, 3, 8, 8)), toy_run(tmp_path))
    assert caught.value.code == code
    assert words in caught.value.problem
    assert all(name in str(caught.value) for name in labels)


def test_examples_without_images(make: Make, tmp_path: Path) -> None:
    model, run = load(make()), toy_run(tmp_path)
    prepared = model.prepare(table({"class": CLASSES}), run)
    with pytest.raises(ModelError, match="no images") as caught:
        model.images(Batch(prepared, (0,), 0, (0,), run, torch.device("cpu")))
    assert caught.value.code == "VU-M099"


def test_an_empty_table_comes_back(make: Make, tmp_path: Path) -> None:
    empty = Examples("retain", ())
    assert load(make()).prepare(empty, toy_run(tmp_path)) is empty


# ---- Factories -------------------------------------------------------------------------------------------------------


def test_a_module_of_this_folder_becomes_a_path_that_holds_elsewhere(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    for ref in ("small_net:make", "small_net.py:make", "./small_net.py:make"):
        assert TorchModule.settle(ref) == f"{here}/small_net.py:make"
    for ref in ("json:loads", "nowhere:make", "my folder:make", "small_net", ""):
        assert TorchModule.settle(ref) == ref
    settled = make(TorchModule.settle("small_net:make"), weights=str(here / "weights.safetensors"))
    monkeypatch.chdir(tmp_path)
    assert load(settled).facts.ref == f"{here}/small_net.py:make"


def test_a_class_an_attribute_and_a_package_serve_as_well(make: Make) -> None:
    package = Path("nets") / "small"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "net.py").write_text("from .base import Net as Inner\n\n\nclass Nets:\n    small = Inner\n")
    (package / "base.py").write_text(Path("small_net.py").read_text())
    try:
        for ref in ("small_net:Net", "nets.small.net:Inner", "nets.small.net:Nets.small", "nets/small/net.py:Inner"):
            assert load(make(ref)).network["classifier"].fc.in_features == 4
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "nets"]:
            del sys.modules[name]


def test_a_file_may_import_its_neighbours_and_leaves_the_path_alone(make: Make) -> None:
    Path("vu_neighbour_of_net.py").write_text("WIDTH = 4\n")
    Path("beside.py").write_text(
        "import vu_neighbour_of_net\nfrom small_net import Net\n\n\ndef make():\n    return Net()\n"
    )
    before = list(sys.path)
    try:
        load(make("beside:make"))
    finally:
        for name in ("vu_neighbour_of_net", "small_net"):
            sys.modules.pop(name, None)
    assert sys.path == before


def test_a_changed_factory_is_another_model_with_another_fingerprint(make: Make) -> None:
    """Answers that are kept for one network must not be taken for those of another with the same weights."""
    first = load(make())
    assert load(make()).fingerprint == first.fingerprint
    assert load(make(head="fc")).fingerprint != first.fingerprint
    source = Path("small_net.py").read_text()
    Path("small_net.py").write_text(source.replace(".relu()", ".tanh()"))
    second = load(make())
    assert second.facts.base_hash == first.facts.base_hash
    assert second.fingerprint != first.fingerprint


def _write(name: str, text: str) -> Callable[[], None]:
    return lambda: (Path(name).write_text(text), None)[1]


@pytest.mark.parametrize(
    ("ref", "prepare", "code", "words"),
    [
        ("", None, "VU-M092", "Nothing says what makes the network"),
        ("small_net", None, "VU-M092", "'small_net' does not say"),
        ("small_net:", None, "VU-M092", "does not say"),
        ("small_net:make()", None, "VU-M092", "'make()' in "),
        (
            "smal_net:make",
            None,
            "VU-M092",
            "no module 'smal_net', neither here nor installed. Did you mean 'small_net'?",
        ),
        ("smal_net.py:make", None, "VU-M092", "no file 'smal_net.py'. Did you mean 'small_net.py'?"),
        ("nowhere/net.py:make", None, "VU-M092", "no file 'nowhere/net.py'"),
        ("small_net:mak", None, "VU-M092", "has no 'mak'. Did you mean 'make'?"),
        ("small_net:A_NUMBER", None, "VU-M092", "is 'int', which cannot be called"),
        ("json.nowhere:make", None, "VU-M092", "'json.nowhere' cannot be imported"),
        ("needy:make", _write("needy.py", "import no_such_library\n"), "VU-M092", "No module named 'no_such_library'"),
        ("broken:make", _write("broken.py", "def make(:\n"), "VU-M093", "failed while it was imported: SyntaxError"),
        ("failing:make", _write("failing.py", "1 / 0\n"), "VU-M093", "ZeroDivisionError: division by zero"),
        (
            "script:make",
            _write("script.py", "raise SystemExit(3)\n"),
            "VU-M093",
            "while it was imported: SystemExit: 3",
        ),
        ("leaving:make", _write("leaving.py", "from sys import exit as make\n"), "VU-M093", "was called: SystemExit."),
        ("small_net:raises", None, "VU-M093", "failed when it was called: RuntimeError: no such size."),
        ("small_net:nothing", None, "VU-M093", "returned 'NoneType', not a network"),
        ("small_net:empty", None, "VU-M093", "a module without parameters"),
    ],
)
def test_factories_that_lead_nowhere(
    make: Make, ref: str, prepare: Callable[[], None] | None, code: str, words: str
) -> None:
    if prepare is not None:
        prepare()
    with pytest.raises(ModelError) as caught:
        load(make(ref))
    assert caught.value.code == code
    assert words in caught.value.problem
    assert "second line" not in caught.value.problem
    assert caught.value.where == "model.ref"


def test_a_module_that_is_nowhere_is_told_before_any_weight_is_read(make: Make) -> None:
    with pytest.raises(ModelError, match="neither here nor installed"):
        make("smal_net:make").inspect()


def test_a_factory_may_draw(make: Make) -> None:
    """Weights of a fresh network are random; the generators of the process come back."""
    before = torch.get_rng_state()
    load(make())
    assert torch.equal(torch.get_rng_state(), before)


# ---- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "code", "words"),
    [
        ("", "VU-M094", "There is no weights file ''"),
        ("weigths.safetensors", "VU-M094", "Did you mean 'weights.safetensors'"),
        ("nowhere/weights.safetensors", "VU-M094", "There is no weights file"),
        ("weights.pt", "VU-M094", "'weights.pt' is a pickle"),
        ("text.safetensors", "VU-M074", "is damaged"),
    ],
)
def test_weights_that_are_none(make: Make, weights: str, code: str, words: str) -> None:
    Path("weights.pt").write_bytes(b"pickle")
    Path("text.safetensors").write_text("These are no weights.")
    for ask in (TorchModule.inspect, load):
        with pytest.raises(ModelError) as caught:
            ask(make(weights=weights))
        assert caught.value.code == code
        assert words in caught.value.problem


def test_every_tensor_that_does_not_fit_is_named(make: Make) -> None:
    state = load_file("weights.safetensors")
    state["head.weight"] = state.pop("fc.weight")
    state["fc.bia"] = state.pop("fc.bias")
    state["conv.bias"] = state["conv.bias"][:2].clone()
    save_file(state, "renamed.safetensors")
    with pytest.raises(ModelError) as caught:
        load(make(weights="renamed.safetensors"))
    assert caught.value.code == "VU-M095"
    assert caught.value.problem.splitlines()[1:] == [
        "  'fc.weight' is missing. Did you mean 'head.weight'?",
        "  'fc.bias' is missing. Did you mean 'fc.bia'?",
        "  'fc.bia' is of no use to the network. Did you mean 'fc.bias'?",
        "  'head.weight' is of no use to the network. Did you mean 'fc.weight'?",
        "  'conv.bias' does not fit. It is (2,), where the network has (4,).",
    ]


def test_many_tensors_that_do_not_fit_are_counted() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(7)))
    with pytest.raises(ModelError) as caught:
        fill(module, {"0.weight": torch.zeros(2, 2)}, Path("w.safetensors"))
    lines = caught.value.problem.splitlines()[1:]
    assert [line.split("'")[1] for line in lines[:5]] == [f"{place}.weight" for place in range(1, 6)]
    assert lines[5:] == ["  ... and 1 more is missing."]


def test_one_name_of_tied_tensors_is_enough(make: Make) -> None:
    model = load(make("small_net:tied"))
    assert torch.equal(model.network["classifier"].again.weight, load_file("weights.safetensors")["fc.weight"])
    state = load_file("weights.safetensors")
    del state["fc.weight"], state["fc.bias"]
    save_file(state, "less.safetensors")
    with pytest.raises(ModelError, match=r"'again.weight' is missing"):
        load(make("small_net:tied", weights="less.safetensors"))


def test_weights_of_another_precision_are_read_into_that_of_the_run(make: Make) -> None:
    state = load_file("weights.safetensors")
    save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, "half.safetensors")
    model = load(make(weights="half.safetensors"))
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert torch.equal(model.network["classifier"].fc.weight, state["fc.weight"].half().float())


# ---- Logits and head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "settings", "code", "words"),
    [
        ("make", {"classes": ("red", "green")}, "VU-M096", "(1, 3), where 2 classes are named"),
        ("make", {"channels": 1}, "VU-M096", "cannot read an image (1, 1, 8, 8): RuntimeError"),
        ("pair", {}, "VU-M096", "with 'tuple', not with a tensor"),
        ("infinite", {}, "VU-M096", "not finite in torch.float32"),
        ("make", {"head": "extr"}, "VU-M097", "no module 'extr'. Did you mean 'extra'?"),
        ("unused", {}, "VU-M097", "'extra' is not used"),
    ],
)
def test_networks_that_are_no_classifier(make: Make, ref: str, settings: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(make(f"small_net:{ref}", **settings))
    assert caught.value.code == code
    assert words in caught.value.problem


def test_a_network_without_linear_maps_needs_a_head(make: Make, save_weights: Save) -> None:
    save_weights("convolutional", "conv.safetensors")
    with pytest.raises(ModelError, match=r"no torch.nn.Linear") as caught:
        load(make("small_net:convolutional", weights="conv.safetensors"))
    assert caught.value.code == "VU-M097"
    model = load(make("small_net:convolutional", weights="conv.safetensors", head="2"))
    assert model.features(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ("red",)}, "at least two classes"),
        ({"classes": ("red", "blue", "red")}, "names 'red' more than once"),
        ({"mean": (0.5, 0.5)}, "mean must have 1 or 3 numbers, but has 2"),
        ({"std": ()}, "std must have 1 or 3 numbers, but has 0"),
        ({"mean": (0.1, 0.2, 0.3), "channels": 1}, "mean must have 1 number, but has 3"),
        ({"std": (0.5, 0.0, 0.5)}, "must be > 0"),
        ({"mean": (math.nan,)}, "finite"),
        ({"size": 0}, "must be >= 1"),
        ({"channels": 2}, "must be one of 1, 3"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TorchModuleConfig(**{"weights": "w.safetensors", "classes": CLASSES, **settings})
