"""The configuration of a run: frozen, complete, every value with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from vu_core.registry import Entry
from vu_core.setting import setting


@attrs.frozen
class RunSettings:
    """Table ``[run]``."""

    seed: int | None = setting(None, help="root of all random numbers; drawn, printed and recorded when absent", ge=0, lt=2**63)
    device: str = setting("cpu", help="cpu, cuda, cuda:1, mps")
    precision: str = setting("fp32", help="precision of the frozen model", choices=("fp32", "bf16", "fp16"))
    threads: int | None = setting(None, help="CPU threads; all cores when absent", ge=1)
    out: str | None = setting(None, help="the run folder itself; runs/<id> when absent")


@attrs.frozen
class MeasureSettings:
    """Table ``[measure]``."""

    split: str = setting("held-out", help="which part of data and seeds is asked", choices=("validation", "held-out"))
    metrics: tuple[str, ...] | None = setting(None, help="names of metrics; those the data names when absent")
    seeds: int = setting(2, help="seeds per item, counted from the start of the split", ge=1)
    samples: int = setting(4, help="pictures in the report, before and after; 0 = none", ge=0)
    steps: int | None = setting(None, help="sampling steps; those of the model when absent", ge=1)
    guidance: float | None = setting(None, help="guidance scale; that of the model when absent", ge=0)


@attrs.frozen
class Choice:
    """A plugin and its settings.

    Args:
        entry: who it is; config: instance of its ``Config``; ref: what follows ``NAME=`` (models and data).
    """

    entry: Entry
    config: Any
    ref: str = ""

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.entry.name


@attrs.frozen
class RunConfig:
    """Everything that defines a run.

    Args:
        run, measure: the tables of these names.
        model, data, unlearner: the plugins; parameters, weighting, attribution: axes that the method honours, else ``None``.
        forget, overwrite: as the user wrote them.
        regularizers: in the order given.
        origins: for every dotted key, where its value comes from, such as ``default of fade``, ``run.toml:12`` or ``--seed``.
    """

    run: RunSettings
    model: Choice
    data: Choice
    forget: tuple[str, ...]
    overwrite: tuple[str, ...]
    unlearner: Choice
    measure: MeasureSettings
    parameters: Choice | None = None
    weighting: Choice | None = None
    attribution: Choice | None = None
    regularizers: tuple[Choice, ...] = ()
    origins: Mapping[str, str] = attrs.field(factory=dict)
