"""Over everything that is registered: no method is another one under a second name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from vu_core import Edit, LowRank
from vu_core.adapters import apply_edit, edit_digest, save_edit
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


def two_edits(folder: Path) -> dict[str, Any]:
    """Write two edits of the toy model and return the settings of a method that works on finished ones."""
    digests = []
    for number, name in enumerate(("unet.attn1.to_q.weight", "unet.attn2.to_v.weight")):
        generator = torch.Generator().manual_seed(number)
        a, b = torch.randn(1, 8, generator=generator), torch.randn(8, 1, generator=generator)
        edit = Edit({name: LowRank(a, b, 1.0)}, base=ToyDenoiser().facts.base_hash)
        save_edit(edit, folder / f"{number}.safetensors")
        digests.append(edit_digest(edit))
    return {"sources": str(folder), "digests": tuple(digests), "weights": (1.0, 1.0)}


def settings(plugin: Any, folder: Path) -> dict[str, Any]:
    """Return what is not left at the method's own defaults: three steps of training, and edits where it needs some."""
    fields = attrs.fields_dict(plugin.Config)
    short = {"training": Training(steps=3, batch_size=2, lr=1e-2)} if "training" in fields else {}
    return {**short, **(two_edits(folder) if "sources" in fields else {})}


def changed_weights(entry: Entry, folder: Path) -> str:
    """Return a hash of all weights under the edit that a method makes with its own settings, three steps long."""
    plugin = entry.load()
    case = type("Case", (OnToyDenoiser,), {"plugin": plugin, "axes": entry.axes})()
    config = plugin.Config(**settings(plugin, folder / "sources"))
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


def test_composition_takes_part() -> None:
    assert "composition" in [entry.name for entry in METHODS]


def test_every_method_changes_the_weights(tmp_path: Path) -> None:
    untouched = tensor_digest(dict(ToyDenoiser().network.named_parameters()))
    assert untouched not in [changed_weights(entry, tmp_path / entry.name) for entry in METHODS]
