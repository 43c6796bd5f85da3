"""Finished runs, opened again and put together."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from vu_core import ConfigError, EditError, Event, LowRank, RecordError, RunRecord, Section
from vu_core.adapters import combined, edit_digest, load_edit, scaled
from vu_core.config import Override, RawConfig
from vu_core.cost import training_work
from vu_core.pipeline import Interrupted, dry_run, execute, measure_run, read_record, resume
from vu_core.plan import Plan
from vu_core.plugins import Plugins
from vu_core.stages.read import read
from vu_core.workbench import Component, compose, opened

Raw = Callable[..., RawConfig]
CONCEPTS = ("sign:plus", "axis:x", "axis:y")


@attrs.define
class Program:
    """A `vu_core.Host` that remembers what it was shown; an event may be answered with Ctrl-C."""

    plugins: Plugins
    stop_at: str = ""
    events: list[Event] = attrs.field(factory=list)
    plans: list[tuple[Plan, Path]] = attrs.field(factory=list)

    @contextmanager
    def watching(self) -> Iterator[Callable[[Event], None]]:
        yield self.see

    def see(self, event: Event) -> None:
        self.events.append(event)
        if self.stop_at and self.stop_at == f"{event.stage} {event.values.get('state')}":
            raise KeyboardInterrupt

    def announce(self, plan: Plan, folder: Path) -> None:
        self.plans.append((plan, folder))


@pytest.fixture
def host(plugins: Plugins) -> Program:
    return Program(plugins)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module are kept: they are made once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def runs(store: Path, plugins: Plugins, raw: Raw, place: Path) -> list[RunRecord]:
    """Three runs of one model, each of another concept, copied into the place of the test."""
    records = []
    for seed, concept in enumerate(CONCEPTS):
        kept = store / f"run-{seed}"
        if not kept.exists():
            short = {"unlearner__training__steps": 4, "measure__samples": 1, "run__seed": seed}
            with pytest.MonkeyPatch.context() as settings:
                settings.setenv("VU_CACHE", str(store / "cache"))
                execute(raw(run__out=str(kept), data__forget=(concept,), **short), plugins=plugins)
        records.append(read_record(Path(shutil.copytree(kept, place / kept.name)).relative_to(place)))
    return records


def components(runs: Sequence[RunRecord]) -> list[Component]:
    return [Component.of(each, load_edit(each.folder / "edit.safetensors")) for each in runs]


def composed(host: Program, runs: Sequence[RunRecord], out: str | None = "both", **settings: Any) -> RunRecord:
    return compose(runs[0].folder, components(runs), host, host.see, out=out, **settings)


def edit_bytes(folder: Path) -> bytes:
    return (folder / "edit.safetensors").read_bytes()


def test_an_opened_run_measures_its_own_edit_and_others(host: Program, runs: list[RunRecord], toys: Any) -> None:
    toys.Gap.calls.clear()
    with opened(runs[0].folder, host, host.see) as bench:
        assert bench.record.forget == ("sign:plus",)
        assert edit_digest(bench.edit) == edit_digest(load_edit(runs[0].folder / "edit.safetensors"))
        assert bench.run.seed == 0
        weights = {name: tensor.clone() for name, tensor in bench.model.network.named_parameters()}
        own = bench.measure()
        half = bench.measure(scaled(bench.edit, 0.5))
        none = bench.measure(scaled(bench.edit, 0.0))
        assert all(torch.equal(weights[name], tensor) for name, tensor in bench.model.network.named_parameters())
    assert toys.Gap.calls == ["before", "after", "after", "after"], "the untouched model was asked again"
    assert runs[0].scorecard is not None
    assert own["forget_size"] == runs[0].scorecard["forget_size"]
    assert none["forget_size"].change == 0.0
    before = own["forget_size"].before
    assert before is not None
    assert own["forget_size"].after < half["forget_size"].after < before
    assert sorted(path.name for path in runs[0].folder.iterdir()) == sorted(
        ["README.md", "edit.safetensors", "environment.json", "events.jsonl", "images", "report.html", "run.toml",
         "scores.json"]
    )  # fmt: skip


def test_an_opened_run_is_asked_with_other_settings(host: Program, runs: list[RunRecord]) -> None:
    with opened(runs[0].folder, host, host.see, settings={"measure.split": "validation", "measure.seeds": 1}) as bench:
        card = bench.measure()
    assert card.split == "validation"
    assert card["forget_size"].seeds == (0,)


def test_an_opened_run_makes_images_under_any_edit(host: Program, runs: list[RunRecord]) -> None:
    other = load_edit(runs[1].folder / "edit.safetensors")
    with opened(runs[0].folder, host, host.see) as bench:
        images = [bench.generate("forget", 7, edit) for edit in (None, bench.edit, other, scaled(other, 0.0))]
    assert all(image.shape == (8, 8, 3) for image in images)
    assert np.array_equal(images[0], images[3])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])


def test_an_edit_of_another_model_is_not_measured(host: Program, runs: list[RunRecord]) -> None:
    with (
        opened(runs[0].folder, host, host.see) as bench,
        pytest.raises(EditError) as caught,
    ):
        bench.measure(attrs.evolve(bench.edit, base="other"))
    assert caught.value.code == "VU-E053"


def test_what_is_no_run_is_not_opened(host: Program, place: Path) -> None:
    with pytest.raises(RecordError) as caught, opened(place / "nowhere", host, host.see):
        pass
    assert caught.value.code == "VU-R052"


def test_a_composition_is_a_run_like_any_other(host: Program, runs: list[RunRecord]) -> None:
    record = composed(host, runs, weights=(1.0, 0.5, 1.0))
    assert record.folder == Path("both")
    assert record.method == "composition"
    assert record.forget == CONCEPTS
    assert record.overwrite == tuple(each.overwrite[0] for each in runs)
    assert record.scorecard is not None
    assert record.scorecard.split == "held-out"
    assert {"README.md", "report.html", "scores.json", "run.toml", "sources"} <= {
        p.name for p in record.folder.iterdir()
    }
    assert "sources" in record.files
    edits = [load_edit(each.folder / "edit.safetensors") for each in runs]
    made = load_edit(record.folder / "edit.safetensors")
    assert made.base == edits[0].base
    assert made.method == "composition"
    assert made.facts["components"] == [
        {"digest": edit_digest(edit), "method": "toy-push", "weight": weight}
        for edit, weight in zip(edits, (1.0, 0.5, 1.0), strict=True)
    ]
    assert made.facts["strategy"] == "sum"
    wanted = combined(edits, (1.0, 0.5, 1.0))
    for name, part in wanted:
        found = made.parts[name]
        assert isinstance(part, LowRank)
        assert isinstance(found, LowRank)
        assert torch.equal(found.A, part.A)
        assert torch.equal(found.B, part.B)
    assert [plan.config.unlearner.name for plan, _ in host.plans] == ["composition"]


def test_no_example_is_read_for_a_composition(host: Program, runs: list[RunRecord], toys: Any) -> None:
    toys.ToyPoints.built.clear()
    composed(host, runs)
    assert toys.ToyPoints.built == ["held-out"]


def test_copies_of_the_edits_lie_in_the_run(host: Program, runs: list[RunRecord]) -> None:
    record = composed(host, runs)
    for number, each in enumerate(runs):
        assert (record.folder / "sources" / f"{number}.safetensors").read_bytes() == edit_bytes(each.folder)


def test_a_composition_names_no_folder_of_this_machine(host: Program, runs: list[RunRecord], place: Path) -> None:
    composed(host, runs)
    (place / "deep").mkdir()
    other = composed(host, runs, out="deep/both")
    assert edit_bytes(Path("both")) == edit_bytes(other.folder)
    assert read_record(Path("both")).run_id == other.run_id
    for name in ("edit.safetensors", "report.html", "README.md", "environment.json", "scores.json"):
        assert str(place).encode() not in (other.folder / name).read_bytes(), name


def test_weights_strategy_and_order_make_other_runs(host: Program, runs: list[RunRecord]) -> None:
    records = [
        composed(host, runs, out=None),
        composed(host, runs, out=None, weights=(1.0, 1.0, 0.5)),
        composed(host, runs, out=None, strategy="orthogonal"),
        composed(host, runs[1:], out=None),
    ]
    assert len({record.run_id for record in records}) == 4
    assert len({edit_bytes(record.folder) for record in records}) == 4
    again = composed(host, runs, out=None)
    assert again.folder == Path("runs") / f"{records[0].run_id}.2"
    assert edit_bytes(again.folder) == edit_bytes(records[0].folder)


def test_an_edit_that_is_taken_out_leaves_no_trace(host: Program, runs: list[RunRecord]) -> None:
    whole = composed(host, runs)
    kept = [
        Component.of(runs[number], load_edit(whole.folder / "sources" / f"{number}.safetensors")) for number in (0, 2)
    ]
    revoked = compose(whole.folder, kept, host, host.see, out="revoked")
    without = composed(host, [runs[0], runs[2]], out="without")
    assert edit_bytes(revoked.folder) == edit_bytes(without.folder)
    assert revoked.forget == without.forget == ("sign:plus", "axis:y")
    assert edit_bytes(revoked.folder) != edit_bytes(whole.folder)


def test_its_run_toml_repeats_it(host: Program, runs: list[RunRecord]) -> None:
    record = composed(host, runs, strategy="orthogonal")
    again = execute(read(record.folder / "run.toml", [Override("run.out", "again", "--out")]), plugins=host.plugins)
    assert edit_bytes(again.folder) == edit_bytes(record.folder)
    assert (again.folder / "scores.json").read_bytes() == (record.folder / "scores.json").read_bytes()
    assert again.run_id == record.run_id
    names = sorted(path.name for path in (record.folder / "sources").iterdir())
    assert sorted(path.name for path in (again.folder / "sources").iterdir()) == names


@pytest.mark.parametrize("stage", ["load begin", "unlearn begin", "measure begin", "record begin"])
@pytest.mark.parametrize("moved", [False, True])
def test_it_can_be_interrupted_and_resumed(host: Program, runs: list[RunRecord], stage: str, moved: bool) -> None:
    wanted = composed(host, runs, out="whole")
    with pytest.raises(Interrupted):
        compose(runs[0].folder, components(runs), host, attrs.evolve(host, stop_at=stage).see, out="both")
    folder = Path("both")
    if moved:
        folder = folder.rename("elsewhere")
    record = resume(folder, plugins=host.plugins)
    assert edit_bytes(record.folder) == edit_bytes(wanted.folder)
    assert (record.folder / "scores.json").read_bytes() == (wanted.folder / "scores.json").read_bytes()


def test_a_folder_that_was_moved_can_be_measured_and_repeated(host: Program, runs: list[RunRecord]) -> None:
    record = composed(host, runs)
    for each in runs:
        (each.folder / "edit.safetensors").unlink()
    folder = record.folder.rename("elsewhere")
    assert record.scorecard is not None
    card = measure_run(folder, plugins=host.plugins)
    assert [score.after for score in card.scores] == [score.after for score in record.scorecard.scores]
    with opened(folder, host, host.see) as bench:
        assert bench.generate("forget", 7, bench.edit).shape == (8, 8, 3)
    with pytest.raises(EditError) as caught:
        execute(read(folder / "run.toml"), plugins=host.plugins)
    assert caught.value.code == "VU-E065"
    assert "--set unlearner.sources=" in caught.value.remedy
    assert not list(Path("runs").iterdir())
    where = Override("unlearner.sources", str(folder / "sources"), "--set")
    again = execute(read(folder / "run.toml", [where]), plugins=host.plugins)
    assert edit_bytes(again.folder) == edit_bytes(folder)
    assert again.run_id == record.run_id


def test_sections_appear_in_the_report(host: Program, runs: list[RunRecord]) -> None:
    section = Section("Which edit hurts which concept", "<p>none of them</p>")
    record = composed(host, runs, sections=[section])
    report = (record.folder / "report.html").read_text()
    assert "Which edit hurts which concept" in report
    assert "<p>none of them</p>" in report
    plain = composed(host, runs, out="plain")
    assert "none of them" not in (plain.folder / "report.html").read_text()


def test_sections_survive_an_interruption(host: Program, runs: list[RunRecord]) -> None:
    section = Section("Which edit hurts which concept", "<p>none of them</p>")
    stopping = attrs.evolve(host, stop_at="record begin").see
    with pytest.raises(Interrupted):
        compose(runs[0].folder, components(runs), host, stopping, out="both", sections=[section])
    record = resume(Path("both"), plugins=host.plugins)
    assert "<p>none of them</p>" in (record.folder / "report.html").read_text()


def test_settings_take_the_place_of_those_of_the_run(host: Program, runs: list[RunRecord]) -> None:
    record = composed(host, runs, settings={"measure.split": "validation", "measure.seeds": 3, "run.seed": 9})
    assert record.scorecard is not None
    assert record.scorecard.split == "validation"
    assert record.scorecard["forget_size"].seeds == (0, 1, 2)
    assert host.plans[-1][0].config.run.seed == 9


def test_edits_of_other_models_are_refused_and_leave_no_folder(host: Program, runs: list[RunRecord]) -> None:
    own = components(runs)
    foreign = [attrs.evolve(each, edit=attrs.evolve(each.edit, base="f" * 64)) for each in own]
    for mixture in ([own[0], foreign[1]], foreign):
        with pytest.raises(EditError) as caught:
            compose(runs[0].folder, mixture, host, host.see, out="both")
        assert caught.value.code == "VU-E053"
        assert not Path("both").exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_failure_before_the_edit_leaves_no_folder(
    host: Program, runs: list[RunRecord], monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    if made:
        Path("both").mkdir()

    def fail(*arguments: Any, **settings: Any) -> None:
        raise EditError("VU-E052", "Not finite.", "Nothing.")

    monkeypatch.setattr("vu_core.composition.combined", fail)
    with pytest.raises(EditError):
        composed(host, runs)
    assert Path("both").exists() == made
    assert not made or not list(Path("both").iterdir())


def test_weights_of_zero_leave_no_edit(host: Program, runs: list[RunRecord]) -> None:
    with pytest.raises(EditError) as caught:
        composed(host, runs, weights=(0.0, 0.0, 0.0))
    assert caught.value.code == "VU-E050"
    assert not Path("both").exists()


def test_what_cannot_be_composed_is_told_before_anything_is_written(host: Program, runs: list[RunRecord]) -> None:
    with pytest.raises(ConfigError, match="nothing to compose"):
        compose(runs[0].folder, [], host, host.see, out="both")
    with pytest.raises(ConfigError, match=r"digests \(3\) and weights \(2\)"):
        composed(host, runs, weights=(1.0, 1.0))
    with pytest.raises(ConfigError, match="must be one of 'sum', 'orthogonal'"):
        composed(host, runs, strategy="other")
    with pytest.raises(ConfigError, match="must be a finite number"):
        composed(host, runs, weights=(1.0, 1.0, float("nan")))
    assert not Path("both").exists()


def test_several_concepts_of_one_run_come_along(
    host: Program, runs: list[RunRecord], plugins: Plugins, raw: Raw
) -> None:
    two = raw(run__out="two", data__forget=("sign:minus", "axis:x"), unlearner__training__steps=2)
    record = composed(host, [execute(two, plugins=plugins), runs[1]])
    assert record.forget == ("sign:minus", "axis:x")
    assert record.overwrite == ("sign:plus", "axis:y")
    told = json.loads((record.folder / "environment.json").read_text())["concepts"]
    assert [each["forget"] for each in told] == ["sign:minus", "axis:x"]


def test_a_composition_costs_no_training(host: Program, runs: list[RunRecord]) -> None:
    composed(host, runs)
    plan, _ = host.plans[-1]
    assert training_work(plan.config, plan.model, plan.manifest) == 0
    trained = dry_run(read(runs[0].folder / "run.toml"), plugins=host.plugins)
    assert plan.cost.seconds < trained.cost.seconds
    images = 2 * (2 * plan.model.resolution**2 * 3)
    assert plan.cost.disk == 4 * plan.model.parameters + images + 2**20, "there are no checkpoints"
