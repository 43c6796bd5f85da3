"""What a plugin is and everything one can set about it, for ``vu describe``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from vu_core.config import RESERVED, RawConfig, dotted, plain, toml_value
from vu_core.config.conversion import type_words
from vu_core.config.layers import Layer, Setting, config_class, constant_layer, default_layer, lay, leaves
from vu_core.config.reading import DEFAULT, Reading
from vu_core.config.recipes import find_recipe
from vu_core.errors import PluginError
from vu_core.plugins import Plugins
from vu_core.registry import WORDS, Entry
from vu_core.setting import allowed_range
from vu_core.source import Source
from vu_core.stages.structure import AXIS_PATHS, axis_layers

CONFIGURABLE = (
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
)
_TABLES = {"model": "model", "dataset": "data", "unlearner": "unlearner", "sequence": "sequence", **AXIS_PATHS}


@attrs.frozen
class Parameter:
    """One thing that can be set.

    Args:
        key: dotted key of the configuration; type: in words; default: JSON value, ``None`` when absent.
        origin: where the default comes from; range: in words, may be empty; help: one line.
        required: there is no default; speed_only: changes time or memory, never the result.
    """

    key: str
    type: str
    default: Any
    origin: str
    range: str
    help: str
    required: bool = False
    speed_only: bool = False


@attrs.frozen
class Description:
    """What ``vu describe`` shows of one name.

    Args:
        entry: kind, name, aliases, summary, needs, axes, distribution, version, state.
        text: what it does, from the docstring of its class.
        source: paper, address and provenance; ``None`` when the kind has none.
        parameters: everything that can be set, in the order of the TOML block.
        toml: the tables with all values, ready to be pasted into a configuration.
        notes: sentences for the reader.
    """

    entry: Entry
    text: str
    source: Source | None
    parameters: tuple[Parameter, ...]
    toml: str
    notes: tuple[str, ...] = ()


def describe(
    name: str, plugins: Plugins, *, kind: str | None = None, model: str | None = None
) -> tuple[Description, ...]:
    """Describe a name in every kind that has it.

    Args:
        name: canonical name or alias.
        plugins: what was discovered.
        kind: only this kind.
        model: name of a model; values of a method then include the recipe for both.

    Raises:
        PluginError: nobody has the name, or its plugin cannot be loaded.
    """
    registry = plugins.registry
    kinds = [kind] if kind is not None else sorted({entry.kind for entry in registry.entries() if name in entry.names})
    if not kinds:
        raise _unknown(name, plugins)
    return tuple(_describe(registry.get(each, name), plugins, model) for each in kinds)


def _unknown(name: str, plugins: Plugins) -> PluginError:
    """Return the error of the kind whose names come closest, methods first."""
    errors = [_error(plugins, kind, name) for kind in ("unlearner", *CONFIGURABLE, "recipe", "command")]
    helpful = [error for error in errors if "Did you mean" in error.problem or "pip install" in error.remedy]
    best = (helpful or errors)[0]
    if helpful:
        return best
    return PluginError("VU-P001", f"There is no plugin '{name}'.", "`vu list-plugins` shows what is installed.")


def _error(plugins: Plugins, kind: str, name: str) -> PluginError:
    try:
        plugins.registry.get(kind, name)
    except PluginError as error:
        return error
    raise RuntimeError(f"{kind} {name!r} is known after all")


def _describe(entry: Entry, plugins: Plugins, model: str | None) -> Description:
    target = entry.load()
    if entry.kind not in CONFIGURABLE:
        tables = target if entry.kind == "recipe" else {}
        text = getattr(target, "help", None) or entry.summary  # the help of a click command
        return Description(entry, text, None, (), "\n\n".join(_recipe_blocks(tables)))
    reading = Reading(RawConfig(), plugins.registry)
    if entry.kind == "unlearner" and model is not None:
        model_name = plugins.registry.get("model", model).name
        reading.recipe, notes = find_recipe(plugins.registry, model_name, entry.name)
        reading.notes += notes
        if reading.recipe is None:
            reading.notes.append(f"There is no recipe for model '{model_name}' and {_word(entry)} '{entry.name}'.")
    parts = list(_parts(reading, entry))
    parameters = tuple(_parameter(setting) for _, _, settings in parts for setting in settings)
    # Exporters and audits have no table in a configuration.
    shown_parts = parts if entry.kind in _TABLES or entry.kind in ("regularizer", "metric") else []
    blocks = [block for path, chosen, settings in shown_parts for block in _blocks(path, chosen, settings)]
    toml = "\n\n".join(blocks) + "\n" if blocks else ""
    text = inspect.getdoc(target) or entry.summary
    source = getattr(target, "source", None)
    return Description(entry, text, source, parameters, toml, tuple(reading.notes))


def _word(entry: Entry) -> str:
    return WORDS.get(entry.kind, entry.kind)


def _parts(reading: Reading, entry: Entry) -> Iterator[tuple[str, Entry, list[Setting]]]:
    """Yield (path of the table, plugin, its settings): the plugin, and for a method its axes and regularizers."""
    path = _TABLES.get(entry.kind, dotted((entry.kind, entry.name)))
    shipped = [reading.recipe_layer(path, RESERVED[entry.kind])] if entry.kind == "unlearner" else []
    yield path, entry, _settings(entry, path, shipped)
    if entry.kind != "unlearner":
        return
    for axis, axis_path in AXIS_PATHS.items():
        named = axis_layers(reading, axis, entry) if axis in entry.axes else None
        if named is not None:
            yield axis_path, named[0], _settings(named[0], axis_path, named[1])
    for name, values in (getattr(entry.load(), "defaults", None) or {}).get("regularizer", {}).items():
        regularizer, table = reading.registry.get("regularizer", name), dotted(("regularizer", name))
        wanted = constant_layer(values, f"default of {entry.name}", DEFAULT)
        yield table, regularizer, _settings(regularizer, table, [wanted, reading.recipe_layer(table)])


def _settings(entry: Entry, path: str, layers: Sequence[Layer]) -> list[Setting]:
    config = config_class(entry, entry.load())
    problems: list[str] = []
    lowest = default_layer(config, f"default of {entry.name}")
    settings = lay(config, [lowest, *layers], path, lambda key, text: problems.append(f"{key} {text}"))
    if problems:
        remedy = f"Update {entry.distribution}, or the distribution of the recipe."
        raise PluginError("VU-P005", f"The defaults of '{entry.name}' do not fit: {' '.join(problems)}", remedy)
    return list(leaves(settings))


def _parameter(setting: Setting) -> Parameter:
    metadata = setting.attribute.metadata
    required = setting.value is attrs.NOTHING
    return Parameter(
        key=setting.key,
        type=type_words(setting.type).removeprefix("a ").removeprefix("an "),
        default=None if required else plain(setting.value),
        origin=setting.origin,
        range=allowed_range(setting.attribute),
        help=str(metadata.get("help", "")),
        required=required,
        speed_only=bool(metadata.get("speed_only", False)),
    )


def _blocks(path: str, entry: Entry, settings: Iterable[Setting]) -> Iterator[str]:
    """Yield the TOML tables of a plugin, every line with its help."""
    key = "method" if entry.kind == "unlearner" else "name"
    own_table = entry.kind not in _TABLES
    tables: dict[str, list[str]] = {path: [] if own_table else [f"{key} = {toml_value(entry.name)}"]}
    if entry.kind == "dataset":
        tables[path].append('# forget = ["..."]  # what must go')
    for setting in settings:
        table, _, name = setting.key.rpartition(".")
        absent = setting.value is None or setting.value is attrs.NOTHING
        value = "..." if absent else toml_value(plain(setting.value))
        limits = allowed_range(setting.attribute)
        notes = [
            str(setting.attribute.metadata.get("help", "")),
            "required" if setting.value is attrs.NOTHING else limits,
        ]
        comment = "; ".join(note for note in notes if note)
        tables.setdefault(table, []).append(
            f"{'# ' if absent else ''}{name} = {value}" + (f"  # {comment}" if comment else "")
        )
    for table, lines in tables.items():
        yield "\n".join([f"[{table}]", *lines])


def _recipe_blocks(tables: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the tables of a recipe as TOML, without its head."""
    values = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    if values:
        yield "\n".join(
            [f"[{dotted(path)}]", *(f"{dotted((key,))} = {toml_value(value)}" for key, value in values.items())]
        )
    for key, value in tables.items():
        if isinstance(value, dict) and (*path, key) != ("recipe",):
            yield from _recipe_blocks(value, (*path, key))
