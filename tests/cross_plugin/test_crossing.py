"""The axes cross: every method that honours an axis takes every plugin of it, found through the registry.

One step on a toy model each. The first step of FADE, whose retain gradient is exactly zero, is among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from vu_classifiers.image_classifier import ImageClassifier
from vu_core import Capability, Classifier, Edit, Event, LowRank, ModelFacts, Sparse
from vu_core.adapters import apply_edit, edit_digest
from vu_core.plugins import discover
from vu_core.registry import Entry
from vu_core.stages.load import base_method
from vu_core.testing import ToyClassifier, ToyData, ToyDenoiser, toy_data, toy_run
from vu_core.testing.toys import AXES, SIZE, ToyDataConfig
from vu_core.testing.unlearner_tests import make_axis
from vu_core.testing.watching import tensor_digest
from vu_core.training import Training

PLUGINS = discover()
FADE = {"fade", "fade-sparse-module", "fade-sparse-weight"}
TURNS = {"scrub", "scrub-s"}
"""Methods that train one side at a time, the forgotten one first, whose gradient is exactly zero at the start."""
STEPS = 40
"""Of such a method: both turns."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.ffn(x)


class Transformer(nn.Module):
    """Two blocks on four patches of a toy image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, SIZE // 2, SIZE // 2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, len(AXES["colour"]))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, 4, 8)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def transformer() -> ImageClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer()
    can = frozenset({Capability.CLASSIFY, Capability.BLOCKS, Capability.FRESH})
    facts = ModelFacts("toy-transformer", "", "hash", can, parameters=1, bytes=4, resolution=SIZE)
    return ImageClassifier(network, facts, classes=AXES["colour"], axis="colour", make=Transformer)


MODELS = {"denoise": ToyDenoiser, "classify": ToyClassifier, "transformer": transformer}

Case = tuple[Entry, str, dict[str, Any]]


def methods(axis: str) -> Iterator[Case]:
    """Yield every usable method that honours an axis, per kind of model; those with parameters also with others."""
    for entry in PLUGINS.registry.entries("unlearner"):
        if not entry.usable or axis not in entry.axes:
            continue
        if {"blocks", "fresh"} & set(entry.needs):
            yield entry, "transformer", {}
            continue
        for kind in MODELS:
            if any(kind in need.split("|") for need in entry.needs):
                yield entry, kind, {}
    yield PLUGINS.registry.get("unlearner", "fade"), "denoise", {"parameters": {"name": "elastic-lora"}}


def named(case: Case) -> str:
    entry, kind, axes = case
    return "-".join([entry.name, kind, *(table["name"] for table in axes.values())])


def usable(kind: str) -> list[str]:
    return [entry.name for entry in PLUGINS.registry.entries(kind) if entry.usable]


def data_for(model: Any, run: Any) -> Any:
    if not isinstance(model, Classifier):
        return toy_data()
    data = ToyData("", ToyDataConfig())
    built = data.build(data.parse(["colour:red"], []), resolution=SIZE, run=run)
    return built.map(lambda table: model.prepare(table, run))


def one_step(folder: Path, case: Case, changes: Mapping[str, Any], **training: Any) -> tuple[Edit, Any, list[Event]]:
    """Run a method for one step with its own defaults but for ``changes``; return edit, model and events."""
    entry, kind, axes = case
    plugin, model, events = entry.load(), MODELS[kind](), list[Event]()
    steps = STEPS if entry.name in TURNS else 1
    config = plugin.Config(training=Training(**{"steps": steps, "batch_size": 2, "lr": 1e-2, **training}))
    wanted = {**getattr(plugin, "defaults", {}), **axes, **changes}
    run = toy_run(folder, training=config.training, emit_event=events.append)
    run.resolve = lambda name, settings: base_method(PLUGINS, name, settings)
    fallbacks = {"parameters": "lora", "weighting": "simple"}
    for axis in ("parameters", "weighting", "attribution"):
        if axis in wanted or (axis in fallbacks and axis in entry.axes):
            setattr(run, axis, make_axis(axis, {"name": fallbacks.get(axis), **wanted.get(axis, {})}))
    regularizers = wanted.get("regularizer", {})
    run.regularizers = tuple(make_axis("regularizer", {"name": name, **table}) for name, table in regularizers.items())
    try:
        edit = plugin(config).unlearn(model, data_for(model, run), run)
    finally:
        run.release()
    return edit, model, events


def check_changes(edit: Edit, model: Any) -> None:
    """Every change is finite, and the weights under the edit are others."""
    weights = dict(model.network.named_parameters())
    untouched = tensor_digest(weights)
    for name, part in edit:
        delta = part.delta() if isinstance(part, LowRank | Sparse) else part.tensor - weights[name].detach()
        assert bool(torch.isfinite(delta).all()), f"the change of {name!r} is not finite"
    with apply_edit(model.network, edit):
        assert tensor_digest(dict(model.network.named_parameters())) != untouched, "the edit changes nothing"


@pytest.mark.parametrize("weighting", usable("weighting"))
@pytest.mark.parametrize("case", list(methods("weighting")), ids=named)
def test_every_method_takes_every_weighting(case: Case, weighting: str, tmp_path: Path) -> None:
    edit, model, events = one_step(tmp_path, case, {"weighting": {"name": weighting}})
    check_changes(edit, model)
    conflicts = [event.values for event in events if event.type == "gradient_conflict"]
    for conflict in conflicts:
        numbers = [value for value in conflict.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers)), f"not finite: {dict(conflict)}"
    if not PLUGINS.registry.get("weighting", weighting).load().linear:
        assert len(conflicts) == (STEPS if case[0].name in TURNS else 1)
        if case[0].name in FADE:
            assert conflicts[0]["norm_r"] == 0, "the first retain gradient of FADE is exactly zero"
            assert conflicts[0]["norm_f"] > 0


@pytest.mark.parametrize("weighting", usable("weighting"))
def test_other_methods_see_two_gradients(weighting: str, tmp_path: Path) -> None:
    """Without this the matrix could consist of steps with a zero gradient alone."""
    if PLUGINS.registry.get("weighting", weighting).load().linear:
        pytest.skip("a linear weighting looks at no gradient")
    case: Case = (PLUGINS.registry.get("unlearner", "random-label"), "denoise", {})
    _, _, events = one_step(tmp_path, case, {"weighting": {"name": weighting}})
    (conflict,) = [event.values for event in events if event.type == "gradient_conflict"]
    assert conflict["norm_r"] > 0
    assert conflict["norm_f"] > 0


@pytest.mark.parametrize("density", [0.1, 0.5])
@pytest.mark.parametrize("case", [case for case in methods("regularizer") if not case[2]], ids=named)
def test_every_method_with_a_regularizer_takes_the_hard_mask(case: Case, density: float, tmp_path: Path) -> None:
    """The attribution is the run's, whatever the method honours; no more weights change than the mask allows."""
    changes = {
        "parameters": {"name": "full"},
        "regularizer": {"hard-mask": {"density": density}},
        "attribution": {"name": "magnitude"},
    }
    edit, model, _ = one_step(tmp_path, case, changes, weight_decay=0.1)
    check_changes(edit, model)
    before = {name: value.detach().clone() for name, value in model.network.named_parameters()}
    with apply_edit(model.network, edit):
        after = dict(model.network.named_parameters())
        changed = sum(int((after[name] != value).sum()) for name, value in before.items())
    assert 0 < changed <= math.floor(density * edit.facts["tuned_parameters"])


