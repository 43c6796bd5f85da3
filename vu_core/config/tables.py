"""A resolved configuration as tables, as a file that repeats the run, and as the digits that name it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import attrs

from vu_core.config.run_config import Choice, RunConfig
from vu_core.config.toml_text import dotted, toml_value
from vu_core.data import digest


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
