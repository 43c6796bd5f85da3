"""All toys under names, for end-to-end tests: ``discover(extra=[("vu-toys", "0.1", toy_plugin)])``."""

from __future__ import annotations

from vu_core.hookspecs import Register, hookimpl


@hookimpl
def vu_register_models(register: Register) -> None:
    """Name the toy model."""
    register("toy", "vu_core.testing.toys:ToyModel", summary="a toy that paints 8x8 images")
    register(
        "toy-classifier", "vu_core.testing.toys:ToyClassifierModel", summary="a toy that names the colour of 8x8 images"
    )


@hookimpl
def vu_register_datasets(register: Register) -> None:
    """Name the toy data."""
    register("toy", "vu_core.testing.toys:ToyData", summary="dots and bars in three colours")


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the toy method."""
    register(
        "toy-distillation",
        "vu_core.testing.toy_methods:ToyDistillation",
        summary="answer a forgotten caption as its overwrite",
        needs=("denoise",),
        axes=("parameters", "weighting", "regularizer"),
    )


@hookimpl
def vu_register_weightings(register: Register) -> None:
    """Name the toy weighting."""
    register("toy-normalised", "vu_core.testing.toy_methods:ToyWeighting", summary="both gradients at length one")


@hookimpl
def vu_register_attributions(register: Register) -> None:
    """Name the toy attribution."""
    register("toy-size", "vu_core.testing.toy_methods:ToyAttribution", summary="the size of a weight")


@hookimpl
def vu_register_regularizers(register: Register) -> None:
    """Name the toy regularizer."""
    register("toy-penalty", "vu_core.testing.toy_methods:ToyPenalty", summary="the squared change of the weights")


@hookimpl
def vu_register_metrics(register: Register) -> None:
    """Name the toy metric."""
    register(
        "toy-brightness",
        "vu_core.testing.toy_methods:ToyBrightness",
        summary="how bright the images are",
        needs=("generate", "judge"),  # data whose own metrics need a judge has one, which the toy data does
    )


@hookimpl
def vu_register_sequences(register: Register) -> None:
    """Name the toy sequence."""
    register("toy-sequence", "vu_core.testing.toy_sequence:ToySequence", summary="one class after the other")


@hookimpl
def vu_register_exporters(register: Register) -> None:
    """Name the toy exporter."""
    register("toy-file", "vu_core.testing.toy_methods:ToyExporter", summary="the edit as vu stores it")
