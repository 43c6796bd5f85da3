"""What is decided and counted before any weight is read."""

from __future__ import annotations

import json

import attrs
import pytest
from vu_config_toys import parts

from vu_core import Capability, PlanError
from vu_core.config import FLAG_KEYS, Override, parse_set
from vu_core.cost import remember_speed, speed_of, training_work
from vu_core.stages.plan import NOTHING_MEASURES, measures_forgetting, plan, refuse_budget
from vu_core.stages.read import read
from vu_core.stages.structure import structure


def planned(toys, *sets, limits=None, **flags):
    overrides = [Override(FLAG_KEYS[f"--{name}"], value, f"--{name}") for name, value in flags.items()]
    return plan(structure(read(None, [*overrides, *map(parse_set, sets)]), toys), toys, **(limits or {}))


def test_a_seed_is_drawn_told_and_recorded(toys):
    first, second = planned(toys), planned(toys)
    assert first.config.run.seed != second.config.run.seed
    assert first.config.origins["run.seed"] == "drawn"
    assert any(f"--seed {first.config.run.seed}" in note for note in first.notes)
    assert first.run_id != second.run_id


def test_the_same_configuration_is_the_same_run(toys):
    first, second = planned(toys, seed=1), planned(toys, seed=1)
    assert first == second
    assert planned(toys, seed=2).run_id != first.run_id
    assert planned(toys, seed=1, forget=("style:dots",)).run_id != first.run_id
    assert planned(toys, "model.width=5", seed=1).run_id != first.run_id
    assert planned(toys, seed=1, out="elsewhere").run_id == first.run_id


def test_what_the_data_supplied_is_told(toys):
    assert "style:flat takes its place." in planned(toys).notes
    assert "style:flat takes its place." not in planned(toys, overwrite=("style:dots",)).notes


def test_versions_of_all_that_take_part(toys):
    versions = planned(toys).versions
    assert versions["vu-config-toys"] == "1.2"
    assert {"vu-core", "torch"} <= set(versions)
    assert list(versions) == sorted(versions)


def test_images_are_counted(toys):
    # 3 items, 3 seeds (recipe), 4 samples, before and after.
    assert planned(toys).cost.images == 2 * (3 * 3 + 4)
    assert planned(toys, "measure.seeds=5", "measure.samples=0").cost.images == 2 * 3 * 5
    assert planned(toys, 'measure.metrics=["size"]').cost.images == 2 * 4


def test_costs_grow_with_what_is_asked(toys):
    base = planned(toys).cost
    assert planned(toys, "unlearner.training.steps=400").cost.seconds > base.seconds
    assert planned(toys, "measure.steps=50").cost.seconds > base.seconds
    assert planned(toys, "measure.guidance=3").cost.seconds > base.seconds
    assert planned(toys, "unlearner.training.batch_size=64").cost.memory > base.memory
    assert planned(toys, "measure.samples=20").cost.disk > base.disk


def test_downloads_are_named(toys):
    drawn = planned(toys, model="owner/name", data="toy-data")
    assert drawn.cost.downloads == 2_000_000_000
    assert any("2.00 GB of 'owner/name' must be downloaded" in note for note in drawn.notes)


def test_steps_times_passes(toys):
    drawn = planned(toys, "unlearner.training.steps=10", "unlearner.training.batch_size=3")
    # 4 passes of 0.5 GMAC on 2 sides of 3 examples for 10 steps; 3 passes for the attribution of 10 forget examples.
    assert training_work(drawn.config, drawn.model, drawn.manifest) == 4 * 0.5 * 2 * 3 * 10 + 3 * 0.5 * 10
    epochs = planned(toys, "unlearner.training.epochs=3", "unlearner.training.batch_size=3")
    assert training_work(epochs.config, epochs.model, epochs.manifest) == 4 * 0.5 * 2 * 3 * 3 * 4 + 3 * 0.5 * 10


