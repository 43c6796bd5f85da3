"""Stage 3: everything that is decided, checked and counted before any weight is read."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from re import match
from typing import Any

import attrs

from vu_core.blame import asked
from vu_core.config import Choice, RunConfig, dotted, run_id
from vu_core.config.problems import locating
from vu_core.config.run_config import base_methods
from vu_core.cost import estimate, steps_of, training_of
from vu_core.data import Concept, Manifest, Selection
from vu_core.earlier_edits import check_chain
from vu_core.errors import ConfigError, DataError, PlanError
from vu_core.plan import Capability, Cost, ModelFacts, Plan
from vu_core.plugins import Plugins
from vu_core.registry import WORDS, Entry, Registry
from vu_core.stages.load import check_device
from vu_core.stages.reference import read_reference
from vu_core.stages.subset import concepts_of, counted

NOTHING_MEASURES = "no metric of this run can show that it was forgotten."
"""What the plan and the scorecard say of a run whose metrics do not look at what the model does."""


def plan(config: RunConfig, plugins: Plugins, *, max_minutes: float | None = None, max_gb: float | None = None) -> Plan:
    """Decide, check and count everything before any weight is read.

    Args:
        config: what `structure` understood.
        plugins: may object.
        max_minutes: refuse a run that is estimated to take longer.
        max_gb: refuse a run that is estimated to need more memory, or more disk and downloads together, in 10^9 bytes.

    Raises:
        ConfigError: a limit is no positive number (``VU-C052``), the warm-up is as long as the run (``VU-C030``), or a
            list with a number per task has none for the task of the run (``VU-C054``).
        RecordError: ``measure.reference`` is no run with scores (``VU-R140``).
        PlanError: the parts do not fit together (``VU-L002``), exceed the budget (``VU-L003``), the device
            is not there (``VU-L050``), or plugins object (``VU-L004``).
        ModelError, DataError: the model or the data cannot be used. PluginError: a model or data plugin
            failed (``VU-P009``), or a check of the plan did (``VU-P007``).
    """
    _check_limits({"--max-minutes": max_minutes, "--max-gb": max_gb})
    if config.run.device != "cpu":
        check_device(config.run.device)
    if config.measure.reference is not None:
        read_reference(config.measure.reference)
    notes = [*config.notes, *_idle_threads(config.run.threads)]
    if config.run.seed is None:
        config, note = _with_seed(config)
        notes.append(note)
    model_plugin, data_plugin = config.model.entry.load(), config.data.entry.load()
    with locating(config.origins):
        with asked(config.model.entry):
            facts: ModelFacts = model_plugin(config.model.ref, config.model.config).inspect()
        with asked(config.data.entry):
            dataset = data_plugin(config.data.ref, config.data.config)
        with locating(config.origins, ("data.forget", "data.overwrite")), asked(config.data.entry):
            selection: Selection = dataset.parse(config.forget, config.overwrite)
        with asked(config.data.entry):
            manifest: Manifest = dataset.manifest(selection)
        apart, missing = _subset(config, dataset)
    check_chain(config.edits, facts.base_hash)
    config, left_out = _without_unmeasurable(config, facts, manifest)
    notes += left_out
    _check_needs(config, facts, manifest, plugins.registry)
    expected = manifest if config.subset.whole else counted(config, manifest, _count_classes(dataset))
    with locating(config.origins):
        _check_warmup(config, expected)
        _check_lists(config)
    cost = estimate(config, facts, expected)
    if facts.downloads:
        notes.append(f"{facts.downloads / 1e9:.2f} GB of '{facts.ref or facts.name}' must be downloaded first.")
    versions = dict(sorted(_versions(config, plugins.registry)))
    name = run_id(config, base_hash=facts.base_hash, data_digest=manifest.digest, versions=versions)
    notes += _cautions(config, plugins.registry)
    notes += [note for note in selection.notes if note not in notes]
    drawn = Plan(config, facts, expected, selection, cost, name, versions, tuple(notes), apart, missing)
    refuse_budget(cost, max_minutes=max_minutes, max_gb=max_gb)
    plugins.check_plan(drawn)
    return drawn


def _subset(config: RunConfig, dataset: Any) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """Return the concepts that ``[subset]`` keeps out of training, as the data understands them."""
    found = []
    for key in ("leave_out", "missing"):
        with locating(config.origins, (f"subset.{key}",)), asked(config.data.entry):
            found.append(concepts_of(dataset, getattr(config.subset, key)))
    return found[0], found[1]


def _count_classes(dataset: Any) -> int | None:
    """Return how many classes the data has, where it tells; only an estimate hangs on it."""
    try:
        return len(dataset.classes()) if hasattr(dataset, "classes") else None
    except DataError:  # data of this kind may have classes, this one has none
        return None


def _check_limits(limits: Mapping[str, float | None]) -> None:
    for name, limit in limits.items():
        if limit is not None and not 0 < limit < math.inf:  # NaN would allow everything
            raise ConfigError(
                "VU-C052",
                f"The limit must be a positive number, but is {limit}.",
                f"Give {name} a number above 0, or leave it out for no limit.",
                where=name,
            )


def _idle_threads(threads: int | None) -> Iterator[str]:
    cores = os.cpu_count()
    if threads is not None and cores is not None and threads > cores:
        yield f"run.threads is {threads}, but this machine has {cores} cores: the others only wait."


def refuse_budget(cost: Cost, *, max_minutes: float | None = None, max_gb: float | None = None) -> None:
    """Refuse what is estimated to cost more than allowed.

    Raises:
        PlanError: with every limit that is exceeded (``VU-L003``).
    """
    excess = []
    if max_minutes is not None and cost.seconds > max_minutes * 60:
        excess.append(f"about {cost.seconds / 60:.1f} minutes (allowed: {max_minutes:g})")
    if max_gb is not None:
        for what, need in (("memory", cost.memory), ("disk and downloads", cost.disk + cost.downloads)):
            if need > max_gb * 1e9:
                excess.append(f"about {need / 1e9:.2f} GB of {what} (allowed: {max_gb:g})")
    if excess:
        raise PlanError(
            "VU-L003",
            f"The run needs {' and '.join(excess)}.",
            "Raise --max-minutes or --max-gb, or make the run smaller: fewer steps or measure.seeds.",
        )


def _with_seed(config: RunConfig) -> tuple[RunConfig, str]:
    seed = secrets.randbelow(2**32)
    origins = {**config.origins, "run.seed": "drawn"}
    drawn = attrs.evolve(config, run=attrs.evolve(config.run, seed=seed), origins=origins)
    return drawn, f"No seed was given: {seed} was drawn. Repeat the run with --seed {seed}."


def _without_unmeasurable(config: RunConfig, facts: ModelFacts, manifest: Manifest) -> tuple[RunConfig, list[str]]:
    """Leave out metrics that cannot be had here, if only the data named them.

    Data names metrics for every kind of model. One that another kind serves is missed only where no other metric tells
    whether it was forgotten; one for whose unseen examples there are none is always missed: then it is said.
    """
    if not config.origins.get("measure.metrics", "").startswith("named by"):
        return config, []
    can = {*facts.capabilities, Capability.JUDGE, *UNSEEN}
    served = [choice for choice in config.metrics if not choice.entry.lacks(can)]
    unseen = _unseen(config, manifest)
    kept = [choice for choice in served if not (UNSEEN - unseen).intersection(choice.entry.needs)]
    if not kept or len(kept) == len(config.metrics):
        return config, []  # a run without any metric is refused, as one whose metrics were asked for
    foreign = [choice for choice in config.metrics if choice not in served]
    blind = [choice for choice in served if choice not in kept]
    measure = attrs.evolve(config.measure, metrics=tuple(choice.name for choice in kept))
    config = attrs.evolve(config, metrics=tuple(kept), measure=measure)
    measured = measures_forgetting(config, manifest)
    notes = []
    if blind:
        because = f"The data keeps no unseen examples of both sides in its {config.measure.split} part"
        notes.append(f"{because}, so {_are_left_out(blind)}")
    if foreign and not measured:
        notes.append(f"The model '{config.model.name}' cannot be asked what they need, so {_are_left_out(foreign)}")
    rest = "the status of the run rests on the other metrics." if measured else NOTHING_MEASURES
    return config, [f"{note}; {rest}" for note in notes]


def _are_left_out(choices: Sequence[Choice]) -> str:
    names = " and ".join(f"'{choice.name}'" for choice in choices)
    return f"{names} {'is' if len(choices) == 1 else 'are'} left out"


def measures_forgetting(config: RunConfig, manifest: Manifest) -> bool:
    """Tell whether anything may be said about forgetting at all.

    Nothing is where no metric looks at what the model does: one that asks for an ability of the model does, one that
    says ``looks = False``, as the size of the edit, does not, and any other may look at unseen examples, if there are
    some.
    """
    abilities = {Capability.DENOISE, Capability.GENERATE, Capability.CLASSIFY}
    if any(abilities.intersection(need.split("|")) for choice in config.metrics for need in choice.entry.needs):
        return True
    may_look = any(getattr(choice.entry.load(), "looks", True) for choice in config.metrics)
    return may_look and Capability.UNSEEN in _unseen(config, manifest)


UNSEEN = frozenset({Capability.UNSEEN, Capability.UNSEEN_RETAIN})


def _unseen(config: RunConfig, manifest: Manifest) -> frozenset[Capability]:
    """Return what the data can do in the measured part: data that does not count its examples there is believed to."""
    forget, retain = (manifest.counts.get(f"{config.measure.split}/{side}", 1) for side in ("forget", "retain"))
    if not retain:
        return frozenset()
    return UNSEEN if forget else frozenset({Capability.UNSEEN_RETAIN})


def _check_needs(config: RunConfig, facts: ModelFacts, manifest: Manifest, registry: Registry) -> None:
    """Refuse a method or a metric that needs what neither the model nor the data can do."""
    of_data = {str(each) for each in (Capability.JUDGE, *UNSEEN)}
    can = {str(each) for each in facts.capabilities}
    if any(Capability.JUDGE in entry.needs for entry in _named_by_data(config, registry)):
        can.add(str(Capability.JUDGE))
    can |= {str(each) for each in _unseen(config, manifest)}
    lacking = []
    methods = (config.unlearner.entry, *base_methods(config, registry))
    for entry in (*methods, *(choice.entry for choice in config.metrics)):
        missing = entry.lacks(can)
        if missing:
            owner = "data" if of_data.issuperset(missing) else "model"
            has = config.data.name if owner == "data" else config.model.name
            word = WORDS.get(entry.kind, entry.kind)
            needed = ", ".join(missing).replace("|", "' or '")
            lacking.append(f"the {word} '{entry.name}' needs '{needed}', which the {owner} '{has}' lacks")
    if lacking:
        problem = "; ".join(lacking)
        raise PlanError(
            "VU-L002",
            f"{problem[0].upper()}{problem[1:]}.",
            "Choose another model, method or measure.metrics; `vu list-plugins` shows what each one needs.",
        )


def _named_by_data(config: RunConfig, registry: Registry) -> Iterator[Entry]:
    """Yield the metrics that the data names itself: one that needs a judge says that the data has one."""
    named = tuple(getattr(config.data.entry.load(), "metrics", ()))
    for entry in registry.entries("metric"):
        if any(name in named for name in entry.names):
            yield entry


def _cautions(config: RunConfig, registry: Registry) -> Iterator[str]:
    """Yield what a plugin wants everybody to know who uses it: the text ``caution`` of its class."""
    for entry in (*(choice.entry for choice in config.choices), *base_methods(config, registry)):
        caution = getattr(entry.load(), "caution", "")
        if caution:
            yield f"'{entry.name}': {caution}"


def _check_warmup(config: RunConfig, manifest: Manifest) -> None:
    from vu_core.training.settings import check_warmup

    steps, training = steps_of(config, manifest), training_of(config)
    if steps is not None and training is not None:
        check_warmup(training, steps)


def _check_lists(config: RunConfig) -> None:
    """Object to a list with a number per task that has none for the task of the run."""
    from vu_core.training.schedules import Schedule, value_at

    tables = {"unlearner": config.unlearner.config}
    tables |= {dotted(("regularizer", each.name)): each.config for each in config.regularizers}
    for table, settings in tables.items():
        for field in attrs.fields(type(settings)):
            if field.type == Schedule:
                value_at(getattr(settings, field.name), task=config.run.task, name=f"{table}.{field.name}")


def _versions(config: RunConfig, registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield every distribution that takes part: the core, torch, the plugins' own and what these require directly."""
    for name in ("vu-core", "torch"):
        if (number := _version(name)) is not None:
            yield name, number
    for entry in (*(choice.entry for choice in config.choices), *base_methods(config, registry)):
        yield entry.distribution, entry.version
        for name in _requirements(entry.distribution) if entry.distribution != "vu-core" else ():
            if (number := _version(name)) is not None:
                yield name, number


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _requirements(distribution: str) -> Iterator[str]:
    """Yield the names of what a distribution requires without extras."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return
    for line in lines:
        name = match(r"[A-Za-z0-9._-]+", line)
        if name is not None and "extra ==" not in line:
            yield name.group().lower().replace("_", "-")
