"""One pass over a configuration: the layers of every table, where each value stands, and what is wrong so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from vu_core.config.conversion import Mismatch, convert
from vu_core.config.layers import Layer, build, config_class, constant_layer, default_layer, lay, leaves
from vu_core.config.naming import absolute
from vu_core.config.problems import Problems
from vu_core.config.raw import RawConfig
from vu_core.config.recipes import Recipe
from vu_core.config.run_config import Choice
from vu_core.config.toml_text import dotted
from vu_core.errors import VuError
from vu_core.registry import Entry, Registry

# Ranks of the layers, see `Layer`: what --set and flags say outranks the file.
DEFAULT, RECIPE, FILE, FLAG = 0, 1, 2, 3


@attrs.define
class Reading:
    """State of one pass over a configuration.

    Args:
        raw: what was written; registry: who may be named in it.
        recipe: settings that a plugin ships for (model, method), once both are known.
        origins: dotted key -> where the value that holds comes from.
        notes: sentences for the user.
    """

    raw: RawConfig
    registry: Registry
    recipe: Recipe | None = None
    origins: dict[str, str] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    problems: Problems = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.problems = Problems(self.place)

    def place(self, key: str) -> str:
        """Return where a dotted key was written: its own place, else that of the table around it, else nothing."""
        key = key.partition("[")[0]
        while key:
            if key in self.raw.origins:
                return self.raw.origins[key]
            inner = [each for each in self.raw.origins if each.startswith(f"{key}.")]
            if inner:
                return self.raw.origins[inner[0]]
            key = key.rpartition(".")[0]
        return ""

    def by_flag(self, key: str) -> bool:
        """Tell whether a key was set by ``--set`` or a flag."""
        return self.place(key).startswith("--")

    def written(self, path: str) -> bool:
        """Tell whether a table was written, be it empty."""
        table: Any = self.raw.values
        for part in path.split("."):
            if not isinstance(table, Mapping) or part not in table:
                return False
            table = table[part]
        return True

    def table(self, path: str) -> Mapping[str, Any]:
        """Return a table as written; empty when it is absent or no table (which is reported elsewhere)."""
        return _inner(self.raw.values, path)

    def text(self, key: str, value: Any) -> str | None:
        """Return a text, or ``None`` when it is absent; anything else is a problem."""
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            self.problems.add(key, f"must be text, but is {value!r}.")
            return None
        return value

    def texts(self, path: str, name: str) -> tuple[str, ...]:
        """Return a list of texts, empty when it is absent."""
        key = f"{path}.{name}"
        given = name in self.table(path)
        self.origins[key] = self.place(key) if given else "default"
        try:
            texts: tuple[str, ...] = convert(self.table(path)[name] if given else (), tuple[str, ...])
        except Mismatch as mismatch:
            for inside, text in mismatch.found:
                self.problems.add(key + inside, f"{text}.")
            return ()
        for index, text in enumerate(texts):
            if not text.strip():
                self.problems.add(f"{key}[{index}]", "is empty.")
        return texts

    def chosen_anew(self, path: str, entry: Entry) -> bool:
        """Tell whether a flag chose another plugin than the file, whose settings are then not for it."""
        earlier = self.raw.replaced.get(f"{path}.name")
        return isinstance(earlier, str) and earlier not in entry.names

    def of_file(self, path: str) -> list[str]:
        """Return the keys of a table that the file set."""
        return [key for key in self.table(path) if not self.by_flag(dotted((*path.split("."), key)))]

    def note_left_out(self, path: str, entry: Entry) -> None:
        """Say which settings of the file are left out, because a flag chose another plugin."""
        keys = [key for key in self.of_file(path) if key not in ("name", "forget", "overwrite")]
        if keys:
            self.notes.append(
                f"{', '.join(keys)} of [{path}] ({self.place(f'{path}.{keys[0]}')}) belong to "
                f"'{self.raw.replaced[f'{path}.name']}' and are left out, because {self.place(f'{path}.name')} chose "
                f"'{entry.name}'."
            )

    def user_layer(self, path: str, reserved: Sequence[str] = (), *, flags_only: bool = False) -> Layer:
        """Return what file, ``--set`` and flags say about a table, without the reserved keys."""
        hidden = {*reserved, *(self.of_file(path) if flags_only else ())}
        values = {key: value for key, value in self.table(path).items() if key not in hidden}
        return Layer(values, self.place, lambda key: FLAG if self.by_flag(key) else FILE)

    def recipe_layer(self, path: str, reserved: Sequence[str] = ()) -> Layer:
        """Return what the recipe says about a table, without the reserved keys."""
        table = _inner(self.recipe.tables, path) if self.recipe is not None else {}
        values = {key: value for key, value in table.items() if key not in reserved}
        return constant_layer(values, self.recipe.origin if self.recipe is not None else "", RECIPE)

    def core_table(self, config: type[Any], path: str, between: Sequence[Layer] = ()) -> Any:
        """Return the instance of a table of the core, or ``None`` after noting what is wrong."""
        layers = [default_layer(attrs.resolve_types(config), "default"), *between, self.user_layer(path)]
        built = self._built(config, layers, path)
        return None if built is None else _settled(built)

    def choice(self, entry: Entry, path: str, layers: Sequence[Layer], ref: str = "") -> Choice | None:
        """Return a plugin with its settings, or ``None`` after noting what is wrong."""
        with self.collecting(path):
            config = config_class(entry, entry.load())
            lowest = default_layer(config, f"default of {entry.name}")
            built = self._built(config, [lowest, *layers], path)
            return None if built is None else Choice(entry, _settled(built), ref)
        return None

    def collecting(self, key: str) -> Collecting:
        """Turn a `VuError` inside a ``with`` block into a problem of a key, so that the others are found too."""
        return Collecting(self.problems, key)

    def _built(self, config: type[Any], layers: Sequence[Layer], path: str) -> Any:
        unknown: list[tuple[str, str]] = []
        settings = lay(config, layers, path, lambda key, text: unknown.append((key, text)))
        origins = {setting.key: setting.origin for setting in leaves(settings)}
        self.origins |= origins

        def report(key: str, text: str) -> None:
            alone = key.partition("[")[0]
            place = origins.get(alone) or next(_origins_of(layers, path, alone), "") or self.place(alone)
            self.problems.add_at(key, text, place)

        for key, text in unknown:
            report(key, text)
        return build(config, settings, path, report)


@attrs.frozen
class Collecting:
    """See `Reading.collecting`."""

    problems: Problems
    key: str

    def __enter__(self) -> None:
        """Enter the block; nothing happens yet."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        """Note a `VuError` and go on behind the block; let everything else through."""
        if isinstance(error, VuError):
            self.problems.add_error(self.key, error)
            return True
        return False


def _settled(config: Any) -> Any:
    """Return a ``Config`` whose paths to what exists are absolute, so that they hold in every folder."""
    names = [field.name for field in attrs.fields(type(config)) if field.metadata.get("path")]
    texts = {name: getattr(config, name) for name in names}
    paths = {name: absolute(text) for name, text in texts.items() if isinstance(text, str)}
    return attrs.evolve(config, **paths) if paths else config


def _inner(tables: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = tables
    for part in path.split("."):
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _origins_of(layers: Sequence[Layer], path: str, key: str) -> Iterator[str]:
    """Yield the origins of the layers, highest first, in whose values a key stands."""
    parts = key.removeprefix(path).lstrip(".").split(".")
    for layer in reversed(layers):
        if parts[-1].strip('"') in _inner({"_": layer.values}, ".".join(["_", *parts[:-1]])):
            yield layer.place(key)
