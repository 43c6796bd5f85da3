"""A run beside another one: `measure.reference`; and the training images that a metric may ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core import MeasureError, RecordError, RunRecord
from vu_core.config import Override, RawConfig
from vu_core.data import Evaluation
from vu_core.pipeline import execute, measure_run
from vu_core.plugins import Plugins

Raw = Callable[..., RawConfig]


def found(record: RunRecord) -> dict[str, tuple[float, float | None]]:
    assert record.scorecard is not None
    return {score.name: (score.after, score.reference) for score in record.scorecard.scores}


@pytest.fixture
def stored(plugins: Plugins, raw: Raw) -> RunRecord:
    return execute(raw(run__out="reference", unlearner__training__steps=1), plugins=plugins)


def test_scores_of_the_reference_stand_beside(
    stored: RunRecord, plugins: Plugins, raw: Raw, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = execute(raw(measure__reference="reference"), plugins=plugins)
    alone, beside = found(stored), found(record)
    assert all(reference is None for _, reference in alone.values())
    assert {name: reference for name, (_, reference) in beside.items()} == {
        name: value for name, (value, _) in alone.items()
    }
    assert any(own != reference for own, reference in beside.values())
    assert ">reference<" in (record.folder / "report.html").read_text()
    assert ">reference<" not in (stored.folder / "report.html").read_text()
    assert f'reference = "{place.resolve()}/reference"' in (record.folder / "run.toml").read_text()


def test_the_name_of_a_run_does_not_hang_on_where_its_reference_lies(
    stored: RunRecord, plugins: Plugins, raw: Raw, place: Path
) -> None:
    first = execute(raw(measure__reference="reference"), plugins=plugins)
    (place / "reference").rename(place / "elsewhere")
    assert execute(raw(measure__reference="elsewhere"), plugins=plugins).run_id == first.run_id


def test_a_finished_run_is_measured_beside_a_reference(stored: RunRecord, plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    card = measure_run(
        record.folder, plugins=plugins, overrides=[Override("measure.reference", "reference", "--reference")]
    )
    assert {score.name: score.reference for score in card.scores} == {
        name: after for name, (after, _) in found(stored).items()
    }
    written = json.loads((record.folder / f"scores-{card.split}-2.json").read_text())
    assert all(score["reference"] is not None for score in written["scores"])


@pytest.mark.parametrize("name", ["nowhere", "empty", "unmeasured"])
def test_what_is_no_run_with_scores_is_refused_before_anything_starts(
    name: str, stored: RunRecord, plugins: Plugins, raw: Raw, place: Path
) -> None:
    (place / "empty").mkdir()
    if name == "unmeasured":
        stored.folder.rename(place / name)
        (place / name / "scores.json").unlink()
    with pytest.raises(RecordError, match=name) as caught:
        execute(raw(measure__reference=name, run__out="mine"), plugins=plugins)
    assert (caught.value.code, caught.value.where) == ("VU-R140", "measure.reference")
    assert not (place / "mine").exists()


def test_other_questions_are_not_compared(stored: RunRecord, plugins: Plugins, raw: Raw) -> None:
    with pytest.raises(MeasureError, match="measured on something else") as caught:
        execute(raw(measure__reference="reference", measure__split="validation"), plugins=plugins)
    assert caught.value.code == "VU-S112"


def test_one_score_of_another_question_is_refused_too(
    stored: RunRecord, plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = json.loads((stored.folder / "scores.json").read_text())
    assert len(scores["scores"]) > 1
    scores["scores"][0]["fingerprint"] = "0" * 16
    (stored.folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(MeasureError, match=scores["scores"][0]["name"]) as caught:
        execute(raw(measure__reference="reference"), plugins=plugins)
    assert caught.value.code == "VU-S112"


def test_a_metric_sees_the_reference_and_what_was_trained_on_if_it_asks(
    stored: RunRecord, plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Evaluation] = []
    stages: list[str] = []
    scores, build = toys.Gap.scores, toys.ToyPoints.build

    def watch(self: Any, before: Any, after: Any, evaluation: Evaluation) -> Any:
        seen.append(evaluation)
        return scores(self, before, after, evaluation)

    def built(self: Any, *arguments: Any, run: Any, **settings: Any) -> Any:
        stages.append(run.stage)
        return build(self, *arguments, run=run, **settings)

    monkeypatch.setattr(toys.Gap, "scores", watch)
    monkeypatch.setattr(toys.ToyPoints, "build", built)
    execute(raw(measure__reference="reference"), plugins=plugins)
    assert seen[0].reference is not None
    assert seen[0].train is None
    monkeypatch.setattr(toys.Gap, "uses_train", True, raising=False)
    execute(raw(), plugins=plugins)
    assert stages == ["load", "load", "measure"]
    train = seen[1].train
    assert train is not None
    assert [table.side for table in train] == ["forget", "retain"]
    assert all(len(table) for table in train)
    assert seen[1].reference is None
