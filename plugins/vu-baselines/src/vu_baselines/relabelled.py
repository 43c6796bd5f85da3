"""What the baselines of continual learning have in common: relabelled forgetting, and a head that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.random_label import OtherLabel
from vu_core import (
    Batch,
    Classifier,
    Edit,
    Examples,
    ForgetRetain,
    Headed,
    Model,
    PlanError,
    Run,
    Theta,
    setting,
)
from vu_core.training import Training, fit

Losses = Callable[[Mapping[str, Batch]], dict[str, Tensor]]
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 1.0},
    "parameters": {"name": "full"},
}
"""What these methods want of the axes when nothing is said: the sum of both losses, and the weights themselves."""


def published(lr: float, min_lr: float = 1e-5) -> Training:
    """Return the settings of training that the lineage shares: AdamW, 100 passes over the retain side, cosine.

    Args:
        lr: peak learning rate.
        min_lr: what it falls to.
    """
    return Training(
        epochs=100,
        batch_size=48,
        lr=lr,
        min_lr=min_lr,
        schedule="cosine",
        weight_decay=0.05,
        decay_vectors=False,
        max_grad_norm=0.0,
        epoch_of="retain",
    )


@attrs.frozen
class TrunkConfig:
    """The settings that all methods of the lineage share."""

    training: Training = setting(published(1e-4), help="settings of the training loop")
    train_head: bool = setting(False, help="train the head too, and not only what comes before it")


@attrs.frozen
class RelabelledConfig(TrunkConfig):
    """Settings of a method that teaches wrong labels of the forget images."""

    relabel: str = setting(
        "uniform",
        help="uniform: one of the K - 1 wrong labels, anew in each pass; next: (y + 1) mod K; parity-mod-n: (y + "
        "U{1..100}) mod n for n forgotten classes, drawn at each access",
        choices=("uniform", "next", "parity-mod-n"),
    )


@attrs.frozen(eq=False)
class Relabelled:
    """The forget loss: cross entropy with a wrong label.

    Args:
        model: the classifier.
        relabel: ``uniform``, ``next`` or ``parity-mod-n``.
        forgotten: the classes to forget, in rising order.
    """

    model: Classifier
    relabel: str
    forgotten: tuple[int, ...]

    @classmethod
    def of(cls, model: Classifier, data: ForgetRetain, run: Run, relabel: str) -> Relabelled:
        """Return the loss for these forget examples. Raises: PlanError ``VU-L095`` when there is no other label."""
        if len(model.classes) < 2:
            raise PlanError(
                "VU-L095",
                f"The classifier {model.facts.name!r} has one class only, so there is no other label to learn.",
                "Choose a classifier of two classes or more.",
                where="model",
            )
        return cls(model, relabel, classes_of(model, data.forget, run))

    def __call__(self, batch: Batch) -> Tensor:
        """Return ``CE(x_f, y')``, the mean over the batch."""
        return F.cross_entropy(self.model.logits(self.model.images(batch)).float(), self.labels(batch))

    def labels(self, batch: Batch) -> Tensor:
        """Return y', int64 ``(B,)``."""
        if self.relabel != "parity-mod-n":
            return OtherLabel(self.model, 1.0, self.relabel).wrong_labels(batch)
        y = self.model.labels(batch)  # (B,)
        drawn = (y + batch.integers("relabel", 1, 101)) % len(self.forgotten)
        return torch.where(drawn == y, drawn + 1, drawn) % len(self.model.classes)


def retained_loss(model: Classifier, batch: Batch) -> Tensor:
    """Return ``CE(x_r, y_r)``, the mean over the batch."""
    return F.cross_entropy(model.logits(model.images(batch)).float(), model.labels(batch))


def sided(forget: Callable[[Batch], Tensor], retain: Callable[[Batch], Tensor]) -> Losses:
    """Return the losses of both sides as `fit` wants them: one scalar per side that it hands over."""
    of_side = {"forget": forget, "retain": retain}
    return lambda batches: {side: of_side[side](batch) for side, batch in batches.items()}


def classes_of(model: Classifier, examples: Examples, run: Run) -> tuple[int, ...]:
    """Return the classes of a table in rising order."""
    if not len(examples):
        return ()
    return tuple(sorted(set(model.labels(whole(examples, run)).tolist())))


def whole(examples: Examples, run: Run) -> Batch:
    """Return all rows of a table as one batch, for columns; ask a network in portions, see `portions`."""
    rows = tuple(range(len(examples)))
    return Batch(examples, rows, 0, rows, run, torch.device(run.device))


def trained(model: Model, run: Run, train_head: bool) -> list[str]:
    """Return the weights to train: those of the run's parameters without the head, unless it is trained too.

    Raises:
        PlanError: ``VU-L115`` when the model does not say where its head is; ``VU-L120`` when nothing else is left.
    """
    names = list(run.candidates(model))
    if train_head:
        return names
    if not isinstance(model, Headed):
        raise PlanError(
            "VU-L115",
            f"The classifier {model.facts.name!r} does not say which module is its head, so it cannot be left out.",
            "Set unlearner.train_head = true, or choose a model with a head, such as torch-module.",
            where="model",
        )
    trunk = [name for name in names if not name.startswith(f"{model.head}.")]
    if not trunk:
        raise PlanError(
            "VU-L120",
            f"Nothing is left to train: the run's parameters name the head {model.head!r} alone.",
            "Name other targets in unlearner.parameters.targets, or set unlearner.train_head = true.",
            where="unlearner.train_head",
        )
    return trunk


def train(
    model: Model,
    data: ForgetRetain,
    run: Run,
    losses: Callable[[Theta], Losses],
    *,
    targets: list[str],
    regularizer_data: ForgetRetain | None = None,
) -> Edit:
    """Fit the targets to the losses, take them off the model and return the edit.

    Args:
        model: the classifier.
        data: what `fit` trains on.
        run: the run.
        losses: makes the losses of what is trained.
        targets: weights to train.
        regularizer_data: see `vu_core.training.fit`.

    Returns:
        The edit, see `with_facts`.
    """
    theta = run.parameterise(model, targets=targets)
    try:
        fit(theta, losses(theta), data, run, regularizer_data=regularizer_data)
        return with_facts(theta.edit(), theta)
    finally:
        theta.detach()


def with_facts(edit: Edit, theta: Theta) -> Edit:
    """Return the edit with ``tuned_parameters``, their number, and ``tunable_ratio``, as a share of the model's."""
    tuned = sum(p.numel() for p in theta.parameters())
    facts = {"tuned_parameters": tuned, "tunable_ratio": tuned / theta.model.facts.parameters}
    return attrs.evolve(edit, facts={**edit.facts, **facts})


def without_retain(data: ForgetRetain) -> ForgetRetain:
    """Return the data without retain examples to train on."""
    return attrs.evolve(data, retain=data.retain.take(()))


def as_classifier(model: Model) -> Classifier:
    """Return the model, which the plan has found to be a classifier."""
    return cast(Classifier, model)
