"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_parameters(register: Register) -> None:
    """Name the parameters."""
    register(
        "elastic-lora",
        "vu_elastic_lora.elastic:ElasticLora",
        summary="low-rank factors that also work when they are cut to smaller ranks; honours masks",
    )


@hookimpl
def vu_register_commands(register: Register) -> None:
    """Name the commands."""
    register(
        "extract",
        "vu_elastic_lora.extract:extract",
        summary="Cut a smaller adapter out of an elastic one, or search for the best cut.",
    )
    register(
        "inspect",
        "vu_elastic_lora.inspect:inspect",
        summary="Show ranks, masks, zeros and bytes of an edit or a LoRA file.",
    )
