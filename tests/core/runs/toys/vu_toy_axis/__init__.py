"""A second distribution of toys: a weighting that fails, and a method that works with another one; imports no torch."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_weightings(register: Register) -> None:
    register("toy-torn", "vu_toy_axis.faulty:Torn", summary="Fails after some steps.")


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    axes = ("parameters", "weighting", "attribution")
    register("toy-wrap", "vu_toy_axis.faulty:Wrap", summary="Leaves the work to toy-push.", axes=axes)
    register("toy-misuse", "vu_toy_axis.faulty:Misuse", summary="Hands the core what it cannot use.")
