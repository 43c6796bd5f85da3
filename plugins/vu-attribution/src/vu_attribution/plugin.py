"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_attributions(register: Register) -> None:
    """Name the attributions."""
    register(
        "saliency",
        "vu_attribution.saliency:Saliency",
        summary="summed absolute gradient of the model's own loss on the forget examples",
        needs=("denoise|classify",),
        default=True,
    )
    register(
        "fisher",
        "vu_attribution.fisher:Fisher",
        summary="diagonal of the empirical Fisher information: mean squared gradient of single examples",
        needs=("denoise|classify",),
    )
    register(
        "magnitude",
        "vu_attribution.magnitude:Magnitude",
        summary="absolute value of each parameter; looks at no data",
    )
    register(
        "random",
        "vu_attribution.random:Random",
        summary="uniform numbers; the control that an attribution must beat",
    )
