"""Names of the toy plugins; imports no torch."""

from __future__ import annotations

import os
import signal
from typing import Any

from vu_core import Event, Register, hookimpl

AXES = ("parameters", "weighting", "regularizer", "attribution")


@hookimpl
def vu_register_models(register: Register) -> None:
    register("toy-net", "vu_toy_run.parts:ToyNet", summary="Two layers.", default=True)


@hookimpl
def vu_register_datasets(register: Register) -> None:
    register("toy-points", "vu_toy_run.parts:ToyPoints", summary="Points on axes.", default=True)


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    register("toy-push", "vu_toy_run.parts:Push", summary="Push the output to zero.", axes=AXES)
    for name in ("Empty", "Identity", "NotFinite", "Misfit", "NoEdit", "Dirty"):
        target = f"vu_toy_run.broken:{name}"
        register(f"toy-{name.lower()}", target, summary="Breaks a rule.")


@hookimpl
def vu_register_attributions(register: Register) -> None:
    register("toy-size", "vu_toy_run.parts:Size", summary="Size of each weight.")


@hookimpl
def vu_register_metrics(register: Register) -> None:
    # They ask seed by seed, as what generates does.
    register("toy-gap", "vu_toy_run.parts:Gap", summary="Change of the output.", needs=("generate",))
    register("toy-size-of-change", "vu_toy_run.parts:Change", summary="Did the output change?", needs=("generate",))
    register("toy-nan", "vu_toy_run.broken:NaN", summary="Gives a number that is none.")


@hookimpl
def vu_on_event(event: Event) -> None:
    """Kill the process, as a power cut would, where the environment variable says: ``type:value of step``."""
    wanted = os.environ.get("VU_TOY_KILL_AT", "")
    values: dict[str, Any] = dict(event.values)
    if wanted and wanted == f"{event.stage}/{event.type}:{values.get('step', values.get('state'))}":
        os.kill(os.getpid(), signal.SIGKILL)
