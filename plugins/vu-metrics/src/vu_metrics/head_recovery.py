"""How much of what was forgotten comes back when only the head is trained again."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np

from vu_core import (
    Classifier,
    Evaluation,
    Headed,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Status,
    digest,
    setting,
)
from vu_metrics.answers import Questions, as_json, classifier, embed, neutral, outcomes
from vu_metrics.shares import share_score

if TYPE_CHECKING:
    from torch import Tensor, nn

TABLES = {"unseen_forget": "forget", "unseen_retain": "retain"}
STARTS = {
    "own": "from the head that the model has",
    "masked": "from a head whose rows for the forgotten classes are drawn anew",
}


@attrs.frozen
class HeadRecoveryConfig:
    """Settings of `HeadRecovery`."""

    epochs: int = setting(50, help="passes over the forget and retain images", ge=1)
    lr: float = setting(1e-3, help="learning rate at the beginning", gt=0)
    min_lr: float = setting(1e-5, help="learning rate that the cosine falls to", ge=0)
    step_size: int = setting(64, help="images per optimiser step", ge=1)
    at: tuple[int, ...] = setting((0, 1, 5, 10, 20), help="epochs after which the curve is told, besides the end", ge=0)
    batch_size: int = setting(256, help="images looked at a time", ge=1, speed_only=True)


class HeadRecovery:
    """Freeze the trunk, train only the head again on forget and retain images: is the class still in the features?

    The features of all images are computed once. A copy of the head learns them with AdamW (no weight decay) over
    ``epochs``, the learning rate falling from ``lr`` to ``min_lr`` along a cosine; then it classifies unseen images.

    ==============================  ==================================================================
    recovered_forget_accuracy       on the forgotten class, from the head that the model has; before:
                                    the same on the untouched trunk
    recovered_retain_accuracy       the same on what stays
    masked_forget_accuracy          on the forgotten class, from a head whose rows for it are drawn
                                    anew; before: the same on the untouched trunk, **head masking**,
                                    the least that one can do to forget
    masked_retain_accuracy          the same on what stays
    ..._accuracy[epoch E]           the curve on the forgotten class: after E epochs of training
    ==============================  ==================================================================

    An edit whose recovery is that of head masking has left the class in the features. A model that never saw the class
    recovers it too, as far as its features are of use: name one with ``measure.reference``. Where every class of
    the forget images also stays, there are no rows to mask, and the masked ones are not told.

    Intervals, 95 %: Wilson, Newcombe's method 10 for the paired change.

    Source: GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.
    """

    Config: ClassVar[type[HeadRecoveryConfig]] = HeadRecoveryConfig
    source: ClassVar[Source] = Source(
        "Continual Forgetting for Pre-trained Vision Models, Zhao et al. 2024",
        "https://arxiv.org/abs/2403.11530",
        "paper",
    )
    version: ClassVar[str] = "1"
    uses_train: ClassVar[bool] = True

    def __init__(self, config: HeadRecoveryConfig) -> None:
        self.config = config
        self._questions = Questions("head-recovery", "forget", "retain", *TABLES)

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the settings, and the images and labels of every table."""
        chosen = self.config
        settings = f"{chosen.epochs} {chosen.lr} {chosen.min_lr} {chosen.step_size}"
        return digest("head-recovery", self.version, settings, self._questions.content(evaluation))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per start, side and told epoch whether each unseen image is classified right.

        Raises:
            MeasureError: the model is no classifier, has no head that can be trained alone (``VU-S114``), a table is
                missing or a feature is not finite.
        """
        asked = classifier(model, "head-recovery")
        self._questions.require(evaluation, "forget", "retain", *TABLES)
        tables = self._questions.prepared(model, evaluation, neutral(run))
        size = self.config.batch_size
        known = {
            name: embed(asked, table, run, batch_size=size, metric="head-recovery") for name, table in tables.items()
        }
        head = head_of(asked, known["retain"][0])
        forgotten = set(known["forget"][1].tolist()) - set(known["retain"][1].tolist())
        found = self._curves(head, known, "own", run)
        if forgotten:
            found |= self._curves(masked(head, forgotten, len(asked.classes)), known, "masked", run)
        return found

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores of the table above. Raises: MeasureError on observations of other images."""
        tables = self._questions.require(evaluation, "forget", "retain", *TABLES)
        fingerprint, found = self.fingerprint(evaluation), []
        for name in after:
            start, side, epoch = name.split(" ")
            table = next(table for table, other in TABLES.items() if other == side)
            was, now = (outcomes(seen, name, tables[table], "head-recovery") for seen in (before, after))
            place = "" if int(epoch) == self.config.epochs else f"[epoch {epoch}]"
            called = f"{'recovered' if start == 'own' else start}_{side}_accuracy{place}"
            words = f"on unseen {side} images after {epoch} epochs of the head alone, {STARTS[start]}"
            found.append(share_score(called, was, now, fingerprint, words, "down" if side == "forget" else "up"))
        return tuple(found)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return nothing: features may tell a class apart that the model never saw."""
        return ()

    def _curves(
        self, head: nn.Module, known: Mapping[str, tuple[Tensor, Tensor]], start: str, run: Run
    ) -> dict[str, Any]:
        """Train the head; return whether unseen images are classified right, by ``start side epoch``."""
        import torch

        found: dict[str, Any] = {}

        def look(epoch: int) -> None:
            for table, side in TABLES.items():
                if epoch == self.config.epochs or (side == "forget" and epoch in self.config.at):
                    x, y = known[table]
                    with torch.no_grad():
                        right = head(x).argmax(dim=1) == y
                    found[f"{start} {side} {epoch}"] = as_json(np.asarray(right.cpu().numpy()))

        x, y = (torch.cat([known[side][place] for side in ("forget", "retain")]) for place in (0, 1))
        optimizer = torch.optim.AdamW(head.parameters(), lr=self.config.lr, weight_decay=0.0)
        order = torch.Generator().manual_seed(0)  # that of every run: runs are compared
        look(0)
        for epoch in range(self.config.epochs):
            falls = (1 + math.cos(math.pi * epoch / self.config.epochs)) / 2
            for group in optimizer.param_groups:
                group["lr"] = self.config.min_lr + (self.config.lr - self.config.min_lr) * falls
            shuffled = torch.randperm(len(x), generator=order)
            for first in range(0, len(x), self.config.step_size):
                rows = shuffled[first : first + self.config.step_size]
                with torch.enable_grad():
                    loss = torch.nn.functional.cross_entropy(head(x[rows]), y[rows])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            run.progress(f"head-recovery: {start} head", epoch + 1, self.config.epochs)
            look(epoch + 1)
        return found


def head_of(model: Classifier, features: Tensor) -> nn.Module:
    """Return a trainable copy of the head in float32.

    Args:
        model: the classifier.
        features: some that it gives, ``(N, D)``.

    Raises:
        MeasureError: the model does not say where its head is, or it does not map features to K logits (``VU-S114``).
    """
    import torch

    if not isinstance(model, Headed):
        raise _no_head(model, "does not say where its head is")
    head = copy.deepcopy(model.network.get_submodule(model.head)).float().requires_grad_(True).eval()
    try:
        with torch.no_grad():
            logits = head(features[:1])
    except RuntimeError as error:  # what torch raises on a shape that does not fit
        raise _no_head(model, f"has the head {model.head!r}, which cannot read its features") from error
    if logits.shape != (1, len(model.classes)):
        raise _no_head(model, f"has the head {model.head!r}, which gives {tuple(logits.shape)} for one image")
    return head


def _no_head(model: Classifier, what: str) -> MeasureError:
    return MeasureError(
        "VU-S114",
        f"The model {model.facts.name!r} {what}, so it cannot be trained alone.",
        "Name the head in model.head, if the model has that setting, or leave 'head-recovery' out of measure.metrics.",
        where="measure.metrics",
    )


def masked(head: nn.Module, classes: Collection[int], count: int) -> nn.Module:
    """Return a copy of a head in which the rows of some classes are drawn anew.

    They are normal with the mean and standard deviation of the other rows of their tensor.

    Args:
        head: every tensor of K rows has one per class.
        classes: numbers of the classes.
        count: K.
    """
    import torch

    changed, draws = copy.deepcopy(head), torch.Generator().manual_seed(0)
    rows = sorted(classes)
    with torch.no_grad():
        for tensor in changed.parameters():
            if tensor.dim() and len(tensor) == count:
                others = tensor[[row for row in range(count) if row not in classes]]
                mean, spread = others.mean(), others.std() if others.numel() > 1 else others.abs().mean()
                drawn = torch.randn(tensor[rows].shape, generator=draws).to(tensor)
                tensor[rows] = mean + spread * drawn
    return changed
