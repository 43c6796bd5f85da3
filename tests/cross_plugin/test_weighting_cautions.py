"""Acceptance truth 9 of gradient weighting: a run with a rule kept for parity says that it is known incorrect."""

import pytest

from vu_core.config import FLAG_KEYS, Override
from vu_core.plugins import discover
from vu_core.stages.plan import plan
from vu_core.stages.read import read
from vu_core.stages.structure import structure


@pytest.mark.parametrize("name", ["munba-v1-compat", "munba-official-compat", "munba"])
def test_parity_is_told_with_the_plan(name):
    plugins = discover()
    flags = {"method": "fade", "forget": ("style:neon",), "weighting": name, "seed": 1}
    overrides = [Override(FLAG_KEYS[f"--{flag}"], value, f"--{flag}") for flag, value in flags.items()]
    drawn = plan(structure(read(None, overrides), plugins), plugins)
    told = [note for note in drawn.notes if "known incorrect" in note and "reproduces historical behaviour" in note]
    assert len(told) == (name != "munba")
    assert all(f"'{name}'" in note for note in told)
