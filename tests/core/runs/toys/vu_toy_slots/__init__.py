"""A world in which every number is known beforehand: four slots, each a concept; imports no torch."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_models(register: Register) -> None:
    register("toy-slots", "vu_toy_slots.parts:Slots", summary="Shows slots.", default=True)


@hookimpl
def vu_register_datasets(register: Register) -> None:
    register("toy-slots", "vu_toy_slots.parts:SlotData", summary="Names slots.", default=True)


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    register("toy-erase", "vu_toy_slots.parts:Erase", summary="Lowers slots.", default=True)


@hookimpl
def vu_register_metrics(register: Register) -> None:
    register("toy-shown", "vu_toy_slots.parts:Shown", summary="Is a slot shown?", needs=("generate",))
