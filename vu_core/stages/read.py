"""Stage 1: a file and overrides become values, each with the place it comes from."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vu_core.config import Override, RawConfig, dotted, lines_of_keys
from vu_core.errors import ConfigError


def read(path: Path | None = None, overrides: Sequence[Override] = ()) -> RawConfig:
    """Read a configuration file and lay the overrides over it: file < ``--set`` < flags.

    Raises:
        ConfigError: the file cannot be read (``VU-C003``), is no TOML (``VU-C002``, with line and column), or an
            override goes through something that is no table (``VU-C004``).

    Example:
        >>> raw = read(None, [Override("run.seed", 7, "--seed")])
        >>> raw.values, raw.origins
        ({'run': {'seed': 7}}, {'run.seed': '--seed'})
    """
    values, origins = _read_file(path) if path is not None else ({}, {})
    return overlaid(RawConfig(values, origins), sorted(overrides, key=lambda each: not each.origin.startswith("--set")))


def overlaid(raw: RawConfig, overrides: Sequence[Override]) -> RawConfig:
    """Return a configuration with overrides laid over it, in their order; the one that is given stays as it is.

    Raises:
        ConfigError: an override goes through something that is no table (``VU-C004``).
    """
    values, origins, replaced = copy.deepcopy(dict(raw.values)), dict(raw.origins), dict(raw.replaced)
    for override in overrides:
        _apply(override, values, origins, replaced)
    return RawConfig(values, origins, replaced)


def read_toml(text: str, label: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a TOML text and ``label:line`` for every dotted key.

    Raises:
        ConfigError: the text is no TOML (``VU-C002``).
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        message, place = _syntax_error(exc, text)
        raise ConfigError(
            "VU-C002", f"{label} is not valid TOML: {message}", "Correct the line.", where=f"{label}:{place}"
        ) from exc
    # tomllib reads CRLF as LF; so does the line finder, which only counts line feeds.
    return values, {key: f"{label}:{line}" for key, line in lines_of_keys(text).items()}


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise ConfigError(
            "VU-C003",
            f"The configuration {path} cannot be read: {reason}.",
            "Check the path after -c.",
            where=str(path),
        ) from exc
    except UnicodeDecodeError as exc:
        line = path.read_bytes()[: exc.start].count(b"\n") + 1
        raise ConfigError(
            "VU-C003", f"The configuration {path} is not UTF-8 text.", "Save it as UTF-8.", where=f"{path}:{line}"
        ) from exc
    return read_toml(text.removeprefix("\ufeff"), str(path))


def _syntax_error(exc: tomllib.TOMLDecodeError, text: str) -> tuple[str, str]:
    """Return the message without its position, and ``line:column``."""
    message, _, position = str(exc).rpartition(" (at ")
    if position.startswith("line "):
        line, _, column = position.removesuffix(")").removeprefix("line ").partition(", column ")
        return message, f"{line}:{column}"
    lines = text.split("\n")
    return message or str(exc), f"{len(lines)}:{len(lines[-1]) + 1}"


def _apply(override: Override, values: dict[str, Any], origins: dict[str, str], replaced: dict[str, Any]) -> None:
    if override.key == "regularizer" and isinstance(override.value, tuple | list):
        _choose_regularizers(override, values, origins)
        return
    parts = override.key.split(".")
    table = values
    for depth, part in enumerate(parts[:-1], start=1):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                "VU-C004",
                f"{override.key} cannot be set: {dotted(parts[:depth])} is no table, but {inner!r}.",
                "Set the whole value, or correct the key.",
                where=override.origin,
            )
        table = inner
    key = dotted(parts)
    if key in origins and not origins[key].startswith("--"):
        replaced[key] = table[parts[-1]]
    for inner_key in [each for each in origins if each == key or each.startswith(f"{key}.")]:
        del origins[inner_key]
    table[parts[-1]] = _plain(override.value)
    origins[key] = override.origin


def _choose_regularizers(override: Override, values: dict[str, Any], origins: dict[str, str]) -> None:
    """Let the flag say which regularizers take part; their tables in the file keep the settings."""
    written = values.get("regularizer")
    tables = written if isinstance(written, dict) else {}
    names = [str(name) for name in override.value]
    for key in [each for each in origins if each.startswith("regularizer.") and each.split(".")[1] not in names]:
        del origins[key]
    for name in names:
        if name not in tables:
            origins[dotted(("regularizer", name))] = override.origin
    values["regularizer"] = {name: tables.get(name, {}) for name in names}


def _plain(value: Any) -> Any:
    """Return what TOML would have given: lists and dicts of the caller's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return copy.copy(value)
