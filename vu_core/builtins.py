"""What the core itself brings, through the same hooks as everybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vu_core.errors import PlanError
from vu_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from vu_core.plan import Plan


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the built-in methods."""
    register("composition", "vu_core.composition:Composition", summary="add up the edits of other runs")


@hookimpl
def vu_register_parameters(register: Register) -> None:
    """Name the built-in kinds of trainable parameters."""
    register("lora", "vu_core.adapters:Lora", summary="low-rank factors beside frozen weights", default=True)
    register(
        "masked-lora", "vu_core.adapters:MaskedLora", summary="low-rank factors whose product is zero outside of a mask"
    )
    register("full", "vu_core.adapters:Full", summary="the weights, biases and norms themselves")


@hookimpl
def vu_register_weightings(register: Register) -> None:
    """Name the built-in gradient weightings."""
    register(
        "simple",
        "vu_core.weightings:Simple",
        summary="constant weights for the forget and the retain loss",
        default=True,
    )
    register("none", "vu_core.weightings:ForgetOnly", summary="the forget gradient alone; the retain side is ignored")


@hookimpl
def vu_register_regularizers(register: Register) -> None:
    """Name the built-in regularizers."""
    register(
        "hard-mask",
        "vu_core.hard_mask:HardMask",
        summary="only the weights that matter most for the forget set may change",
        axes=("attribution",),
    )


@hookimpl
def vu_check_plan(plan: Plan) -> None:
    """Object to a ``hard-mask`` that `HardMask.prepare` would refuse once the weights are loaded.

    Raises:
        PlanError: ``VU-L033`` when no attribution is installed, or low-rank factors are trained.
    """
    config = plan.config
    if all(choice.name != "hard-mask" for choice in config.regularizers):
        return
    if config.attribution is None:
        raise PlanError(
            "VU-L033",
            "The regularizer 'hard-mask' needs scores per weight, but no attribution is chosen and none is a default.",
            "Set unlearner.attribution.name (`vu list-plugins` shows what is installed), or leave the regularizer out.",
            where="regularizer.hard-mask",
        )
    if config.parameters is not None and config.parameters.name in ("lora", "masked-lora"):
        raise PlanError(
            "VU-L033",
            "The regularizer 'hard-mask' limits weights, but the trained parameters are low-rank factors.",
            "Use --parameters full; for low-rank factors --parameters masked-lora with a method that gives masks.",
            where="regularizer.hard-mask",
        )
