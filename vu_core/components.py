"""What goes into a composition: edits of finished runs that belong together, and how one is taken out again."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import pipeline, run_folder
from vu_core.config import as_dict, flat
from vu_core.edit import Edit
from vu_core.errors import ConfigError, RecordError, did_you_mean
from vu_core.event import stage
from vu_core.interference import Interference
from vu_core.plan import Plan
from vu_core.score import Scorecard
from vu_core.sequence_record import SEQUENCE_JSON
from vu_core.workbench import METHOD, Component, Workbench, components_of

if TYPE_CHECKING:
    from torch import nn

    from vu_core.plugins import Plugins


@attrs.frozen(eq=False)
class Mixture:
    """Edits with their weights.

    Args:
        components: the edits and what each forgets; weights: one per edit.
        strategy: ``sum`` or ``orthogonal``; see `vu_core.adapters.combined`.
    """

    components: tuple[Component, ...]
    weights: tuple[float, ...]
    strategy: str = "sum"

    def only(self, places: Collection[int]) -> Mixture:
        """Return the edits at these places."""
        kept = [place for place in range(len(self.components)) if place in places]
        return attrs.evolve(
            self,
            components=tuple(self.components[place] for place in kept),
            weights=tuple(self.weights[place] for place in kept),
        )

    def without(self, places: Collection[int]) -> Mixture:
        """Return the edits at all other places."""
        return self.only([place for place in range(len(self.components)) if place not in places])

    def times(self, factor: float) -> Mixture:
        """Return the same edits, ``factor`` times as strong."""
        return attrs.evolve(self, weights=tuple(weight * factor for weight in self.weights))

    def edit(self, network: nn.Module) -> Edit:
        """Return the composed edit."""
        from vu_core.adapters import combined

        edits = [component.edit for component in self.components]
        return combined(edits, self.weights, strategy=self.strategy, network=network)


def runs_in(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return run folders, the one of a sequence as those of its tasks.

    Raises:
        RecordError: as `tasks_in`.
    """
    return tuple(run for folder in folders for run in tasks_in(folder) or (folder,))


def tasks_in(folder: Path) -> tuple[Path, ...]:
    """Return the runs of a sequence, or of one of its seeds, in order; of any other folder, none.

    Raises:
        RecordError: a sequence has several seeds, or no task that has begun (``VU-R142``); or it is not finished
            (``VU-R131``).
    """
    tasks = sorted((folder / "tasks").glob("*"), key=lambda task: (len(task.name), task.name))
    if (folder / run_folder.SEQUENCE).is_file() and not tasks:
        seeds = sorted((folder / "seeds").glob("*"), key=lambda seed: (len(seed.name), seed.name))
        if not seeds:
            raise run_folder.no_run(folder)
        raise RecordError(
            "VU-R142",
            f"{str(folder)!r} holds a sequence that was run with several seeds, where the tasks of one are needed.",
            f"Name one of its seeds: {', '.join(map(str, seeds))}.",
            where=str(folder),
        )
    _require_finished(folder, tasks)
    return tuple(tasks)


def _require_finished(folder: Path, tasks: Sequence[Path]) -> None:
    """Object to a sequence that lacks tasks: what is made of it would forget less than it says."""
    whole = next((each for each in (folder, *folder.parents[:2]) if (each / run_folder.SEQUENCE).is_file()), None)
    if not tasks or whole is None:
        return
    planned = run_folder.read_json(whole / SEQUENCE_JSON).get("planned", 0)
    if len(tasks) < planned or any(run_folder.state_of(task) != "complete" for task in tasks):
        raise RecordError(
            "VU-R131",
            f"The sequence {str(whole)!r} is not finished.",
            f"Finish it first: `vu unlearn --resume {shlex.quote(str(whole))}`.",
            where=str(folder),
        )


