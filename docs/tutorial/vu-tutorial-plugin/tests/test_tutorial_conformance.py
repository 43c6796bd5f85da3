"""Every test of the conformance kit, inherited."""

from vu_tutorial.contrast import Contrast
from vu_tutorial.mute import Mute

from vu_core.testing import MetricTests, UnlearnerTests
from vu_core.training import Training


class TestMute(UnlearnerTests):
    plugin = Mute
    settings = {"training": Training(steps=4, batch_size=2, lr=1e-2)}


class TestContrast(MetricTests):
    plugin = Contrast
