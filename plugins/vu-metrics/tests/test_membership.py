"""Features and attacks of membership inference: golden numbers, ties, chance level, members and their draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from vu_core import MeasureError, Run
from vu_core.testing import ToyClassifier, toy_evaluation, toy_run
from vu_metrics.answers import Answers
from vu_metrics.membership import (
    area_under_curve,
    drawn_rows,
    entropy,
    features,
    lira,
    m_entropy,
    m_entropy_salun_compat,
    probabilities,
    svc_attack,
    threshold_attack,
)
from vu_metrics.mia import HELP, MembershipInference, MembershipInferenceConfig, attacked

ROW = np.array([[0.7, 0.2, 0.1]])
PAIR = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
Floats = NDArray[np.float64]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path, stage="measure")


def column(*values: float) -> Floats:
    return np.array(values)[:, None]


def test_golden_entropies() -> None:
    assert entropy(ROW) == pytest.approx([0.801819], abs=5e-7)
    assert m_entropy(ROW, np.array([0])) == pytest.approx([0.162167], abs=5e-7)
    assert m_entropy(ROW, np.array([1])) == pytest.approx([2.140867], abs=5e-7)
    assert m_entropy(PAIR, np.array([0, 1])) == pytest.approx([0.162167, 0.065701], abs=5e-7)


def test_golden_entropies_of_the_released_code() -> None:
    """Wrong twice, and one image changes the number of another."""
    assert m_entropy_salun_compat(ROW, np.array([0])) == pytest.approx([0.6591], abs=5e-5)
    assert m_entropy_salun_compat(ROW, np.array([1])) == pytest.approx([1.7675], abs=5e-5)
    assert m_entropy_salun_compat(PAIR, np.array([0, 1])) == pytest.approx([1.6248, 2.3472], abs=5e-5)


def test_certain_answers_are_finite() -> None:
    p, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0])
    assert m_entropy(p, y)[0] == 0
    assert m_entropy(p, y)[1] == pytest.approx(-2 * np.log(1e-30))
    assert np.isfinite(entropy(p)).all()


def test_features_are_those_of_the_right_class() -> None:
    answers = Answers(np.log(PAIR), np.array([0, 2]))
    found = features(answers)
    assert probabilities(answers.logits) == pytest.approx(PAIR)
    assert found["confidence"][:, 0] == pytest.approx([0.7, 0.1])
    assert found["correctness"][:, 0].tolist() == [1, 0]
    assert found["probability"].shape == (2, 3)
    assert all(len(values) == 2 for values in found.values())


def test_members_are_as_many_as_others() -> None:
    rows = drawn_rows(10, 4, seed=0)
    assert rows.others.tolist() == [0, 1, 2, 3]
    assert len(set(rows.members.tolist())) == 4
    assert max(rows.members) < 10
    assert rows.members.tolist() != drawn_rows(10, 4, seed=1).members.tolist()
    assert drawn_rows(10, 4, seed=0, first=True).members.tolist() == [0, 1, 2, 3]
    few = drawn_rows(3, 8, seed=0)
    assert few.members.tolist() == [0, 1, 2]
    assert len(set(few.others.tolist())) == 3


def test_an_attack_tells_members_from_others_that_differ() -> None:
    draws = np.random.default_rng(0)
    members, others = draws.normal(0.9, 0.02, 60), draws.normal(0.4, 0.1, 60)
    targets = np.array([0.92, 0.88, 0.35, 0.45])
    for judged in (
        svc_attack(members[:, None], others[:, None], targets[:, None]),
        threshold_attack(members, others, targets),
        lira(members, others, targets),
    ):
        assert judged.tolist() == [False, False, True, True]


def test_a_machine_finds_what_no_threshold_can() -> None:
    """Members in the middle, others at both ends."""
    members, others = column(*[0.5] * 20), column(*[-3.0, 4.0] * 10)
    assert svc_attack(members, others, column(0.5, -3.0, 4.0)).tolist() == [False, True, True]
    assert threshold_attack(members[:, 0], others[:, 0], np.array([0.5, 4.0])).tolist() == [False, False]


def test_the_machine_is_that_of_the_paper() -> None:
    """C = 3, a radial kernel and gamma = 1 / D; told apart where members and others overlap."""
    from sklearn.svm import SVC

    draws = np.random.default_rng(3)
    members, others = draws.normal(0.7, 0.3, (80, 2)), draws.normal(0.4, 0.3, (80, 2))
    targets = draws.random((300, 2))

    def refused(**settings: Any) -> list[bool]:
        machine = SVC(**{"C": 3, "kernel": "rbf", "gamma": 0.5, **settings})
        machine.fit(np.concatenate([members, others]), [1] * 80 + [0] * 80)
        return [answer == 0 for answer in machine.predict(targets).tolist()]

    found = svc_attack(members, others, targets).tolist()
    assert found == refused()
    assert found not in [refused(C=1), refused(gamma="scale"), refused(kernel="linear")]


def test_chance_where_nothing_differs() -> None:
    """Members, others and targets of one distribution, drawn 40 times: what learns from noise is right half the time.

    One attack calls some share of everything a non-member, whatever the noise has taught it; the shares of all attacks
    have the mean 1/2. Its 95 % interval comes from their spread.
    """
    draws = np.random.default_rng(1)
    shares: list[list[float]] = []
    for _ in range(40):
        members, others, targets = (draws.random((60, 1)) for _ in range(3))
        flat = (members[:, 0], others[:, 0], targets[:, 0])
        shares.append([float(svc_attack(members, others, targets).mean()), float(lira(*flat).mean())])
    for values in np.array(shares).T:
        assert abs(values.mean() - 0.5) < 1.96 * values.std(ddof=1) / np.sqrt(40)
    targets, others = draws.random(400), draws.random(400)
    assert area_under_curve(targets, others) == pytest.approx(0.5, abs=0.05)


def test_thresholds_and_ties() -> None:
    assert threshold_attack(np.ones(3), np.ones(3), np.array([0.9, 1.0])).tolist() == [True, False]
    assert threshold_attack(np.zeros(3), np.ones(3), np.array([0.5, 2.0])).tolist() == [False, False]
    assert area_under_curve(np.ones(2), np.ones(5)) == 0.5
    assert area_under_curve(np.array([2.0]), np.array([1.0, 3.0])) == 0.5


def test_entropies_are_low_for_members() -> None:
    members, others = column(0.1, 0.2), column(1.0, 1.1)
    targets = column(0.15, 1.05)
    for feature in ("entropy", "m_entropy", "m_entropy_salun_compat"):
        assert attacked(feature, members, others, targets, "threshold").tolist() == [False, True]
    for feature in ("confidence", "correctness"):
        assert attacked(feature, -members, -others, -targets, "threshold").tolist() == [False, True]


def observed(run: Run, **settings: Any) -> Any:
    metric = MembershipInference(MembershipInferenceConfig(**settings))
    return metric.observe(ToyClassifier(), toy_evaluation(run, unseen=1), run)


def test_every_feature_and_attack_is_told(run: Run) -> None:
    found = observed(run)
    assert set(found) == {*HELP, "mia_auc"}
    assert all(len(found[name]) == 4 for name in HELP)


def test_the_settings_change_the_question(run: Run) -> None:
    """The images of a toy are alike: who the members are shows in the fingerprint and in the rows."""
    evaluation = toy_evaluation(run)
    asked = [
        MembershipInference(MembershipInferenceConfig(**settings)).fingerprint(evaluation)
        for settings in ({}, {"members": "salun-compat"}, {"attack": "threshold"}, {"seed": 1})
    ]
    assert len(set(asked)) == 4
    assert observed(run)["mia[entropy]"] != observed(run, attack="threshold")["mia[entropy]"]


def test_members_come_from_the_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import vu_metrics.mia as module

    drawn: list[list[int]] = []

    def watch(*counts: int, **settings: Any) -> Any:
        rows = drawn_rows(*counts, **settings)
        drawn.append(rows.members.tolist())
        return rows

    monkeypatch.setattr(module, "drawn_rows", watch)
    for settings in ({}, {"seed": 3}, {"members": "salun-compat"}):
        observed(run, **settings)
    assert drawn == [
        drawn_rows(8, 4, seed=0).members.tolist(),
        drawn_rows(8, 4, seed=3).members.tolist(),
        [0, 1, 2, 3],
    ]


def test_tables_that_are_missing(run: Run) -> None:
    evaluation, metric = toy_evaluation(run), MembershipInference(MembershipInferenceConfig())
    for asked, code in (
        (attrs.evolve(evaluation, train=None), "VU-S111"),
        (attrs.evolve(evaluation, examples=None), "VU-S091"),
    ):
        with pytest.raises(MeasureError) as caught:
            metric.observe(ToyClassifier(), asked, run)
        assert caught.value.code == code