def taken_apart(folder: Path, plugins: Plugins) -> tuple[Mixture, Plan]:
    """Return what a finished run is made of: its one edit, or those of a composition; and its plan.

    Raises:
        RecordError: there is no run (``VU-R052``), it is not finished (``VU-R131``), its ``run.toml`` was changed
            (``VU-R053``), or a file is damaged (``VU-R056``).
        EditError: an edit cannot be read (``VU-E031``, ``VU-E034``), or is not the one that was composed
            (``VU-E065``).
    """
    record = pipeline.read_record(folder)
    if run_folder.state_of(folder) != "complete":
        raise RecordError(
            "VU-R131",
            f"The run {str(folder)!r} is not finished.",
            f"Finish it first: `vu unlearn --resume {shlex.quote(str(folder))}`.",
            where=str(folder),
        )
    plan = pipeline.plan_again(folder, plugins)
    if record.method != METHOD:
        return Mixture((Component.of(record, pipeline.read_edit(folder)),), (1.0,)), plan
    settings = plan.config.unlearner.config
    components = components_of(folder, settings.digests)
    return Mixture(components, tuple(settings.weights), settings.strategy), plan


def gathered(
    folders: Sequence[Path], plugins: Plugins, *, weights: Sequence[float] | None = None, strategy: str = "sum"
) -> Mixture:
    """Return the edits of several finished runs, those of compositions one by one.

    Args:
        folders: run folders.
        plugins: who takes part.
        weights: one per run, 1 when absent; those inside a composition are multiplied by that of its run.
        strategy: how they will be added up.

    Raises:
        ConfigError: the weights do not fit (``VU-C127``), nothing would change (``VU-C128``), a concept would be
            forgotten twice (``VU-C129``), the runs do not belong together (``VU-C130``), or a composition was made with
            another strategy (``VU-C132``).
        RecordError, EditError: as `taken_apart`.
    """
    factors = _checked_weights(folders, weights)
    _refuse_repeated(folders)
    parts = [taken_apart(folder, plugins) for folder in folders]
    for folder, (mixture, plan) in zip(folders, parts, strict=True):
        _check_alike((folders[0], *parts[0]), (folder, mixture, plan))
        if len(mixture.components) > 1 and mixture.strategy != strategy:
            raise ConfigError(
                "VU-C132",
                f"{str(folder)!r} was composed with the strategy {mixture.strategy!r}: under {strategy!r} its edits "
                "would be others.",
                f"Say --strategy {mixture.strategy}, or name the runs that it was composed of.",
                where="--strategy",
            )
    weighted = [mixture.times(factor) for (mixture, _), factor in zip(parts, factors, strict=True)]
    _check_concepts(folders, weighted)
    components = tuple(component for mixture in weighted for component in mixture.components)
    if [weight for mixture in weighted for weight in mixture.weights] == [1.0]:
        keeping = "; of a sequence, `vu revoke SEQUENCE TASK...` takes out the others and leaves it on the base model"
        raise ConfigError(
            "VU-C128",
            f"{str(folders[0])!r} is a single edit, which would stay as it is.",
            "Name two runs or more; --weights makes a single one stronger or weaker"
            f"{keeping if components[0].edit.parents else ''}.",
        )
    return Mixture(components, tuple(weight for mixture in weighted for weight in mixture.weights), strategy)


