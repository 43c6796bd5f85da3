"""Tests that a plugin inherits, and toys to test with.

An author names the class and inherits every test of its kind::

    from vu_core.testing import UnlearnerTests
    from vu_mine.method import Mine


    class TestMine(UnlearnerTests):
        plugin = Mine

Needs pytest. Nothing is imported before it is asked for: the toys `ToyModel`, `ToyClassifierModel` and `ToyData` stay
torch-free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vu_core.testing.attribution_tests import AttributionTests
    from vu_core.testing.dataset_tests import DatasetTests
    from vu_core.testing.exporter_tests import ExporterTests
    from vu_core.testing.metric_tests import MetricTests
    from vu_core.testing.model_tests import ModelTests
    from vu_core.testing.parameters_tests import ParametersTests
    from vu_core.testing.plugin_tests import PluginTests
    from vu_core.testing.registration_tests import CommandTests, RecipeTests
    from vu_core.testing.regularizer_tests import RegularizerTests
    from vu_core.testing.sequence_tests import SequenceTests
    from vu_core.testing.toy_classifier import ToyClassifier
    from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
    from vu_core.testing.toy_methods import (
        ToyAttribution,
        ToyBrightness,
        ToyDistillation,
        ToyExporter,
        ToyPenalty,
        ToyWeighting,
    )
    from vu_core.testing.toy_painter import ToyPainter
    from vu_core.testing.toy_sequence import ToySequence
    from vu_core.testing.toys import ToyClassifierModel, ToyData, ToyModel, toy_evaluation, toy_forget_retain, toy_run
    from vu_core.testing.unlearner_tests import UnlearnerTests
    from vu_core.testing.weighting_tests import WeightingTests

_HOME = {
    "attribution_tests": ("AttributionTests",),
    "dataset_tests": ("DatasetTests",),
    "exporter_tests": ("ExporterTests",),
    "metric_tests": ("MetricTests",),
    "model_tests": ("ModelTests",),
    "parameters_tests": ("ParametersTests",),
    "plugin_tests": ("PluginTests",),
    "registration_tests": ("CommandTests", "RecipeTests"),
    "regularizer_tests": ("RegularizerTests",),
    "sequence_tests": ("SequenceTests",),
    "toy_classifier": ("ToyClassifier",),
    "toy_denoiser": ("ToyDenoiser", "toy_data"),
    "toy_methods": (
        "ToyAttribution",
        "ToyBrightness",
        "ToyDistillation",
        "ToyExporter",
        "ToyPenalty",
        "ToyWeighting",
    ),
    "toy_painter": ("ToyPainter",),
    "toy_sequence": ("ToySequence",),
    "toys": ("ToyClassifierModel", "ToyData", "ToyModel", "toy_evaluation", "toy_forget_retain", "toy_run"),
    "unlearner_tests": ("UnlearnerTests",),
    "weighting_tests": ("WeightingTests",),
}

__all__ = [
    "AttributionTests",
    "CommandTests",
    "DatasetTests",
    "ExporterTests",
    "MetricTests",
    "ModelTests",
    "ParametersTests",
    "PluginTests",
    "RecipeTests",
    "RegularizerTests",
    "SequenceTests",
    "ToyAttribution",
    "ToyBrightness",
    "ToyClassifier",
    "ToyClassifierModel",
    "ToyData",
    "ToyDenoiser",
    "ToyDistillation",
    "ToyExporter",
    "ToyModel",
    "ToyPainter",
    "ToyPenalty",
    "ToySequence",
    "ToyWeighting",
    "UnlearnerTests",
    "WeightingTests",
    "toy_data",
    "toy_evaluation",
    "toy_forget_retain",
    "toy_run",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"vu_core.testing.{module}"), name)
    raise AttributeError(f"module 'vu_core.testing' has no attribute {name!r}")
