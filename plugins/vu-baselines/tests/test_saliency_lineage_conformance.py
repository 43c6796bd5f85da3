"""The conformance kit of the core on the methods for classifiers that take no teacher and no anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vu_baselines.boundary_expand import BoundaryExpand
from vu_baselines.boundary_shrink import BoundaryShrink
from vu_baselines.fine_tune import FineTune
from vu_baselines.fine_tune_prune import FineTunePrune
from vu_baselines.fisher_noise import FisherNoise
from vu_baselines.gradient_ascent import GradientAscent, NegGradPlus
from vu_baselines.head_mask import HeadMask
from vu_baselines.influence import Influence
from vu_baselines.l1_sparse import L1Sparse
from vu_baselines.noop import Noop
from vu_baselines.plugin import AXES
from vu_baselines.random_drop import RandomDrop
from vu_baselines.rehearsal import Rehearsal
from vu_baselines.retrain import Retrain
from vu_baselines.salun_soft import SalUnSoft
from vu_baselines.soft_threshold import SoftThreshold
from vu_core import Run, Theta
from vu_core.adapters import Full, FullConfig
from vu_core.testing import RegularizerTests, ToyClassifier, UnlearnerTests, toy_run
from vu_core.training import Training

QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2)}
ONE_SIDED = ("parameters", "regularizer")


class OfClassifier(UnlearnerTests):
    __test__ = False
    settings = QUICK
    axes = AXES

    def make_model(self) -> Any:
        return ToyClassifier()


class TestFineTune(OfClassifier):
    __test__ = True
    plugin = FineTune
    axes = ONE_SIDED
    tested_elsewhere = ("batch_norm",)  # the toy has none: see test_moving_statistics.py


class FreshClassifier(ToyClassifier):
    def fresh(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(p.shape, generator=generator) / 3 for name, p in self.network.named_parameters()}


class TestRetrain(OfClassifier):
    __test__ = True
    plugin = Retrain
    axes = ONE_SIDED
    tested_elsewhere = ("batch_norm",)

    def make_model(self) -> Any:
        return FreshClassifier()


class TestL1Sparse(OfClassifier):
    __test__ = True
    plugin = L1Sparse
    axes = ONE_SIDED
    tested_elsewhere = ("batch_norm",)


class TestFineTunePrune(OfClassifier):
    __test__ = True
    plugin = FineTunePrune
    settings = {"training": Training(epochs=3, batch_size=4, lr=1e-2), "every": 1}  # prunes after steps 2 and 4
    axes = ONE_SIDED
    tested_elsewhere = ("batch_norm",)


class TestRehearsal(OfClassifier):
    __test__ = True
    plugin = Rehearsal
    axes = ONE_SIDED
    other_values = {"per_class": 1}
    tested_elsewhere = ("batch_norm",)


class TestGradientAscent(OfClassifier):
    __test__ = True
    plugin = GradientAscent
    other_values = {"cap": 0.01}


class TestNegGradPlus(OfClassifier):
    __test__ = True
    plugin = NegGradPlus
    other_values = {"cap": 0.01}


class TestBoundaryShrink(OfClassifier):
    __test__ = True
    plugin = BoundaryShrink
    other_values = {"epsilon": 2.0}


class TestBoundaryExpand(OfClassifier):
    __test__ = True
    plugin = BoundaryExpand


class TestFisherNoise(OfClassifier):
    __test__ = True
    plugin = FisherNoise
    settings = {"alpha": 1e-2}  # so much that some weights are at the bound
    axes = ("attribution",)


class TestInfluence(OfClassifier):
    __test__ = True
    plugin = Influence
    settings = {"samples": 3}
    axes = ()
    other_values = {"samples": 2}


class TestHeadMask(OfClassifier):
    __test__ = True
    plugin = HeadMask
    settings = {}
    axes = ()


class TestRandomDrop(OfClassifier):
    __test__ = True
    plugin = RandomDrop
    settings = {}
    axes = ()


class TestNoop(OfClassifier):
    __test__ = True
    plugin = Noop
    settings = {}
    axes = ()
    may_be_identity = True


class TestSalUnSoft(OfClassifier):
    __test__ = True
    plugin = SalUnSoft
    other_values = {"base": {"relabel": "next"}, "base_method": "gradient-ascent"}


class TestSalUnSoftOfADenoiser(UnlearnerTests):
    plugin = SalUnSoft
    settings = QUICK
    axes = AXES
    other_values = {"base": {"teacher": "base"}}
    tested_elsewhere = ("base_method",)


class TestSoftThreshold(RegularizerTests):
    plugin = SoftThreshold
    tested_elsewhere = ("ratio",)  # here all changes are equal, so none is smaller: see test_closed_forms.py

    def attach(self, folder: Path) -> tuple[Any, Theta, Run]:
        model, run = self.make_model(), toy_run(folder, training=Training(steps=4, batch_size=2))
        return model, Full(FullConfig()).attach(model, run), run
