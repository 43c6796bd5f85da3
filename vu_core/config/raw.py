"""What was written, in a file and on the command line, before anything is understood."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import attrs

from vu_core.errors import ConfigError

FLAG_KEYS = {
    "--method": "unlearner.method",
    "--model": "model.name",
    "--data": "data.name",
    "--forget": "data.forget",
    "--overwrite": "data.overwrite",
    "--weighting": "weighting.name",
    "--parameters": "unlearner.parameters.name",
    "--regularizer": "regularizer",
    "--sequence": "sequence.name",
    "--seed": "run.seed",
    "--device": "run.device",
    "--out": "run.out",
    "--reference": "measure.reference",
}
"""The configuration key that each flag of ``vu unlearn`` is short for; repeatable flags carry a tuple of texts."""


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
