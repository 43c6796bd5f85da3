"""Probes: is the class still in the features, does a new head find it, how fast does it come back?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vu_core import Edit, MeasureError, ModelError, Replace, Run, Score
from vu_core.adapters import apply_edit
from vu_core.testing import ToyClassifier, toy_evaluation, toy_run
from vu_metrics.head_recovery import HeadRecovery, HeadRecoveryConfig, head_of, masked
from vu_metrics.linear_probe import LinearProbe, LinearProbeConfig
from vu_metrics.relearn_time import (
    RelearnTime,
    RelearnTimeConfig,
    area,
    borrowed,
    chosen_rows,
    normalised_area,
    steps_to_half,
)

HEAD = {"epochs": 4, "at": (0, 2), "lr": 0.5, "min_lr": 0.05, "step_size": 4}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path, stage="measure")


def without_head() -> Edit:
    """Red is never named; the features are as they were."""
    bias = ToyClassifier().network["classifier"].fc.bias.detach().clone()
    bias[0] -= 100
    return Edit({"classifier.fc.bias": Replace(bias)})


def without_features() -> Edit:
    """The trunk maps every image to the same feature."""
    network = ToyClassifier().network["classifier"]
    return Edit({"classifier.hidden.weight": Replace(torch.zeros_like(network.hidden.weight))})


def measured(run: Run, metric: Any, edit: Edit, **changes: Any) -> dict[str, Score]:
    model, evaluation = ToyClassifier(), attrs.evolve(toy_evaluation(run, unseen=2), **changes)
    before = metric.observe(model, evaluation, run)
    with apply_edit(model.network, edit):
        after = metric.observe(model, evaluation, attrs.evolve(run, edit=edit))
    return {score.name: score for score in metric.scores(before, after, evaluation)}


def afters(scores: dict[str, Score], *names: str) -> list[float]:
    return [scores[name].after for name in names]


def test_probes_see_through_the_head(run: Run) -> None:
    names = ("probe_forget_accuracy", "knn_forget_accuracy", "probe_retain_accuracy", "knn_retain_accuracy")
    assert afters(measured(run, LinearProbe(LinearProbeConfig()), without_head()), *names) == [1.0] * 4


def test_probes_find_nothing_where_nothing_is(run: Run) -> None:
    """All features are equal: one class is named for every image, and it is not always the right one."""
    found = measured(run, LinearProbe(LinearProbeConfig()), without_features())
    for probe in ("probe", "knn"):
        forget, retain = afters(found, f"{probe}_forget_accuracy", f"{probe}_retain_accuracy")
        assert (forget, retain) in [(1.0, 0.0), (0.0, 0.5)]


def test_the_settings_of_the_probes(run: Run) -> None:
    evaluation = toy_evaluation(run)
    usual = LinearProbe(LinearProbeConfig()).fingerprint(evaluation)
    for settings in ({"penalty": 2.0}, {"neighbours": 3}):
        assert LinearProbe(LinearProbeConfig(**settings)).fingerprint(evaluation) != usual
    few, all_of_them = LinearProbe(LinearProbeConfig(neighbours=1)), LinearProbe(LinearProbeConfig(neighbours=12))
    assert measured(run, few, without_head())["knn_forget_accuracy"].after == 1.0
    votes = measured(run, all_of_them, without_head())
    assert votes["knn_forget_accuracy"].after + votes["knn_retain_accuracy"].after == pytest.approx(0.5) or (
        votes["knn_forget_accuracy"].after == 1.0
    )
    weak = LinearProbe(LinearProbeConfig(penalty=1e-9))
    x, y = np.array([[0.0], [0.1], [1.0]]), np.array([0, 0, 1])
    assert weak._probe(x, y, np.array([[1.0]])).tolist() == [0]
    assert LinearProbe(LinearProbeConfig(penalty=1e9))._probe(x, y, np.array([[1.0]])).tolist() == [1]


def test_a_new_head_brings_back_what_only_the_head_forgot(run: Run) -> None:
    found = measured(run, HeadRecovery(HeadRecoveryConfig(**HEAD)), without_head())
    assert set(found) == {
        *(f"{start}_{side}_accuracy" for start in ("recovered", "masked") for side in ("forget", "retain")),
        *(f"{start}_forget_accuracy[epoch {epoch}]" for start in ("recovered", "masked") for epoch in (0, 2)),
    }
    assert found["recovered_forget_accuracy[epoch 0]"].before == 1.0
    assert found["recovered_forget_accuracy[epoch 0]"].after == 0.0
    assert found["masked_forget_accuracy"].after == 1.0
    assert found["masked_forget_accuracy"].before == 1.0
    assert found["masked_retain_accuracy"].after == 1.0
    assert (found["masked_forget_accuracy"].direction, found["masked_retain_accuracy"].direction) == ("down", "up")


def test_no_head_brings_back_what_the_features_lost(run: Run) -> None:
    found = measured(run, HeadRecovery(HeadRecoveryConfig(**HEAD)), without_features())
    assert (found["masked_forget_accuracy"].after, found["masked_retain_accuracy"].after) in [(1.0, 0.0), (0.0, 0.5)]


def test_a_random_part_has_no_rows_to_mask(run: Run) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.train is not None
    _, retain = evaluation.train
    train = (attrs.evolve(retain.take((0, 1)), side="forget"), retain)
    found = measured(run, HeadRecovery(HeadRecoveryConfig(**HEAD)), without_head(), train=train)
    assert not any(name.startswith("masked") for name in found)


@pytest.mark.parametrize("change", [{"epochs": 2}, {"lr": 0.1}, {"min_lr": 1.0}, {"step_size": 12}, {"at": (1,)}])
def test_every_setting_of_the_head_counts(run: Run, change: dict[str, Any]) -> None:
    """Seen in the trained numbers themselves: the accuracies of a toy have few values."""
    trained: list[list[float]] = []
    for settings in (HEAD, {**HEAD, **change}):
        metric, model = HeadRecovery(HeadRecoveryConfig(**settings)), ToyClassifier()
        evaluation = toy_evaluation(run)
        tables = metric._questions.prepared(model, evaluation, run)
        from vu_metrics.answers import embed

        known = {name: embed(model, table, run, batch_size=8, metric="") for name, table in tables.items()}
        head = head_of(model, known["retain"][0])
        told = metric._curves(head, known, "own", run)
        trained.append([*sorted(told), *(p.sum().item() for p in head.parameters())])  # type: ignore[list-item]
    assert trained[0] != trained[1]


def test_masked_rows_are_new_and_the_others_are_not() -> None:
    head = nn.Linear(4, 3)
    changed = masked(head, {1}, 3)
    assert torch.equal(changed.weight[[0, 2]], head.weight[[0, 2]])
    assert not torch.equal(changed.weight[1], head.weight[1])
    assert changed.bias[1] != head.bias[1]
    assert torch.equal(changed.weight, masked(head, {1}, 3).weight)


class Headless(ToyClassifier):
    """A classifier that does not say where its head is."""

    head = property()  # type: ignore[assignment]


class WrongHead(ToyClassifier):
    """Its head is said to be the convolution."""

    head = "classifier.conv"


class NarrowHead(ToyClassifier):
    """Its head is said to be the hidden layer."""

    head = "classifier.hidden"


@pytest.mark.parametrize(
    ("model", "words"),
    [(Headless, "does not say where"), (WrongHead, "cannot read its features"), (NarrowHead, r"gives \(1, 8\)")],
)
def test_heads_that_cannot_be_trained_alone(run: Run, model: Any, words: str) -> None:
    with pytest.raises(MeasureError, match=words) as caught:
        HeadRecovery(HeadRecoveryConfig(**HEAD)).observe(model(), toy_evaluation(run), run)
    assert caught.value.code == "VU-S114"


# Relearning


def test_golden_area() -> None:
    assert normalised_area((0, 10, 20, 50), (0, 0.5, 0.9, 1)) == pytest.approx(0.76)
    half = np.array([True, False])
    assert area((0, 4), [half, half]) == 0.5


def test_steps_to_half() -> None:
    curve = [np.array([False] * 4), np.array([True] + [False] * 3), np.array([True, True, False, False])]
    assert steps_to_half((0, 10, 20), curve) == 20
    assert steps_to_half((0, 10), curve[:2]) == 10
    assert steps_to_half((0, 10, 20), [curve[2], curve[0], curve[0]]) == 0


def relearn(**settings: Any) -> RelearnTime:
    return RelearnTime(RelearnTimeConfig(**{"steps": (0, 2, 4), "lr": 50.0, **settings}))


def test_what_comes_back(run: Run) -> None:
    found = measured(run, relearn(), without_head())
    assert set(found) == {
        "relearn_auc",
        "relearn_steps_to_50",
        "relearned_accuracy",
        "relearned_accuracy[step 0]",
        "relearned_accuracy[step 2]",
    }
    assert (found["relearned_accuracy[step 0]"].before, found["relearned_accuracy[step 0]"].after) == (1.0, 0.0)
    assert found["relearned_accuracy[step 2]"].after == 1.0
    assert found["relearn_steps_to_50"].after == 2.0
    assert found["relearn_auc"].after == pytest.approx(0.75)
    slow = measured(run, relearn(lr=1e-6), without_head())
    assert (slow["relearn_auc"].after, slow["relearn_steps_to_50"].after) == (0.0, 4.0)


class Newborn(ToyClassifier):
    """A toy that knows how to begin anew: with all weights zero, and red never named."""

    def fresh(self, seed: int) -> dict[str, Tensor]:
        zero = {name: torch.zeros_like(tensor) for name, tensor in self.network.named_parameters()}
        return {**zero, "classifier.fc.bias": torch.tensor([-1.0, 0.0, 0.0])}


def test_the_control_begins_with_new_weights(run: Run) -> None:
    evaluation, model = toy_evaluation(run, unseen=2), Newborn()
    before = relearn(lr=0.01).observe(model, evaluation, run)
    assert before["control"]["0"] == [0] * 4
    assert before["curve"]["0"] == [1] * 4
    scores = relearn(lr=0.01).scores(before, before, evaluation)
    assert {score.name: score.after for score in scores}["relearn_auc_control"] == 0.0
    assert "control" not in relearn(control=False).observe(model, evaluation, run)


class Trained(ToyClassifier):
    """A toy that should know how to begin anew, and finds that it does not."""

    def fresh(self, seed: int) -> dict[str, Tensor]:
        raise ModelError("VU-M110", "It reads trained weights.", "Draw them.")


def test_without_new_weights_there_is_no_control_and_it_is_said(run: Run) -> None:
    told: list[str] = []
    run.emit_event = lambda event: told.append(event.values["text"]) if event.type == "note" else None
    found = relearn().observe(Trained(), toy_evaluation(run), run)
    assert "control" not in found
    assert told == ["Nothing is relearned from new weights. It reads trained weights."]
    scores = relearn().scores(found, found, toy_evaluation(run))
    assert "relearn_auc_control" not in {score.name for score in scores}


def test_the_model_is_given_back_as_it_was(run: Run) -> None:
    model = Newborn()
    tensors = list(model.network.parameters())
    before = [(tensor.detach().clone(), tensor.data_ptr()) for tensor in tensors]

    def interrupted() -> None:
        with borrowed(model.network, {}) as parameters, torch.no_grad():
            parameters[0].fill_(7)
            raise ZeroDivisionError

    relearn().observe(model, toy_evaluation(run), run)
    with pytest.raises(ZeroDivisionError):
        interrupted()
    for tensor, (value, place) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert (tensor.data_ptr(), tensor.requires_grad, tensor.grad) == (place, False, None)


def test_images_are_drawn_once() -> None:
    assert chosen_rows(100, 5) == chosen_rows(100, 5)
    assert len(set(chosen_rows(100, 5))) == 5
    assert chosen_rows(3, 5) == (0, 1, 2)


def test_every_setting_of_relearning_counts(run: Run) -> None:
    evaluation = toy_evaluation(run)
    usual = relearn().fingerprint(evaluation)
    for settings in ({"images": 1}, {"lr": 1.0}, {"steps": (0, 3)}):
        assert relearn(**settings).fingerprint(evaluation) != usual
    looked: list[int] = []
    model = ToyClassifier()
    images = model.images
    model.images = lambda batch: (looked.append(len(batch)), images(batch))[1]  # type: ignore[method-assign]
    relearn(images=3).observe(model, evaluation, run)
    assert looked[0] == 3


@pytest.mark.parametrize("steps", [(0,), (1, 2), (0, 2, 2), ()])
def test_steps_rise_from_zero(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must begin with 0 and rise"):
        RelearnTimeConfig(steps=steps)


@pytest.mark.parametrize(
    "metric",
    [LinearProbe(LinearProbeConfig()), HeadRecovery(HeadRecoveryConfig()), relearn()],
    ids=lambda m: type(m).__name__,
)
def test_probes_refuse_what_is_missing(run: Run, metric: Any) -> None:
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    forget, retain = evaluation.examples
    for asked, code in (
        (attrs.evolve(evaluation, train=None), "VU-S111"),
        (attrs.evolve(evaluation, examples=(forget.take(()), retain)), "VU-S091"),
    ):
        with pytest.raises(MeasureError) as caught:
            metric.observe(ToyClassifier(), asked, run)
        assert caught.value.code == code
    assert not metric.doubts(())
