"""The hooks of `vu`, for plugins and for the core's own built-ins alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pluggy

from vu_core.event import Event
from vu_core.plan import Plan

hookspec = pluggy.HookspecMarker("vu")
hookimpl = pluggy.HookimplMarker("vu")

KINDS = (
    "model",
    "dataset",
    "unlearner",
    "parameters",
    "weighting",
    "attribution",
    "regularizer",
    "metric",
    "audit",
    "exporter",
    "sequence",
    "recipe",
    "command",
)
"""Plugin kinds; the hook of a kind is ``vu_register_<plural>``."""

HOOK_OF_KIND = {kind: f"vu_register_{kind if kind == 'parameters' else kind + 's'}" for kind in KINDS}


class Register(Protocol):
    """What a registration hook is handed; plain strings, so that nothing is imported.

    Args:
        name: kebab-case name that users type.
        target: ``"module:attribute"``; for recipes ``"package:path/in/package.toml"``.
        summary: one line for ``vu list-plugins``.
        aliases: other names for the same thing; records always write ``name``.
        needs: capabilities of the model, or ``judge`` of the data; ``denoise|classify``: one of the two will do.
        axes: what an unlearner honours: ``parameters``, ``weighting``, ``regularizer``, ``attribution``; a regularizer
            may honour ``attribution``, and then the run has one whatever its method does.
        default: used when nothing is said (one per kind).
    """

    def __call__(
        self,
        name: str,
        target: str,
        *,
        summary: str,
        aliases: Sequence[str] = (),
        needs: Sequence[str] = (),
        axes: Sequence[str] = (),
        default: bool = False,
    ) -> None:
        """Register one name."""
        ...


class VuHooks:
    """Registration hooks are called once, when names are first looked up; an exception marks the plugin ``broken``."""

    @hookspec
    def vu_register_models(self, register: Register) -> None:
        """Name the models this distribution brings; targets are `vu_core.contracts.ModelPlugin`."""

    @hookspec
    def vu_register_datasets(self, register: Register) -> None:
        """Name datasets; targets are `vu_core.contracts.Dataset`."""

    @hookspec
    def vu_register_unlearners(self, register: Register) -> None:
        """Name methods; targets are `vu_core.contracts.Unlearner`."""

    @hookspec
    def vu_register_parameters(self, register: Register) -> None:
        """Name kinds of trainable parameters; targets are `vu_core.contracts.Parameters`."""

    @hookspec
    def vu_register_weightings(self, register: Register) -> None:
        """Name gradient weightings; targets are `vu_core.contracts.Weighting`."""

    @hookspec
    def vu_register_attributions(self, register: Register) -> None:
        """Name attributions; targets are `vu_core.contracts.Attribution`."""

    @hookspec
    def vu_register_regularizers(self, register: Register) -> None:
        """Name regularizers; targets are `vu_core.contracts.Regularizer`."""

    @hookspec
    def vu_register_metrics(self, register: Register) -> None:
        """Name metrics; targets are `vu_core.contracts.Metric`."""

    @hookspec
    def vu_register_audits(self, register: Register) -> None:
        """Name audits; targets are `vu_core.contracts.Audit`."""

    @hookspec
    def vu_register_exporters(self, register: Register) -> None:
        """Name exporters; targets are `vu_core.contracts.Exporter`."""

    @hookspec
    def vu_register_sequences(self, register: Register) -> None:
        """Name sequences of runs; targets are `vu_core.contracts.Sequence`."""

    @hookspec
    def vu_register_recipes(self, register: Register) -> None:
        """Name recipes; targets are ``"package:file.toml"``: a table ``[recipe]`` (``model``, ``method``), settings."""

    @hookspec
    def vu_register_commands(self, register: Register) -> None:
        """Name commands; targets are click commands that return nouns (`Table`, `Scorecard`, ...)."""

    @hookspec
    def vu_check_plan(self, plan: Plan) -> None:
        """Object to a plan before any weight is read, by raising a `VuError`; called once per run."""

    @hookspec
    def vu_on_event(self, event: Event) -> None:
        """Watch a run. Called for every event; an exception here is logged and the run goes on."""