def _checked_weights(folders: Sequence[Path], weights: Sequence[float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(folders)
    problem = ""
    if len(weights) != len(folders):
        problem = f"There are {len(folders)} runs, but {len(weights)} weights."
    elif 0 in weights:
        problem = f"The weight of {str(folders[list(weights).index(0)])!r} is 0, which leaves it out."
    if problem:
        remedy = "Give each run one weight, in their order; leave out a run that should not take part."
        raise ConfigError("VU-C127", problem, remedy, where="--weights")
    return tuple(weights)


def _refuse_repeated(folders: Sequence[Path]) -> None:
    places = [folder.resolve() for folder in folders]
    twice = next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(
            "VU-C129",
            f"The run {str(twice)!r} is named more than once.",
            "Name each run once; --weights makes it stronger or weaker.",
        )


Made = tuple[Path, Mixture, Plan]


def _check_alike(first: Made, other: Made) -> None:
    """Object to runs whose edits cannot lie in one model, or whose concepts one evaluation cannot ask about."""
    (folder, mixture, plan), (elsewhere, another, plan_there) = first, other
    tables, others = _common(plan), _common(plan_there)
    differing = [
        f"{key} is {tables.get(key)!r} in {folder} and {others.get(key)!r} in {elsewhere}"
        for key in dict.fromkeys((*tables, *others))
        if tables.get(key) != others.get(key)
    ]
    base, base_there = mixture.components[0].edit.base, another.components[0].edit.base
    if not differing and base != base_there:
        differing.append(f"the weights have the hash {base[:12]} in {folder} and {base_there[:12]} in {elsewhere}")
    if differing:
        raise ConfigError(
            "VU-C130",
            f"{str(folder)!r} and {str(elsewhere)!r} do not belong together: {'; '.join(differing)}.",
            "Compose runs of one model on the same data, which differ in what they forget.",
            where=str(elsewhere),
        )


def _common(plan: Plan) -> Mapping[str, Any]:
    """Return what must be equal: the model, wherever it lies, as its weights are compared; and the data."""
    tables = as_dict(plan.config)
    own = ("model.ref", "model.edits", "data.forget", "data.overwrite")
    return {key: value for key, value in flat({name: tables[name] for name in ("model", "data")}) if key not in own}


def _check_concepts(folders: Sequence[Path], mixtures: Sequence[Mixture]) -> None:
    seen: dict[str, Path] = {}
    for folder, mixture in zip(folders, mixtures, strict=True):
        for concept in dict.fromkeys(text for component in mixture.components for text in component.forget):
            if concept in seen:
                raise ConfigError(
                    "VU-C129",
                    f"{str(seen[concept])!r} and {str(folder)!r} both forget {concept}: it would be removed twice.",
                    "Name one of them; --weights makes it stronger or weaker.",
                    where=str(folder),
                )
            seen[concept] = folder


@attrs.frozen(eq=False)
class Remainder:
    """What remains when edits are taken out.

    Args:
        mixture: the other edits.
        gone: the concepts that nothing forgets any more.
        like: the run whose model, data and measurements are taken.
        of_sequence: the edits are those of tasks, each made on those before; no run has measured them together.
    """

    mixture: Mixture
    gone: tuple[str, ...]
    like: Path
    of_sequence: bool


def revocable(folder: Path, named: Sequence[str], plugins: Plugins) -> Remainder:
    """Return what remains of a composition, or of a sequence, without the edits that are named.

    Args:
        folder: of a composed run, or of a sequence.
        named: concepts, all of those that an edit forgets; of a sequence also numbers of tasks.
        plugins: who takes part.

    Raises:
        RecordError: the run is no composition (``VU-R130``), or as `tasks_in` and `taken_apart`.
        ConfigError: nothing here forgets what is named (``VU-C133``), it cannot be taken out alone (``VU-C134``), or
            the other tasks do not belong together (as `gathered`).
    """
    tasks = tasks_in(folder)
    if tasks:
        forgets = [pipeline.read_record(task).forget for task in tasks]
        places = _named_places(folder, forgets, named, [task.name for task in tasks])
        kept = [task for place, task in enumerate(tasks) if place not in places]
        rest = taken_apart(kept[0], plugins)[0] if len(kept) == 1 else gathered(kept, plugins)
        return Remainder(rest, _gone(forgets, places), kept[0], of_sequence=True)
    record = pipeline.read_record(folder)
    if record.method != METHOD:
        raise RecordError(
            "VU-R130",
            f"The run {str(folder)!r} was made by {record.method!r}, and is no composition: its edit is one piece.",
            "Forget each concept in a run of its own, put them together with `vu compose`, and revoke from that run.",
            where=str(folder),
        )
    mixture, _ = taken_apart(folder, plugins)
    forgets = [component.forget for component in mixture.components]
    places = _named_places(folder, forgets, named)
    return Remainder(mixture.without(places), _gone(forgets, places), folder, of_sequence=False)


def _gone(forgets: Sequence[tuple[str, ...]], places: Collection[int]) -> tuple[str, ...]:
    kept = {text for place, forget in enumerate(forgets) if place not in places for text in forget}
    return tuple(dict.fromkeys(text for place in sorted(places) for text in forgets[place] if text not in kept))


def _named_places(
    folder: Path, forgets: Sequence[tuple[str, ...]], named: Sequence[str], tasks: Sequence[str] = ()
) -> set[int]:
    """Return the places of the edits that are named: by all concepts of each, or by the number of its task."""
    whole, asked = set[int](), set[str]()
    for text in named:
        if any(text in forget for forget in forgets):
            asked.add(text)
        elif text in tasks:
            whole.add(tasks.index(text))
        else:
            known = list(dict.fromkeys(text for forget in forgets for text in forget))
            raise ConfigError(
                "VU-C133",
                f"The run {str(folder)!r} does not forget {text!r}.{did_you_mean(text, known)}",
                f"It forgets: {', '.join(known)}." + (f" Its tasks: {', '.join(tasks)}." if tasks else ""),
                where="CONCEPT",
            )
    places = whole | {place for place, forget in enumerate(forgets) if asked.intersection(forget)}
    for place in sorted(places - whole):
        if not asked.issuperset(forgets[place]):
            raise _divided(folder, forgets, places, place, asked, tasks)
    if len(places) == len(forgets):
        raise ConfigError(
            "VU-C134",
            f"Without {', '.join(named)}, nothing of the run {str(folder)!r} would remain.",
            "Use the base model.",
            where="CONCEPT",
        )
    return places


def _divided(
    folder: Path,
    forgets: Sequence[tuple[str, ...]],
    places: Collection[int],
    place: int,
    asked: Collection[str],
    tasks: Sequence[str],
) -> ConfigError:
    """Return the error for a part of what the edit at ``place`` forgets, with the line that takes out all of it."""
    part = [text for text in forgets[place] if text in asked]
    others = [text for text in forgets[place] if text not in asked]
    words = [tasks[each] for each in sorted(places)] if tasks else _gone(forgets, places)
    line = shlex.join(["vu", "revoke", str(folder), *words])
    return ConfigError(
        "VU-C134",
        f"{', '.join(part)} {'was' if len(part) == 1 else 'were'} forgotten together with {', '.join(others)} by one "
        "edit, which is one piece.",
        f"Take out all that it forgets: `{line}`."
        if len(places) < len(forgets)
        else "Nothing would remain without that edit: use the base model, and forget anew what should stay forgotten.",
        where="CONCEPT",
    )


def interference(bench: Workbench, mixture: Mixture) -> Interference:
    """Measure every edit of a composition alone, and the composition without it.

    Args:
        bench: the composed run.
        mixture: its edits, at least two.
    """
    network = bench.model.network
    names = [", ".join(component.forget) for component in mixture.components]

    def measured(what: str, part: Mixture) -> Scorecard:
        with stage(bench.emit, what):
            return bench.measure(part.edit(network))

    alone = [measured(f"measure {name} alone", mixture.only([place])) for place, name in enumerate(names)]
    # Of two edits, each is what the other one leaves.
    without = (
        alone[::-1]
        if len(names) == 2
        else [measured(f"measure all but {name}", mixture.without([place])) for place, name in enumerate(names)]
    )
    return Interference.of(
        bench.record.scorecard or bench.measure(),
        alone,
        without,
        seeds=bench.bench.plan.config.measure.seeds,
        edits=[component.forget for component in mixture.components],
        weights=mixture.weights,
    )
