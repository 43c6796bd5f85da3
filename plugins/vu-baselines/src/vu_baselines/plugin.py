"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl

AXES = ("parameters", "weighting", "regularizer")


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the methods."""
    register(
        "random-label",
        "vu_baselines.random_label:RandomLabel",
        summary="teach another label, or the answer to another prompt, for what is forgotten; train on the rest",
        aliases=("rl",),
        needs=("denoise|classify",),
        axes=AXES,
    )
    register(
        "salun",
        "vu_baselines.salun:SalUn",
        summary="another method, within the weights that matter most for the forget set",
        needs=("denoise|classify",),
        axes=(*AXES, "attribution"),
    )
