"""Scores that need unseen images where the data keeps none: known before any weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vu_core import PlanError
from vu_core.config import Override, RawConfig
from vu_core.pipeline import dry_run, execute, measure_run
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read
from vu_core.testing import toy_plugin

LEFT_OUT = "The data keeps no unseen examples of both sides in its {} part, so 'denoising-gap' is left out"
EVERY_CLASS = ("class:cat", "class:dog")


@pytest.fixture
def plugins() -> Plugins:
    return discover(extra=[("vu-toys", "1.0", toy_plugin)])


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RawConfig]:
    """A run of the toy method on six images of cats and six of dogs."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(10 * place + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")

    def make(**values: Any) -> RawConfig:
        settings = {
            "model__name": "toy",
            "data__name": "imagefolder",
            "data__ref": str(tmp_path / "images"),
            "data__forget": ("class:cat",),
            "data__overwrite": ("a fish",),
            "unlearner__method": "toy-distillation",
            "unlearner__training__steps": 2,
            "run__seed": 1,
            **values,
        }
        return read(None, [Override(key.replace("__", "."), value, "--set") for key, value in settings.items()])

    return make


CASES: dict[str, dict[str, Any]] = {
    "nothing is held out": {"data__held_out": 0.0},
    "no validation part": {"data__validation": 0.0, "measure__split": "validation"},
    "every class is forgotten": {"data__forget": EVERY_CLASS},
    "every class, validation": {"data__forget": EVERY_CLASS, "measure__split": "validation"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_metric_that_only_the_data_named_is_left_out_and_it_is_said(
    case: str, plugins: Plugins, raw: Callable[..., RawConfig]
) -> None:
    plan = dry_run(raw(**CASES[case]), plugins=plugins)
    split = CASES[case].get("measure__split", "held-out")
    assert any(note.startswith(LEFT_OUT.format(split)) for note in plan.notes)
    assert plan.config.measure.metrics == ("edit-size",)
    assert [choice.name for choice in plan.config.metrics] == ["edit-size"]


@pytest.mark.parametrize("case", CASES)
def test_a_metric_that_was_asked_for_is_refused(case: str, plugins: Plugins, raw: Callable[..., RawConfig]) -> None:
    with pytest.raises(PlanError, match="'denoising-gap' needs 'unseen', which the data 'imagefolder' lacks") as caught:
        dry_run(raw(**CASES[case], measure__metrics=["denoising-gap"]), plugins=plugins)
    assert caught.value.code == "VU-L002"


@pytest.mark.parametrize(
    "values", [{}, {"data__validation": 0.0}, {"data__held_out": 0.0, "measure__split": "validation"}]
)
def test_where_the_measured_part_has_images_nothing_is_left_out(
    values: dict[str, Any], plugins: Plugins, raw: Callable[..., RawConfig]
) -> None:
    plan = dry_run(raw(**values), plugins=plugins)
    assert plan.config.measure.metrics == ("edit-size", "denoising-gap")
    assert not any("left out" in note for note in plan.notes)


def test_such_a_run_ends_and_can_be_measured_and_repeated(plugins: Plugins, raw: Callable[..., RawConfig]) -> None:
    record = execute(raw(data__held_out=0.0, run__out="run"), plugins=plugins)
    assert record.scorecard is not None
    names = {score.name for score in record.scorecard.scores}
    assert names == {"changed_parameters", "changed_share", "edit_bytes"}
    metrics = Override("measure.metrics", ["edit-size", "denoising-gap"], "--set")
    with pytest.raises(PlanError, match="'denoising-gap' needs 'unseen'"):
        measure_run(record.folder, plugins=plugins, overrides=[metrics])
    again = execute(read(record.folder / "run.toml", [Override("run.out", "again", "--out")]), plugins=plugins)
    assert again.scorecard == record.scorecard


def test_seeds_are_recorded_by_scores_that_use_them_only(plugins: Plugins, raw: Callable[..., RawConfig]) -> None:
    """The toy paints, but edit size and denoising gap look at no painted image."""
    record = execute(raw(run__out="run"), plugins=plugins)
    assert record.scorecard is not None
    assert {score.seeds for score in record.scorecard.scores} == {()}
    told: list[str] = []
    three = Override("measure.seeds", 3, "--seeds")
    again = measure_run(
        record.folder,
        plugins=plugins,
        overrides=[three],
        on_event=lambda event: told.append(str(event.values.get("text", ""))),
    )
    assert {score.name: score.after for score in again.scores} == {
        score.name: score.after for score in record.scorecard.scores
    }
    assert any("measure.seeds changes no score" in text for text in told)
