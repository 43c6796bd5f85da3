"""UA, RA, TA, MIA and Avg. Gap of a classifier: counted by hand, both protocols, doubts, and what must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from vu_core import Batch, Edit, Evaluation, Examples, MeasureError, Replace, Run, Score, Scorecard
from vu_core.adapters import apply_edit
from vu_core.testing import ToyClassifier, ToyPainter, toy_evaluation, toy_run
from vu_metrics.classification import COMPARED, Classification, ClassificationConfig, avg_gap
from vu_metrics.intervals import newcombe, wilson
from vu_metrics.membership import drawn_rows

METRIC = Classification(ClassificationConfig())
WHOLE = {
    "forget": [1] * 4,
    "retain": [1] * 8,
    "unseen_forget": [1] * 2,
    "unseen_retain": [1] * 4,
    "non_member": [0] * 4,
}
GONE = {**WHOLE, "forget": [0] * 4, "unseen_forget": [0] * 2, "non_member": [1] * 4}
RETRAINED = {"ua": 5.24, "ra": 100.0, "ta": 94.26, "mia_efficacy": 12.88}


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


def random_part(evaluation: Evaluation) -> Evaluation:
    """What is asked where a random part is forgotten: no unseen image belongs to it."""
    assert evaluation.examples is not None
    forget, retain = evaluation.examples
    return attrs.evolve(evaluation, examples=(forget.take(()), retain))


def card(**values: float) -> Scorecard:
    scores = tuple(Score(name, value, "fraction", "none", 1) for name, value in values.items())
    return Scorecard("held-out", "ok", scores)


def test_red_is_gone_and_green_with_it(run: Run) -> None:
    """Trained on 2 x 2 red images and 4 x 2 others, half of those green; unseen are 2 x 3 and 4 x 3."""
    evaluation = toy_evaluation(run, "colour:red", unseen=3)
    scores = measured(run, biased(red=-100, green=-100), evaluation)
    assert {name: (s.before, s.after, s.n, s.direction) for name, s in scores.items() if name != "mia_efficacy"} == {
        "ua": (0.0, 1.0, 4, "up"),
        "forget_accuracy": (1.0, 0.0, 4, "down"),
        "test_forget_accuracy": (1.0, 0.0, 6, "down"),
        "ra": (1.0, 0.5, 8, "up"),
        "ta": (1.0, 0.5, 12, "up"),
    }
    assert (scores["mia_efficacy"].n, scores["mia_efficacy"].direction) == (4, "none")
    ta = scores["ta"]
    assert (ta.ci_low, ta.ci_high) == wilson(6, 12)
    was, now = np.ones(12, dtype=bool), np.array([1, 1, 0, 0] * 3, dtype=bool)
    assert (ta.change_low, ta.change_high) == pytest.approx(newcombe(was, now))
    assert not METRIC.doubts([scores["ua"], scores["test_forget_accuracy"]])
    doubts = METRIC.doubts(list(scores.values()))
    assert [(kind, text[:2]) for kind, text in doubts] == [("retain_collapsed", "RA"), ("retain_collapsed", "TA")]


def test_a_random_part_has_no_unseen_forget_images(run: Run) -> None:
    scores = measured(run, biased(red=-100), random_part(toy_evaluation(run, "colour:red")))
    assert set(scores) == {"ua", "forget_accuracy", "ra", "ta", "mia_efficacy"}
    assert (scores["ua"].after, scores["ua"].direction, scores["forget_accuracy"].direction) == (1.0, "none", "none")


def test_the_attack_reads_the_probability_of_the_right_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are drawn retain images, as many as there are unseen ones, and those are the non-members."""
    handed: list[Any] = []
    monkeypatch.setattr(
        "vu_metrics.classification.svc_attack",
        lambda *sides: (handed.extend(sides), np.array([True, False, True, True]))[1],
    )
    model, evaluation = ToyClassifier(), toy_evaluation(run, "colour:red", unseen=1)
    assert evaluation.examples is not None
    assert evaluation.train is not None

    def confidence(table: Examples) -> Any:
        rows = tuple(range(len(table)))
        batch = Batch(model.prepare(table, run), rows, 0, rows, run, torch.device("cpu"))
        p = model.logits(model.images(batch)).softmax(1)
        return p[torch.arange(len(rows)), model.labels(batch)][:, None].detach().numpy()

    found = METRIC.observe(model, evaluation, run)
    (seen, kept), (_, unseen) = evaluation.train, evaluation.examples
    drawn = drawn_rows(8, 4, seed=0)
    wanted = confidence(kept)[drawn.members], confidence(unseen), confidence(seen)
    for given, values in zip(handed, wanted, strict=True):
        np.testing.assert_allclose(given, values, rtol=1e-4)
    assert found["non_member"] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("own", "gap"),
    [
        ((2.85, 99.62, 93.93, 14.39), 1.1525),
        ((4.19, 97.74, 91.59, 9.84), 2.255),
        ((7.61, 99.67, 92.83, 37.36), 7.1525),
        ((0.63, 99.88, 94.06, 2.70), 3.7775),
    ],
)
def test_average_gaps_of_the_published_table(own: tuple[float, ...], gap: float) -> None:
    """SalUn, l1-sparse, random label and fine-tuning against retraining."""
    assert avg_gap(dict(zip(COMPARED, own, strict=True)), RETRAINED) == pytest.approx(gap, rel=1e-9)


