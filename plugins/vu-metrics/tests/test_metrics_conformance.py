"""The conformance kit on every metric of this distribution."""

from __future__ import annotations

from typing import Any

from vu_core import Edit, Evaluation, Replace, Run
from vu_core.testing import MetricTests, ToyClassifier, toy_evaluation
from vu_metrics.classification import Classification
from vu_metrics.denoising_gap import DenoisingGap
from vu_metrics.edit_size import EditSize
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


class TestClassification(MetricTests):
    plugin = Classification
    settings = {"batch_size": 2}

    def make_model(self) -> Any:
        """It knows all three colours."""
        return ToyClassifier()

    def make_edit(self, model: Any) -> Edit:
        """Red is never named again."""
        bias = model.network["classifier"].fc.bias.detach().clone()
        bias[0] -= 100
        return Edit({"classifier.fc.bias": Replace(bias)})
