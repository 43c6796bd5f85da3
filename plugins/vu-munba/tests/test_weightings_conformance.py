"""What every weighting promises, for all six."""

from vu_core.testing import WeightingTests
from vu_munba.asymmetric import NashAsymmetric
from vu_munba.cagrad import CAGrad
from vu_munba.compat import MunbaOfficialCompat, MunbaV1Compat
from vu_munba.munba import Munba
from vu_munba.pcgrad import PCGrad

# What GRAMS of the kit does not contain: gradients that are not finite, and norms between the floors.
BARGAIN_ELSEWHERE = ("nonfinite", "floor", "relative_floor")
# The gradient beside a zero one has norm 1 there: "raw" and "single" agree.
BARGAIN_VALUES = {"zero": "skip"}


class TestMunba(WeightingTests):
    plugin = Munba
    tested_elsewhere = BARGAIN_ELSEWHERE
    other_values = BARGAIN_VALUES


class TestNashAsymmetric(WeightingTests):
    plugin = NashAsymmetric
    tested_elsewhere = BARGAIN_ELSEWHERE
    other_values = BARGAIN_VALUES


class TestPCGrad(WeightingTests):
    plugin = PCGrad


class TestCAGrad(WeightingTests):
    plugin = CAGrad


class TestMunbaV1Compat(WeightingTests):
    plugin = MunbaV1Compat


class TestMunbaOfficialCompat(WeightingTests):
    plugin = MunbaOfficialCompat
