"""Stage 2: values become a `RunConfig`, or one error with everything that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs

from vu_core.blame import asked
from vu_core.config import (
    RESERVED,
    Choice,
    MeasureSettings,
    RawConfig,
    RunConfig,
    RunSettings,
    SubsetSettings,
    dotted,
)
from vu_core.config.conversion import Mismatch, convert
from vu_core.config.layers import Layer, config_class, constant_layer
from vu_core.config.naming import resolve_name, settle_ref
from vu_core.config.reading import DEFAULT, Reading
from vu_core.config.recipes import find_recipe
from vu_core.config.run_config import wrapped
from vu_core.earlier_edits import EarlierEdit, read_earlier
from vu_core.errors import ConfigError, PlanError, VuError, did_you_mean
from vu_core.plugins import Plugins
from vu_core.registry import FLAGS, Entry

TABLES = ("run", "model", "data", "subset", "unlearner", "weighting", "regularizer", "measure", "metric")
AXIS_PATHS = {
    "parameters": "unlearner.parameters",
    "attribution": "unlearner.attribution",
    "weighting": "weighting",
}


def structure(raw: RawConfig, plugins: Plugins, *, forgets: bool = True) -> RunConfig:
    """Understand a configuration: plugins by name, fields by type and range, each value with its origin.

    An axis is honoured when the method or one of the regularizers does.

    Values are laid over each other: the method's ``Config`` and ``defaults`` < the recipe for (model, method) < the
    file < ``--set`` < flags. Settings of an axis belong to the name they were written for: choosing another weighting
    drops the default's settings instead of handing them to it.

    Args:
        raw: what `vu_core.stages.read.read` returned.
        plugins: who takes part.
        forgets: what is forgotten belongs to it; not so in what the runs of a sequence share.

    Raises:
        ConfigError: everything that is wrong, in one message (``VU-C001``).
        PluginError: a plugin is missing, broken or claimed twice, and nothing else is wrong.
        PlanError: an axis is set that the method does not honour (``VU-L001``), and nothing else is wrong.
    """
    reading = Reading(raw, plugins.registry)
    _check_tables(reading)
    model, model_ref = _plugin(reading, "model")
    data, data_ref = _plugin(reading, "dataset") if _data_is_said(reading, model) else (None, "")
    method = _method(reading)
    if model is not None and method is not None:
        with reading.collecting("unlearner.method"):
            reading.recipe, notes = find_recipe(reading.registry, model.name, method.name)
            reading.notes += notes
    run = reading.core_table(RunSettings, "run")
    measure = reading.core_table(MeasureSettings, "measure", [reading.recipe_layer("measure")])
    subset = reading.core_table(SubsetSettings, "subset")
    edits = _earlier_edits(reading)
    parts = {
        "model": _referring(reading, model, "model", model_ref),
        "data": _referring(reading, data, "data", data_ref),
        "unlearner": _with_settings(reading, method),
    }
    regularizers = _regularizers(reading, method)
    honoured = {*(method.axes if method else ()), *(axis for each in regularizers for axis in each.entry.axes)}
    parts |= {axis: _axis(reading, axis, method, honoured) for axis in AXIS_PATHS}
    metrics = _metrics(reading, measure, data)
    forget, overwrite = reading.texts("data", "forget"), reading.texts("data", "overwrite")
    if forgets and reading.problems.found and parts["data"] is not None:
        _hear_data(reading, parts["data"], forget, overwrite)
    reading.problems.raise_if_any()
    return RunConfig(
        run=run,
        measure=attrs.evolve(measure, metrics=tuple(choice.name for choice in metrics)),
        forget=forget,
        overwrite=overwrite,
        regularizers=regularizers,
        metrics=metrics,
        edits=edits,
        subset=subset,
        origins=reading.origins,
        notes=tuple(reading.notes),
        **parts,  # type: ignore[arg-type]  # without a problem, model, data and unlearner are there
    )


def _check_tables(reading: Reading) -> None:
    for key, value in reading.raw.values.items():
        if key in ("sequence", "tasks"):
            error = ConfigError(
                "VU-C005",
                "A sequence of runs is described, where only a single run can be.",
                "`vu unlearn` runs sequences; elsewhere, take the tables [sequence] and [[tasks]] out.",
            )
            reading.problems.add_error(key, error)
        elif key not in TABLES:
            text = f"is unknown.{did_you_mean(key, TABLES)} Tables: {', '.join(TABLES)}."
            reading.problems.add(dotted((key,)), text)
        elif not isinstance(value, Mapping):
            reading.problems.add(key, f"must be a table, but is {value!r}; write [{key}] and its keys below.")


# Who takes part


def _plugin(reading: Reading, kind: str) -> tuple[Entry | None, str]:
    """Return the entry and the ref of the model or the data."""
    path = {"model": "model", "dataset": "data"}[kind]
    table = reading.table(path)
    name, ref = (reading.text(f"{path}.{key}", table.get(key)) for key in ("name", "ref"))
    with reading.collecting(f"{path}.name"):
        if name is not None:
            entry, own_ref = resolve_name(reading.registry, kind, name)
        elif "name" in table:
            return None, ""
        else:
            entry, own_ref = _default(reading, kind, path), ""
        if reading.chosen_anew(path, entry):
            reading.note_left_out(path, entry)
            ref = ref if reading.by_flag(f"{path}.ref") else None
        own_ref, ref = _the_ref(reading, path, own_ref, ref or "")
        reading.origins[f"{path}.name"] = reading.place(f"{path}.name") if name is not None else "default"
        said_by = "name" if own_ref else "ref"
        reading.origins[f"{path}.ref"] = reading.place(f"{path}.{said_by}") if own_ref or ref else "default"
        ref = own_ref or ref
        with reading.collecting(f"{path}.{said_by}"):
            ref = settle_ref(entry, ref)
        return entry, ref
    return None, ""


def _the_ref(reading: Reading, path: str, of_name: str, of_ref: str) -> tuple[str, str]:
    """Return the ref of ``NAME=REF`` and that of the key ``ref``, one of them empty: a flag outranks the file."""
    by_flag = reading.by_flag(f"{path}.name"), reading.by_flag(f"{path}.ref")
    if of_name and of_ref and of_name != of_ref and by_flag[0] == by_flag[1]:
        reading.problems.add(f"{path}.ref", f"is {of_ref!r}, but {path}.name says {of_name!r} already.")
    if of_name and of_ref and by_flag == (False, True):
        return "", of_ref
    return (of_name, "") if of_name else ("", of_ref)


def _method(reading: Reading) -> Entry | None:
    name = reading.text("unlearner.method", reading.table("unlearner").get("method"))
    with reading.collecting("unlearner.method"):
        if name is not None:
            entry = reading.registry.get("unlearner", name)
        elif "method" in reading.table("unlearner"):
            return None
        else:
            entry = _default(reading, "unlearner", "unlearner")
        reading.origins["unlearner.method"] = reading.place("unlearner.method") if name is not None else "default"
        entry.load()
        return entry
    return None


def _default(reading: Reading, kind: str, path: str) -> Entry:
    """Return what is used when nothing is said, or raise what to say."""
    entry = reading.registry.default(kind)
    if entry is not None:
        return entry
    names = reading.registry.usable_names(kind)
    if not names:
        raise reading.registry.nothing(kind)
    flag = f" with {FLAGS[kind]}" if kind in FLAGS else ""
    problem = f"Nothing is chosen and there is no default.{reading.registry.missing(kind)}"
    raise ConfigError("VU-C001", problem, f"Choose one{flag}: {', '.join(names)}.")


def _data_is_said(reading: Reading, model: Entry | None) -> bool:
    """Tell whether the data is known; only the default model may go without a word about it."""
    if "name" in reading.table("data") or model is None:
        return True
    if model.default or not any(entry.default for entry in reading.registry.entries("model")):
        return True
    installed = ", ".join(reading.registry.usable_names("dataset")) or "none"
    reading.problems.add_at(
        "data.name",
        f"is required, because the model is '{model.name}' and not the default: say what it forgets and retains with "
        f"--data NAME or --data NAME=PATH. Installed: {installed}.",
        reading.problems.place("model.name"),
    )
    return False


# Their settings


def _earlier_edits(reading: Reading) -> tuple[EarlierEdit, ...]:
    """Return the edits that the model carries, each read from the head of its file."""
    found = []
    for index, text in enumerate(reading.texts("model", "edits")):
        with reading.collecting(f"model.edits[{index}]"):
            found.append(read_earlier(text))
    if not found:
        reading.origins.pop("model.edits", None)
    return tuple(found)


def _referring(reading: Reading, entry: Entry | None, path: str, ref: str) -> Choice | None:
    """Return the model or the data with its settings."""
    if entry is None:
        return None
    layer = reading.user_layer(path, RESERVED[entry.kind], flags_only=reading.chosen_anew(path, entry))
    return reading.choice(entry, path, [layer], ref)


def _hear_data(reading: Reading, data: Choice, forget: tuple[str, ...], overwrite: tuple[str, ...]) -> None:
    """Let the data object to what it is asked to forget, so that this is told with all other problems.

    When there are none, the plan asks it: a large folder is not looked through twice.
    """
    if any(problem.key.startswith(("data.forget", "data.overwrite")) for problem in reading.problems.found):
        return
    with reading.collecting("data.forget"), asked(data.entry):
        data.entry.load()(data.ref, data.config).parse(forget, overwrite)


def _with_settings(reading: Reading, method: Entry | None) -> Choice | None:
    """Return the method with its settings; exactly one of ``steps`` and ``epochs`` must hold."""
    if method is None:
        return None
    path = "unlearner"
    choice = reading.choice(
        method,
        path,
        [reading.recipe_layer(path, RESERVED[method.kind]), reading.user_layer(path, RESERVED[method.kind])],
    )
    if choice is not None:
        with reading.collecting(f"{path}.method"):
            _check_signs(method)
        _check_base_method(reading, choice, path)
    training = getattr(choice.config, "training", None) if choice is not None else None
    if training is None:
        return choice
    if (training.steps is None) == (training.epochs is None):
        state = "neither is" if training.steps is None else "both are"
        reading.problems.add(f"{path}.training.steps", f"and epochs: exactly one must be set, but {state}.")
    return choice


def _check_signs(method: Entry) -> None:
    """Object to a method whose losses a weighting might take for others than they are.

    Raises:
        ConfigError: ``VU-C053``.
    """
    said = getattr(method.load(), "descends", ())
    if "weighting" in method.axes and set(said or ()) != {"retain", "forget"}:
        raise ConfigError(
            "VU-C053",
            f"The method {method.name!r} honours a weighting, but does not say that both of its losses are minimised: "
            f"its descends is {said!r}.",
            'Its author adds descends = ("retain", "forget") to the class, and turns the sign of a loss that should '
            "rise. Use another method until then.",
            where="unlearner.method",
        )


def _check_base_method(reading: Reading, choice: Choice, path: str) -> None:
    """Object to settings of a base method that it would not take; see ``settings_of`` of `vu_core.setting`."""
    for name, named_by in wrapped(choice.config):
        key = f"{path}.{name}"
        settings = dict(getattr(choice.config, name))
        with reading.collecting(f"{path}.{named_by}"):
            base = reading.registry.get("unlearner", getattr(choice.config, named_by))
            config = config_class(base, base.load())
            _check_signs(base)
            if settings.pop("training", None) is not None:
                text = f"is no setting here: {path}.training holds for '{base.name}' too."
                reading.problems.add(f"{key}.training", text)
            fields = [field for field in attrs.fields_dict(config) if field != "training"]
            for unknown in [each for each in settings if each not in fields]:
                text = f"is unknown.{did_you_mean(unknown, fields) or ' Known: ' + ', '.join(fields) + '.'}"
                reading.problems.add(dotted((*key.split("."), unknown)), text)
            try:
                convert({each: value for each, value in settings.items() if each in fields}, config)
            except Mismatch as mismatch:
                for inside, text in mismatch.found:
                    reading.problems.add(key + inside, f"{text}.")


def _axis(reading: Reading, axis: str, method: Entry | None, honoured: Collection[str]) -> Choice | None:
    """Return the plugin of one axis with the settings that are meant for it."""
    path = AXIS_PATHS[axis]
    head, _, last = path.rpartition(".")
    given = reading.table(head).get(last) if head else None
    if given is not None and not isinstance(given, Mapping):
        reading.problems.add(path, f"must be a table, but is {given!r}; write {path}.name = ...")
        return None
    if method is None:
        return None
    if axis not in honoured:
        if reading.written(path):
            reading.problems.add_error(path, _not_honoured(method, axis))
        return None
    with reading.collecting(f"{path}.name"):
        named = axis_layers(reading, axis, method)
        if named is not None:
            entry, layers = named
            return reading.choice(entry, path, layers)
    return None


def axis_layers(reading: Reading, axis: str, method: Entry) -> tuple[Entry, list[Layer]] | None:
    """Return who is chosen for an axis that the method honours, and the layers whose settings are for it.

    Returns:
        The entry and its layers, lowest first; ``None`` when nobody is chosen (attributions may be absent).

    Raises:
        PluginError: nobody has the name that was chosen. ConfigError: nothing is chosen and there is no default.
    """
    defaults = (getattr(method.load(), "defaults", None) or {}).get(axis, {})
    path = AXIS_PATHS[axis]
    lowest = constant_layer(defaults, f"default of {method.name}", DEFAULT)
    return _named(reading, axis, [lowest, reading.recipe_layer(path), reading.user_layer(path)])


def _named(reading: Reading, axis: str, layers: Sequence[Layer]) -> tuple[Entry, list[Layer]] | None:
    """Return who was chosen for an axis, and the layers whose settings are for it, without their names.

    Only the name that holds is looked up: one that another layer has replaced may belong to nobody, or to two.
    """
    path = AXIS_PATHS[axis]
    key = f"{path}.name"
    name, origin = None, "default"
    owners: list[str | None] = []  # whom the settings of each layer are for; None: whoever is the default
    for layer in layers:
        if "name" in layer.values:
            name, origin = reading.text(key, layer.values["name"]), layer.place(key)
            if name is None:
                return None
        owners.append(name)
    entry = reading.registry.default(axis) if name is None else reading.registry.get(axis, name)
    if entry is None:
        if axis == "attribution":
            return None
        entry = _default(reading, axis, path)
    reading.origins[key] = origin
    meant = [entry.default if owner is None else owner in entry.names for owner in owners]
    fitting = [layer for layer, is_for_it in zip(layers, meant, strict=True) if is_for_it]
    if reading.chosen_anew(path, entry):
        reading.note_left_out(path, entry)
        fitting[-1] = reading.user_layer(path, flags_only=True)
    nameless = [
        attrs.evolve(layer, values={name: value for name, value in layer.values.items() if name != "name"})
        for layer in fitting
    ]
    return entry, nameless


def _not_honoured(method: Entry, axis: str) -> VuError:
    honours = f"It honours {', '.join(method.axes)}." if method.axes else "It honours no axis."
    what = FLAGS.get(axis, f"[{AXIS_PATHS.get(axis, axis)}]")
    remedy = f"{honours} Take {what} out, or choose another method."
    return PlanError("VU-L001", f"The method '{method.name}' does not use {axis}.", remedy)


def _regularizers(reading: Reading, method: Entry | None) -> tuple[Choice, ...]:
    if method is None:
        return ()
    if "regularizer" not in method.axes:
        if reading.written("regularizer"):
            reading.problems.add_error("regularizer", _not_honoured(method, "regularizer"))
        return ()
    wanted = (getattr(method.load(), "defaults", None) or {}).get("regularizer", {})
    shipped = reading.recipe_layer("regularizer").values
    defaults = constant_layer(wanted, f"default of {method.name}", DEFAULT)
    return _tables(reading, "regularizer", [*wanted, *shipped, *reading.table("regularizer")], defaults=defaults)


def _metrics(reading: Reading, measure: MeasureSettings | None, data: Entry | None) -> tuple[Choice, ...]:
    """Return what is measured: what the user names, else what the data names."""
    if measure is None or data is None:
        return ()
    names = measure.metrics
    if names is None:
        with reading.collecting("data.name"):
            names = tuple(getattr(data.load(), "metrics", ()))
            reading.origins["measure.metrics"] = f"named by {data.name}"
    names = names or ()
    for name in sorted({name for name in names if names.count(name) > 1}):
        reading.problems.add("measure.metrics", f"names {name!r} more than once.")
    chosen = _tables(reading, "metric", names, "measure.metrics")
    asked = {name for choice in chosen for name in choice.entry.names} | set(names)
    for name in reading.table("metric"):
        if name not in asked and not _left_by_the_file(reading, name):
            text = f"is not measured.{did_you_mean(name, asked)} Add {name!r} to measure.metrics."
            reading.problems.add(dotted(("metric", name)), text)
    return chosen


def _left_by_the_file(reading: Reading, metric: str) -> bool:
    """Tell whether only the file has a table for a metric, and a flag took the place of the metrics of the file."""
    origins = reading.raw.origins
    own = [place for key, place in origins.items() if f"{key}.".startswith(f"metric.{metric}.")]
    return "measure.metrics" in reading.raw.replaced and not any(place.startswith("--") for place in own)


def _tables(
    reading: Reading, kind: str, names: Sequence[str], named_in: str = "", defaults: Layer | None = None
) -> tuple[Choice, ...]:
    """Return the plugins behind tables ``[KIND.NAME]``, each once, in the order of their names."""
    entries: dict[str, Entry] = {}
    for name in dict.fromkeys(names):
        with reading.collecting(named_in or dotted((kind, name))):
            entry = reading.registry.get(kind, name)
            entries.setdefault(entry.name, entry)
    choices = [_of_table(reading, kind, entry, defaults) for entry in entries.values()]
    return tuple(choice for choice in choices if choice is not None)


def _of_table(reading: Reading, kind: str, entry: Entry, defaults: Layer | None) -> Choice | None:
    """Return a plugin with the settings of its table, which the user may have called by an alias."""
    path = dotted((kind, entry.name))
    written = [name for name in entry.names if name in reading.table(kind)]
    if len(written) > 1:
        reading.problems.add(dotted((kind, written[1])), f"is another name of '{written[0]}', which is set already.")
        return None
    called = dotted((kind, written[0])) if written else path
    table = reading.table(kind).get(written[0]) if written else {}
    if not isinstance(table, Mapping):
        reading.problems.add(called, f"must be a table, but is {table!r}; write [{called}].")
        return None
    shipped = next((name for name in entry.names if name in reading.recipe_layer(kind).values), entry.name)
    layers = [reading.recipe_layer(dotted((kind, shipped))), reading.user_layer(called)]
    if defaults is not None and entry.name in defaults.values:
        layers.insert(0, defaults.inside(entry.name))
    choice = reading.choice(entry, called, layers)
    for key in [key for key in reading.origins if key.startswith(f"{called}.")]:
        reading.origins[path + key.removeprefix(called)] = reading.origins[key]
    return choice
