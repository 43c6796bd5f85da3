"""Over everything that is registered: no method is another one under a second name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from vu_core import Edit, LowRank
from vu_core.adapters import apply_edit, edit_digest, save_edit
from vu_core.plugins import discover
from vu_core.registry import Entry
from vu_core.testing import ToyClassifier, UnlearnerTests
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.testing.watching import tensor_digest
from vu_core.training import Training

REGISTERED = [entry for entry in discover().registry.entries("unlearner") if entry.usable]
CONTROLS = ("noop",)
"""Methods that change nothing and say so."""


class OnToyDenoiser(UnlearnerTests):
    __test__ = False
    able: ClassVar[frozenset[str]] = frozenset({"denoise", "tokens", "trajectory"})

    def make_model(self) -> Any:
        return ToyDenoiser()

    def make_data(self, run: Any) -> Any:
        return toy_data()


class FreshClassifier(ToyClassifier):
    """The toy with weights to start anew from."""

    def fresh(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(p.shape, generator=generator) for name, p in self.network.named_parameters()}


class OnToyClassifier(UnlearnerTests):
    __test__ = False
    able: ClassVar[frozenset[str]] = frozenset({"classify", "fresh"})

    def make_model(self) -> Any:
        return FreshClassifier()


KITS: tuple[Any, ...] = (OnToyDenoiser, OnToyClassifier)


def fitting(kit: Any) -> list[Entry]:
    """Return the methods that the toy of a kit can do, without controls."""
    able = [e for e in REGISTERED if all(any(part in kit.able for part in need.split("|")) for need in e.needs)]
    return [entry for entry in able if entry.name not in CONTROLS]


def two_edits(folder: Path, model: Any) -> dict[str, Any]:
    """Write two edits of a toy model and return the settings of a method that works on finished ones."""
    digests = []
    matrices = [(name, p.shape) for name, p in model.network.named_parameters() if p.dim() == 2]
    for number, (name, (rows, columns)) in enumerate(matrices[:2]):
        generator = torch.Generator().manual_seed(number)
        a, b = torch.randn(1, columns, generator=generator), torch.randn(rows, 1, generator=generator)
        edit = Edit({name: LowRank(a, b, 1.0)}, base=model.facts.base_hash)
        save_edit(edit, folder / f"{number}.safetensors")
        digests.append(edit_digest(edit))
    return {"sources": str(folder), "digests": tuple(digests), "weights": (1.0, 1.0)}


def settings(plugin: Any, folder: Path, model: Any) -> dict[str, Any]:
    """Return what is not left at the method's own defaults.

    Three steps of training, edits where a method needs some, and a memory that is smaller than the data of the toys.
    """
    fields = attrs.fields_dict(plugin.Config)
    short = {"training": Training(steps=3, batch_size=2, lr=1e-2)} if "training" in fields else {}
    small = {"per_class": 1} if "per_class" in fields else {}
    return {**short, **small, **(two_edits(folder, model) if "sources" in fields else {})}


def changed_weights(entry: Entry, kit: Any, folder: Path) -> str:
    """Return a hash of all weights under the edit that a method makes with its own settings, three steps long."""
    plugin = entry.load()
    case = type("Case", (kit,), {"plugin": plugin, "axes": entry.axes})()
    model = case.make_model()
    config = plugin.Config(**settings(plugin, folder / "sources", model))
    with apply_edit(model.network, case.unlearn(folder, config)):
        return tensor_digest(dict(model.network.named_parameters()))


def equal_pairs(entries: Sequence[Entry], kit: Any, folder: Path) -> list[tuple[str, str]]:
    found = [(entry.name, changed_weights(entry, kit, folder / str(row))) for row, entry in enumerate(entries)]
    untouched = tensor_digest(dict(kit().make_model().network.named_parameters()))
    found.append(("the untouched model", untouched))
    return [(a, b) for (a, one), (b, other) in itertools.combinations(found, 2) if one == other]


@pytest.mark.parametrize("kit", KITS)
def test_no_two_registered_unlearners_give_equal_edits_on_one_seed(kit: Any, tmp_path: Path) -> None:
    """And each of them changes the weights."""
    assert len(fitting(kit)) >= 3
    assert equal_pairs(fitting(kit), kit, tmp_path) == []


def test_a_method_under_two_names_would_be_noticed(tmp_path: Path) -> None:
    method = fitting(OnToyDenoiser)[0]
    assert equal_pairs([method, method], OnToyDenoiser, tmp_path) == [(method.name,) * 2]


def test_a_method_without_effect_would_be_noticed(tmp_path: Path) -> None:
    noop = [entry for entry in REGISTERED if entry.name in CONTROLS]
    assert equal_pairs(noop, OnToyClassifier, tmp_path) == [("noop", "the untouched model")]


def test_composition_takes_part() -> None:
    assert all("composition" in [entry.name for entry in fitting(kit)] for kit in KITS)
