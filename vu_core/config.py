"""The configuration of a run: frozen, complete, every value with its origin."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import attrs

from vu_core.data import digest
from vu_core.errors import ConfigError
from vu_core.registry import Entry
from vu_core.setting import setting
from vu_core.toml_text import dotted, toml_value

FLAG_KEYS = {
    "--method": "unlearner.method",
    "--model": "model.name",
    "--data": "data.name",
    "--forget": "data.forget",
    "--overwrite": "data.overwrite",
    "--weighting": "weighting.name",
    "--parameters": "unlearner.parameters.name",
    "--regularizer": "regularizer",
    "--seed": "run.seed",
    "--device": "run.device",
    "--out": "run.out",
}
"""The configuration key that each flag of ``vu unlearn`` is short for; repeatable flags carry a tuple of texts."""


RESERVED: Mapping[str, tuple[str, ...]] = {
    "model": ("name", "ref"),
    "dataset": ("name", "ref", "forget", "overwrite"),
    "unlearner": ("method", "parameters", "attribution"),
    "parameters": ("name",),
    "attribution": ("name",),
    "weighting": ("name",),
}
"""Keys of a kind's table that belong to the table itself: no ``Config`` of the kind may have a field of that name."""


@attrs.frozen
class Override:
    """One value given on the command line.

    Args:
        key: dotted key, such as ``unlearner.training.lr``; see `FLAG_KEYS`.
        value: a TOML value (text, number, bool, list or table).
        origin: ``--set`` or the flag, such as ``--seed``.
    """

    key: str
    value: Any
    origin: str


@attrs.frozen
class RawConfig:
    """What was written, before anything is understood.

    Args:
        values: nested tables; origins: dotted key -> ``file:line`` or ``--flag``.
        replaced: dotted key -> value of the file that a flag or ``--set`` took the place of.
    """

    values: Mapping[str, Any] = attrs.field(factory=dict)
    origins: Mapping[str, str] = attrs.field(factory=dict)
    replaced: Mapping[str, Any] = attrs.field(factory=dict)


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
        model, data, unlearner: the plugins.
        parameters, weighting, attribution: axes that the method honours, else ``None``.
        forget, overwrite: as the user wrote them.
        regularizers: in the order given.
        metrics: what is measured, in order: those of ``measure.metrics``, else those that the data names.
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
    origins: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    notes: tuple[str, ...] = attrs.field(default=(), eq=False)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every plugin that takes part."""
        axes = (self.parameters, self.weighting, self.attribution)
        named = (self.model, self.data, self.unlearner, *(axis for axis in axes if axis is not None))
        return (*named, *self.regularizers, *self.metrics)


def parse_set(text: str) -> Override:
    """Understand ``a.b.c=value`` of ``--set``: a TOML value where it is one, else text.

    Raises:
        ConfigError: there is no ``=`` or no key in front of it.

    Example:
        >>> parse_set("unlearner.training.lr=1e-3").value, parse_set("run.device=cpu").value
        (0.001, 'cpu')
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", key):
        remedy = "Write --set table.key=value, such as --set unlearner.training.lr=1e-3."
        raise ConfigError("VU-C004", f"'{text}' is no setting.", remedy, where="--set")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return Override(key, value.strip(), "--set")
    # More than one key means that the text held a line break: then it was no single value, but text.
    return Override(key, parsed["value"] if len(parsed) == 1 else value.strip(), "--set")


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: attrs classes and mappings as dicts, tuples as lists."""
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration as nested tables, in the layout of the file, absent values as ``None``."""
    unlearner = {"method": config.unlearner.name, **plain(config.unlearner.config)}
    for axis in ("parameters", "attribution"):
        choice = getattr(config, axis)
        if choice is not None:
            unlearner[axis] = _table(choice)
    tables: dict[str, Any] = {
        "run": plain(config.run),
        "model": {"name": config.model.name, "ref": config.model.ref, **plain(config.model.config)},
        "data": {
            "name": config.data.name,
            "ref": config.data.ref,
            "forget": list(config.forget),
            "overwrite": list(config.overwrite),
            **plain(config.data.config),
        },
        "unlearner": unlearner,
    }
    if config.weighting is not None:
        tables["weighting"] = _table(config.weighting)
    if config.regularizers:
        tables["regularizer"] = {choice.name: plain(choice.config) for choice in config.regularizers}
    settings = {**plain(config.measure), "metrics": [choice.name for choice in config.metrics]}
    tables["measure"] = settings
    if config.metrics:
        tables["metric"] = {choice.name: plain(choice.config) for choice in config.metrics}
    return tables


