"""The conformance kit of the core on every attribution."""

from __future__ import annotations

from vu_attribution.fisher import Fisher
from vu_attribution.magnitude import Magnitude
from vu_attribution.random import Random
from vu_attribution.saliency import Saliency
from vu_core.testing import AttributionTests


class TestSaliency(AttributionTests):
    plugin = Saliency
    settings = {"batch_size": 3}  # four forget examples: the last batch is not full


class TestSaliencyWithContrast(AttributionTests):
    plugin = Saliency
    settings = {"contrast": "retain_ratio", "reduce": "mean", "batch_size": 3}


class TestFisher(AttributionTests):
    plugin = Fisher


class TestMagnitude(AttributionTests):
    plugin = Magnitude


class TestRandom(AttributionTests):
    plugin = Random
