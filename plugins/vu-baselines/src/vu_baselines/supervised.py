"""What the methods for classifiers share: losses of labelled images, and a training from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.batch_norm import MovingStatistics
from vu_core import Batch, Classifier, Edit, Examples, ForgetRetain, Model, Run, Theta, UnlearnError
from vu_core.training import Training, fit

Losses = Callable[[Mapping[str, Batch]], dict[str, Tensor]]

SALUN_TRAINING = Training(
    epochs=10,
    batch_size=256,
    lr=0.01,
    optimizer="sgd",
    schedule="constant",
    weight_decay=5e-4,
    max_grad_norm=0.0,
    epoch_of="retain",
)
"""The settings that Fan et al. 2023, arXiv 2310.12508, give to every method that trains a classifier."""


def cross_entropy(model: Classifier, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the rows, a scalar.

    Args:
        model: the classifier.
        batch: rows with labels in 0 .. K - 1.
    """
    return F.cross_entropy(model.logits(model.images(batch)), model.labels(batch))


def l1_norm(theta: Theta) -> Tensor:
    """Return ``||theta||_1``, the sum of the absolute values of everything that is trained, a float32 scalar."""
    return torch.stack([p.abs().sum(dtype=torch.float32) for p in theta.parameters()]).sum()


def trained(
    model: Model,
    data: ForgetRetain,
    run: Run,
    losses_of: Callable[[Theta], Losses],
    *,
    on: ForgetRetain | None = None,
    moving_statistics: bool = False,
) -> Edit:
    """Train the run's parameters on losses, take them off the model and return the edit.

    Args:
        model: the classifier.
        data: what regularizers are prepared on.
        run: the run.
        losses_of: makes the losses from what is trained.
        on: what is trained on; ``data`` when absent.
        moving_statistics: batch norm normalises by the batch and goes on averaging; see `MovingStatistics`.
    """
    theta: Theta = run.parameterise(model)
    if moving_statistics:
        theta = MovingStatistics.of(theta, run)
    return fitted(theta, data, run, losses_of(theta), on=on)


def fitted(theta: Theta, data: ForgetRetain, run: Run, losses: Losses, *, on: ForgetRetain | None = None) -> Edit:
    """Fit ``theta``, take it off the model and return the edit with the number of tuned parameters among its facts."""
    try:
        fit(theta, losses, data if on is None else on, run, regularizer_data=data)
        tuned = sum(p.numel() for p in theta.parameters())
        edit = theta.edit()
        return attrs.evolve(edit, facts={**edit.facts, "tuned_parameters": tuned})
    finally:
        theta.detach()


def retain_only(data: ForgetRetain) -> ForgetRetain:
    """Return the data without forget examples, for a method that looks at none."""
    return attrs.evolve(data, forget=data.forget.take(()))


def rows_of(examples: Examples, rows: Sequence[int], run: Run) -> Batch:
    """Return rows of a table outside of any training step; what is drawn belongs to the row."""
    return Batch(examples, tuple(rows), 0, tuple(rows), run, torch.device(run.device))


def labels_of(model: Classifier, examples: Examples, run: Run) -> Tensor:
    """Return the class of every row, int64 ``(N,)``."""
    return model.labels(rows_of(examples, range(len(examples)), run)).cpu()


def forgotten_classes(model: Classifier, data: ForgetRetain, run: Run) -> list[int]:
    """Return the classes that are forgotten as a whole: they have forget examples and no retain example.

    Raises:
        UnlearnError: ``VU-U134`` when there is none, as where single images of every class are forgotten.
    """
    forget = set(labels_of(model, data.forget, run).tolist())
    retain = set(labels_of(model, data.retain, run).tolist()) if len(data.retain) else set()
    if not forget - retain:
        raise UnlearnError(
            "VU-U134",
            "No class is forgotten as a whole: every class of the forget examples has retain examples too.",
            "Name classes to forget, or use a method that forgets single images, such as random-label.",
            where="data.forget",
        )
    return sorted(forget - retain)
