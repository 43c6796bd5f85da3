"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the methods."""
    register(
        "uce",
        "vu_concept_editing.uce:Uce",
        summary="solve for the cross-attention that reads forgotten words as other ones; no training, many concepts",
        needs=("denoise", "tokens"),
    )
    register(
        "esd",
        "vu_concept_editing.esd:Esd",
        summary="train the model to steer away from the forgotten prompt, as negative guidance does",
        needs=("denoise", "trajectory"),
        axes=("parameters", "weighting", "regularizer"),
    )


@hookimpl
def vu_register_commands(register: Register) -> None:
    """Name the commands."""
    register(
        "tune-uce",
        "vu_concept_editing.tune_uce:tune_uce",
        summary="Search for the three scales of UCE on validation prompts.",
    )
