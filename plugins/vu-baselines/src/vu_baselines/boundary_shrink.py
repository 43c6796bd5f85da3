"""Boundary shrink: give each forgotten image to the class on the other side of its nearest boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.supervised import SALUN_TRAINING, cross_entropy, rows_of, trained
from vu_core import Batch, Classifier, Edit, ForgetRetain, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import Training

NEAREST = "nearest"
"""Column of the forget table: the label that an image gets."""


@attrs.frozen
class BoundaryShrinkConfig:
    """Settings of `BoundaryShrink`."""

    training: Training = setting(SALUN_TRAINING, help="settings of the training loop; an epoch passes over D_f")
    epsilon: float = setting(0.1, help="length of the step towards the boundary; pixels are in [0, 1]", gt=0)
    variant: str = setting(
        "paper",
        help="paper: the nearest wrong class; parity: x' is cut to [0, 1] and rounded to 1/255, and the right class "
        "may come out",
        choices=("paper", "parity"),
    )


class BoundaryShrink:
    """Teach each forget image the nearest wrong class, so that the region of the forgotten class shrinks.

    With the untouched classifier ``f_0``, ``l`` the cross entropy and pixels in [0, 1]::

        x'       = x + epsilon * sign(d l(f_0(x), y) / dx)                   one step across the boundary
        y'       = argmax over k != y of f_0(x')_k                           the nearest wrong class
        L_forget = l(f(x), y')
        L_retain = l(f(x_r), y_r)                                            its weight is 0 by default

    The labels y' belong to the untouched classifier: they are computed once, before any training, unless the images
    change at every step.

    Args:
        config: see `BoundaryShrinkConfig`.

    Example:
        >>> BoundaryShrink(BoundaryShrinkConfig(epsilon=0.2)).config.variant
        'paper'

    Source:
        Chen et al. 2023, Boundary Unlearning, arXiv 2303.11570.

    Deviates:
        y' is never the truth (released code: it is where the step does not cross the boundary, ``variant =
        "parity"``). Batch norm keeps its statistics.
    """

    Config: ClassVar[type[BoundaryShrinkConfig]] = BoundaryShrinkConfig
    source: ClassVar[Source] = Source(
        "Boundary Unlearning, Chen et al. 2023", "https://arxiv.org/abs/2303.11570", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.0},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: BoundaryShrinkConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Find the labels, train the run's parameters on them and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other class.
            UnlearnError: when a loss or a gradient is not finite.
        """
        classifier = cast(Classifier, model)
        if len(classifier.classes) < 2:
            raise PlanError(
                "VU-L095",
                f"The classifier {model.facts.name!r} has one class only, so there is no other label to learn.",
                "Choose a classifier of two classes or more.",
                where="model",
            )
        on = data if data.forget.reload else self._labelled(classifier, data, run)
        return trained(model, data, run, lambda theta: Shrinking(classifier, theta, self.config), on=on)

    def _labelled(self, model: Classifier, data: ForgetRetain, run: Run) -> ForgetRetain:
        """Return the data with the labels y' of all forget images."""
        n, size = len(data.forget), self.config.training.batch_size
        found = []
        for start in range(0, n, size):
            batch = rows_of(data.forget, range(start, min(start + size, n)), run)
            found.append(nearest_wrong(model, model.images(batch), model.labels(batch), self.config).cpu())
            run.progress("finding nearest classes", min(start + size, n), n)
        return attrs.evolve(data, forget=data.forget.with_tensors(**{NEAREST: torch.cat(found)})) if found else data


def nearest_wrong(model: Classifier, images: Tensor, labels: Tensor, config: BoundaryShrinkConfig) -> Tensor:
    """Return the labels y' that the classifier gives to images moved across their boundary, int64 ``(B,)``.

    Args:
        model: the untouched classifier.
        images: ``(B, 3, H, W)`` in [-1, 1].
        labels: y, ``(B,)``.
        config: length of the step and variant.
    """
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model.logits(x), labels, reduction="sum"), x)
    moved = images + 2 * config.epsilon * slope.sign()  # pixels are in [-1, 1] here: twice as far
    if config.variant == "parity":
        moved = ((moved.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    with torch.no_grad():
        z = model.logits(moved)  # (B, K)
        if config.variant == "paper":
            z = z.scatter(1, labels[:, None], float("-inf"))
        return z.argmax(dim=1)


@attrs.frozen(eq=False)
class Shrinking:
    """The losses of `BoundaryShrink` as `fit` wants them.

    Args:
        model: the classifier; theta: its trainable change; config: settings.
    """

    model: Classifier
    theta: Theta
    config: BoundaryShrinkConfig

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        return {side: self._loss(batch) for side, batch in batches.items()}

    def _loss(self, batch: Batch) -> Tensor:
        if batch.side == "retain":
            return cross_entropy(self.model, batch)
        x = self.model.images(batch)
        if NEAREST in batch:
            wrong = batch[NEAREST]
        else:
            with self.theta.base():
                wrong = nearest_wrong(self.model, x, self.model.labels(batch), self.config)
        return F.cross_entropy(self.model.logits(x), wrong)
