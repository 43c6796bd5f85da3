"""What a sequence of image classifiers is told before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vu_core import ConfigError, sequence
from vu_core.config import Override
from vu_core.plugins import Plugins, discover
from vu_core.sequence_plan import SequencePlan
from vu_core.stages.read import read

SETTINGS = {
    "model.name": "canvas-vit",
    "data.name": "canvas",
    "sequence.name": "continual",
    "sequence.tasks": 3,
    "unlearner.method": "gs-lora-plus-plus",
    "run.seed": 1,
}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(plugins: Plugins, changes: dict[str, Any]) -> SequencePlan:
    values = {**SETTINGS, **changes}
    return sequence.dry_run(
        read(None, [Override(key, value, "--set") for key, value in values.items()]), plugins=plugins
    )


@pytest.mark.parametrize(
    "key", ["unlearner.forget_weight", "unlearner.prototype_bound", "regularizer.group-lasso.weight"]
)
def test_a_list_without_a_number_for_a_later_task_is_told_by_the_plan(plugins: Plugins, key: str) -> None:
    """Two of three tasks would have run for nothing."""
    with pytest.raises(ConfigError, match="numbers for 2 tasks, but this is task 3") as caught:
        planned(plugins, {key: [0.2, 0.3]})
    assert (caught.value.code, caught.value.where) == ("VU-C054", f"{key} (--set)")
    assert len(planned(plugins, {key: [0.2, 0.3, 0.4]}).plans) == 3


def test_nobody_is_asked_what_a_sequence_forgets(plugins: Plugins) -> None:
    """Its tasks say so: what is wrong is told alone."""
    with pytest.raises(ConfigError) as caught:
        planned(plugins, {"model.name": "torch-module=network:make", "data.name": "digits", "unlearner.bond": 3})
    assert "unlearner.bond is unknown" in caught.value.problem
    assert "data.forget" not in caught.value.problem


def test_settings_of_a_metric_that_the_sequence_names(plugins: Plugins) -> None:
    plan = planned(plugins, {"metric.continual.max_acc_f": 0.25})
    for each in plan.plans:
        (chosen,) = (metric for metric in each.config.metrics if metric.name == "continual")
        assert chosen.config.max_acc_f == 0.25
    with pytest.raises(ConfigError, match=r"max_acc_g is unknown\. Did you mean 'max_acc_f'"):
        planned(plugins, {"metric.continual.max_acc_g": 0.25})
    with pytest.raises(ConfigError, match=r"metric\.mia is not measured"):
        planned(plugins, {"metric.mia.seed": 1})


def test_the_number_of_a_task_is_the_sequences_own(plugins: Plugins) -> None:
    with pytest.raises(ConfigError, match=r"run\.task is set by the sequence for every run") as caught:
        planned(plugins, {"run.task": 2})
    assert caught.value.code == "VU-C159"


def test_a_class_is_missing_until_it_is_forgotten(plugins: Plugins) -> None:
    settings = {"sequence.tasks": 4, "sequence.classes_per_task": 20}
    second = planned(plugins, settings).tasks[1].forget[0]
    tasks = planned(plugins, {**settings, "subset.missing": [second]}).tasks
    assert [second in task.missing for task in tasks] == [True, False, False, False]


def test_a_task_does_not_retain_what_it_forgets(plugins: Plugins, place: Path) -> None:
    file = place / "sequence.toml"
    task = '[[tasks]]\nforget = ["object:star+style:neon"]\nmissing = ["object:star+style:neon"]\n'
    file.write_text('[run]\nseed = 1\n[model]\nname = "canvas-vit"\n[data]\nname = "canvas"\n' + task)
    with pytest.raises(ConfigError, match="which the task forgets") as caught:
        sequence.dry_run(read(file, []), plugins=plugins)
    assert (caught.value.code, caught.value.where) == ("VU-C159", "tasks[0].missing")
