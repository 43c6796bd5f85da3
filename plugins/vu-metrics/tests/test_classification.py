"""UA and TA of a classifier: counted by hand, several concepts, doubts, and what must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from vu_core import Edit, Evaluation, Examples, MeasureError, Replace, Run, Score
from vu_core.adapters import apply_edit
from vu_core.testing import ToyClassifier, ToyPainter, toy_evaluation, toy_run
from vu_metrics.classification import Classification, ClassificationConfig
from vu_metrics.intervals import newcombe, wilson

METRIC = Classification(ClassificationConfig())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path, stage="measure")


def biased(**biases: float) -> Edit:
    """An edit that adds to the logits of colours."""
    bias = ToyClassifier().network["classifier"].fc.bias.detach().clone()
    for colour, value in biases.items():
        bias[ToyClassifier.classes.index(colour)] += value
    return Edit({"classifier.fc.bias": Replace(bias)})


def measured(run: Run, edit: Edit, evaluation: Evaluation) -> dict[str, Score]:
    model = ToyClassifier()
    before = METRIC.observe(model, evaluation, run)
    with apply_edit(model.network, edit):
        after = METRIC.observe(model, evaluation, attrs.evolve(run, edit=edit))
    return {score.name: score for score in METRIC.scores(before, after, evaluation)}


def observed(forget: list[int], retain: list[int]) -> dict[str, list[int]]:
    return {"forget": forget, "retain": retain}


def test_red_is_gone_and_green_with_it(run: Run) -> None:
    """Of the unseen images 2 x 3 are red and 4 x 3 are not, half of those green."""
    evaluation = toy_evaluation(run, "colour:red", unseen=3)
    scores = measured(run, biased(red=-100, green=-100), evaluation)
    assert set(scores) == {"ua", "forget_accuracy", "ta"}
    assert {name: (s.before, s.after, s.n, s.direction) for name, s in scores.items()} == {
        "ua": (0.0, 1.0, 6, "up"),
        "forget_accuracy": (1.0, 0.0, 6, "down"),
        "ta": (1.0, 0.5, 12, "up"),
    }
    ta = scores["ta"]
    assert (ta.ci_low, ta.ci_high) == wilson(6, 12)
    was, now = np.ones(12, dtype=bool), np.array([1, 1, 0, 0] * 3, dtype=bool)
    assert (ta.change_low, ta.change_high) == pytest.approx(newcombe(was, now))
    assert not METRIC.doubts([scores["ua"]])
    assert [kind for kind, _ in METRIC.doubts(list(scores.values()))] == ["retain_collapsed"]


def test_every_concept_has_its_own_ua(run: Run) -> None:
    evaluation = toy_evaluation(run, "colour:red", unseen=1)
    both = attrs.evolve(
        evaluation,
        concepts=(*evaluation.concepts, attrs.evolve(evaluation.concepts[0], text="dot", labels={"shape": "dot"})),
    )
    assert evaluation.examples is not None
    assert evaluation.examples[0].labels["shape"] == ("dot", "bar")
    found = {s.name: s for s in METRIC.scores(observed([1, 1], [1] * 4), observed([0, 1], [1] * 4), both)}
    assert {name: found[name].after for name in ("ua", "ua[colour:red]", "ua[dot]")} == {
        "ua": 0.5,
        "ua[colour:red]": 0.5,
        "ua[dot]": 1.0,
    }
    assert found["ua[dot]"].n == 1
    nowhere = attrs.evolve(both, concepts=(evaluation.concepts[0], attrs.evolve(both.concepts[1], labels={"x": "y"})))
    with pytest.raises(MeasureError, match="None of the 2 unseen forget images shows dot") as caught:
        METRIC.scores(observed([1, 1], [1] * 4), observed([0, 1], [1] * 4), nowhere)
    assert caught.value.code == "VU-S091"


@pytest.mark.parametrize(
    ("before", "after", "doubts"),
    [
        (observed([1, 1], [1] * 4), observed([0, 0], [1] * 4), []),
        (
            observed([1, 1], [1] * 4),
            observed([1, 1], [1] * 4),
            ["What was forgotten is still classified right on 100 %"],
        ),
        (
            observed([0, 0], [1] * 4),
            observed([0, 0], [1] * 4),
            ["classified right on 0 % of its images, no less often"],
        ),
        (observed([1, 1], [1] * 4), observed([0, 0], [1, 1, 1, 0]), ["TA fell by 25 points"]),
        (observed([1, 1], [1, 1, 1, 0]), observed([0, 0], [1] * 4), []),
    ],
)
def test_doubts(run: Run, before: dict[str, Any], after: dict[str, Any], doubts: list[str]) -> None:
    found = METRIC.doubts(METRIC.scores(before, after, toy_evaluation(run)))
    assert len(found) == len(doubts)
    assert all(words in sentence for words, (_, sentence) in zip(doubts, found, strict=True))


def test_thresholds_are_settings(run: Run) -> None:
    scores = METRIC.scores(observed([1, 1], [1] * 4), observed([0, 1], [1, 1, 1, 0]), toy_evaluation(run))
    strict = Classification(ClassificationConfig(min_ua=0.6, max_fall=0.2))
    mild = Classification(ClassificationConfig(min_ua=0.4, max_fall=0.3))
    assert [kind for kind, _ in strict.doubts(scores)] == ["not_forgotten", "retain_collapsed"]
    assert not mild.doubts(scores)


def test_the_question_is_images_labels_and_sides(run: Run) -> None:
    usual = toy_evaluation(run, "colour:red")
    assert METRIC.fingerprint(usual) == METRIC.fingerprint(toy_evaluation(run, "colour:red", seeds=(10_005,)))
    assert METRIC.fingerprint(usual) != METRIC.fingerprint(toy_evaluation(run, "colour:green"))
    assert METRIC.fingerprint(usual) != METRIC.fingerprint(toy_evaluation(run, "colour:red", unseen=2))


def test_batches_cover_every_image_once(run: Run) -> None:
    """Seven images in portions of three."""
    evaluation = toy_evaluation(run, unseen=2)
    model = ToyClassifier()
    looked: list[int] = []
    images = model.images
    model.images = lambda batch: (looked.extend(batch.rows), images(batch))[1]  # type: ignore[method-assign]
    Classification(ClassificationConfig(batch_size=3)).observe(model, evaluation, run)
    assert looked == [*range(4), *range(8)]


def test_images_are_read_once_for_the_model_and_once_for_the_fingerprint(run: Run) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    read: list[int] = []

    def counting(table: Examples) -> Examples:
        load = table.load
        assert load is not None
        return attrs.evolve(table, load=lambda row, draws: (read.append(row), load(row, draws))[1])

    forget, retain = map(counting, evaluation.examples)
    counted = attrs.evolve(evaluation, examples=(forget, retain))
    metric, model = Classification(ClassificationConfig()), ToyClassifier()
    for _ in range(2):
        metric.observe(model, counted, run)
        metric.fingerprint(counted)
    assert len(read) == 2 * (2 + 4)
    assert metric.fingerprint(toy_evaluation(run, "colour:green")) != metric.fingerprint(counted)
    first = metric.observe(model, counted, run)
    assert metric.observe(ToyClassifier(), toy_evaluation(run, unseen=2), run) != first


def test_the_draws_of_a_run_do_not_matter(tmp_path: Path) -> None:
    """Runs with other seeds are asked the same."""
    found = []
    for seed in (0, 1):
        run = toy_run(tmp_path / str(seed), seed)
        evaluation = toy_evaluation(run)
        assert evaluation.examples is not None
        drawn = tuple(
            attrs.evolve(table, load=lambda row, draws: torch.rand(3, 8, 8, generator=draws), reload=True)
            for table in evaluation.examples
        )
        found.append(METRIC.observe(ToyClassifier(), attrs.evolve(evaluation, examples=drawn), run))
    assert found[0] == found[1]


def test_what_cannot_be_measured_is_refused(run: Run) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    forget, _ = evaluation.examples
    none = attrs.evolve(forget, captions=(), labels={})
    broken = ToyClassifier()
    with torch.no_grad():
        broken.network["classifier"].fc.bias[0] = torch.nan
    cases = [
        (ToyPainter(), evaluation, "VU-S090", "needs a classifier; 'toy' is none"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=None), "VU-S091", "needs unseen images of both sides"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=(forget, none)), "VU-S091", "in its held-out part"),
        (broken, evaluation, "VU-S096", "not finite for forget images"),
    ]
    for model, asked, code, words in cases:
        with pytest.raises(MeasureError, match=words) as caught:
            METRIC.observe(model, asked, run)
        assert caught.value.code == code
    with pytest.raises(MeasureError, match="1 forget images were classified, but there are 2") as caught:
        METRIC.scores(observed([1], [1] * 4), observed([1, 1], [1] * 4), evaluation)
    assert caught.value.code == "VU-S093"
