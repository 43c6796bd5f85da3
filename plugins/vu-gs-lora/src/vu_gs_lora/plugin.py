"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl

AXES = ("parameters", "weighting", "regularizer")


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name both methods."""
    register(
        "gs-lora",
        "vu_gs_lora.gs_lora:GsLora",
        summary="forget classes up to a bound, keep the others, change few blocks of a vision transformer",
        needs=("classify", "blocks"),
        axes=AXES,
    )
    register(
        "gs-lora-plus-plus",
        "vu_gs_lora.gs_lora_plus_plus:GsLoraPlusPlus",
        summary="gs-lora that also pushes features away from the prototypes of forgotten classes",
        needs=("classify", "blocks"),
        axes=AXES,
    )


@hookimpl
def vu_register_sequences(register: Register) -> None:
    """Name the sequence of tasks."""
    register(
        "continual",
        "vu_gs_lora.continual:Continual",
        summary="divide the classes into tasks that forget a number of them each",
        default=True,
    )


@hookimpl
def vu_register_regularizers(register: Register) -> None:
    """Name the penalty that leaves whole blocks unchanged."""
    register(
        "group-lasso",
        "vu_gs_lora.group_lasso:GroupLasso",
        summary="shrink the change of whole blocks, pairs or matrices; groups that matter little become exactly zero",
    )
