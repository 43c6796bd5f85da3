"""Settings of one table, laid over each other: defaults, recipe, file, flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import attrs

from vu_core.config.conversion import Mismatch, convert
from vu_core.config.run_config import RESERVED
from vu_core.config.toml_text import dotted
from vu_core.errors import PluginError, did_you_mean
from vu_core.registry import Entry

Report = Callable[[str, str], None]
"""Takes a dotted key and what is wrong with it."""

LENGTHS = ("steps", "epochs")
"""The two ways to say how long a training lasts: exactly one holds, the one said last."""


@attrs.frozen
class Layer:
    """What one source says about a table.

    Args:
        values: keys and values; place: tells the origin of a dotted key; rank: a higher one wins.
    """

    values: Mapping[str, Any]
    place: Callable[[str], str]
    rank: Callable[[str], int]

    def inside(self, name: str) -> Layer:
        """Return what this source says about an inner table."""
        return attrs.evolve(self, values=self.values[name])


@attrs.frozen
class Setting:
    """One field with the value that holds.

    Args:
        key: dotted key; attribute: the field; type: its resolved annotation.
        value: what holds, ``attrs.NOTHING`` for a required field that nobody set.
        origin: where it comes from; rank: of its layer.
    """

    key: str
    attribute: attrs.Attribute[Any]
    type: Any
    value: Any
    origin: str
    rank: int


Settings = dict[str, "Setting | Settings"]


def constant_layer(values: Mapping[str, Any], origin: str, rank: int) -> Layer:
    """Return a layer all of whose values have one origin."""
    return Layer(values, lambda _: origin, lambda _: rank)


def config_class(entry: Entry, target: Any) -> type[Any]:
    """Return the ``Config`` of a plugin class with its annotations resolved.

    Raises:
        PluginError: there is none, it is no attrs class, one of its fields has the name of a key that the table needs
            itself, or an annotation cannot be resolved (``VU-P005``).
    """
    config = getattr(target, "Config", None)
    where = f"distribution {entry.distribution} {entry.version}"
    remedy = f"Update {entry.distribution}; its authors find every rule in vu_core.testing."
    if not isinstance(config, type) or not attrs.has(config):
        raise PluginError(
            "VU-P005", f"'{entry.name}' ({entry.target}) has no attrs class named Config.", remedy, where=where
        )
    taken = [name for name in RESERVED.get(entry.kind, ()) if name in attrs.fields_dict(config)]
    if taken:
        problem = f"The Config of '{entry.name}' has a field '{taken[0]}', which is a key of the table itself."
        raise PluginError("VU-P005", problem, remedy, where=where)
    try:
        return attrs.resolve_types(config)
    except (NameError, TypeError) as exc:
        problem = f"The Config of '{entry.name}' has an annotation that cannot be resolved: {exc}."
        raise PluginError("VU-P005", problem, remedy, where=where) from exc


def default_layer(config: type[Any], origin: str) -> Layer:
    """Return the defaults of a ``Config`` as the lowest layer."""
    return constant_layer(_defaults(config), origin, 0)


def lay(config: type[Any], layers: Sequence[Layer], path: str, report: Report) -> Settings:
    """Find for every field of ``config`` the value of the highest layer; unknown keys are reported.

    Args:
        config: attrs class with resolved annotations.
        layers: lowest first, the defaults among them.
        path: dotted key of the table.
        report: is told every problem.
    """
    fields = {field.name: field for field in attrs.fields(config)}
    for layer in layers:
        for name in layer.values:
            if name not in fields:
                report(dotted((*_parts(path), name)), f"is unknown.{did_you_mean(name, fields) or _known(fields)}")
    settings: Settings = {}
    for name, field in fields.items():
        key = dotted((*_parts(path), name))
        saying = [layer for layer in _of_one_name(field, layers) if name in layer.values]
        inner = nested(field.type)
        if inner is not None and any(layer.values[name] is not None for layer in saying):
            tables = [default_layer(attrs.resolve_types(inner), "default"), *_tables(name, saying, key, report)]
            settings[name] = lay(inner, tables, key, report)
        else:
            settings[name] = _highest(key, field, saying)
    _settle_length(settings)
    return settings


def build(config: type[Any], settings: Settings, path: str, report: Report) -> Any:
    """Make the instance; returns ``None`` after reporting what is wrong."""
    try:
        return convert(_values(settings), config)
    except Mismatch as mismatch:
        for inside, text in mismatch.found:
            report(path + inside, f"{text}.")
        return None


def leaves(settings: Settings) -> Iterator[Setting]:
    """Yield every field, those of inner tables too."""
    for setting in settings.values():
        if isinstance(setting, dict):
            yield from leaves(setting)
        else:
            yield setting


def nested(wanted: Any) -> type[Any] | None:
    """Return the attrs class behind an annotation ``C`` or ``C | None``."""
    members = [each for each in (get_args(wanted) or (wanted,)) if each is not type(None)]
    single = members[0] if len(members) == 1 else None
    return single if isinstance(single, type) and attrs.has(single) else None


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _known(fields: Mapping[str, Any]) -> str:
    return f" Known: {', '.join(fields)}." if fields else " There is nothing to set here."


def _defaults(config: type[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in attrs.fields(config):
        default = field.default
        if default is attrs.NOTHING or not field.init:
            continue
        value = default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
        inner = nested(field.type)
        if inner is not None and isinstance(value, inner):
            value = attrs.asdict(value, recurse=True)
        found[field.name] = value
    return found


def _tables(name: str, layers: Sequence[Layer], key: str, report: Report) -> list[Layer]:
    tables = []
    for layer in layers:
        value = layer.values[name]
        if isinstance(value, Mapping):
            tables.append(layer.inside(name))
        elif value is not None:
            report(key, f"must be a table, but is {value!r}.")
    return tables


def _highest(key: str, field: attrs.Attribute[Any], layers: Sequence[Layer]) -> Setting:
    if not layers:
        return Setting(key, field, field.type, attrs.NOTHING, "", -1)
    top = layers[-1]
    value = top.values[field.name]
    if field.metadata.get("settings_of") and all(isinstance(layer.values[field.name], Mapping) for layer in layers):
        value = {name: each for layer in layers for name, each in layer.values[field.name].items()}
    return Setting(key, field, field.type, value, top.place(key), top.rank(key))


def _of_one_name(field: attrs.Attribute[Any], layers: Sequence[Layer]) -> Sequence[Layer]:
    """Return the layers, those with settings of another method than the one that is chosen without these."""
    named_by = field.metadata.get("settings_of")
    if not named_by:
        return layers
    names: list[Any] = []  # what each layer is about: the name that it says, or the one below
    for layer in layers:
        names.append(layer.values.get(named_by, names[-1] if names else None))
    return [
        layer
        if name == names[-1] or field.name not in layer.values
        else attrs.evolve(layer, values={**layer.values, field.name: {}})
        for layer, name in zip(layers, names, strict=True)
    ]


def _settle_length(settings: Settings) -> None:
    """Let the length of a training that was said later replace the one said earlier; two of one rank both stay."""
    both = [settings.get(name) for name in LENGTHS]
    said = [each for each in both if isinstance(each, Setting) and each.value not in (None, attrs.NOTHING)]
    if len(said) < 2 or said[0].rank == said[1].rank:
        return
    earlier, later = sorted(said, key=lambda each: each.rank)
    settings[earlier.attribute.name] = attrs.evolve(earlier, value=None, origin=f"gives way to {later.attribute.name}")


def _values(settings: Settings) -> dict[str, Any]:
    """Return what holds, as a file would say it; a required field that nobody set is not there."""
    found = {name: _values(each) if isinstance(each, dict) else each.value for name, each in settings.items()}
    return {name: value for name, value in found.items() if value is not attrs.NOTHING}
