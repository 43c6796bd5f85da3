"""How often a classifier is right: on what was forgotten, on what was kept, and on what it has never seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import attrs

from vu_core import (
    Concept,
    Evaluation,
    Examples,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Scorecard,
    Source,
    Status,
    digest,
    setting,
)
from vu_metrics.answers import Questions, as_json, ask_all, classifier, neutral, outcomes, shows
from vu_metrics.intervals import Outcomes
from vu_metrics.membership import drawn_rows, features, svc_attack
from vu_metrics.shares import share_score

COMPARED = ("ua", "ra", "ta", "mia_efficacy")
"""The scores whose distances to the reference are averaged."""


@attrs.frozen
class ClassificationConfig:
    """Settings of `Classification`."""

    min_ua: float = setting(0.5, help="a UA below this is reported as not forgotten", ge=0, le=1)
    max_fall: float = setting(0.15, help="a fall of RA or TA by more than this is reported as a collapse", ge=0, le=1)
    max_gap: float = setting(
        0.15, help="where a random part is forgotten: a UA that far from that of the reference is reported", ge=0, le=1
    )
    mia_seed: int = setting(0, help="draws the retain images that the membership attack learns from", ge=0)
    batch_size: int = setting(256, help="images classified at a time", ge=1, speed_only=True)


class Classification:
    """Classify what was forgotten and what was kept, seen and unseen: is it gone, is everything else still there?

    ``acc(D)`` is the top-1 accuracy over the images D: the share whose largest logit is that of their class. D_f and
    D_r are the forget and retain images that the run trained on, without augmentation; D_t the unseen images without
    the forgotten concept.

    ====================  ==========================================================================
    ua                    ``1 - acc(D_f)``
    forget_accuracy       ``acc(D_f)``, because the two are easily confused
    test_forget_accuracy  accuracy on unseen images of the forgotten concept, where there are any
    ra                    ``acc(D_r)``
    ta                    ``acc(D_t)``
    mia_efficacy          share of D_f that a membership attack takes for unseen images
    avg_gap               mean of ``|this - reference|`` over ua, ra, ta and mia_efficacy; only with
                          `measure.reference`
    ====================  ==========================================================================

    Of several concepts in one edit, ``ua[...]`` tells each concept's own UA.

    The attack of `mia_efficacy` is a support vector machine (C = 3, RBF kernel, gamma = 1) on the probability of the
    right class, as in SalUn. It learns from as many retain images, drawn with ``mia_seed``, as there are unseen ones.

    *Class-wise*, UA should be 1, and unseen images of the class should not be recognised either. *Where a random part
    of the images is forgotten* no unseen image belongs to the forget side, and UA and MIA should be those of a model
    that never saw the images: without a reference they have no target, and all that can be doubted is that neither has
    risen.

    Intervals, 95 %: Wilson for each share, Newcombe's method 10 for its paired change; none for ``avg_gap``.

    Deviates: members are drawn at random, where the released code of SalUn takes the first ones; where there are fewer
    retain than unseen images, as many unseen ones are drawn, so that the attack has no favourite. The draw does not
    depend on the seed of the run, so that a run and its reference are asked the same.

    Source: SalUn, Fan et al. 2024, arXiv 2310.12508.
    """

    Config: ClassVar[type[ClassificationConfig]] = ClassificationConfig
    source: ClassVar[Source] = Source(
        "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation, Fan et al. 2024",
        "https://arxiv.org/abs/2310.12508",
        "paper",
    )
    version: ClassVar[str] = "2"
    uses_train: ClassVar[bool] = True

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        self._questions = Questions("classification", "forget", "retain", "unseen_forget", "unseen_retain")

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the draw of members, and the images and labels of every table."""
        return digest("classification", self.version, str(self.config.mia_seed), self._questions.content(evaluation))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per table whether each image is classified right, and which of D_f pass for non-members.

        Raises:
            MeasureError: the model is no classifier, there are no training images or no unseen retain images, or a
                logit is not finite.
        """
        asked = classifier(model, "classification")
        self._questions.require(evaluation, "forget", "retain", "unseen_retain")
        tables = self._questions.prepared(model, evaluation, neutral(run))
        found = ask_all(asked, tables, run, batch_size=self.config.batch_size, metric="classification")
        confidence = {name: features(answers)["confidence"] for name, answers in found.items()}
        rows = drawn_rows(len(confidence["retain"]), len(confidence["unseen_retain"]), seed=self.config.mia_seed)
        members, others = confidence["retain"][rows.members], confidence["unseen_retain"][rows.others]
        attacked = svc_attack(members, others, confidence["forget"])
        return {**{name: as_json(answers.right) for name, answers in found.items()}, "non_member": as_json(attacked)}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores of the table above, and ``ua[...]`` for each of several concepts.

        Raises:
            MeasureError: the observations are not about these images, or none of them shows one of the concepts.
        """
        tables = self._questions.require(evaluation, "forget", "retain", "unseen_retain")

        def shares(name: str, table: str) -> tuple[Outcomes, Outcomes]:
            was, now = (outcomes(seen, name, tables[table], "classification") for seen in (before, after))
            return was, now

        fingerprint = self.fingerprint(evaluation)
        was, now = shares("forget", "forget")
        unseen = "unseen_forget" in tables
        # Where a random part is forgotten, UA should be that of the reference, whichever way.
        words = "unlearning accuracy: how often a forgotten image is not classified right"
        found = [
            share_score("ua", ~was, ~now, fingerprint, words, "up" if unseen else "none"),
            share_score(
                "forget_accuracy",
                was,
                now,
                fingerprint,
                "how often it still is; 100 % - UA",
                "down" if unseen else "none",
            ),
        ]
        if unseen:
            words = "how often an unseen image of what was forgotten is classified right"
            found.append(
                share_score(
                    "test_forget_accuracy", *shares("unseen_forget", "unseen_forget"), fingerprint, words, "down"
                )
            )
        found += [
            share_score("ra", *shares("retain", "retain"), fingerprint, "accuracy on the retain images trained on"),
            share_score(
                "ta",
                *shares("unseen_retain", "unseen_retain"),
                fingerprint,
                "accuracy on unseen images of what is kept",
            ),
            share_score(
                "mia_efficacy",
                *shares("non_member", "forget"),
                fingerprint,
                "how many forgotten images pass for unseen ones; compare it with the reference",
                "none",
            ),
            *per_concept(evaluation.concepts, tables["forget"], was, now, fingerprint),
        ]
        return (*found, *gap_score(found, evaluation.reference, len(now), fingerprint))

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt forgetting by UA, and keeping by a fall of RA or TA.

        Class-wise: a UA (of any concept) below ``min_ua`` or one that has not risen, and unseen images of the class
        that are recognised more often than ``1 - min_ua``. Where a random part is forgotten: with a reference, a UA
        that is further than ``max_gap`` from it, either way; without, that neither UA nor MIA has risen.
        """
        known = {score.name: score for score in scores}
        unseen = known.get("test_forget_accuracy")
        found = list(self._class_doubts(known) if unseen is not None else self._random_doubts(known))
        if unseen is not None and not found and unseen.after > 1 - self.config.min_ua:
            text = (
                f"Unseen images of what was forgotten are still classified right, {100 * unseen.after:.0f} % of them."
            )
            found.append(("not_forgotten", text))
        for name in ("ra", "ta"):
            change = known[name].change if name in known else None
            if change is not None and -change > self.config.max_fall:
                found.append(("retain_collapsed", f"{name.upper()} fell by {-100 * change:.0f} points."))
        return found

    def _class_doubts(self, scores: Mapping[str, Score]) -> Iterator[tuple[Status, str]]:
        for name, score in scores.items():
            if not name.startswith("ua"):
                continue
            what = "What was forgotten" if name == "ua" else name[3:-1]
            seen = f"{100 * (1 - score.after):.0f} % of its images"
            if score.after < self.config.min_ua:
                yield "not_forgotten", f"{what} is still classified right on {seen}."
            elif (score.change or 0.0) <= 0:
                yield "not_forgotten", f"{what} is classified right on {seen}, no less often than before."

    def _random_doubts(self, scores: Mapping[str, Score]) -> Iterator[tuple[Status, str]]:
        if "ua" not in scores or "mia_efficacy" not in scores:
            return
        ua, mia = scores["ua"], scores["mia_efficacy"]
        if ua.reference is None:
            if (ua.change or 0.0) <= 0 and (mia.change or 0.0) <= 0:
                yield (
                    "not_forgotten",
                    "Neither UA nor MIA has risen: nothing tells the forgotten images from kept ones.",
                )
            return
        gap = ua.after - ua.reference
        if gap < -self.config.max_gap:
            yield "not_forgotten", f"UA is {-100 * gap:.0f} points below that of the reference."
        elif gap > self.config.max_gap:
            text = f"UA is {100 * gap:.0f} points above that of the reference: more is lost than never seen."
            yield "retain_collapsed", text


def avg_gap(own: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the mean absolute distance to the reference over ua, ra, ta and mia_efficacy.

    Example:
        >>> retrained = {"ua": 5.24, "ra": 100.0, "ta": 94.26, "mia_efficacy": 12.88}
        >>> round(avg_gap({"ua": 2.85, "ra": 99.62, "ta": 93.93, "mia_efficacy": 14.39}, retrained), 4)
        1.1525
    """
    return sum(abs(own[name] - reference[name]) for name in COMPARED) / len(COMPARED)


