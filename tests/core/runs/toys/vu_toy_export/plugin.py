"""Names of the toy exporters; imports no torch."""

from __future__ import annotations

from vu_core import Register, hookimpl

BROKEN = (
    "Half",
    "NotANumber",
    "NoLimit",
    "Raises",
    "RaisesLater",
    "Stopped",
    "DiskFull",
    "Refuses",
    "Outside",
    "Link",
    "Unnamed",
    "Litter",
    "Nothing",
    "Silent",
    "Number",
    "Dirty",
    "NoPython",
)


@hookimpl
def vu_register_exporters(register: Register) -> None:
    register("toy-right", "vu_toy_export.exporters:Right", summary="As it must be.", aliases=("right",))
    register("toy-picky", "vu_toy_export.exporters:Right", summary="Wants classes.", needs=("classify",))
    register("toy-either", "vu_toy_export.exporters:Right", summary="One will do.", needs=("classify|denoise",))
    for name in BROKEN:
        register(f"toy-{name.lower()}", f"vu_toy_export.exporters:{name}", summary="Breaks a rule.")
