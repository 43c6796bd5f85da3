"""Negation with everything that can be trained: the edit is the opposite of what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vu_core import Edit, Run
from vu_core.adapters import compose
from vu_core.plugins import discover
from vu_core.registry import Entry
from vu_core.testing import toy_run
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training
from vu_fade.lora_negation import LoraNegation, LoraNegationConfig

PARAMETERS = [entry for entry in discover().registry.entries("parameters") if entry.usable]


def learned_and_edit(entry: Entry, model: Any, folder: Path) -> tuple[Edit, Edit]:
    plugin = entry.load()
    run: Run = toy_run(folder, training=Training(steps=3, batch_size=2, lr=1e-2), parameters=plugin(plugin.Config()))
    edit = LoraNegation(LoraNegationConfig()).unlearn(model, toy_data(), run)
    learned = run.attached[-1].edit()
    run.release()
    return learned, edit


@pytest.mark.parametrize("entry", PARAMETERS, ids=lambda entry: entry.name)
def test_the_edit_moves_every_weight_against_what_was_learned(entry: Entry, tmp_path: Path) -> None:
    model = ToyDenoiser()
    learned, edit = learned_and_edit(entry, model, tmp_path)
    assert edit.parts.keys() == learned.parts.keys()
    for name, part in edit:
        base = model.network.get_parameter(name).detach()
        towards, away = (compose(base, [each]).double() - base.double() for each in (learned.parts[name], part))
        assert towards.any()
        torch.testing.assert_close(away, -towards, rtol=0, atol=1e-6)


def test_there_are_several_kinds() -> None:
    assert len(PARAMETERS) >= 3
