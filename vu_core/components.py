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
    """Return run folders, the one of a sequence with a single seed as those of its tasks.

    Raises:
        RecordError: a sequence has several seeds, or no finished task (``VU-R142``).
    """
    found: list[Path] = []
    for folder in folders:
        tasks = sorted((folder / "tasks").glob("*"), key=lambda task: (len(task.name), task.name))
        if (folder / run_folder.SEQUENCE).is_file() and not tasks:
            raise run_folder.no_run(folder)
        found += tasks if (folder / run_folder.SEQUENCE).is_file() else [folder]
    return tuple(found)


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
    if [weight for mixture in weighted for weight in mixture.weights] == [1.0]:
        raise ConfigError(
            "VU-C128",
            f"{str(folders[0])!r} is a single edit, which would stay as it is.",
            "Name two runs or more; --weights makes a single one stronger or weaker.",
        )
    components = tuple(component for mixture in weighted for component in mixture.components)
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


def revocable(folder: Path, concept: str, plugins: Plugins) -> Mixture:
    """Return what remains of a composition without the edits that forget ``concept``.

    Raises:
        RecordError: the run is no composition (``VU-R130``), or as `taken_apart`.
        ConfigError: the composition does not forget this concept (``VU-C133``), or it cannot be taken out alone
            (``VU-C134``).
    """
    record = pipeline.read_record(folder)
    if record.method != METHOD:
        raise RecordError(
            "VU-R130",
            f"The run {str(folder)!r} was made by {record.method!r}, and is no composition: its edit is one piece.",
            "Forget each concept in a run of its own, put them together with `vu compose`, and revoke from that run.",
            where=str(folder),
        )
    mixture, _ = taken_apart(folder, plugins)
    known = list(dict.fromkeys(text for component in mixture.components for text in component.forget))
    places = [place for place, component in enumerate(mixture.components) if concept in component.forget]
    if not places:
        raise ConfigError(
            "VU-C133",
            f"The run {str(folder)!r} does not forget {concept!r}.{did_you_mean(concept, known)}",
            f"It forgets: {', '.join(known)}.",
            where="CONCEPT",
        )
    tied = [text for place in places for text in mixture.components[place].forget if text != concept]
    if tied:
        raise ConfigError(
            "VU-C134",
            f"{concept} was forgotten together with {', '.join(dict.fromkeys(tied))} by one edit, which is one piece.",
            "Compose a run again that forgets all but this concept, or revoke nothing.",
            where="CONCEPT",
        )
    if len(places) == len(mixture.components):
        raise ConfigError(
            "VU-C134",
            f"{concept} is all that the run {str(folder)!r} forgets: nothing would remain.",
            "Use the base model.",
            where="CONCEPT",
        )
    return mixture.without(places)


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
