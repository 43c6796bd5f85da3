"""A finished run, opened again: what commands measure, generate and combine with; public to plugins.

Commands of plugins, such as ``vu extract``, work with nothing else of the engine: they open a run, ask the metrics
about other edits of its model, and keep a result as a run of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import pipeline, run_folder
from vu_core.atomic import write_text
from vu_core.blame import asked
from vu_core.config import Override, RawConfig
from vu_core.contracts import Host, Model, TextToImage
from vu_core.data import ForgetRetain
from vu_core.edit import Edit, Replace
from vu_core.errors import ConfigError, DataError, EditError, MeasureError, PlanError
from vu_core.event import Event
from vu_core.plan import Plan
from vu_core.record import RunRecord
from vu_core.run import Run, Section
from vu_core.score import Scorecard

if TYPE_CHECKING:
    import numpy as np

    from vu_core.stages.bench import Bench


METHOD = "composition"
"""The unlearner of composed runs."""
CONCEPTS = "concepts.json"
"""Tells in ``sources/`` of a composed run what each of its edits forgets."""
CONCEPTS_FORMAT = 1
"""``format`` of that file."""


@attrs.frozen(eq=False)
class Workbench:
    """A run with its model in memory.

    Args:
        record: what lies in its folder; edit: its edit.
        bench: model, data plugin and metrics; emit: takes events.
    """

    record: RunRecord
    edit: Edit
    bench: Bench
    emit: Callable[[Event], None]

    @property
    def model(self) -> Model:
        """The untouched model."""
        return self.bench.model

    @property
    def run(self) -> Run:
        """Randomness, device and folder of the run."""
        return self.bench.run

    def examples(self) -> ForgetRetain:
        """Build the training and validation tables of the run, as its data plugin gives them: nothing is encoded.

        Raises:
            DataError: from the data plugin.
        """
        from vu_core.stages.load import training_data

        bench = self.bench
        return training_data(bench.dataset, bench.model, bench.plan, self.run, bench.entries)

    def measure(self, edit: Edit | None = None) -> Scorecard:
        """Ask the metrics of the run about its model under ``edit``; its own edit when absent.

        What they observe on the untouched model is cached, so that only the first call asks for it.

        Raises:
            EditError: the edit was made for other weights (``VU-E053``) or does not fit (``VU-E054``).
            MeasureError: from the metrics.
        """
        from vu_core.stages.measure import measure

        return measure(self.bench, self.edit if edit is None else edit).scorecard

    def generate(self, prompt: str, seed: int, edit: Edit | None) -> np.ndarray[Any, Any]:
        """Make one image of the model under ``edit``, or untouched where it is ``None``.

        Returns:
            uint8 ``(H, W, 3)``; equal seeds start from the same noise.

        Raises:
            MeasureError: the model makes no images (``VU-S051``).
            EditError: the edit was made for other weights (``VU-E053``) or does not fit (``VU-E054``).
        """
        from vu_core.stages.apply import apply
        from vu_core.stages.measure import generation

        model = self.bench.model
        if not isinstance(model, TextToImage):
            raise MeasureError(
                "VU-S051",
                f"The model {model.facts.name!r} makes no images from prompts.",
                "Use `vu measure` for this run.",
                where=f"model {model.facts.name!r}",
            )
        sampling = generation(self.bench)
        steps, guidance = int(sampling["steps"]), float(sampling["guidance"])
        with ExitStack() as stack:
            if edit is not None:
                stack.enter_context(apply(model, edit))
            stack.enter_context(asked(self.bench.plan.config.model.entry, self.bench.entries))
            return model.generate([prompt], [seed], steps=steps, guidance=guidance)[0]  # type: ignore[no-any-return]


def read(folder: Path) -> tuple[RunRecord, Edit]:
    """Return what a run has left: its record and its edit. No model is loaded.

    Raises:
        RecordError: there is no run or no edit (``VU-R052``), or a file cannot be read (``VU-R056``).
        EditError: the edit cannot be read (``VU-E031``, ``VU-E032``, ``VU-E034``).
    """
    return pipeline.read_record(folder), pipeline.read_edit(folder)


@contextmanager
def opened(
    folder: Path, host: Host, on_event: Callable[[Event], None], *, settings: Mapping[str, Any] | None = None
) -> Iterator[Workbench]:
    """Load the model and the edit of a run.

    Args:
        folder: the run folder.
        host: who takes part.
        on_event: sees every event, such as what ``host.watching()`` yields.
        settings: values of ``measure.*`` and ``metric.*`` keys that take the place of those of the run.

    Raises:
        RecordError: there is no run or no edit (``VU-R052``), or its ``run.toml`` was changed (``VU-R053``).
    """
    changes = {"measure.samples": 0, **(settings or {})}
    overrides = [Override(key, value, "--set") for key, value in changes.items()]
    record = pipeline.read_record(folder)
    with pipeline.opened(folder, host.plugins, overrides, on_event) as (bench, edit, emit):
        yield Workbench(record, edit, bench, emit)


@attrs.frozen(eq=False)
class Component:
    """One of the edits that make up a composition.

    Args:
        edit: the edit, with its base; forget: the concepts that it removes, as the user wrote them.
        overwrite: what takes their places: none, one for all, or one each.
    """

    edit: Edit
    forget: tuple[str, ...]
    overwrite: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: RunRecord, edit: Edit) -> Component:
        """Take the concepts from a run."""
        return cls(edit, record.forget, record.overwrite)


def compose(
    like: Path,
    components: Sequence[Component],
    host: Host,
    on_event: Callable[[Event], None],
    *,
    weights: Sequence[float] | None = None,
    strategy: str = "sum",
    out: str | None = None,
    settings: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
    on_base: bool = False,
) -> RunRecord:
    """Make a run of a combination of edits, measured and recorded as any other.

    The unlearner ``composition`` adds them up; copies of the edits lie in ``sources/`` of the new run, so that it needs
    no other folder to be repeated or taken apart.

    The edits of tasks that lie on each other are added to the base model, with or without those below. Only where all
    were made on the same earlier edits does the model keep carrying these.

    Args:
        like: the run whose model, data and measurements are taken.
        components: at least one.
        host: who takes part.
        on_event: sees every event.
        weights: factor per component, 1 when absent.
        strategy: ``sum`` or ``orthogonal``; see `vu_core.adapters.combined`.
        out: the run folder itself; ``runs/<id>`` when absent.
        settings: values of ``run.*``, ``measure.*`` and ``metric.*`` keys that take the place of those of the run.
        sections: what the report shows besides.
        on_base: add to the base model even where all were made on the same earlier edits.

    Raises:
        EditError: a component was made for other weights (``VU-E053``).
        PlanError: one holds whole new tensors, made on other edits (``VU-L127``).
        VuError: as `vu_core.pipeline.execute`.
    """
    from vu_core.adapters import edit_digest, save_edit

    if not components:
        raise ConfigError("VU-C128", "There is nothing to compose.", "Name at least one run.")
    on_base = on_base or len({component.edit.parents for component in components}) > 1
    _check_one_base(components, on_base)
    chosen = tuple(1.0 for _ in components) if weights is None else tuple(weights)
    told = {
        "method": METHOD,
        "sources": "",
        "digests": [edit_digest(component.edit) for component in components],
        "weights": list(chosen),
        "strategy": strategy,
    }
    changes = {
        **(settings or {}),
        **({} if out is None else {"run.out": out}),
        **({"model.edits": ()} if on_base else {}),
    }

    def furnish(plan: Plan, folder: Path) -> Plan:
        place = folder / run_folder.SOURCES
        with run_folder.writing(place):
            for number, component in enumerate(components):
                save_edit(component.edit, place / f"{number}.safetensors")
            write_text(place / CONCEPTS, _concepts(components))
        method = plan.config.unlearner
        settled = attrs.evolve(method, config=attrs.evolve(method.config, sources=str(place.absolute())))
        return attrs.evolve(plan, config=attrs.evolve(plan.config, unlearner=settled))

    return pipeline.carry_out(
        _planned(like, components, changes, told, host),
        plugins=host.plugins,
        on_event=on_event,
        on_plan=host.announce,
        furnish=furnish,
        sections=sections,
    )


def _planned(
    like: Path,
    components: Sequence[Component],
    settings: Mapping[str, Any],
    unlearner: Mapping[str, Any],
    host: Host,
) -> Plan:
    """Return the plan; where the overwrites do not go together, with those that the data supplies."""
    try:
        return pipeline.dry_run(_like(like, components, settings, unlearner), plugins=host.plugins)
    except DataError as error:
        if not error.where.startswith("data.overwrite"):
            raise
        # What took the place of one concept may be what another edit forgets.
        bare = [attrs.evolve(component, overwrite=()) for component in components]
        plan = pipeline.dry_run(_like(like, bare, settings, unlearner), plugins=host.plugins)
        note = (
            f"The overwrites of the edits do not go together. {error.problem} The data names others, which no edit was "
            "trained with."
        )
        return attrs.evolve(plan, notes=(note, *plan.notes))


def _concepts(components: Sequence[Component]) -> str:
    edits = [{"forget": list(each.forget), "overwrite": list(each.overwrite)} for each in components]
    return json.dumps({"format": CONCEPTS_FORMAT, "edits": edits}, indent=2) + "\n"


def components_of(folder: Path, digests: Sequence[str]) -> tuple[Component, ...]:
    """Return the edits that a composed run was made of, in order.

    Args:
        folder: the run folder.
        digests: hash of each edit, as the configuration of the run tells them.

    Raises:
        RecordError: what its ``sources/`` says about them is missing or damaged (``VU-R056``).
        EditError: they are not those of the configuration (``VU-E065``), or one cannot be read (``VU-E031``,
            ``VU-E034``).
    """
    from vu_core.composition import load_sources

    place = folder / run_folder.SOURCES
    told = run_folder.read_json(place / CONCEPTS)
    if told.get("format") != CONCEPTS_FORMAT:
        why = f"its format is {told.get('format')!r}, and this vu reads {CONCEPTS_FORMAT}"
        raise run_folder.unreadable(place / CONCEPTS, why)
    try:
        concepts = [(tuple(map(str, each["forget"])), tuple(map(str, each["overwrite"]))) for each in told["edits"]]
    except (KeyError, TypeError) as error:
        raise run_folder.unreadable(place / CONCEPTS, "it does not say what each edit forgets") from error
    if len(concepts) != len(digests):
        raise run_folder.unreadable(place / CONCEPTS, f"it tells of {len(concepts)} edits, not of {len(digests)}")
    edits = load_sources(place, digests).values()
    return tuple(Component(edit, *each) for edit, each in zip(edits, concepts, strict=True))


def _of_no_task(raw: RawConfig) -> RawConfig:
    """Return a configuration without what belongs to one task of a sequence: its number and its subset."""
    own = {("subset",), ("run", "task")}
    values = {
        table: {key: value for key, value in entries.items() if (table, key) not in own}
        if isinstance(entries, Mapping)
        else entries
        for table, entries in raw.values.items()
        if (table,) not in own
    }
    names = {".".join(each) for each in own}
    origins = {
        key: place for key, place in raw.origins.items() if not any(key == n or key.startswith(f"{n}.") for n in names)
    }
    return RawConfig(values, origins, raw.replaced)


def _check_one_base(components: Sequence[Component], on_base: bool) -> None:
    first = components[0].edit
    if on_base:
        for component in components:
            edit = component.edit
            if edit.parents and any(isinstance(part, Replace) for _, part in edit):
                raise PlanError(
                    "VU-L127",
                    f"The edit that forgets {', '.join(component.forget)} holds whole new tensors, made on "
                    f"{len(edit.parents)} earlier edits, and what these have changed: it cannot be parted from them.",
                    "Compose tasks that were trained with --parameters lora, whose changes add up.",
                )
    for component in components[1:]:
        if component.edit.base != first.base:
            raise EditError(
                "VU-E053",
                f"The edits that forget {', '.join(components[0].forget)} and {', '.join(component.forget)} were made "
                f"for different weights ({first.base[:12]} and {component.edit.base[:12]}).",
                "Compose runs that began with the same model.",
            )


def _places(component: Component) -> tuple[str, ...]:
    """Return what takes the place of each concept, empty where it is not known."""
    count = len(component.forget)
    named = component.overwrite * count if len(component.overwrite) == 1 else component.overwrite
    return named if len(named) == count else ("",) * count


def _like(
    folder: Path, components: Sequence[Component], settings: Mapping[str, Any], unlearner: Mapping[str, Any]
) -> RawConfig:
    """Return the configuration of a run with another method and the concepts of all components."""
    from vu_core.stages.read import read

    forget: dict[str, str] = {}
    for component in components:
        for concept, place in zip(component.forget, _places(component), strict=True):
            forget.setdefault(concept, place)
    overwrite = tuple(forget.values())
    overrides = [Override(key, value, "--set") for key, value in settings.items()]
    overrides.append(Override("data.forget", tuple(forget), "--forget"))
    # Where one of them has none, the data says again what takes the places; those of the other run are not theirs.
    overrides.append(Override("data.overwrite", overwrite if all(overwrite) else (), "--overwrite"))
    raw = _of_no_task(read(folder / run_folder.RUN, overrides))
    gone = ("unlearner", "weighting", "regularizer")
    values = {key: value for key, value in raw.values.items() if key not in gone}
    origins = {key: place for key, place in raw.origins.items() if key.partition(".")[0] not in gone}
    values["unlearner"] = dict(unlearner)
    origins |= {f"unlearner.{key}": METHOD for key in unlearner}
    return RawConfig(values, origins, raw.replaced)
