"""Over everything that is registered: no method is another one under a second name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_core.adapters import apply_edit
from vu_core.plugins import discover
from vu_core.registry import Entry
from vu_core.testing import UnlearnerTests
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.testing.watching import tensor_digest
from vu_core.training import Training

METHODS = [entry for entry in discover().registry.entries("unlearner") if entry.usable]


class OnToyDenoiser(UnlearnerTests):
    __test__ = False

    def make_model(self) -> Any:
        return ToyDenoiser()

    def make_data(self, run: Any) -> Any:
        return toy_data()


def changed_weights(entry: Entry, folder: Path) -> str:
    """Return a hash of all weights under the edit that a method makes with its own settings, three steps long."""
    plugin = entry.load()
    case = type("Case", (OnToyDenoiser,), {"plugin": plugin, "axes": entry.axes})()
    trains = "training" in attrs.fields_dict(plugin.Config)
    config = plugin.Config(**({"training": Training(steps=3, batch_size=2, lr=1e-2)} if trains else {}))
    model = ToyDenoiser()
    with apply_edit(model.network, case.unlearn(folder, config)):
        return tensor_digest(dict(model.network.named_parameters()))


def equal_pairs(entries: Sequence[Entry], folder: Path) -> list[tuple[str, str]]:
    found = [(entry.name, changed_weights(entry, folder / str(row))) for row, entry in enumerate(entries)]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(found, 2) if one == other]


def test_no_two_registered_unlearners_give_equal_edits_on_one_seed(tmp_path: Path) -> None:
    assert len(METHODS) >= 3
    assert equal_pairs(METHODS, tmp_path) == []


def test_a_method_under_two_names_would_be_noticed(tmp_path: Path) -> None:
    assert equal_pairs([METHODS[0], METHODS[0]], tmp_path) == [(METHODS[0].name,) * 2]


def test_every_method_changes_the_weights(tmp_path: Path) -> None:
    untouched = tensor_digest(dict(ToyDenoiser().network.named_parameters()))
    assert untouched not in [changed_weights(entry, tmp_path / entry.name) for entry in METHODS]
