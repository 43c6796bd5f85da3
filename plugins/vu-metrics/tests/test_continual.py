"""Accuracies of a task, H-Mean with both references, groups, facts of the edit, margins and doubts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from vu_core import Edit, Evaluation, LowRank, MeasureError, Replace, Run, Score, Sparse
from vu_core.adapters import apply_edit
from vu_core.testing import ToyClassifier, ToyPainter, toy_evaluation, toy_run
from vu_metrics.continual import Continual, ContinualConfig, h_mean
from vu_metrics.intervals import newcombe, wilson

METRIC = Continual(ContinualConfig())
FACTS = {
    "groups": {"names": ["a", "b", "c", "d"], "zero_group_ratio": 0.25, "tau_functional": 1e-4},
    "tuned_parameters": 16,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path, stage="measure")


def observed(forget: list[int], retain: list[int], **others: Any) -> dict[str, Any]:
    rest = {"pretrained": forget, "pretrained_retain": retain, "tuned": 0, "parameters": 100, **others}
    return {"unseen_forget": forget, "unseen_retain": retain, **rest}


def biased(*colours: str, **facts: Any) -> Edit:
    bias = ToyClassifier().network["classifier"].fc.bias.detach().clone()
    for colour in colours:
        bias[ToyClassifier.classes.index(colour)] -= 100
    return Edit({"classifier.fc.bias": Replace(bias)}, facts=facts)


def measured(run: Run, evaluation: Evaluation, edit: Edit, model: Any = None) -> dict[str, Score]:
    model = model or ToyClassifier()
    before = METRIC.observe(model, evaluation, run)
    with apply_edit(model.network, edit):
        after = METRIC.observe(model, evaluation, attrs.evolve(run, edit=edit))
    return {score.name: score for score in METRIC.scores(before, after, evaluation)}


@pytest.mark.parametrize(
    ("acc_r", "before", "after", "value"),
    [(80, 75, 5, 74.6667), (71.36, 70.88, 0, 71.1192), (74.16, 74.65, 0, 74.4042), (70.61, 70.88, 3.10, 69.1661)],
)
def test_published_means(acc_r: float, before: float, after: float, value: float) -> None:
    assert h_mean(acc_r, before - after) == pytest.approx(value, abs=5e-5)


def test_nothing_forgotten_is_zero() -> None:
    assert h_mean(0.8, 0.0) == h_mean(0.8, -0.5) == h_mean(0.0, 0.5) == 0.0


def test_accuracies_and_means_counted_by_hand(run: Run) -> None:
    """Of 8 forget images 6 were right and 2 are; of 16 others 15 were and 12 are."""
    evaluation = toy_evaluation(run, "colour:red", unseen=4)
    before = observed([1] * 6 + [0] * 2, [1] * 15 + [0])
    after = observed([1] * 2 + [0] * 6, [1] * 12 + [0] * 4, tuned=20)
    scores = {score.name: score for score in METRIC.scores(before, after, evaluation)}
    assert {name: (s.before, s.after, s.n) for name, s in scores.items()} == {
        "acc_f": (0.75, 0.25, 8),
        "acc_r": (0.9375, 0.75, 16),
        "drop": (0.0, 0.5, 8),
        "h_mean": (0.0, pytest.approx(0.6), 24),
        "h_mean_task_start": (0.0, pytest.approx(0.6), 24),
        "h_star": (None, pytest.approx(1 / 1.2), 24),
        "tunable_ratio": (0.0, 0.2, 100),
    }
    assert [scores[name].direction for name in ("acc_f", "acc_r", "drop", "h_mean")] == ["down", "up", "up", "up"]
    assert (scores["acc_f"].ci_low, scores["acc_f"].ci_high) == wilson(2, 8)


def test_the_interval_of_the_mean_joins_those_of_its_parts(run: Run) -> None:
    evaluation = toy_evaluation(run, "colour:red", unseen=4)
    before, after = observed([1] * 8, [1] * 16), observed([1] + [0] * 7, [1] * 14 + [0] * 2)
    found = {score.name: score for score in METRIC.scores(before, after, evaluation)}
    drop, mean = found["drop"], found["h_mean"]
    low, high = newcombe(np.array([True] * 8), np.array([True] + [False] * 7))
    assert (drop.ci_low, drop.ci_high) == (-high, -low)
    r, d = 14 / 16, 7 / 8
    (r_low, r_high), value = wilson(14, 16), h_mean(r, d)
    assert mean.ci_low == pytest.approx(value - np.hypot(value - h_mean(r_low, d), value - h_mean(r, -high)))
    assert mean.ci_high == pytest.approx(min(1, value + np.hypot(h_mean(r_high, d) - value, h_mean(r, -low) - value)))
    assert mean.ci_low < value < mean.ci_high <= 1


def test_the_two_references_differ_where_the_start_does(run: Run) -> None:
    """The pre-trained model knew all of 8, the task found 4 left, none is left now."""
    evaluation = toy_evaluation(run, "colour:red", unseen=4)
    before = observed([1] * 4 + [0] * 4, [1] * 16, pretrained=[1] * 8)
    found = {s.name: s for s in METRIC.scores(before, observed([0] * 8, [1] * 16), evaluation)}
    assert (found["h_mean"].after, found["h_mean_task_start"].after) == (1.0, pytest.approx(2 / 3))
    assert (found["drop"].before, found["drop"].after) == (0.5, 1.0)
    assert found["h_mean"].before == pytest.approx(2 / 3)
    assert found["h_mean_task_start"].before == 0


def test_h_star_is_that_of_the_pretrained_model(run: Run) -> None:
    """The start of the task has lost half of both sides already; that is no part of what could have been reached."""
    forget, retain = [1] * 6 + [0] * 2, [1] * 8 + [0] * 8
    before = observed([0] * 8, [0] * 16, pretrained=forget, pretrained_retain=retain)
    after = observed([0] * 8, [0] * 16)
    found = {score.name: score for score in METRIC.scores(before, after, toy_evaluation(run, "colour:red", unseen=4))}
    assert found["h_star"].after == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert found["h_star"].before is None
    assert found["h_star"].direction == "none"


def test_the_pretrained_model_is_asked_without_earlier_edits(run: Run) -> None:
    model, entered = ToyClassifier(), []
    weight = model.network["classifier"].fc.bias
    original = weight.detach().clone()
    with torch.no_grad():
        weight[0] -= 100  # an earlier edit made red unknown

    @contextmanager
    def pretrained() -> Iterator[None]:
        entered.append(True)
        carried = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(original)
        yield
        with torch.no_grad():
            weight.copy_(carried)

    run.earlier = (pretrained,)
    found = METRIC.observe(model, toy_evaluation(run, "colour:red", unseen=2), run)
    assert found["unseen_forget"] == [0] * 4
    assert found["pretrained"] == [1] * 4
    assert found["pretrained_retain"] == [1] * 8
    METRIC.observe(model, toy_evaluation(run, "colour:red"), attrs.evolve(run, edit=biased("red")))
    assert len(entered) == 1


def test_groups_are_told_where_they_are(run: Run) -> None:
    evaluation = toy_evaluation(run, "colour:red", unseen=2)
    assert evaluation.examples is not None
    retain = evaluation.examples[1]
    green = [row for row in range(len(retain)) if retain.labels["colour"][row] == "green"]
    blue = [row for row in range(len(retain)) if row not in green]
    groups = {"old": retain.take(green), "missing": retain.take(blue)}
    found = measured(run, attrs.evolve(evaluation, groups=groups), biased("red", "green"))
    assert {name: (found[name].before, found[name].after, found[name].n) for name in ("acc_o", "acc_m")} == {
        "acc_o": (1.0, 0.0, 4),
        "acc_m": (1.0, 1.0, 4),
    }
    assert [found[name].direction for name in ("acc_o", "acc_m")] == ["down", "up"]
    assert {"acc_o", "acc_m"}.isdisjoint(measured(run, evaluation, biased("red")))
    assert METRIC.fingerprint(evaluation) != METRIC.fingerprint(attrs.evolve(evaluation, groups=groups))


def test_what_the_edit_tells_of_its_groups(run: Run) -> None:
    evaluation = toy_evaluation(run)
    plain = measured(run, evaluation, biased("red"))
    assert "zero_group_ratio" not in plain
    assert plain["tunable_ratio"].after == 3 / 323
    found = measured(run, evaluation, biased("red", **FACTS))
    ratio = found["zero_group_ratio"]
    assert (ratio.before, ratio.after, ratio.n) == (0.0, 0.25, 4)
    assert "0.0001" in ratio.help
    assert found["tunable_ratio"].after == 16 / 323


def test_numbers_that_were_trained(run: Run) -> None:
    """Factors count as they are, not as the matrix they make."""
    parts = {
        "classifier.fc.weight": LowRank(torch.ones(2, 8), torch.ones(3, 2), 1.0),
        "classifier.fc.bias": Sparse(torch.tensor([1]), torch.ones(1), (3,)),
    }
    assert measured(run, toy_evaluation(run), Edit(parts))["tunable_ratio"].after == (2 * 8 + 3 * 2 + 1) / 323


class Cosine(ToyClassifier):
    """A classifier whose right class may lose a margin that no answer survives."""

    def margin_logits(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(images).clone()
        logits[torch.arange(len(labels)), labels] -= 1e3
        return logits


class Plain(ToyClassifier):
    """A classifier whose head might have had a margin, but has none."""

    def margin_logits(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.logits(images)


def test_scoring_with_a_margin(run: Run) -> None:
    evaluation, margin = toy_evaluation(run, unseen=2), Continual(ContinualConfig(scoring="margin", batch_size=3))
    assert METRIC.observe(Cosine(), evaluation, run)["unseen_retain"] == [1] * 8
    found = margin.observe(Cosine(), evaluation, run)
    assert (found["unseen_forget"], found["unseen_retain"], found["pretrained"]) == ([0] * 4, [0] * 8, [0] * 4)
    assert margin.fingerprint(evaluation) != METRIC.fingerprint(evaluation)
    for model in (ToyClassifier(), Plain()):
        with pytest.raises(MeasureError, match="'toy-classifier' has no margin") as caught:
            margin.observe(model, evaluation, run)
        assert caught.value.code == "VU-S113"


@pytest.mark.parametrize(
    ("after", "kinds"),
    [
        (observed([0] * 4, [1] * 8, old=[0] * 4), []),
        (observed([1] * 3 + [0], [1] * 8, old=[0] * 4), ["not_forgotten"]),
        (observed([0] * 4, [1] * 8, old=[1] * 3 + [0]), ["not_forgotten"]),
        (observed([0] * 4, [1] * 6 + [0] * 2, old=[0] * 4), ["retain_collapsed"]),
    ],
)
def test_doubts_of_a_task(run: Run, after: dict[str, Any], kinds: list[str]) -> None:
    evaluation = toy_evaluation(run, unseen=2)
    assert evaluation.examples is not None
    grouped = attrs.evolve(evaluation, groups={"old": evaluation.examples[0].take(range(4))})
    before = observed([1] * 4, [1] * 8, old=[0] * 4)
    assert [kind for kind, _ in METRIC.doubts(METRIC.scores(before, after, grouped))] == kinds


def test_an_accuracy_that_was_low_already_is_doubted(run: Run) -> None:
    before = observed([0] * 4, [1] * 8)
    doubts = METRIC.doubts(METRIC.scores(before, before, toy_evaluation(run, unseen=2)))
    assert [text for _, text in doubts] == ["Acc_f is 0 %, no less than before."]


def test_thresholds_of_the_doubts(run: Run) -> None:
    evaluation = toy_evaluation(run, unseen=2)
    scores = METRIC.scores(observed([1] * 4, [1] * 8), observed([1] + [0] * 3, [1] * 7 + [0]), evaluation)
    assert not METRIC.doubts(scores)
    strict = Continual(ContinualConfig(max_acc_f=0.2, max_fall=0.1)).doubts(scores)
    assert [kind for kind, _ in strict] == ["not_forgotten", "retain_collapsed"]


def test_what_cannot_be_asked(run: Run) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    forget, retain = evaluation.examples
    for model, asked, code in (
        (ToyPainter(), evaluation, "VU-S090"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=(forget.take(()), retain)), "VU-S091"),
        (ToyClassifier(), attrs.evolve(evaluation, examples=None), "VU-S091"),
    ):
        with pytest.raises(MeasureError) as caught:
            METRIC.observe(model, asked, run)
        assert caught.value.code == code
