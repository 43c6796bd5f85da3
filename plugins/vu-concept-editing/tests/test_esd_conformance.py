"""The conformance kit of the core on ESD."""

from __future__ import annotations

from vu_concept_editing.esd import Esd
from vu_core.testing import UnlearnerTests
from vu_core.training import Training

AXES = ("parameters", "weighting", "regularizer")
QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2), "sampling_steps": 3}
OTHERS = {
    "prompts": ("red",),
    "subset": "u",
    "erase_from": "overwrite",
    "bank": 4,
}


class TestEsd(UnlearnerTests):
    plugin = Esd
    settings = QUICK
    axes = AXES
    other_values = OTHERS
    tested_elsewhere = ("from_prompts", "bank", "common_prompts")  # each needs another field beside it: see below


class TestEsdFromPrompts(UnlearnerTests):
    plugin = Esd
    settings = {**QUICK, "prompts": ("red",), "erase_from": "prompts", "from_prompts": ("a red dot",)}
    axes = AXES
    other_values = {"prompts": ("dot",), "from_prompts": ("a bar",), "subset": "u"}
    tested_elsewhere = ("erase_from", "bank", "common_prompts")


class TestEsdWithBank(UnlearnerTests):
    plugin = Esd
    settings = {**QUICK, "sampled_by": "base", "bank": 4, "erase_from": "common"}
    axes = AXES
    other_values = {**OTHERS, "erase_from": "none", "bank": 6, "common_prompts": 1}
    tested_elsewhere = ("from_prompts", "sampled_by")
