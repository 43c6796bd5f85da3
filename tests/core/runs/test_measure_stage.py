"""What the stage `measure` promises: equal questions before and after, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core import EditError, MeasureError, Score, UnlearnError
from vu_core.config import RawConfig, SubsetSettings
from vu_core.data import Evaluation, Examples
from vu_core.edit import Edit
from vu_core.pipeline import execute
from vu_core.plugins import Plugins
from vu_core.stages import measure as stage
from vu_core.stages.apply import apply
from vu_core.stages.bench import Bench

Raw = Callable[..., RawConfig]
FINE = Score("toy", 0.5, "length", "none", 1, before=0.5, ci_low=0.4, ci_high=0.6, change_low=-0.1, change_high=0.1)


@pytest.mark.parametrize("field", ["before", "after", "n", "ci_low", "ci_high", "change_low", "change_high"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_every_number_of_a_score_must_be_finite(
    field: str, value: float, plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vu_toy_run.broken as broken

    scores = (attrs.evolve(FINE, name="fine"), attrs.evolve(FINE, **{field: value}))
    monkeypatch.setattr(broken.NaN, "scores", lambda *a: scores)
    monkeypatch.setattr(broken.NaN, "doubts", lambda *a: [])
    with pytest.raises(MeasureError, match="gave toy, where") as caught:
        execute(raw(measure__metrics=["toy-nan"]), plugins=plugins)
    assert caught.value.code == "VU-S050"


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("scores", 0.5),
        ("scores", None),
        ("scores", (0.5,)),
        ("scores", (attrs.evolve(FINE, after="much"),)),
        ("doubts", None),
        ("doubts", ["The images are dark."]),
        ("doubts", [("ok", "Fine.")]),
        ("doubts", [("not_forgotten", None)]),
    ],
)
def test_what_is_no_score_and_no_doubt_is_refused(
    what: str, answer: Any, plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vu_toy_run.broken as broken

    monkeypatch.setattr(broken.NaN, "scores", lambda *a: (FINE,))
    monkeypatch.setattr(broken.NaN, "doubts", lambda *a: [])
    monkeypatch.setattr(broken.NaN, what, lambda *a: answer)
    with pytest.raises(MeasureError, match="The metric 'toy-nan' gave") as caught:
        execute(raw(measure__metrics=["toy-nan"]), plugins=plugins)
    assert caught.value.code == "VU-S050"


def test_where_nothing_can_tell_whether_it_was_forgotten_the_run_is_not_ok(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vu_toy_run.broken as broken

    monkeypatch.setattr(broken.NaN, "scores", lambda *a: (FINE,))
    monkeypatch.setattr(broken.NaN, "doubts", lambda *a: [])
    blind = raw(measure__metrics=["toy-nan"])
    assert execute(blind, plugins=plugins).scorecard.status == "ok"  # type: ignore[union-attr]
    whole = toys.ToyPoints.manifest
    empty = {"held-out/forget": 0, "validation/forget": 0}
    monkeypatch.setattr(toys.ToyPoints, "manifest", lambda *a: attrs.evolve(whole(*a), counts=empty))
    with pytest.raises(UnlearnError, match="No metric of this run can show that it was forgotten") as caught:
        execute(blind, plugins=plugins, strict=True)
    assert caught.value.code == "VU-U052"


@pytest.mark.parametrize("base", ["", "0" * 64])
def test_an_edit_is_applied_to_the_weights_it_names_only(base: str, toys: Any) -> None:
    model = toys.ToyNet("", toys.NetConfig()).load(device="cpu", precision="fp32")
    with pytest.raises(EditError) as caught, apply(model, Edit({}, base=base)):
        pytest.fail("the model was handed out")
    assert caught.value.code == "VU-E053"
    assert ("does not name" in caught.value.problem) == (base == "")
    with apply(model, Edit({}, base=model.facts.base_hash)) as same:
        assert same is model


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_the_user_made_is_left_empty_and_another_removed(
    made: bool, plugins: Plugins, raw: Raw, place: Path
) -> None:
    if made:
        (place / "mine").mkdir()
    with pytest.raises(EditError):
        execute(raw(unlearner__method="toy-empty", run__out="mine"), plugins=plugins)
    assert (place / "mine").is_dir() == made
    assert not made or list((place / "mine").iterdir()) == []


@pytest.fixture
def question(plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Any, Evaluation]:
    """What a run asks the untouched model: bench, metric and evaluation."""
    asked: list[tuple[Bench, Any, Evaluation]] = []
    before_key = stage._before_key

    def watch(bench: Bench, name: str, metric: Any, evaluation: Evaluation) -> str:
        asked.append((bench, metric, evaluation))
        return before_key(bench, name, metric, evaluation)

    monkeypatch.setattr(stage, "_before_key", watch)
    execute(raw(measure__metrics=["toy-gap"]), plugins=plugins)
    monkeypatch.undo()
    return asked[0]


def in_run(bench: Bench, **fields: Any) -> Bench:
    return attrs.evolve(bench, run=attrs.evolve(bench.run, **fields))


def in_config(bench: Bench, **fields: Any) -> Bench:
    return attrs.evolve(bench, plan=attrs.evolve(bench.plan, config=attrs.evolve(bench.plan.config, **fields)))


def key_of(bench: Bench, metric: Any, evaluation: Evaluation) -> str:
    return stage._before_key(bench, "toy-gap", metric, evaluation)


def test_what_was_observed_before_belongs_to_everything_that_could_change_it(
    question: tuple[Bench, Any, Evaluation], toys: Any
) -> None:
    """Nothing but the same question about the same weights on the same machine is answered from the cache."""
    bench, metric, evaluation = question
    config, item = bench.plan.config, evaluation.items[0]

    class Later(toys.Gap):
        version = "2"

    class Other(toys.Gap):
        def fingerprint(self, evaluation: Evaluation) -> str:
            return "another question"

    gap = attrs.evolve(config.metrics[0], config=toys.GapConfig(enough=0.5))
    moved = attrs.evolve(item, seed=item.seed + 1)
    trained = attrs.evolve(evaluation, train=(Examples("forget", ("a",)), Examples("retain", ("b",))))
    few = in_config(bench, subset=SubsetSettings(fraction=0.5))
    changed = {
        "images that were trained on": (bench, metric, trained),
        "another draw of them": (few, metric, trained),
        "weights": (in_run(bench, base_hash="0" * 64), metric, evaluation),
        "device": (in_run(bench, device="cuda"), metric, evaluation),
        "precision": (in_run(bench, precision="bf16"), metric, evaluation),
        "settings of the data": (in_config(bench, data=other_setting(config.data)), metric, evaluation),
        "settings of the model": (in_config(bench, model=other_setting(config.model)), metric, evaluation),
        "settings of the metric": (in_config(bench, metrics=(gap,)), metric, evaluation),
        "versions": (attrs.evolve(bench, plan=attrs.evolve(bench.plan, versions={"x": "1"})), metric, evaluation),
        "version of the metric": (bench, Later(metric.config), evaluation),
        "fingerprint of the metric": (bench, Other(metric.config), evaluation),
        "split": (bench, Other(metric.config), attrs.evolve(evaluation, split="validation")),
        "seed": (bench, Other(metric.config), attrs.evolve(evaluation, items=(moved, *evaluation.items[1:]))),
        "steps": (bench, Other(metric.config), attrs.evolve(evaluation, generation={"steps": 99})),
    }
    keys = {name: key_of(*parts) for name, parts in changed.items()}
    usual = key_of(bench, metric, evaluation)
    assert usual == key_of(bench, metric, evaluation)
    assert usual == key_of(few, metric, evaluation), "what was trained on matters to who asks about it"
    assert len({usual, *keys.values()}) == 1 + len(keys), keys


def other_setting(choice: Any) -> Any:
    """The same choice with another value in its first whole number."""
    field = next(f for f in attrs.fields(type(choice.config)) if isinstance(getattr(choice.config, f.name), int))
    return attrs.evolve(choice, config=attrs.evolve(choice.config, **{field.name: 7}))


@pytest.mark.parametrize(
    ("doubts", "status"),
    [
        ([], "ok"),
        ([("retain_collapsed", "a")], "retain_collapsed"),
        ([("retain_collapsed", "a"), ("not_forgotten", "b")], "not_forgotten"),
        ([("not_forgotten", "b"), ("retain_collapsed", "a")], "not_forgotten"),
    ],
)
def test_not_forgotten_comes_before_collapsed(
    doubts: list[tuple[str, str]], status: str, plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vu_toy_run.broken as broken

    monkeypatch.setattr(broken.NaN, "scores", lambda *a: (FINE,))
    monkeypatch.setattr(broken.NaN, "doubts", lambda *a: doubts)
    card = execute(raw(measure__metrics=["toy-nan"]), plugins=plugins).scorecard
    assert card is not None
    assert card.status == status
    assert card.reasons == tuple(text for _, text in doubts)


@pytest.mark.parametrize(("split", "first"), [("validation", 0), ("held-out", 10_000)])
def test_the_part_that_was_asked_for_is_measured(
    split: str, first: int, plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Evaluation] = []
    observe = toys.Gap.observe

    def watch(self: Any, model: Any, evaluation: Evaluation, run: Any) -> Any:
        asked.append(evaluation)
        return observe(self, model, evaluation, run)

    monkeypatch.setattr(toys.Gap, "observe", watch)
    record = execute(raw(measure__split=split, measure__seeds=2, measure__metrics=["toy-gap"]), plugins=plugins)
    assert record.scorecard is not None
    assert record.scorecard.split == split
    assert {evaluation.split for evaluation in asked} == {split}
    assert {item.seed for item in asked[0].items} == {first, first + 1}


@pytest.mark.parametrize(("needs", "seeds"), [((), ()), (("generate",), (10_000, 10_001))])
def test_only_scores_of_images_record_seeds(
    needs: tuple[str, ...], seeds: tuple[int, ...], plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = stage._entry
    monkeypatch.setattr(stage, "_entry", lambda bench, name: attrs.evolve(entry(bench, name), needs=needs))
    card = execute(raw(measure__metrics=["toy-gap"], measure__seeds=2), plugins=plugins).scorecard
    assert card is not None
    assert {score.seeds for score in card.scores} == {seeds}
