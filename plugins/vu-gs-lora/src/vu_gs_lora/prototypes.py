"""Prototypes of classes, and the loss that holds features near them or drives them away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Batch, Classifier, Examples, ForgetRetain, Model, Run

IMAGES_AT_ONCE = 256


@torch.no_grad()
def class_prototypes(model: Model, data: ForgetRetain, run: Run) -> Tensor:
    """Return the mean feature of every class over the training images of both sides.

    ``p_c = mean of h(x) over all training x of class c``, with h what goes into the head. The mean is taken in float64.
    A class without a training image has no prototype: its row is NaN, so that a loss that used it would not be finite.

    Args:
        model: a classifier, in evaluation mode.
        data: its train tables.
        run: the device, and the draws of images that change.

    Returns:
        ``(K, D)`` float32, by label.
    """
    classifier = cast(Classifier, model)
    total, count = None, torch.zeros(len(classifier.classes), dtype=torch.float64, device=run.device)
    for batch in (batch for table in (data.forget, data.retain) for batch in batches_of(table, run)):
        features, labels = classifier.features(classifier.images(batch)).double(), classifier.labels(batch)
        total = features.new_zeros(len(count), features.shape[1]) if total is None else total
        total.index_add_(0, labels, features)
        count.index_add_(0, labels, torch.ones_like(labels, dtype=count.dtype))
    means = torch.full((len(count), 1), torch.nan) if total is None else total / count[:, None]  # (K, D)
    return means.float()


def batches_of(table: Examples, run: Run) -> Iterator[Batch]:
    """Yield all rows of a table in order, 256 at a time."""
    for first in range(0, len(table), IMAGES_AT_ONCE):
        rows = tuple(range(first, min(first + IMAGES_AT_ONCE, len(table))))
        yield Batch(table, rows, step=0, positions=rows, draws=run, device=torch.device(run.device))


def distances_kl(features: Tensor, log_prototypes: Tensor) -> Tensor:
    """Return ``KL(softmax(p_y) || softmax(h))``, the mean over the batch.

    Args:
        features: h, ``(B, D)``.
        log_prototypes: ``log softmax(p_y)`` of the right class of each row, ``(B, D)``.

    Example:
        >>> p, h = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> f"{distances_kl(h, p.log_softmax(1)).item():.4f}"
        '0.4621'
    """
    return F.kl_div(features.log_softmax(1), log_prototypes, log_target=True, reduction="batchmean")


@attrs.frozen(eq=False)
class Prototypes:
    """The prototypes of all classes, ready to be compared with features.

    Args:
        table: ``(K, D)``: p_c for ``distance = "mse"``, ``log softmax(p_c)`` for ``"kl"``.
        distance: ``kl`` or ``mse``.
    """

    table: Tensor
    distance: str = "kl"

    @classmethod
    def of(cls, prototypes: Tensor, distance: str = "kl") -> Prototypes:
        """Make them ready; the softmax over a prototype is taken once."""
        return cls(prototypes.log_softmax(1) if distance == "kl" else prototypes, distance)

    def distance_of(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean distance d of features ``(B, D)`` from the prototypes of their labels ``(B,)``, a scalar."""
        wanted = self.table[labels]  # (B, D)
        return distances_kl(features, wanted) if self.distance == "kl" else F.mse_loss(features, wanted)
