"""A finished run, opened again: what commands measure, generate and combine with; public to plugins.

Commands of plugins, such as ``vu extract``, work with nothing else of the engine: they open a run, ask the metrics
about other edits of its model, and keep a result as a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import pipeline, run_folder
from vu_core.config import Override, RawConfig
from vu_core.contracts import Host, Model
from vu_core.edit import Edit
from vu_core.errors import ConfigError, EditError
from vu_core.event import Event
from vu_core.plan import Plan
from vu_core.record import RunRecord
from vu_core.run import Run, Section
from vu_core.score import Scorecard

if TYPE_CHECKING:
    from vu_core.stages.bench import Bench


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

    def measure(self, edit: Edit | None = None) -> Scorecard:
        """Ask the metrics of the run about its model under ``edit``; its own edit when absent.

        What they observe on the untouched model is cached, so that only the first call asks for it.

        Raises:
            EditError: the edit was made for other weights (``VU-E053``) or does not fit (``VU-E054``).
            MeasureError: from the metrics.
        """
        from vu_core.stages.measure import measure

        return measure(self.bench, self.edit if edit is None else edit).scorecard


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
) -> RunRecord:
    """Make a run of a combination of edits, measured and recorded as any other.

    The unlearner ``composition`` adds them up; copies of the edits lie in ``sources/`` of the new run, so that it needs
    no other folder to be repeated or taken apart.

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

    Raises:
        EditError: a component was made for other weights (``VU-E053``).
        VuError: as `vu_core.pipeline.execute`.
    """
    from vu_core.adapters import edit_digest, save_edit

    if not components:
        raise ConfigError("VU-C052", "There is nothing to compose.", "Name at least one run.")
    _check_one_base(components)
    chosen = tuple(1.0 for _ in components) if weights is None else tuple(weights)
    told = {
        "method": "composition",
        "sources": "",
        "digests": [edit_digest(component.edit) for component in components],
        "weights": list(chosen),
        "strategy": strategy,
    }
    raw = _like(like, components, {**(settings or {}), **({} if out is None else {"run.out": out})}, told)

    def furnish(plan: Plan, folder: Path) -> Plan:
        place = folder / run_folder.SOURCES
        with run_folder.writing(place):
            for number, component in enumerate(components):
                save_edit(component.edit, place / f"{number}.safetensors")
        method = plan.config.unlearner
        settled = attrs.evolve(method, config=attrs.evolve(method.config, sources=str(place.absolute())))
        return attrs.evolve(plan, config=attrs.evolve(plan.config, unlearner=settled))

    plan = pipeline.dry_run(raw, plugins=host.plugins)
    return pipeline.carry_out(plan, plugins=host.plugins, on_event=on_event, on_plan=host.announce, furnish=furnish)


def _check_one_base(components: Sequence[Component]) -> None:
    first = components[0].edit
    for component in components[1:]:
        if component.edit.base != first.base:
            raise EditError(
                "VU-E053",
                f"The edits that forget {', '.join(components[0].forget)} and {', '.join(component.forget)} were made "
                f"for different weights ({first.base[:12]} and {component.edit.base[:12]}).",
                "Compose runs that began with the same model.",
            )


def _like(
    folder: Path, components: Sequence[Component], settings: Mapping[str, Any], unlearner: Mapping[str, Any]
) -> RawConfig:
    """Return the configuration of a run with another method and the concepts of all components."""
    from vu_core.stages.read import read

    forget: dict[str, str] = {}
    for component in components:
        places = component.overwrite
        each = places * len(component.forget) if len(places) == 1 else places or ("",) * len(component.forget)
        for concept, place in zip(component.forget, each, strict=True):
            forget.setdefault(concept, place)
    overwrite = tuple(forget.values())
    overrides = [Override(key, value, "--set") for key, value in settings.items()]
    overrides.append(Override("data.forget", tuple(forget), "--forget"))
    if all(overwrite):
        overrides.append(Override("data.overwrite", overwrite, "--overwrite"))
    raw = read(folder / run_folder.RUN, overrides)
    gone = ("unlearner", "weighting", "regularizer")
    values = {key: value for key, value in raw.values.items() if key not in gone}
    origins = {key: place for key, place in raw.origins.items() if key.partition(".")[0] not in gone}
    values["unlearner"] = dict(unlearner)
    origins |= {f"unlearner.{key}": "composition" for key in unlearner}
    return RawConfig(values, origins, raw.replaced)