def test_the_gap_is_told_beside_a_reference_only(run: Run) -> None:
    usual = toy_evaluation(run)
    assert "avg_gap" not in {score.name for score in METRIC.scores(WHOLE, GONE, usual)}
    partly = attrs.evolve(usual, reference=card(ua=1.0, ra=1.0, ta=1.0))
    assert "avg_gap" not in {score.name for score in METRIC.scores(WHOLE, GONE, partly)}
    asked = attrs.evolve(usual, reference=card(ua=0.9, ra=1.0, ta=0.9, mia_efficacy=0.8))
    gap = {score.name: score for score in METRIC.scores(WHOLE, GONE, asked)}["avg_gap"]
    assert gap.after == pytest.approx((0.1 + 0 + 0.1 + 0.2) / 4)
    assert gap.before == pytest.approx((0.9 + 0 + 0.1 + 0.8) / 4)
    assert (gap.unit, gap.direction) == ("fraction", "down")


def test_every_concept_has_its_own_ua(run: Run) -> None:
    evaluation = toy_evaluation(run, "colour:red", unseen=1)
    (red,) = evaluation.concepts
    both = attrs.evolve(evaluation, concepts=(red, attrs.evolve(red, text="dot", labels={"shape": "dot"})))
    assert evaluation.train is not None
    assert evaluation.train[0].labels["shape"] == ("dot", "bar", "dot", "bar")
    after = {**WHOLE, "forget": [0, 1, 0, 1]}
    found = {s.name: s for s in METRIC.scores(WHOLE, after, both)}
    assert {name: found[name].after for name in found if name.startswith("ua")} == {
        "ua": 0.5,
        "ua[colour:red]": 0.5,
        "ua[dot]": 1.0,
    }
    assert found["ua[dot]"].n == 2
    nowhere = attrs.evolve(both, concepts=(red, attrs.evolve(both.concepts[1], labels={"x": "y"})))
    with pytest.raises(MeasureError, match="None of the 4 forget images shows dot") as caught:
        METRIC.scores(WHOLE, after, nowhere)
    assert caught.value.code == "VU-S091"


@pytest.mark.parametrize(
    ("before", "after", "doubts"),
    [
        (WHOLE, GONE, []),
        (WHOLE, WHOLE, ["What was forgotten is still classified right on 100 %"]),
        (GONE, GONE, ["classified right on 0 % of its images, no less often"]),
        (WHOLE, {**GONE, "unseen_forget": [1, 1]}, ["Unseen images of what was forgotten are still"]),
        (WHOLE, {**GONE, "unseen_retain": [1, 1, 1, 0]}, ["TA fell by 25 points"]),
        (WHOLE, {**GONE, "retain": [1] * 6 + [0] * 2}, ["RA fell by 25 points"]),
        ({**WHOLE, "unseen_retain": [1, 1, 1, 0]}, GONE, []),
    ],
)
def test_doubts(run: Run, before: dict[str, Any], after: dict[str, Any], doubts: list[str]) -> None:
    found = METRIC.doubts(METRIC.scores(before, after, toy_evaluation(run)))
    assert len(found) == len(doubts)
    assert all(words in sentence for words, (_, sentence) in zip(doubts, found, strict=True))


@pytest.mark.parametrize(
    ("after", "reference", "doubts"),
    [
        (WHOLE, None, ["not_forgotten"]),
        (GONE, None, []),
        ({**WHOLE, "non_member": [1, 0, 0, 0]}, None, []),
        ({**WHOLE, "forget": [0, 1, 1, 1]}, None, []),
        (WHOLE, 0.1, []),
        (WHOLE, 0.2, ["not_forgotten"]),
        ({**WHOLE, "forget": [0, 1, 1, 1]}, 0.2, []),
        (GONE, 0.2, ["retain_collapsed"]),
    ],
)
def test_doubts_about_a_random_part(
    run: Run, after: dict[str, Any], reference: float | None, doubts: list[str]
) -> None:
    """UA has no target without a reference; with one, it may be too low and too high."""
    scores = METRIC.scores(WHOLE, after, random_part(toy_evaluation(run)))
    beside = [attrs.evolve(score, reference=reference) if score.name == "ua" else score for score in scores]
    assert [kind for kind, _ in METRIC.doubts(beside)] == doubts