def gap_score(found: Sequence[Score], reference: Scorecard | None, n: int, fingerprint: str) -> Iterator[Score]:
    """Yield ``avg_gap`` where the reference has all four scores."""
    target = {score.name: score.after for score in reference.scores} if reference is not None else {}
    if not target.keys() >= set(COMPARED):
        return
    own = {score.name: score for score in found}
    yield Score(
        name="avg_gap",
        before=avg_gap({name: own[name].before or 0.0 for name in COMPARED}, target),
        after=avg_gap({name: own[name].after for name in COMPARED}, target),
        unit="fraction",
        direction="down",
        n=n,
        fingerprint=fingerprint,
        help="mean distance of UA, RA, TA and MIA to the reference, in percentage points",
    )


def per_concept(
    concepts: Sequence[Concept], forget: Examples, was: Outcomes, now: Outcomes, fingerprint: str
) -> Iterator[Score]:
    """Yield the UA of each of several concepts. Raises: MeasureError when no image shows one."""
    for concept in concepts if len(concepts) > 1 else ():
        rows = [row for row in range(len(forget)) if shows(forget.labels, row, concept.labels)]
        if not rows:
            raise MeasureError(
                "VU-S091",
                f"None of the {len(forget)} forget images shows {concept.text}, so its UA has no value.",
                "Give the data images of it.",
                where="data.forget",
            )
        words = f"how often {concept.text} is not named"
        yield share_score(f"ua[{concept.text}]", ~was[rows], ~now[rows], fingerprint, words)
