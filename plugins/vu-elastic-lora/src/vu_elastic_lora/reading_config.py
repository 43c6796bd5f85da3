"""What is written about the strength of a LoRA: the configuration of peft, in a file of its own or as metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vu_elastic_lora.reading import PEFT, PEFT_CONFIG, damaged, no_adapter

METADATA = "lora_adapter_metadata"
"""Key under which diffusers writes the configuration into the file, with the component in front of each name."""


@attrs.frozen
class LoraFacts:
    """Rank and strength per module: ``gamma = alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``.

    Args:
        source: the file, or the place in it, that says so.
        component: what stands before the names of the modules, such as ``unet``; else empty.
        alpha: of every module that no pattern names; rank: likewise.
        alphas, ranks: per pattern, which is a regular expression for the end of a name.
        use_rslora: see above.
    """

    source: str
    component: str
    alpha: float
    rank: float
    alphas: Mapping[str, float]
    ranks: Mapping[str, float]
    use_rslora: bool

    def rank_of(self, module: str) -> float:
        """Return the rank that is said of a module."""
        return _first_match(self.ranks, self._inner(module), self.rank)

    def alpha_of(self, module: str, rank: int) -> float:
        """Return the alpha with which ``alpha / rank`` is the strength of a module."""
        alpha = _first_match(self.alphas, self._inner(module), self.alpha)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def _inner(self, module: str) -> str:
        return module.removeprefix(f"{self.component}.")


def _first_match(patterns: Mapping[str, float], name: str, otherwise: float) -> float:
    """Return what the first pattern that fits the end of a name says, as peft looks for it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def lora_facts(file: Path, metadata: Mapping[str, str]) -> dict[str, LoraFacts]:
    """Return what is said per component; under the empty name what is said of all.

    Raises:
        EditError: ``VU-E098`` when a configuration is damaged; ``VU-E099`` when it is that of something else.
    """
    found: dict[str, LoraFacts] = {}
    if METADATA in metadata:
        for component, values in _by_component(_table(file, metadata[METADATA])).items():
            found[component] = _facts(file, f"the metadata of {file.name!r}", component, values)
    beside = file.with_name(PEFT_CONFIG)
    if file.name == PEFT and beside.is_file():
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise damaged(beside, str(error)) from error
        found[""] = _facts(beside, beside.name, "", _table(beside, text))
    return found


def _table(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its configuration is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, "its configuration is no table")
    return value


def _by_component(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        component, _, name = key.rpartition(".")
        found.setdefault(component, {})[name] = value
    return found


def _facts(path: Path, source: str, component: str, values: Mapping[str, Any]) -> LoraFacts:
    kind = str(values.get("peft_type") or "LORA").rpartition(".")[2]
    if kind.upper() != "LORA" or values.get("use_dora"):
        raise no_adapter(
            path,
            f"{source} describes {'DoRA' if values.get('use_dora') else kind}, not a plain LoRA.",
            "Merge it into a model with the tool that made it, or convert it to a plain LoRA.",
        )
    ranks, alphas = (values.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    if not (isinstance(ranks, dict) and isinstance(alphas, dict)):
        raise damaged(path, "rank_pattern and alpha_pattern of its configuration are no tables")
    alpha, rank = (_number(path, key, values.get(key)) for key in ("lora_alpha", "r"))
    for pattern, number in (*ranks.items(), *alphas.items()):
        _number(path, pattern, number)
        _check_pattern(path, pattern)
    return LoraFacts(source, component, alpha, rank, alphas, ranks, bool(values.get("use_rslora")))


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise damaged(path, f"{name!r} of its configuration is {value!r}, not a number")
    return float(value)


def _check_pattern(path: Path, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise damaged(path, f"{pattern!r} of its configuration is no pattern ({error})") from error