def test_thresholds_are_settings(run: Run) -> None:
    after = {**GONE, "forget": [0, 0, 1, 1], "unseen_retain": [1, 1, 1, 0]}
    scores = METRIC.scores(WHOLE, after, toy_evaluation(run))
    strict = Classification(ClassificationConfig(min_ua=0.6, max_fall=0.2))
    mild = Classification(ClassificationConfig(min_ua=0.4, max_fall=0.3))
    assert [kind for kind, _ in strict.doubts(scores)] == ["not_forgotten", "retain_collapsed"]
    assert not mild.doubts(scores)
    part = METRIC.scores(WHOLE, {**WHOLE, "forget": [0, 1, 1, 1]}, random_part(toy_evaluation(run)))
    beside = [attrs.evolve(score, reference=0.5) if score.name == "ua" else score for score in part]
    assert METRIC.doubts(beside)
    assert not Classification(ClassificationConfig(max_gap=0.3)).doubts(beside)


def test_the_question_is_images_labels_tables_and_the_draw_of_members(run: Run) -> None:
    usual = toy_evaluation(run, "colour:red")
    asked = METRIC.fingerprint(usual)
    assert asked == METRIC.fingerprint(toy_evaluation(run, "colour:red", seeds=(10_005,)))
    assert usual.train is not None
    others = [
        toy_evaluation(run, "colour:green"),
        toy_evaluation(run, "colour:red", unseen=2),
        attrs.evolve(usual, train=(usual.train[0], usual.train[1].take(range(7)))),
    ]
    assert asked not in [METRIC.fingerprint(other) for other in others]
    assert asked != Classification(ClassificationConfig(mia_seed=1)).fingerprint(usual)


def test_batches_cover_every_image_once(run: Run) -> None:
    """Tables of four, eight, four and eight images in portions of three."""
    evaluation = toy_evaluation(run, unseen=2)
    model = ToyClassifier()
    looked: list[int] = []
    images = model.images
    model.images = lambda batch: (looked.extend(batch.rows), images(batch))[1]  # type: ignore[method-assign]
    Classification(ClassificationConfig(batch_size=3)).observe(model, evaluation, run)
    assert looked == [*range(4), *range(8), *range(4), *range(8)]


def test_images_are_read_once_for_the_model_and_once_for_the_fingerprint(run: Run) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    assert evaluation.train is not None
    read: list[int] = []

    def counting(table: Examples) -> Examples:
        load = table.load
        assert load is not None
        return attrs.evolve(table, load=lambda row, draws: (read.append(row), load(row, draws))[1])

    def both(tables: tuple[Examples, Examples]) -> tuple[Examples, Examples]:
        return counting(tables[0]), counting(tables[1])

    counted = attrs.evolve(evaluation, examples=both(evaluation.examples), train=both(evaluation.train))
    metric, model = Classification(ClassificationConfig()), ToyClassifier()
    for _ in range(2):
        metric.observe(model, counted, run)
        metric.fingerprint(counted)
        metric.fingerprint(attrs.evolve(counted, reference=card(ua=1.0)))
    assert len(read) == 2 * (2 + 4 + 4 + 8)
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
    assert evaluation.train is not None
    forget, retain = evaluation.examples
    seen, kept = evaluation.train
    broken = ToyClassifier()
    with torch.no_grad():
        broken.network["classifier"].fc.bias[0] = torch.nan
    cases: list[tuple[Any, Evaluation, str, str]] = [
        (ToyPainter(), evaluation, "VU-S090", "needs a classifier; 'toy' is none"),
        (ToyClassifier(), attrs.evolve(evaluation, train=None), "VU-S111", "forget images that the run trained on"),
        (ToyClassifier(), attrs.evolve(evaluation, train=(seen, kept.take(()))), "VU-S111", "the retain images"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=None), "VU-S091", "needs unseen retain images"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=(forget, retain.take(()))), "VU-S091", "held-out part"),
        (broken, evaluation, "VU-S096", "not finite for forget images"),
    ]
    for model, asked, code, words in cases:
        with pytest.raises(MeasureError, match=words) as caught:
            METRIC.observe(model, asked, run)
        assert caught.value.code == code
    with pytest.raises(MeasureError, match="1 forget images were classified, but there are 4") as caught:
        METRIC.scores({**WHOLE, "forget": [1]}, WHOLE, evaluation)
    assert caught.value.code == "VU-S093"
