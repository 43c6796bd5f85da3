"""A configuration with ``[sequence]`` or ``[[tasks]]`` -> the tasks, a plan for each, the file that repeats them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_core.blame import asked
from vu_core.config import (
    Choice,
    Override,
    RawConfig,
    RunConfig,
    SubsetSettings,
    dotted,
    flat,
    plain,
    to_toml,
    toml_value,
)
from vu_core.config.reading import Reading
from vu_core.config.run_config import RESERVED
from vu_core.config.tables import table_toml
from vu_core.contracts.sequence import SequenceTask
from vu_core.data import digest
from vu_core.errors import ConfigError
from vu_core.plan import Capability, Cost
from vu_core.plugins import Plugins
from vu_core.sequence_record import SequencePlan
from vu_core.setting import setting
from vu_core.stages.plan import UNSEEN, plan, refuse_budget
from vu_core.stages.read import overlaid
from vu_core.stages.structure import structure

TABLES = ("sequence", "tasks")
"""Tables that make a configuration one of a sequence."""
OF_TASK = ("name", "forget", "overwrite", "leave_out", "missing")
"""Keys of ``[[tasks]]`` of their own; every other one is a key of the run, such as ``unlearner.bound``."""
OF_SEQUENCE = ("run.seed", "run.task", "run.out", "model.edits")
"""Keys that the sequence sets for every run."""
WRITTEN_AS = {
    "data.forget": "forget",
    "data.overwrite": "overwrite",
    "subset.leave_out": "leave_out",
    "subset.missing": "missing",
}
"""Keys of the run that a task says by keys of its own, which the sequence works with."""


@attrs.frozen
class SequenceSettings:
    """Keys of ``[sequence]`` besides those of its plugin."""

    seeds: int = setting(1, help="run the sequence with so many seeds, from run.seed on", ge=1, le=1000)


@attrs.frozen
class Chain:
    """A configuration of a sequence, understood.

    Args:
        base: what all runs share; choice: the sequence plugin with its settings, ``None`` for listed tasks.
        settings: the other keys of ``[sequence]``; origins: of its values.
        tasks: with what earlier tasks forget among ``leave_out``; overrides: per task, further keys of its run.
        carried: edits that the model carries before the first task.
    """

    base: RawConfig
    choice: Choice | None
    settings: SequenceSettings
    origins: Mapping[str, str]
    tasks: tuple[SequenceTask, ...]
    overrides: tuple[Mapping[str, Any], ...]
    carried: tuple[str, ...] = ()

    def run(self, number: int, *, seed: int | None = None, edits: Sequence[Path] = (), out: Path | None = None) -> Any:
        """Return the configuration of the run of one task, as `vu_core.stages.read.read` would."""
        task = self.tasks[number]
        values = {"data.forget": task.forget, "run.task": number, **self.overrides[number]}
        values |= {"subset.leave_out": task.leave_out} if task.leave_out else {}
        values |= {"subset.missing": task.missing} if task.missing else {}
        earlier = (*self.carried, *(str(edit.absolute()) for edit in edits))
        values |= {"model.edits": earlier} if earlier else {}
        values |= {} if seed is None else {"run.seed": seed}
        values |= {} if out is None else {"run.out": str(out)}
        origin = f"--sequence, task {number}"
        return overlaid(self.base, [Override(key, value, origin) for key, value in values.items()])


def describes_sequence(raw: RawConfig) -> bool:
    """Tell whether a configuration is one of a sequence of runs."""
    return any(table in raw.values for table in TABLES)


def understand(raw: RawConfig, plugins: Plugins) -> Chain:
    """Find the tasks of a configuration.

    Raises:
        ConfigError: the tables are wrong (``VU-C156`` to ``VU-C159``), or anything else in the configuration is.
    """
    values = {key: value for key, value in raw.values.items() if key not in TABLES}
    base = RawConfig(values, raw.origins, raw.replaced)
    if _table(base, "data").get("forget"):
        raise ConfigError(
            "VU-C157",
            "What a sequence forgets is said twice: by its tasks, and by data.forget.",
            "Take --forget, or data.forget, out.",
            where=raw.origins.get("data.forget", "data.forget"),
        )
    if _table(base, "run").get("task"):  # a sequence.toml has the 0 of its first run
        raise _wrong_task("run.task", "is set by the sequence for every run")
    listed = raw.values.get("tasks")
    choice, settings, origins = _chosen(raw, plugins, needed=listed is None)
    base = _with_metrics(base, choice, plugins)
    if choice is None:
        tasks, overrides = _listed(listed)
    else:
        tasks = _divided(choice, structure(base, plugins, forgets=False))
        overrides = ({},) * len(tasks)
    shared = structure(base, plugins, forgets=False)
    carried = tuple(edit.path for edit in shared.edits)
    return Chain(base, choice, settings, origins, _with_earlier(tasks, shared.subset), overrides, carried)


def _table(raw: RawConfig, name: str) -> Mapping[str, Any]:
    """Return a table as written; empty when it is absent or no table, which the runs will be told."""
    found = raw.values.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _chosen(
    raw: RawConfig, plugins: Plugins, *, needed: bool
) -> tuple[Choice | None, SequenceSettings, Mapping[str, str]]:
    """Return the sequence plugin, if one is needed, and the settings of ``[sequence]``."""
    table = raw.values.get("sequence", {})
    if not isinstance(table, Mapping):
        raise ConfigError(
            "VU-C156", f"sequence must be a table, but is {table!r}.", "Write [sequence] and its keys below."
        )
    if not needed and "name" in table:
        raise ConfigError(
            "VU-C156",
            f"The tasks are listed by [[tasks]], and divided by the sequence {table['name']!r} too.",
            "Keep one of both.",
            where=raw.origins.get("sequence.name", "sequence.name"),
        )
    own = {key: value for key, value in table.items() if key == "seeds" or not needed}
    whole, rest = Reading(raw, plugins.registry), Reading(attrs.evolve(raw, values={"sequence": own}), plugins.registry)
    settings = rest.core_table(SequenceSettings, "sequence")
    choice = None
    if needed:
        with whole.collecting("sequence.name"):
            name = whole.text("sequence.name", table.get("name"))
            entry = plugins.registry.default("sequence") if name is None else plugins.registry.get("sequence", name)
            if entry is None:
                raise plugins.registry.nothing("sequence")
            choice = whole.choice(entry, "sequence", [whole.user_layer("sequence", RESERVED["sequence"])])
    whole.problems.found += rest.problems.found
    whole.problems.raise_if_any()
    return choice, settings, {**whole.origins, **rest.origins}


def _with_metrics(base: RawConfig, choice: Choice | None, plugins: Plugins) -> RawConfig:
    """Let the sequence name the metrics where nobody else does; tasks that are listed take those of the default one."""
    if "metrics" in _table(base, "measure"):
        return base
    entry = choice.entry if choice is not None else plugins.registry.default("sequence")
    if entry is None:
        return base
    # Settings of metrics wait until it is clear which ones are measured.
    rest = {key: value for key, value in base.values.items() if key != "metric"}
    config = structure(attrs.evolve(base, values=rest), plugins, forgets=False)
    with asked(config.model.entry):
        facts = config.model.entry.load()(config.model.ref, config.model.config).inspect()
    can = {*facts.capabilities, Capability.JUDGE, *UNSEEN}
    usable = {each.name: each for each in plugins.registry.entries("metric") if each.usable}
    names = entry.load().metrics
    if any(name not in usable or usable[name].lacks(can) for name in names):
        return base  # what the data names will do
    named = overlaid(base, [Override("measure.metrics", tuple(names), f"named by {entry.name}")])
    return attrs.evolve(named, replaced=base.replaced)


def _divided(choice: Choice, config: RunConfig) -> tuple[SequenceTask, ...]:
    """Let the plugin divide the classes of the data."""
    with asked(config.data.entry):
        dataset = config.data.entry.load()(config.data.ref, config.data.config)
        classes = dataset.classes() if hasattr(dataset, "classes") else None
    if classes is None:
        raise ConfigError(
            "VU-C158",
            f"The data '{config.data.name}' does not say which classes it has, so '{choice.name}' cannot divide them.",
            'List the tasks in a file, each with what it forgets: [[tasks]] forget = ["..."].',
            where="sequence.name",
        )
    with asked(choice.entry):
        tasks: tuple[SequenceTask, ...] = choice.entry.load()(choice.config).tasks(classes)
    return tasks


def _listed(listed: Any) -> tuple[tuple[SequenceTask, ...], tuple[Mapping[str, Any], ...]]:
    """Return the tasks of ``[[tasks]]`` and the further keys of each."""
    if not isinstance(listed, list) or not listed or not all(isinstance(each, Mapping) for each in listed):
        raise _wrong_task("tasks", "must be one table or more: [[tasks]] and the keys of the task below")
    tasks: list[SequenceTask] = []
    overrides: list[Mapping[str, Any]] = []
    for number, table in enumerate(listed):
        place = f"tasks[{number}]"
        for key in ("forget", "overwrite", "leave_out", "missing"):
            texts = table.get(key, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise _wrong_task(f"{place}.{key}", f"must be a list of texts, but is {texts!r}")
        if not table.get("forget"):
            raise _wrong_task(f"{place}.forget", "must name what the task forgets")
        if not isinstance(table.get("name", ""), str):
            raise _wrong_task(f"{place}.name", f"must be text, but is {table['name']!r}")
        further = dict(flat({key: value for key, value in table.items() if key not in OF_TASK}))
        for key in further:
            if key in OF_SEQUENCE:
                raise _wrong_task(f"{place}.{key}", "is set by the sequence for every run")
            if key in WRITTEN_AS:
                raise _wrong_task(f"{place}.{key}", f"is written as {place}.{WRITTEN_AS[key]}")
        further |= {"data.overwrite": tuple(table["overwrite"])} if table.get("overwrite") else {}
        texts = {key: tuple(table.get(key, ())) for key in ("forget", "leave_out", "missing")}
        earlier = {text for task in tasks for text in task.forget}
        for text in texts["missing"]:
            if text in texts["forget"] or text in earlier:
                who = "the task" if text in texts["forget"] else "an earlier task"
                raise _wrong_task(f"{place}.missing", f"names {text}, which {who} forgets, and so does not retain")
        tasks.append(SequenceTask(**texts, name=table.get("name", "")))
        overrides.append(further)
    return tuple(tasks), tuple(overrides)


def _wrong_task(key: str, problem: str) -> ConfigError:
    return ConfigError(
        "VU-C159", f"{key} {problem}.", "See docs/howto/continual-forgetting.md for the keys of a task.", where=key
    )


def _with_earlier(tasks: Sequence[SequenceTask], subset: SubsetSettings) -> tuple[SequenceTask, ...]:
    """Add what earlier tasks forget, and what ``[subset]`` itself names, to what is kept out of training in a task.

    What is forgotten is no longer among the classes that ``[subset]`` retains without training images.
    """
    found, earlier = [], list(subset.leave_out)
    for task in tasks:
        together = dict.fromkeys([*earlier, *task.leave_out])
        left_out = tuple(text for text in together if text not in task.forget)
        retained = [text for text in subset.missing if text not in (*left_out, *task.forget)]
        missing = tuple(dict.fromkeys([*retained, *task.missing]))
        found.append(attrs.evolve(task, leave_out=left_out, missing=missing))
        earlier += task.forget
    return tuple(found)


def dry_run(
    raw: RawConfig, *, plugins: Plugins, max_minutes: float | None = None, max_gb: float | None = None
) -> SequencePlan:
    """Understand the configuration of a sequence and tell what it would do and cost; no weight is read.

    Args:
        raw: what `vu_core.stages.read.read` returned.
        plugins: who takes part.
        max_minutes: refuse a sequence that would take longer, all its runs together.
        max_gb: refuse one that would need more memory, or more disk and downloads together, in 10^9 bytes.

    Raises:
        VuError: everything that is wrong with the configuration, the data or the model files.
    """
    chain = understand(raw, plugins)
    first = plan(structure(chain.run(0), plugins), plugins)
    seed = first.config.run.seed
    plans = [first, *(plan(structure(chain.run(n, seed=seed), plugins), plugins) for n in range(1, len(chain.tasks)))]
    seeds = tuple(range(seed, seed + chain.settings.seeds))
    cost = _together([each.cost for each in plans], len(seeds))
    refuse_budget(cost, max_minutes=max_minutes, max_gb=max_gb)
    return SequencePlan(
        name=chain.choice.name if chain.choice is not None else "",
        tasks=chain.tasks,
        plans=tuple(plans),
        seeds=seeds,
        cost=cost,
        run_id=digest("sequence", str(len(seeds)), *(each.run_id for each in plans))[:12],
        text=_text(chain, plan(structure(_plain_first(chain, seed), plugins), plugins).config, raw),
        notes=tuple(note for note in first.notes if "overwrite" not in note),
    )


def _plain_first(chain: Chain, seed: int) -> RawConfig:
    """Return the run of the first task without the keys that hold for that task alone."""
    bare = attrs.evolve(chain, overrides=({},) * len(chain.tasks))
    return bare.run(0, seed=seed)  # type: ignore[no-any-return]


def _together(costs: Sequence[Cost], times: int) -> Cost:
    return Cost(
        seconds=times * sum(cost.seconds for cost in costs),
        memory=max(cost.memory for cost in costs),
        disk=times * sum(cost.disk for cost in costs),
        images=times * sum(cost.images for cost in costs),
        downloads=max(cost.downloads for cost in costs),
    )


def _text(chain: Chain, config: RunConfig, raw: RawConfig) -> str:
    """Return ``sequence.toml``: what all runs share, resolved, and the tasks or who divides them."""
    table = _table(chain.base, "subset")
    left_out, missing = (tuple(table.get(key, ())) for key in ("leave_out", "missing"))
    subset = attrs.evolve(config.subset, leave_out=left_out, missing=missing)
    overwrite = tuple(_table(chain.base, "data").get("overwrite", ()))
    shared = attrs.evolve(config, forget=(), overwrite=overwrite, subset=subset)
    own: dict[str, Any] = {"seeds": chain.settings.seeds}
    if chain.choice is not None:
        own = {"name": chain.choice.name, **plain(chain.choice.config), **own}
    blocks = [to_toml(shared).rstrip("\n"), table_toml("sequence", own, chain.origins)]
    for task in raw.values.get("tasks", ()) if chain.choice is None else ():
        lines = [f"{dotted(key.split('.'))} = {toml_value(value)}" for key, value in flat(task)]
        blocks.append("\n".join(["[[tasks]]", *lines]))
    return "\n\n".join(blocks) + "\n"
