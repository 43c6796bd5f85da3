"""Plan -> Bench: the first stage that reads weights."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vu_core.blame import asked
from vu_core.cache import Cache, CachedAttribution, cache_root, settings_text
from vu_core.config import Choice, RunConfig, flat, identity
from vu_core.config.conversion import Mismatch, convert
from vu_core.config.layers import config_class
from vu_core.contracts import Dataset, Model, Unlearner
from vu_core.data import Examples, ForgetRetain, digest
from vu_core.errors import ConfigError, PlanError
from vu_core.event import Event
from vu_core.plan import Plan
from vu_core.registry import Entry
from vu_core.run import Run
from vu_core.stages.bench import Bench
from vu_core.stages.subset import select

if TYPE_CHECKING:
    from vu_core.plugins import Plugins


def load(
    plan: Plan,
    plugins: Plugins,
    folder: Path,
    emit: Callable[[Event], None],
    *,
    resuming: bool = False,
    with_data: bool = True,
) -> Bench:
    """Read the weights, build train and validation data, and put the parts of the run together.

    Held-out data is not built here; only `measure` asks the data plugin for it.

    Args:
        plan: what was decided.
        plugins: resolves the base methods of methods that wrap one.
        folder: the run folder.
        emit: takes events.
        resuming: the folder holds the beginning of this run.
        with_data: build train and validation data; not needed to measure or to generate.

    Returns:
        The bench. ``bench.data`` has passed through ``model.prepare``.

    Raises:
        PlanError: the device is not there (``VU-L050``). DataError, ModelError, PluginError: from the plugins.
            PluginError ``VU-P009``: the code of one of them failed.
    """
    config: RunConfig = plan.config
    check_device(config.run.device)
    entries = [choice.entry for choice in config.choices]
    chosen_model = _instance(config.model, with_ref=True)
    with asked(config.model.entry, entries):
        model: Model = chosen_model.load(device=config.run.device, precision=config.run.precision)
    dataset: Dataset[Any] = _instance(config.data, with_ref=True)
    run = _run(plan, plugins, folder, emit, entries, model)
    run.earlier = _carry(plan, model)
    run.resuming = resuming
    method: Unlearner[Any] = _instance(config.unlearner)
    data = None
    if with_data:
        needed = getattr(method, "uses_examples", True)
        data = _built(dataset, model, plan, run, method, entries) if needed else _no_examples()
    run.stage = "unlearn"
    metrics = {choice.name: _instance(choice) for choice in config.metrics}
    return Bench(plan, model, dataset, method, metrics, run, data, entries)


def _carry(plan: Plan, model: Model) -> tuple[Callable[[], AbstractContextManager[None]], ...]:
    """Merge ``model.edits`` into the model; return the ways to look at it with the first 0, 1, ... of them alone.

    Raises:
        EditError: one cannot be read (``VU-E031``, ``VU-E032``, ``VU-E034``) or does not fit (``VU-E054``).
    """
    from vu_core.adapters import Carried, load_edit

    carried = Carried(model.network, [load_edit(Path(edit.path)) for edit in plan.config.edits])
    return tuple(partial(carried.earlier, count) for count in range(len(carried)))


def _no_examples() -> ForgetRetain:
    forget, retain = Examples("forget", ()), Examples("retain", ())
    return ForgetRetain(forget, retain, forget, retain)


def _instance(choice: Choice, *, with_ref: bool = False) -> Any:
    plugin = choice.entry.load()
    with asked(choice.entry):
        return plugin(choice.ref, choice.config) if with_ref else plugin(choice.config)


def _run(
    plan: Plan,
    plugins: Plugins,
    folder: Path,
    emit: Callable[[Event], None],
    entries: list[Entry],
    model: Model,
) -> Run:
    """Return what the method is handed; a base method that it asks for joins ``entries``."""
    config: RunConfig = plan.config

    def axis(choice: Choice | None) -> Any:
        return None if choice is None else _instance(choice)

    def resolve(name: str, settings: Mapping[str, Any]) -> Unlearner[Any]:
        entries.append(plugins.registry.get("unlearner", name))
        return base_method(plugins, name, settings)

    cache = cache_root()
    attribution = axis(config.attribution)
    if attribution is not None and config.attribution is not None:
        content = settings_text(config.data.config) + settings_text(config.model.config)
        content += str(getattr(model, "fingerprint", ""))
        named = config.attribution
        attribution = CachedAttribution(attribution, named.name, named.config, content, Cache(cache))
    return Run(
        seed=_seed(config),
        device=config.run.device,
        precision=config.run.precision,
        folder=folder,
        cache=cache,
        training=getattr(config.unlearner.config, "training", None),
        parameters=axis(config.parameters),
        weighting=axis(config.weighting),
        attribution=attribution,
        regularizers=tuple(_instance(choice) for choice in config.regularizers),
        resolve=resolve,
        emit_event=emit,
        data_digest=plan.data_digest,
        base_hash=plan.model_hash,
        task=config.run.task,
        stage="load",
    )


def base_method(plugins: Plugins, name: str, settings: Mapping[str, Any]) -> Unlearner[Any]:
    """Return another unlearner for a method that wraps it.

    Raises:
        PluginError: nobody brings the name. ConfigError: a setting is unknown, of a wrong type or out of range
            (``VU-C051``).
    """
    return with_settings(  # type: ignore[no-any-return]
        plugins.registry.get("unlearner", name), settings, code="VU-C051", what="base method"
    )


def with_settings(entry: Entry, settings: Mapping[str, Any], *, code: str, what: str) -> Any:
    """Return a plugin with settings that stand in no configuration file.

    Args:
        entry: the plugin.
        settings: values of its ``Config``.
        code: of the error.
        what: a word for the plugin in it.

    Raises:
        ConfigError: a setting is unknown, of a wrong type or out of range (``code``).
    """
    plugin = entry.load()
    try:
        config = convert(dict(settings), config_class(entry, plugin))
    except Mismatch as mismatch:
        which = ((inside.lstrip(".") or f"of the {what}", text) for inside, text in mismatch.found)
        raise ConfigError(
            code,
            " ".join(f"The setting {name} of {entry.name!r} {text}." for name, text in which),
            f"`vu describe {entry.name}` lists its settings.",
            where=f"{what} {entry.name!r}",
        ) from mismatch
    with asked(entry):
        return plugin(config)


def _seed(config: RunConfig) -> int:
    if config.run.seed is None:
        raise RuntimeError("the plan draws a seed when none is given")
    return config.run.seed


def _built(
    dataset: Dataset[Any], model: Model, plan: Plan, run: Run, method: Unlearner[Any], entries: Sequence[Entry]
) -> ForgetRetain:
    """Return the tables of both sides, prepared by the model unless the method looks at no image."""
    data = training_data(dataset, model, plan, run, entries)
    if not getattr(method, "uses_images", True):
        return data
    return prepared(data, model, plan, run, entries)


def training_data(dataset: Dataset[Any], model: Model, plan: Plan, run: Run, entries: Sequence[Entry]) -> ForgetRetain:
    """Return what a run trains on: all that `load` and `measure` know of train and validation data comes from here.

    Raises:
        DataError: from the data plugin, or the subset cannot be had (``VU-D120``, ``VU-D121``).
        PluginError: the code of the data plugin failed (``VU-P009``).
    """
    config: RunConfig = plan.config
    with asked(config.data.entry, entries):
        built = dataset.build(plan.selection, resolution=model.facts.resolution, run=run)
    return select(plan, built, run.seed)


def prepared(data: ForgetRetain, model: Model, plan: Plan, run: Run, entries: Sequence[Entry]) -> ForgetRetain:
    """Return the tables after ``model.prepare``; an empty one is left as it is."""
    config: RunConfig = plan.config

    def prepare(examples: Examples) -> Examples:
        if not len(examples):
            return examples
        with asked(config.model.entry, entries):
            return model.prepare(examples, run)

    return data.map(prepare)


def check_device(device: str) -> None:
    """Object to a device that torch does not find here. Raises: PlanError (``VU-L050``)."""
    import torch

    kind, _, index = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    number = int(index) if index.isdecimal() else (0 if not index else -1)
    if kind in counts and 0 <= number < counts[kind]:
        return
    found = ", ".join(name for name, count in counts.items() if count)
    raise PlanError(
        "VU-L050",
        f"There is no device {device!r} here.",
        f"Use one of: {found}" + (f" (cuda:0 to cuda:{counts['cuda'] - 1})." if counts["cuda"] else "."),
        where="run.device",
    )


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` CPU threads (``None``: torch's own choice, all cores) while entered."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(plan: Plan, base_hash: str) -> dict[str, Any]:
    """Return the content of ``environment.json``: what the bits of the result depend on.

    Versions, thread count, size of the machine, hashes of model and data; no names of machines, no paths.
    """
    import torch

    config: RunConfig = plan.config
    device = config.run.device
    manifest = plan.manifest
    data = {"name": manifest.name, "digest": manifest.digest, "counts": dict(manifest.counts), "split": manifest.split}
    concepts = [{"forget": concept.text, "overwrite": concept.overwrite} for concept in plan.selection.concepts]
    return {
        "format": 1,
        "run_id": plan.run_id,
        "configuration": configuration_digests(config),
        "base_hash": base_hash,
        "edits": [edit.digest for edit in config.edits],
        "data": data,
        "concepts": concepts,
        "licence": plan.model.licence,
        "versions": dict(sorted(plan.versions.items())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "precision": config.run.precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
    }


def configuration_digests(config: RunConfig) -> dict[str, str]:
    """Return a short hash per dotted key of what the run computes, so that what has changed can be named."""
    values = flat(identity(config))
    return {key: digest(json.dumps(value, sort_keys=True))[:12] for key, value in values}


def changed_keys(config: RunConfig, environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys whose values are not those that ``environment.json`` noted, or that it did not note.

    They are in the order of the file, the new ones last.
    """
    then, now = environment["configuration"], configuration_digests(config)
    return tuple(key for key in dict.fromkeys((*then, *now)) if now.get(key) != then.get(key))


def _memory_gib() -> float | None:
    """Return the main memory of the machine in GiB, or ``None`` where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
