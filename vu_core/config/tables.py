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


def plain(value: Any, *, places: bool = True) -> Any:
    """Return a value as JSON knows it: attrs classes and mappings as dicts, tuples as lists.

    Args:
        value: any value of a configuration.
        places: keep absolute paths in fields that name a file or folder (``setting(path=True)``); else they are empty.
    """
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        hidden = {field.name for field in fields if field.metadata.get("path") and not places}
        found = {field.name: plain(getattr(value, field.name), places=places) for field in fields}
        return {name: _placeless(each) if name in hidden else each for name, each in found.items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item, places=places) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, places=places) for item in value]
    return value.value if isinstance(value, Enum) else value


def _placeless(text: Any) -> Any:
    return "" if isinstance(text, str) and PurePath(text).is_absolute() else text


def as_dict(config: RunConfig, *, places: bool = True) -> dict[str, Any]:
    """Return the resolved configuration as nested tables, in the layout of the file, absent values as ``None``.

    Args:
        config: what is written.
        places: say where models and data lie on this machine; else absolute paths are empty.
    """

    def table(choice: Choice) -> dict[str, Any]:
        return {"name": choice.name, **plain(choice.config, places=places)}

    def referring(choice: Choice) -> dict[str, Any]:
        return {"name": choice.name, "ref": choice.ref if places else _placeless(choice.ref)}

    unlearner = {"method": config.unlearner.name, **plain(config.unlearner.config, places=places)}
    for axis in ("parameters", "attribution"):
        choice = getattr(config, axis)
        if choice is not None:
            unlearner[axis] = table(choice)
    asked = {"forget": list(config.forget), "overwrite": list(config.overwrite)}
    edits = [edit.path if places else edit.digest for edit in config.edits]
    carried = {"edits": edits} if edits else {}
    tables: dict[str, Any] = {
        "run": plain(config.run),
        "model": {**referring(config.model), **carried, **table(config.model)},
        "data": {**referring(config.data), **asked, **table(config.data)},
        "unlearner": unlearner,
    }
    if not config.subset.whole:
        tables["subset"] = plain(config.subset)
    if config.weighting is not None:
        tables["weighting"] = table(config.weighting)
    if config.regularizers:
        tables["regularizer"] = {each.name: plain(each.config, places=places) for each in config.regularizers}
    tables["measure"] = {**plain(config.measure, places=places), "metrics": [choice.name for choice in config.metrics]}
    if config.metrics:
        tables["metric"] = {each.name: plain(each.config, places=places) for each in config.metrics}
    return tables


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the tables that say what a run computes.

    Left out are ``run.out``, the index of the device, and where models, earlier edits and data lie: the hashes of their
    content stand for them.
    """
    tables = as_dict(config, places=False)
    del tables["run"]["out"]
    tables["run"]["device"] = config.run.device.partition(":")[0]
    return tables


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every value in nested tables; a table without values is one itself.

    Example:
        >>> dict(flat({"run": {"seed": 1}, "data": {"crop": {"size": 8}}}))
        {'run.seed': 1, 'data.crop.size': 8}
    """
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_toml(config: RunConfig) -> str:
    """Return the resolved configuration as a file that repeats the run, each value with its origin as a comment.

    ``run.out`` is left out: it says where a run is kept, not what it is. Absent values have no line.
    """
    run = {name: value for name, value in _fields(config.run) if name != "out"}
    carried = {"edits": [edit.path for edit in config.edits] or None}
    model = {"name": config.model.name, "ref": config.model.ref or None, **carried}
    asked = {"forget": config.forget, "overwrite": config.overwrite}
    data = {"name": config.data.name, "ref": config.data.ref or None, **asked}
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("run", run),
        ("model", {**model, **dict(_fields(config.model.config))}),
        ("data", {**data, **dict(_fields(config.data.config))}),
        *([] if config.subset.whole else [("subset", dict(_fields(config.subset)))]),
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


def table_toml(path: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return one table of a configuration and the tables inside it, each value with its origin as a comment."""
    return "\n\n".join(_blocks(path, values, origins))


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
    """Return the origin as a comment."""
    shown = short_origin(origin)
    # A control character in a file name would end the comment.
    return f"  # {re.sub(r'[^ -~]', '?', shown)}" if shown else ""


def short_origin(origin: str) -> str:
    """Return where a value comes from; of a file only its name, so that no folder of a machine is recorded.

    Example:
        >>> short_origin("/data/neon.toml:3"), short_origin("--seed")
        ('neon.toml:3', '--seed')
    """
    file, colon, line = origin.rpartition(":")
    return f"{PurePath(file).name}:{line}" if colon and line.isdigit() else origin


def run_id(config: RunConfig, *, base_hash: str, data_digest: str, versions: Mapping[str, str]) -> str:
    """Return 12 hex digits that name what a run computes.

    They are the start of the SHA-256 over the configuration as `identity` tells it, the hash of the base model, the
    digest of the data manifest and the versions of all distributions that take part.
    """
    tables = json.dumps(identity(config), sort_keys=True)
    return digest(tables, base_hash, data_digest, json.dumps(dict(versions), sort_keys=True))[:12]