def test_the_speed_of_a_run_improves_the_next_estimate(toys, tmp_path):
    drawn = planned(toys, "run.threads=2")
    remember_speed(drawn, seconds=1000.0)
    assert speed_of("cpu", 2) == pytest.approx(training_work(drawn.config, drawn.model, drawn.manifest) / 1000)
    assert planned(toys, "run.threads=2").cost.seconds > drawn.cost.seconds
    assert speed_of("cuda:1", None) == speed_of("cuda", None) != speed_of("cpu", 2)
    file = tmp_path / "cache" / "speed.json"
    assert list(json.loads(file.read_text())) == ["cpu/2"]
    file.write_text("[torn")
    assert speed_of("cpu", 2) == 24.0


def test_the_budget(toys):
    cost = planned(toys, limits={"max_minutes": 60, "max_gb": 100}).cost
    refuse_budget(cost)
    with pytest.raises(PlanError, match=r"minutes.*and.*memory.*and.*disk") as caught:
        refuse_budget(attrs.evolve(cost, seconds=120, memory=3 * 10**9, disk=3 * 10**9), max_minutes=1, max_gb=2)
    assert caught.value.code == "VU-L003"


def test_no_weight_is_read(toys, monkeypatch):
    def load(self, **options):
        raise AssertionError("the plan reads no weights")

    monkeypatch.setattr(parts.ToyModel, "load", load, raising=False)
    monkeypatch.setattr(parts.ToyData, "build", load, raising=False)
    planned(toys)


CLASSIFIER = ("model.name=mute-model", "unlearner.method=either", "data.name=toy-data")


@pytest.fixture
def classifier(toys, monkeypatch):
    """Let the model that can do nothing classify, and the data name a metric of its kind beside that of another."""
    monkeypatch.setattr(parts.MuteModel, "can", frozenset({Capability.CLASSIFY}))
    monkeypatch.setattr(parts.Size, "looks", False, raising=False)
    return toys


def planned_with(toys, needs, *sets):
    """Plan with the needs of the metric 'size' changed."""
    entry = next(entry for entry in toys.registry.entries("metric") if entry.name == "size")
    config = structure(read(None, [parse_set(each) for each in (*CLASSIFIER, "run.seed=1", *sets)]), toys)
    changed = attrs.evolve(config.metrics[-1], entry=attrs.evolve(entry, needs=needs))
    return plan(attrs.evolve(config, metrics=(*config.metrics[:-1], changed)), toys)


def test_of_the_metrics_that_data_names_those_of_other_models_are_left_out_without_a_word(classifier):
    drawn = planned_with(classifier, ("classify",))
    assert [choice.name for choice in drawn.config.metrics] == ["size"]
    assert drawn.config.measure.metrics == ("size",)
    assert not any("left out" in note for note in drawn.notes)


def test_where_no_other_metric_tells_whether_it_was_forgotten_it_is_said(classifier):
    drawn = planned_with(classifier, ())
    assert drawn.config.measure.metrics == ("size",)
    (note,) = [note for note in drawn.notes if "left out" in note]
    assert note.startswith("The model 'mute-model' cannot be asked what they need, so 'verdict' is left out;")
    assert note.endswith(NOTHING_MEASURES)
    assert not measures_forgetting(drawn.config, drawn.manifest)


def test_a_metric_that_was_asked_for_is_not_left_out(classifier):
    with pytest.raises(PlanError, match="metric 'verdict' needs 'generate'") as caught:
        planned_with(classifier, ("classify",), 'measure.metrics=["verdict", "size"]')
    assert caught.value.code == "VU-L002"


def test_a_model_that_serves_no_metric_of_the_data_is_refused(classifier):
    with pytest.raises(PlanError, match=r"metric 'verdict' needs 'generate'.*'size' needs 'denoise'"):
        planned_with(classifier, ("denoise",))


def test_a_metric_that_does_not_look_cannot_show_that_anything_was_forgotten(toys, monkeypatch):
    drawn = planned(toys, 'measure.metrics=["size"]')
    assert measures_forgetting(drawn.config, drawn.manifest)  # it may look at unseen examples
    monkeypatch.setattr(parts.Size, "looks", False, raising=False)
    assert not measures_forgetting(drawn.config, drawn.manifest)
    both = planned(toys)
    assert measures_forgetting(both.config, both.manifest)
