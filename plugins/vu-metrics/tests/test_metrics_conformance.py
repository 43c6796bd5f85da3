"""The conformance kit on every metric of this distribution."""

from __future__ import annotations

from typing import Any

from vu_core import Edit, Evaluation, Replace, Run
from vu_core.testing import MetricTests, ToyClassifier, toy_evaluation
from vu_metrics.classification import Classification
from vu_metrics.continual import Continual
from vu_metrics.denoising_gap import DenoisingGap
from vu_metrics.edit_size import EditSize
from vu_metrics.head_recovery import HeadRecovery
from vu_metrics.linear_probe import LinearProbe
from vu_metrics.mia import MembershipInference
from vu_metrics.relearn_time import RelearnTime
from vu_metrics.unlearncanvas import UnlearnCanvas


class TestUnlearnCanvas(MetricTests):
    plugin = UnlearnCanvas


class TestEditSize(MetricTests):
    plugin = EditSize
    reads_evaluation = False


class TestDenoisingGap(MetricTests):
    plugin = DenoisingGap
    settings = {"examples": 6, "draws": 2, "coordinates": 16, "resamples": 100}
    other_values = {"min_share": -1e6, "examples": 1}

    def make_evaluation(self, run: Run) -> Evaluation:
        """Enough images for intervals."""
        return toy_evaluation(run, unseen=3)


class OfAClassifier(MetricTests):
    """What is asked of a classifier: it knows all three colours, and with the edit never names red."""

    def make_model(self) -> Any:
        """It knows all three colours."""
        return ToyClassifier()

    def make_edit(self, model: Any) -> Edit:
        """Red is never named again."""
        bias = model.network["classifier"].fc.bias.detach().clone()
        bias[0] -= 100
        return Edit({"classifier.fc.bias": Replace(bias)})


class TestClassification(OfAClassifier):
    plugin = Classification
    settings = {"batch_size": 2}
    tested_elsewhere = ("max_gap", "mia_seed")


class TestMembershipInference(OfAClassifier):
    plugin = MembershipInference
    settings = {"batch_size": 2}
    tested_elsewhere = ("members", "seed")


class TestContinual(OfAClassifier):
    plugin = Continual
    settings = {"batch_size": 2}


class TestHeadRecovery(OfAClassifier):
    plugin = HeadRecovery
    settings = {"batch_size": 2, "epochs": 2, "at": (0,)}
    other_values = {"epochs": 3, "at": (0, 1)}
    tested_elsewhere = ("lr", "min_lr", "step_size")


class TestLinearProbe(OfAClassifier):
    plugin = LinearProbe
    settings = {"batch_size": 2}
    tested_elsewhere = ("penalty", "neighbours")

    def make_edit(self, model: Any) -> Edit:
        """The features say nothing any more."""
        weight = model.network["classifier"].hidden.weight
        return Edit({"classifier.hidden.weight": Replace(weight.detach() * 0)})


class TestRelearnTime(OfAClassifier):
    plugin = RelearnTime
    settings = {"batch_size": 2, "steps": (0, 2)}
    other_values = {"steps": (0, 1, 2)}
    tested_elsewhere = ("images", "lr", "control")
