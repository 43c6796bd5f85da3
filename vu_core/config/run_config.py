"""The configuration of a run: frozen, complete, every value with its origin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from vu_core.earlier_edits import EarlierEdit
from vu_core.registry import Entry, Registry
from vu_core.setting import setting

RESERVED: Mapping[str, tuple[str, ...]] = {
    "model": ("name", "ref", "edits"),
    "dataset": ("name", "ref", "forget", "overwrite"),
    "unlearner": ("method", "parameters", "attribution"),
    "parameters": ("name",),
    "attribution": ("name",),
    "weighting": ("name",),
    "sequence": ("name", "seeds"),
}
"""Keys of a kind's table that belong to the table itself: no ``Config`` of the kind may have a field of that name."""


def _device(value: Any) -> str | None:
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(value)):
        return None
    return f"must be 'cpu', 'cuda', 'cuda:<index>' or 'mps', but is {value!r}"


@attrs.frozen
class RunSettings:
    """Table ``[run]``."""

    seed: int | None = setting(
        None, help="root of all random numbers; drawn, printed and recorded when absent", ge=0, lt=2**63
    )
    task: int = setting(0, help="number of the task in its sequence; every task draws its own numbers", ge=0)
    device: str = setting("cpu", help="cpu, cuda, cuda:1, mps", check=_device)
    precision: str = setting("fp32", help="precision of the frozen model", choices=("fp32", "bf16", "fp16"))
    threads: int | None = setting(None, help="CPU threads; all cores when absent", ge=1)
    out: str | None = setting(None, help="the run folder itself; runs/<id> when absent")


@attrs.frozen
class MeasureSettings:
    """Table ``[measure]``; a metric's own settings lie in ``[metric.NAME]``."""

    split: str = setting("held-out", help="which part of data and seeds is asked", choices=("validation", "held-out"))
    metrics: tuple[str, ...] | None = setting(None, help="names of metrics; those the data names when absent")
    seeds: int = setting(2, help="seeds per item, counted from the start of the split", ge=1, le=10_000)
    samples: int = setting(4, help="images in the report, before and after; 0 = none", ge=0)
    steps: int | None = setting(None, help="sampling steps; those of the model when absent", ge=1)
    guidance: float | None = setting(None, help="guidance scale; that of the model when absent", ge=0)
    reference: str | None = setting(
        None, help="folder of a finished run, such as a retrained model, whose scores stand beside", path=True
    )


@attrs.frozen
class SubsetSettings:
    """Table ``[subset]``: which of the examples that the data builds are trained on.

    The draw hangs on ``run.seed`` and the labels of the examples alone, so that all methods get the same one.
    """

    fraction: float = setting(1.0, help="share of the training examples of every class", gt=0, le=1)
    per_class: int | None = setting(None, help="training examples of every class: exactly so many", ge=1)
    leave_out: tuple[str, ...] = setting((), help="concepts in neither side, such as those forgotten earlier")
    missing: tuple[str, ...] = setting((), help="concepts that are retained without any training example")

    def __attrs_post_init__(self) -> None:
        if self.per_class is not None and self.fraction < 1:
            raise ValueError("says both fraction and per_class: set one of them")

    @property
    def whole(self) -> bool:
        """Everything is trained on."""
        return self == SubsetSettings()


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
        model, data, unlearner: the plugins.
        parameters, weighting, attribution: axes that the method honours, else ``None``.
        forget, overwrite: as the user wrote them.
        regularizers: in the order given.
        metrics: what is measured, in order: those of ``measure.metrics``, else those that the data names.
        edits: ``model.edits``, what the model carries before the run, from the oldest to the newest.
        subset: the table of this name.
        origins: for every dotted key, where its value comes from: ``default of fade``, ``run.toml:12``, ``--seed``, ...
        notes: sentences for the user about how the configuration was understood.
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
    metrics: tuple[Choice, ...] = ()
    edits: tuple[EarlierEdit, ...] = ()
    subset: SubsetSettings = attrs.field(factory=SubsetSettings)
    origins: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    notes: tuple[str, ...] = attrs.field(default=(), eq=False)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every plugin that takes part."""
        axes = (self.parameters, self.weighting, self.attribution)
        named = (self.model, self.data, self.unlearner, *(axis for axis in axes if axis is not None))
        return (*named, *self.regularizers, *self.metrics)


def wrapped(config: Any) -> Iterator[tuple[str, str]]:
    """Yield (field of the settings, field of the name) for every other method that a method's ``Config`` names."""
    for field in attrs.fields(type(config)):
        if field.metadata.get("settings_of"):
            yield field.name, field.metadata["settings_of"]


def base_methods(config: RunConfig, registry: Registry) -> tuple[Entry, ...]:
    """Return the methods that the method of a run wraps.

    Raises:
        PluginError: nobody has the name.
    """
    own = config.unlearner.config
    return tuple(registry.get("unlearner", getattr(own, named_by)) for _, named_by in wrapped(own))
