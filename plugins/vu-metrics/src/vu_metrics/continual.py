"""One task of continual forgetting: is its class gone, do the others stay, does nothing forgotten come back?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import (
    Batch,
    Classifier,
    Evaluation,
    Examples,
    LowRank,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Sparse,
    Status,
    digest,
    setting,
)
from vu_metrics.answers import Questions, as_json, ask_all, classifier, finite, neutral, outcomes
from vu_metrics.intervals import Outcomes, newcombe, wilson
from vu_metrics.shares import Way, share_score

if TYPE_CHECKING:
    from torch import Tensor

TABLES = {"unseen_forget": "acc_f", "unseen_retain": "acc_r", "old": "acc_o", "missing": "acc_m"}
"""The score of each table."""
HELP = {
    "acc_f": "accuracy on unseen images of what this task forgets",
    "acc_r": "accuracy on unseen images of what stays",
    "acc_o": "accuracy on unseen images of what earlier tasks forgot",
    "acc_m": "accuracy on unseen images of retained classes without training images",
}


@attrs.frozen
class ContinualConfig:
    """Settings of `Continual`."""

    scoring: str = setting(
        "label_free",
        help="the largest logit names the class; margin: after the right class has lost its margin, as was published",
        choices=("label_free", "margin"),
    )
    max_acc_f: float = setting(0.5, help="an Acc_f or Acc_o above this is reported as not forgotten", ge=0, le=1)
    max_fall: float = setting(0.15, help="a fall of Acc_r by more than this is reported as a collapse", ge=0, le=1)
    batch_size: int = setting(256, help="images classified at a time", ge=1, speed_only=True)


class Continual:
    """Measure a task of a sequence on unseen images, with every class a candidate, the forgotten ones too.

    =====================  =========================================================================
    acc_f                  top-1 accuracy on what this task forgets
    acc_r                  on everything that stays; with missing classes, on these too
    acc_o                  on what earlier tasks forgot, where there are any
    acc_m                  on retained classes without training images, where there are any
    drop                   ``Acc_f(pretrained) - Acc_f``
    h_mean                 ``2 Acc_r Drop / (Acc_r + Drop)``; 0 where Drop <= 0
    h_mean_task_start      the same with ``Drop = Acc_f(start of the task) - Acc_f``
    h_star                 H of forgetting all and losing nothing, ``2 a b / (a + b)`` with the accuracies a on what
                           stays and b on what is forgotten of the pre-trained model: no quality of the edit
    zero_group_ratio       share of groups of the edit that are zero, as its method says; else absent
    tunable_ratio          numbers that were trained, as the method says, else those of the edit with low-rank
                           factors as they are, over those of the model
    =====================  =========================================================================

    The published tables subtract from the accuracy of the original, pre-trained model, on which no task has run yet;
    the released code from that of the model as the task found it. In a first task, and in a run of its own, both are
    one.

    Intervals, 95 %: Wilson for an accuracy, Newcombe's method 10 for its paired change and for ``drop``. That of
    ``h_mean`` is MOVER: H rises with Acc_r and with Drop, which are of different images, so with their bounds r and d::

        low = H - sqrt((H - H(r_low, Drop))^2 + (H - H(Acc_r, d_low))^2)        and so upwards

    Deviates: where the accuracy on the forgotten class has risen, Drop is negative and the formula gives a negative
    number or none; it is 0 here.

    Source: GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.
    """

    Config: ClassVar[type[ContinualConfig]] = ContinualConfig
    source: ClassVar[Source] = Source(
        "Continual Forgetting for Pre-trained Vision Models, Zhao et al. 2024",
        "https://arxiv.org/abs/2403.11530",
        "paper",
    )
    version: ClassVar[str] = "1"

    def __init__(self, config: ContinualConfig) -> None:
        self.config = config
        self._questions = Questions("continual", *TABLES)

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the scoring, and the images and labels of every table."""
        return digest("continual", self.version, self.config.scoring, self._questions.content(evaluation))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per table whether each image is classified right, and how large the edit is.

        ``pretrained`` and ``pretrained_retain`` are the answers of the original model on what the task forgets and
        on what stays; after the edit it is not asked again.

        Raises:
            MeasureError: the model is no classifier or has no margin to score with, a side has no unseen image, or a
                logit is not finite.
        """
        asked = classifier(model, "continual")
        self._questions.require(evaluation, "unseen_forget", "unseen_retain")
        tables = self._questions.prepared(model, evaluation, neutral(run))
        found: dict[str, Any] = {name: as_json(right) for name, right in self._right(asked, tables, run).items()}
        original = {"pretrained": found["unseen_forget"], "pretrained_retain": found["unseen_retain"]}
        if run.edit is None:
            with run.pretrained():
                sides = {name: tables[name] for name in ("unseen_forget", "unseen_retain")}
                seen = self._right(asked, sides, run)
            original = {
                "pretrained": as_json(seen["unseen_forget"]),
                "pretrained_retain": as_json(seen["unseen_retain"]),
            }
        return {**found, **original, **_size(model, run)}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores of the table above. Raises: MeasureError on observations of other images."""
        tables = self._questions.require(evaluation, "unseen_forget", "unseen_retain")
        fingerprint, found = self.fingerprint(evaluation), []
        for table, name in TABLES.items():
            if table in tables:
                was, now = (outcomes(seen, table, tables[table], "continual") for seen in (before, after))
                way: Way = "up" if name in ("acc_r", "acc_m") else "down"
                found.append(share_score(name, was, now, fingerprint, HELP[name], way))
        forget, retain = tables["unseen_forget"], tables["unseen_retain"]
        original = outcomes(before, "pretrained", forget, "continual")
        start = outcomes(before, "unseen_forget", forget, "continual")
        forgotten = _Pair(start, outcomes(after, "unseen_forget", forget, "continual"))
        kept = _Pair(*(outcomes(seen, "unseen_retain", retain, "continual") for seen in (before, after)))
        found += [
            _drop(original, forgotten, fingerprint),
            _h_mean("h_mean", original, forgotten, kept, fingerprint),
            _h_mean("h_mean_task_start", start, forgotten, kept, fingerprint),
            _h_star(original, outcomes(before, "pretrained_retain", retain, "continual"), fingerprint),
            *_facts(before, after, fingerprint),
        ]
        return tuple(found)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt an Acc_f or Acc_o above ``max_acc_f``, an Acc_f that has not fallen, and a fall of Acc_r."""
        found: list[tuple[Status, str]] = []
        for score in scores:
            change = score.change or 0.0
            if score.name in ("acc_f", "acc_o") and score.after > self.config.max_acc_f:
                what = "what this task forgets" if score.name == "acc_f" else "what earlier tasks forgot"
                found.append(("not_forgotten", f"{100 * score.after:.0f} % of {what} is still classified right."))
            elif score.name == "acc_f" and change >= 0:
                text = f"Acc_f is {100 * score.after:.0f} %, no less than before."
                found.append(("not_forgotten", text))
            elif score.name == "acc_r" and -change > self.config.max_fall:
                found.append(("retain_collapsed", f"Acc_r fell by {-100 * change:.0f} points."))
        return found

    def _right(self, model: Classifier, tables: Mapping[str, Examples], run: Run) -> dict[str, Outcomes]:
        """Return per table whether each image is classified right, by the scoring of the settings."""
        size = self.config.batch_size
        if self.config.scoring == "label_free":
            found = ask_all(model, tables, run, batch_size=size, metric="continual")
            return {name: answers.right for name, answers in found.items()}
        if not hasattr(model, "margin_logits"):
            raise _no_margin(model)
        return {name: _right_with_margin(model, table, run, size) for name, table in tables.items()}


def h_mean(acc_r: float, drop: float) -> float:
    """Return the harmonic mean of what is kept and what is forgotten, 0 where nothing is forgotten.

    Args:
        acc_r: accuracy on what stays.
        drop: fall of the accuracy on what is forgotten, in the same unit.

    Example:
        >>> round(h_mean(80, 75 - 5), 4), h_mean(0.8, -0.1)
        (74.6667, 0.0)
    """
    return 2 * acc_r * drop / (acc_r + drop) if drop > 0 and acc_r > 0 else 0.0


@attrs.frozen
class _Pair:
    """Outcomes of one table before and after."""

    before: Outcomes
    after: Outcomes


def _drop(original: Outcomes, forgotten: _Pair, fingerprint: str) -> Score:
    low, high = newcombe(original, forgotten.after)
    return Score(
        name="drop",
        before=float(original.mean() - forgotten.before.mean()),
        after=float(original.mean() - forgotten.after.mean()),
        unit="share",
        direction="up",
        n=len(original),
        ci_low=-high,
        ci_high=-low,
        fingerprint=fingerprint,
        help="fall of Acc_f since the pre-trained model",
    )


def _h_mean(name: str, reference: Outcomes, forgotten: _Pair, kept: _Pair, fingerprint: str) -> Score:
    acc_r, drop = float(kept.after.mean()), float(reference.mean() - forgotten.after.mean())
    value = h_mean(acc_r, drop)
    r_low, r_high = wilson(int(kept.after.sum()), len(kept.after))
    d_high, d_low = (-bound for bound in newcombe(reference, forgotten.after))

    def reach(r: float, d: float) -> float:
        return math.hypot(value - h_mean(r, drop), value - h_mean(acc_r, d))

    since = "the pre-trained model" if name == "h_mean" else "the start of the task"
    return Score(
        name=name,
        before=h_mean(float(kept.before.mean()), float(reference.mean() - forgotten.before.mean())),
        after=value,
        unit="fraction",
        direction="up",
        n=len(kept.after) + len(forgotten.after),
        ci_low=max(0.0, value - reach(r_low, d_low)),
        ci_high=min(1.0, value + reach(r_high, d_high)),
        fingerprint=fingerprint,
        help=f"harmonic mean of Acc_r and the fall of Acc_f since {since}",
    )


def _h_star(forget: Outcomes, retain: Outcomes, fingerprint: str) -> Score:
    return Score(
        name="h_star",
        after=h_mean(float(retain.mean()), float(forget.mean())),
        unit="fraction",
        direction="none",
        n=len(retain) + len(forget),
        fingerprint=fingerprint,
        help="H of an edit of the pre-trained model that forgets all of it and loses nothing else",
    )


def _size(model: Model, run: Run) -> dict[str, Any]:
    """Return how many numbers the edit holds, of how many of the model, and its groups where it tells of any."""
    if run.edit is None:
        return {"tuned": 0, "parameters": model.facts.parameters}
    facts, tuned = run.edit.facts, 0
    for _, part in run.edit:
        if isinstance(part, LowRank):
            tuned += part.A.numel() + part.B.numel()
        else:
            tuned += part.values.numel() if isinstance(part, Sparse) else part.tensor.numel()
    found = {"tuned": facts.get("tuned_parameters", tuned), "parameters": model.facts.parameters}
    groups = facts.get("groups")
    if isinstance(groups, Mapping) and "zero_group_ratio" in groups:
        found["zero_group_ratio"], found["groups"] = groups["zero_group_ratio"], len(groups["names"])
        found["tau"] = groups["tau_functional"]
    return found


def _facts(before: Observations, after: Observations, fingerprint: str) -> list[Score]:
    def fact(name: str, was: float, now: float, n: int, help: str) -> Score:
        return Score(
            name=name,
            before=was,
            after=now,
            unit="fraction",
            direction="none",
            n=n,
            fingerprint=fingerprint,
            help=help,
        )

    total, found = after["parameters"], []
    if "zero_group_ratio" in after:
        words = f"groups of the edit that change the weights by at most {after['tau']:g} of their norm"
        was = before.get("zero_group_ratio", 0.0)
        found.append(fact("zero_group_ratio", was, after["zero_group_ratio"], after["groups"], words))
    words = "numbers that were trained, as a share of the model"
    found.append(fact("tunable_ratio", before["tuned"] / total, after["tuned"] / total, total, words))
    return found


def _no_margin(model: Classifier) -> MeasureError:
    return MeasureError(
        "VU-S113",
        f"The model {model.facts.name!r} has no margin to take off the right class.",
        "Set metric.continual.scoring=label_free, which needs none.",
        where="metric.continual.scoring",
    )


def _right_with_margin(model: Any, examples: Examples, run: Run, size: int) -> Outcomes:
    """Return whether the right class wins although it has lost its margin, per image."""
    import numpy as np
    import torch

    right: list[Tensor] = []
    draws, device = neutral(run), torch.device(run.device)
    for first in range(0, len(examples), size):
        rows = tuple(range(first, min(first + size, len(examples))))
        batch = Batch(examples, rows, 0, rows, draws, device)
        labels = model.labels(batch)
        with torch.no_grad():
            images = model.images(batch)
            logits = finite(model.margin_logits(images, labels), examples, "continual")
            if first == 0 and torch.equal(logits, model.logits(images)):  # a head of another kind
                raise _no_margin(model)
        right.append((logits.argmax(dim=1) == labels).cpu())
    return np.asarray(torch.cat(right).numpy())
