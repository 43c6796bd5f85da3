"""Settings that a plugin ships for one pair of model and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from vu_core.errors import PluginError
from vu_core.registry import Entry, Registry

TABLES = ("unlearner", "weighting", "regularizer", "measure", "metric")
"""What a recipe may set; neither the run, nor the model, nor a concept."""


@attrs.frozen
class Recipe:
    """Settings between the defaults of a method and the user's file.

    Args:
        entry: who brings it; tables: as in a configuration file, without ``[recipe]``.
    """

    entry: Entry
    tables: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """How the values are marked in ``run.toml`` and ``vu describe``."""
        return f"recipe {self.entry.name}"


def find_recipe(registry: Registry, model: str, method: str) -> tuple[Recipe | None, tuple[str, ...]]:
    """Return the recipe for a pair of canonical names, and a sentence about each recipe that cannot be read.

    Raises:
        PluginError: two recipes are for this pair (``VU-P008``), or the one for it sets what no recipe may set.
    """
    found: list[Recipe] = []
    notes: list[str] = []
    for entry in registry.entries("recipe"):
        if not entry.usable:
            continue
        try:
            tables = entry.load()
            pair = _pair(entry, tables)
        except PluginError as error:
            notes.append(f"{error.problem} It is left out.")
            continue
        if (_canonical(registry, "model", pair[0]), _canonical(registry, "unlearner", pair[1])) == (model, method):
            found.append(Recipe(entry, {key: value for key, value in tables.items() if key != "recipe"}))
    if len(found) > 1:
        owners = ", ".join(f"'{each.entry.name}' ({each.entry.distribution})" for each in found)
        problem = f"Several recipes are for model '{model}' and method '{method}': {owners}."
        raise PluginError("VU-P008", problem, "Switch one off with VU_DISABLE_PLUGINS=<distribution>.")
    for recipe in found:
        _check_tables(recipe)
    return (found[0] if found else None), tuple(notes)


def _pair(entry: Entry, tables: Mapping[str, Any]) -> tuple[str, str]:
    head = tables.get("recipe")
    model, method = (head.get("model"), head.get("method")) if isinstance(head, Mapping) else (None, None)
    if not isinstance(model, str) or not isinstance(method, str):
        raise _malformed(entry, "has no table [recipe] with 'model' and 'method'")
    return model, method


def _check_tables(recipe: Recipe) -> None:
    for key, value in recipe.tables.items():
        if key not in TABLES or not isinstance(value, Mapping):
            raise _malformed(recipe.entry, f"sets '{key}'; a recipe holds the tables {', '.join(TABLES)}")


def _malformed(entry: Entry, what: str) -> PluginError:
    problem = f"The recipe '{entry.name}' ({entry.target}) {what}."
    return PluginError("VU-P008", problem, f"Update {entry.distribution}, or switch it off with VU_DISABLE_PLUGINS.")


def _canonical(registry: Registry, kind: str, name: str) -> str:
    try:
        return registry.get(kind, name).name
    except PluginError:
        return name
