"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_weightings(register: Register) -> None:
    """Name the weightings."""
    register(
        "munba",
        "vu_munba.munba:Munba",
        summary="exact Nash bargaining between forgetting and keeping: neither gradient is ever worked against",
    )
    register(
        "munba-v1-compat",
        "vu_munba.compat:MunbaV1Compat",
        summary="parity only: the formula of an early implementation of MUNBa, which is not the Nash solution",
    )
    register(
        "munba-official-compat",
        "vu_munba.compat:MunbaOfficialCompat",
        summary="parity only: MUNBa as its authors released it, with its absolute epsilon and its fallback",
    )
    register(
        "nash-asymmetric",
        "vu_munba.asymmetric:NashAsymmetric",
        summary="Nash bargaining with a bargaining power for each side",
    )
    register("pcgrad", "vu_munba.pcgrad:PCGrad", summary="project each gradient off the other one where they conflict")
    register(
        "cagrad",
        "vu_munba.cagrad:CAGrad",
        summary="near the mean gradient, the direction that helps the worse side most",
    )


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the method of the paper."""
    register(
        "munba",
        "vu_munba.unlearner:MunbaUnlearner",
        summary="relabel what is forgotten, train on the rest, bargain between both gradients",
        needs=("denoise|classify",),
        axes=("parameters", "weighting", "regularizer"),
    )
