"""The conformance kit of the core on the baselines of continual learning and their regularizers."""

from __future__ import annotations

from vu_baselines.der import Der
from vu_baselines.der_plus_plus import DerPlusPlus
from vu_baselines.ewc import Ewc, EwcAnchor
from vu_baselines.fdr import Fdr
from vu_baselines.l2 import L2, L2Anchor
from vu_baselines.lirf import Lirf
from vu_baselines.lwf import Lwf
from vu_baselines.mas import Mas, MasAnchor
from vu_baselines.plugin import AXES
from vu_baselines.scrub import Scrub
from vu_baselines.scrub_s import ScrubS
from vu_core import TransformerBlock
from vu_core.testing import RegularizerTests, ToyClassifier, UnlearnerTests, toy_forget_retain
from vu_core.training import Training

QUICK = Training(steps=4, batch_size=2, lr=1e-2)


class Halved(ToyClassifier):
    """A toy that calls its convolution and its hidden layer blocks."""

    def blocks(self):
        return (
            TransformerBlock("classifier.conv", ("classifier.conv.weight", "classifier.conv.bias")),
            TransformerBlock("classifier.hidden", ("classifier.hidden.weight", "classifier.hidden.bias")),
        )


class OfAClassifier(UnlearnerTests):
    settings = {"training": QUICK}
    axes = AXES
    # Shows where a model carries earlier edits: see test_continual_baselines.py.
    tested_elsewhere = ("teacher",)
    __test__ = False

    def make_model(self):
        return Halved()


class TestL2(OfAClassifier):
    plugin = L2
    __test__ = True


class TestEwc(OfAClassifier):
    plugin = Ewc
    __test__ = True


class TestMas(OfAClassifier):
    plugin = Mas
    __test__ = True


class TestLwf(OfAClassifier):
    plugin = Lwf
    __test__ = True


class TestDer(OfAClassifier):
    plugin = Der
    __test__ = True


class TestDerPlusPlus(OfAClassifier):
    plugin = DerPlusPlus
    __test__ = True


class TestFdr(OfAClassifier):
    plugin = Fdr
    __test__ = True


class TestScrub(OfAClassifier):
    plugin = Scrub
    settings = {
        "training": Training(epochs=3, batch_size=2, lr=1e-2, epoch_of="retain"),
        "inner_epochs": 2,
        "max_epochs": 1,
    }
    other_values = {"cap": 1e-9}
    __test__ = True


class TestScrubS(TestScrub):
    plugin = ScrubS


class TestLirf(OfAClassifier):
    plugin = Lirf
    tested_elsewhere = ("teacher", "deposit")
    other_values = {"attention_cap": 1e-6}
    __test__ = True


class TestL2Anchor(RegularizerTests):
    plugin = L2Anchor
    tested_elsewhere = ("online",)  # shows where a model carries earlier edits: see test_anchors.py


class TestEwcAnchor(RegularizerTests):
    plugin = EwcAnchor
    tested_elsewhere = ("online", "batch_size")


class TestEwcAnchorOfBatches(RegularizerTests):
    plugin = EwcAnchor
    settings = {"variant": "parity", "batch_size": 2}
    tested_elsewhere = ("online",)


class TestMasAnchor(RegularizerTests):
    plugin = MasAnchor
    tested_elsewhere = ("online", "batch_size")


class TestMasAnchorOfBatches(RegularizerTests):
    plugin = MasAnchor
    settings = {"variant": "parity", "batch_size": 2}
    tested_elsewhere = ("online",)

    def make_model(self):
        return ToyClassifier()

    def make_data(self, run):
        return toy_forget_retain(run, model=ToyClassifier())
