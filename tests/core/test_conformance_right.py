"""The conformance kit on plugins that are right: the toys and what the core brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vu_core.adapters import Full, Lora, MaskedLora
from vu_core.hard_mask import HardMask
from vu_core.testing import (
    AttributionTests,
    DatasetTests,
    ExporterTests,
    MetricTests,
    ModelTests,
    ParametersTests,
    RegularizerTests,
    SequenceTests,
    ToyAttribution,
    ToyBrightness,
    ToyClassifierModel,
    ToyData,
    ToyDistillation,
    ToyExporter,
    ToyModel,
    ToyPenalty,
    ToySequence,
    ToyWeighting,
    UnlearnerTests,
    WeightingTests,
)
from vu_core.weightings import ForgetOnly, Simple


class TestToyModel(ModelTests):
    plugin = ToyModel


class TestToyClassifier(ModelTests):
    plugin = ToyClassifierModel
    label_axis = "colour"


class TestToySequence(SequenceTests):
    plugin = ToySequence


class TestToyData(DatasetTests):
    plugin = ToyData
    forget = ("colour:red",)
    other_forget = ("shape:dot",)


class TestToyDistillation(UnlearnerTests):
    plugin = ToyDistillation


class Masked(ToyDistillation):
    """A method that brings a mask; the attribution that the mask needs is no axis of the method."""

    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "parameters": {"name": "full"},
        "regularizer": {"hard-mask": {"density": 0.5}},
    }


class TestMasked(UnlearnerTests):
    plugin = Masked
    axes = ("parameters", "weighting", "regularizer")


class TestToyBrightness(MetricTests):
    plugin = ToyBrightness


class TestToyWeighting(WeightingTests):
    plugin = ToyWeighting


class TestToyAttribution(AttributionTests):
    plugin = ToyAttribution


class TestToyPenalty(RegularizerTests):
    plugin = ToyPenalty


class TestToyExporter(ExporterTests):
    plugin = ToyExporter
    other_values = {"name": "other"}


class TestSimple(WeightingTests):
    plugin = Simple


class TestForgetOnly(WeightingTests):
    plugin = ForgetOnly


class TestLora(ParametersTests):
    plugin = Lora
    other_values = {"targets": ("to_q",)}


class TestMaskedLora(ParametersTests):
    plugin = MaskedLora
    honours_masks = True
    other_values = {"targets": ("to_q",)}


class TestFull(ParametersTests):
    plugin = Full
    honours_masks = True
    exact_at_start = False
    other_values = {"targets": ("to_q",)}


class TestHardMask(RegularizerTests):
    plugin = HardMask