def _table(choice: Choice) -> dict[str, Any]:
    return {"name": choice.name, **plain(choice.config)}


def to_toml(config: RunConfig) -> str:
    """Return the resolved configuration as a file that repeats the run, each value with its origin as a comment.

    ``run.out`` is left out: it says where a run is kept, not what it is. Absent values have no line.
    """
    run = {name: value for name, value in _fields(config.run) if name != "out"}
    model = {"name": config.model.name, "ref": config.model.ref or None, **dict(_fields(config.model.config))}
    asked = {"forget": config.forget, "overwrite": config.overwrite}
    data = {"name": config.data.name, "ref": config.data.ref or None, **asked}
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("run", run),
        ("model", model),
        ("data", {**data, **dict(_fields(config.data.config))}),
        ("unlearner", {"method": config.unlearner.name, **dict(_fields(config.unlearner.config))}),
    ]
    for path, choice in (
        ("unlearner.parameters", config.parameters),
        ("unlearner.attribution", config.attribution),
        ("weighting", config.weighting),
    ):
        if choice is not None:
            tables.append((path, {"name": choice.name, **dict(_fields(choice.config))}))
    tables += [(dotted(("regularizer", each.name)), dict(_fields(each.config))) for each in config.regularizers]
    measure = {**dict(_fields(config.measure)), "metrics": tuple(each.name for each in config.metrics)}
    tables.append(("measure", measure))
    tables += [(dotted(("metric", each.name)), dict(_fields(each.config))) for each in config.metrics]
    blocks = [block for path, values in tables for block in _blocks(path, values, config.origins)]
    return "\n\n".join(blocks) + "\n"


def _fields(config: Any) -> Iterator[tuple[str, Any]]:
    for field in attrs.fields(type(config)):
        yield field.name, getattr(config, field.name)


def _blocks(path: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a table, then the tables inside it."""
    lines = [f"[{path}]"]
    inner: list[tuple[str, Any]] = []
    for name, value in values.items():
        if attrs.has(type(value)):
            inner.append((name, value))
        elif value is not None:
            origin = _comment(origins.get(f"{path}.{name}", ""))
            lines.append(f"{name} = {toml_value(plain(value))}{origin}")
    yield "\n".join(lines)
    for name, value in inner:
        yield from _blocks(f"{path}.{name}", dict(_fields(value)), origins)


def _comment(origin: str) -> str:
    """Return the origin as a comment; of a file only its name, so that no folder of a machine is recorded."""
    file, colon, line = origin.rpartition(":")
    shown = f"{PurePath(file).name}:{line}" if colon and line.isdigit() else origin
    # A control character in a file name would end the comment.
    return f"  # {re.sub(r'[^ -~]', '?', shown)}" if shown else ""


def run_id(config: RunConfig, *, base_hash: str, data_digest: str, versions: Mapping[str, str]) -> str:
    """Return 12 hex digits that name what a run computes.

    They are the start of the SHA-256 over the resolved configuration without ``run.out`` and the device index, the hash
    of the base model, the digest of the data manifest and the versions of all distributions that take part.
    """
    tables = as_dict(config)
    tables["run"] = {**tables["run"], "out": None, "device": config.run.device.partition(":")[0]}
    return digest(
        json.dumps(tables, sort_keys=True), base_hash, data_digest, json.dumps(dict(versions), sort_keys=True)
    )[:12]
