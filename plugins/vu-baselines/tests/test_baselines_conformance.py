"""The conformance kit of the core on the baselines, each with a denoiser and with a classifier."""

from __future__ import annotations

from vu_baselines.plugin import AXES
from vu_baselines.random_label import RandomLabel
from vu_baselines.salun import SalUn
from vu_core.testing import RecipeTests, ToyClassifier, UnlearnerTests
from vu_core.training import Training

QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2)}


class TestRandomLabel(UnlearnerTests):
    plugin = RandomLabel
    settings = QUICK
    axes = AXES
    other_values = {"subset": "x"}
    tested_elsewhere = ("subset",)  # a toy painter has no attention: see test_random_label.py


class TestRandomLabelOfAClassifier(UnlearnerTests):
    plugin = RandomLabel
    settings = QUICK
    axes = AXES
    other_values = {"subset": "x"}

    def make_model(self):
        return ToyClassifier()


class TestSalUn(UnlearnerTests):
    plugin = SalUn
    settings = QUICK
    axes = (*AXES, "attribution")
    other_values = {"base": {"teacher": "base"}}
    tested_elsewhere = ("base_method",)  # see test_salun.py


class TestSalUnOfAClassifier(UnlearnerTests):
    plugin = SalUn
    settings = QUICK
    axes = (*AXES, "attribution")
    other_values = {"base": {"relabel": "next"}}
    tested_elsewhere = ("base_method",)

    def make_model(self):
        return ToyClassifier()


class TestRandomLabelRecipe(RecipeTests):
    target = "vu_baselines:recipes/torch-module-random-label.toml"


class TestSalUnRecipe(RecipeTests):
    target = "vu_baselines:recipes/torch-module-salun.toml"
