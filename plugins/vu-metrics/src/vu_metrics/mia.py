"""Membership inference on what was forgotten: by every feature and several attackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs

from vu_core import Evaluation, Model, Observations, Run, Score, Source, Status, digest, setting
from vu_metrics.answers import Questions, as_json, ask_all, classifier, neutral, outcomes
from vu_metrics.intervals import Floats, Outcomes
from vu_metrics.membership import (
    HIGH_FOR_MEMBERS,
    area_under_curve,
    drawn_rows,
    features,
    lira,
    svc_attack,
    threshold_attack,
)
from vu_metrics.shares import share_score

ATTACKS = ("svc", "threshold")


@attrs.frozen
class MembershipInferenceConfig:
    """Settings of `MembershipInference`."""

    members: str = setting(
        "random",
        help="retain images that the attack learns from: drawn, or the first ones, as in the released code of SalUn",
        choices=("random", "salun-compat"),
    )
    attack: str = setting("svc", help="the attack behind mia_efficacy and mia[FEATURE]", choices=ATTACKS)
    seed: int = setting(0, help="of the draw of members", ge=0)
    batch_size: int = setting(256, help="images classified at a time", ge=1, speed_only=True)


class MembershipInference:
    """Attack the forget images: which of them pass for images that the model has never seen?

    An attack learns to tell retain images, which the model was trained on (members), from unseen images without the
    forgotten concept (non-members), as many of each. Then it judges the forget images. Each score is the share of them
    that it takes for **non-members**. What it should be is what it is for a retrained model, not 50 %: name one with
    ``measure.reference``.

    ============================  ====================================================================
    mia_efficacy                  by the probability of the right class, the headline
    mia[correctness]              by whether the largest logit is that of the class
    mia[entropy]                  by ``-sum_i p_i log p_i``
    mia[m_entropy]                by the modified entropy of Song and Mittal
    mia[m_entropy_salun_compat]   by what the released code of SalUn computes in its place
    mia[probability]              by all K probabilities; a support vector machine whatever ``attack`` is
    mia_threshold                 by the best single threshold on the probability of the right class
    mia_lira                      by the likelihood of that probability among members and non-members
    mia_auc                       area under the ROC curve: how often a forget image has a higher
                                  probability of its class than a non-member; 50 % where they are alike
    ============================  ====================================================================

    ``attack = "svc"`` is a support vector machine with C = 3, an RBF kernel and gamma = 1 / D, as in SalUn.

    Intervals, 95 %: Wilson for a share, Newcombe's method 10 for its paired change; none for ``mia_auc``.

    Deviates: members are drawn at random (``members = "salun-compat"`` takes the first), with a seed that does not
    depend on the run, so that a run and its reference are attacked by what has learnt from the same images. Where there
    are fewer retain than unseen images, as many unseen ones are drawn.

    Source: SalUn, Fan et al. 2024, arXiv 2310.12508.
    """

    Config: ClassVar[type[MembershipInferenceConfig]] = MembershipInferenceConfig
    source: ClassVar[Source] = Source(
        "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation, Fan et al. 2024",
        "https://arxiv.org/abs/2310.12508",
        "paper",
    )
    version: ClassVar[str] = "1"
    uses_train: ClassVar[bool] = True

    def __init__(self, config: MembershipInferenceConfig) -> None:
        self.config = config
        self._questions = Questions("mia", "forget", "retain", "unseen_retain")

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the settings, and the images and labels of every table."""
        chosen = self.config
        return digest(
            "mia", self.version, chosen.members, chosen.attack, str(chosen.seed), self._questions.content(evaluation)
        )

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per attack which forget images it takes for non-members, and the area under the curve.

        Raises:
            MeasureError: the model is no classifier, there are no training images or no unseen retain images, or a
                logit is not finite.
        """
        asked, chosen = classifier(model, "mia"), self.config
        self._questions.require(evaluation, "forget", "retain", "unseen_retain")
        tables = self._questions.prepared(model, evaluation, neutral(run))
        answers = ask_all(asked, tables, run, batch_size=chosen.batch_size, metric="mia")
        known = {name: features(found) for name, found in answers.items()}
        retained, unseen = len(answers["retain"].labels), len(answers["unseen_retain"].labels)
        rows = drawn_rows(retained, unseen, seed=chosen.seed, first=chosen.members == "salun-compat")
        sides = {
            feature: (known["retain"][feature][rows.members], known["unseen_retain"][feature][rows.others], target)
            for feature, target in known["forget"].items()
        }
        found = {score_name(feature): attacked(feature, *sides[feature], chosen.attack) for feature in sides}
        members, others, targets = (side[:, 0] for side in sides["confidence"])
        found["mia_threshold"] = threshold_attack(members, others, targets)
        found["mia_lira"] = lira(members, others, targets)
        shares = {name: as_json(outcome) for name, outcome in found.items()}
        return {**shares, "mia_auc": area_under_curve(targets, known["unseen_retain"]["confidence"][:, 0])}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores of the table above. Raises: MeasureError on observations of other images."""
        tables = self._questions.require(evaluation, "forget", "retain", "unseen_retain")
        fingerprint, found = self.fingerprint(evaluation), []
        for name, words in HELP.items():
            was, now = (outcomes(seen, name, tables["forget"], "mia") for seen in (before, after))
            found.append(share_score(name, was, now, fingerprint, words, "none"))
        area = Score(
            name="mia_auc",
            before=before["mia_auc"],
            after=after["mia_auc"],
            unit="fraction",
            direction="none",
            n=len(tables["forget"]),
            fingerprint=fingerprint,
            help="how often a forgotten image is more confident than an unseen one; 50 % where they are alike",
        )
        return (*found, area)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return nothing: without a retrained model beside it no value of an attack is wrong by itself."""
        return ()


def score_name(feature: str) -> str:
    """Return the name of the score of a feature.

    Example:
        >>> score_name("confidence"), score_name("entropy")
        ('mia_efficacy', 'mia[entropy]')
    """
    return "mia_efficacy" if feature == "confidence" else f"mia[{feature}]"


HELP: Mapping[str, str] = {
    "mia_efficacy": "how many forgotten images pass for unseen ones; compare it with the reference",
    "mia[correctness]": "the same by whether they are classified right",
    "mia[entropy]": "the same by the entropy of the answer",
    "mia[m_entropy]": "the same by the modified entropy",
    "mia[m_entropy_salun_compat]": "the same by what released code computes in its place",
    "mia[probability]": "the same by all probabilities",
    "mia_threshold": "the same by the best threshold on the probability of the right class",
    "mia_lira": "the same by the likelihood of that probability",
}


def attacked(feature: str, members: Floats, others: Floats, targets: Floats, attack: str) -> Outcomes:
    """Tell for each target ``(N, D)`` whether an attack by this feature takes it for a non-member.

    Args:
        feature: one of `vu_metrics.membership.features`.
        members: ``(M, D)``.
        others: of non-members, ``(M, D)``.
        targets: ``(N, D)``.
        attack: ``svc`` or ``threshold``; what has more than one number is given to the first.
    """
    way: Any = HIGH_FOR_MEMBERS.get(feature)
    if attack == "svc" or way is None:
        return svc_attack(members, others, targets)
    return threshold_attack(*(way * side[:, 0] for side in (members, others, targets)))