@pytest.mark.parametrize("anchor", ["l2", "ewc", "mas"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random-label", "classify"),
        ("gradient-ascent", "classify"),
        ("gs-lora", "transformer"),
        ("random-label", "denoise"),
        ("fade", "denoise"),
    ],
)
def test_methods_of_other_kinds_take_the_anchors(name: str, kind: str, anchor: str, tmp_path: Path) -> None:
    """They hold nothing in the first step, where all weights are those of before, and something afterwards."""
    case: Case = (PLUGINS.registry.get("unlearner", name), kind, {})
    digests = set()
    for regularizer in ({}, {anchor: {"strength": 1e4}}):
        changes = {"parameters": {"name": "full"}, "regularizer": regularizer}
        edit, model, _ = one_step(tmp_path / str(len(digests)), case, changes, steps=3)
        check_changes(edit, model)
        digests.add(edit_digest(attrs.evolve(edit, facts={})))
    assert len(digests) == 2


def test_the_matrix_is_as_large_as_it_should_be() -> None:
    crossed = {entry.name for entry, _, _ in methods("weighting")}
    assert crossed >= {"fade", "fade-sparse-module", "fade-sparse-weight", "esd", "random-label", "salun", "munba"}
    classifiers = {entry.name for entry, kind, _ in methods("weighting") if kind == "classify"}
    assert classifiers >= {"random-label", "salun", "munba", "gradient-ascent", "scrub", "ewc", "der-plus-plus"}
    transformers = {entry.name for entry, kind, _ in methods("weighting") if kind == "transformer"}
    assert transformers >= {"gs-lora", "gs-lora-plus-plus", "lirf"}
    known = {"none", "simple", "munba", "munba-v1-compat", "munba-official-compat", "nash-asymmetric"}
    assert set(usable("weighting")) >= {*known, "pcgrad", "cagrad"}


def test_an_edit_without_effect_would_be_noticed() -> None:
    model = ToyDenoiser()
    name, weight = next(iter(model.network.named_parameters()))
    idle = Edit({name: LowRank(torch.zeros(1, weight[0].numel()), torch.ones(len(weight), 1), 1.0)}, base="")
    with pytest.raises(AssertionError, match="changes nothing"):
        check_changes(idle, model)
    broken = attrs.evolve(
        idle, parts={name: LowRank(torch.full((1, weight[0].numel()), math.nan), idle.parts[name].B, 1)}
    )  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match="not finite"):
        check_changes(broken, model)
