"""The conformance kit of the core on the variants of FADE and on negation."""

from __future__ import annotations

from vu_core.testing import UnlearnerTests
from vu_core.training import Training
from vu_fade.fade import Fade
from vu_fade.lora_negation import LoraNegation
from vu_fade.plugin import AXES
from vu_fade.sparse_module import FadeSparseModule
from vu_fade.sparse_weight import FadeSparseWeight

QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2)}
ROUNDING = ("split_backward",)
"""Another order of sums: equal within rounding, which test_fade_training.py checks."""


class TestFade(UnlearnerTests):
    plugin = Fade
    settings = QUICK
    axes = AXES
    tested_elsewhere = ROUNDING


class TestFadeWithTeacherBank(UnlearnerTests):
    plugin = Fade
    settings = {**QUICK, "teacher_bank": 4}
    axes = AXES
    tested_elsewhere = ROUNDING


class TestFadeSparseModule(UnlearnerTests):
    plugin = FadeSparseModule
    settings = QUICK
    axes = (*AXES, "attribution")
    tested_elsewhere = ROUNDING


class TestFadeSparseWeight(UnlearnerTests):
    plugin = FadeSparseWeight
    settings = QUICK
    axes = (*AXES, "attribution")
    tested_elsewhere = (*ROUNDING, "ties")  # no two scores are equal here; see test_fade_training.py


class TestLoraNegation(UnlearnerTests):
    plugin = LoraNegation
    settings = QUICK
    axes = ("parameters", "regularizer")
