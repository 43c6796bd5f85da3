"""Boundary expand: give all forgotten images to a class that exists during training only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vu_baselines.supervised import SALUN_TRAINING, fitted
from vu_core import Batch, Classifier, Edit, ForgetRetain, Headed, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import Training

EXTRA = "extra_class."
"""Prefix of the new row's tensors in a checkpoint."""


@attrs.frozen
class BoundaryExpandConfig:
    """Settings of `BoundaryExpand`."""

    training: Training = setting(SALUN_TRAINING, help="settings of the training loop; an epoch passes over D_f")


class BoundaryExpand:
    """Teach every forget image a shadow class beside the K real ones, and take that class away again.

    With h the features that go into the head, and a new row (w, b) of it drawn as `torch.nn.Linear` draws one::

        z        = (z_1, ..., z_K, w . h + b)                  K + 1 logits, during training only
        L_forget = CE(z, K + 1)                                of a batch of D_f
        L_retain = CE(z, y)                                    of a batch of D_r; its weight is 0 by default

    The edit has the shapes of the model: what is evaluated are the first K logits. Regularizers see the weights of the
    model and not the new row.

    Args:
        config: see `BoundaryExpandConfig`.

    Example:
        >>> BoundaryExpand(BoundaryExpandConfig()).config.training.epochs
        10

    Source:
        Chen et al. 2023, Boundary Unlearning, arXiv 2303.11570.

    Deviates:
        The shadow class is gone after training (released code: K + 1 logits are evaluated, so that a forgotten image
        may still be given to it). Batch norm keeps its statistics.
    """

    Config: ClassVar[type[BoundaryExpandConfig]] = BoundaryExpandConfig
    source: ClassVar[Source] = Source(
        "Boundary Unlearning, Chen et al. 2023", "https://arxiv.org/abs/2303.11570", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.0},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: BoundaryExpandConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Grow the head, train the run's parameters, cut the head again and return what came of it.

        Raises:
            PlanError: ``VU-L117`` when the head of the classifier is no linear layer.
            UnlearnError: when a loss or a gradient is not finite.
        """
        width = linear_head(model).in_features
        theta = GrownHead(run.parameterise(model), width, run)
        return fitted(theta, data, run, Expanding(cast(Classifier, model), theta))


def linear_head(model: Model) -> nn.Linear:
    """Return the head of a classifier. Raises: PlanError ``VU-L117`` unless it is a `torch.nn.Linear`."""
    head = model.network.get_submodule(model.head) if isinstance(model, Headed) else None
    if not isinstance(head, nn.Linear):
        kind = "unknown" if head is None else f"a {type(head).__name__}"
        raise PlanError(
            "VU-L117",
            f"This method works on a linear head, but that of the classifier {model.facts.name!r} is {kind}.",
            "Choose a method that leaves the head as it is, such as boundary-shrink, or another model.",
            where="unlearner.method",
        )
    return head


class GrownHead:
    """Trainable parameters together with one more row of the head; a `vu_core.Theta` around another one.

    Only the optimiser and the checkpoints know of the row: it is no weight of the model, so neither names, nor deltas,
    nor groups, nor the edit have it.

    Args:
        theta: what is trained besides; attached already.
        width: D, the number of features.
        run: source of the first values, uniform in ``+-1 / sqrt(D)``.
    """

    def __init__(self, theta: Theta, width: int, run: Run) -> None:
        self.model: Model = theta.model
        self._theta = theta
        draws, device = run.generator("extra class"), theta.parameters()[0].device
        first = (2 * torch.rand(width + 1, generator=draws) - 1) / math.sqrt(width)
        self.weight = nn.Parameter(first[:width].to(device))  # (D,)
        self.bias = nn.Parameter(first[width].to(device))  # ()
        self._all = [*theta.parameters(), self.weight, self.bias]

    def parameters(self) -> list[Tensor]:
        """Return the trainable tensors, the new row last."""
        return self._all

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (stable name, trainable tensor) without the new row."""
        return self._theta.named_parameters()

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of the base tensor, differentiable change of it)."""
        return self._theta.named_deltas()

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return the trainable tensors by module."""
        return self._theta.groups()

    def base(self) -> AbstractContextManager[None]:
        """Let the model compute as if it were untouched while entered."""
        return self._theta.base()

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Return the passes of what is inside."""
        return self._theta.passes(step, phase)

    def state(self) -> Mapping[str, Tensor]:
        """Return the state of what is inside and the new row."""
        return {**self._theta.state(), EXTRA + "weight": self.weight.detach(), EXTRA + "bias": self.bias.detach()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises: RecordError ``VU-R030`` when names or shapes differ."""
        self._theta.load_state({name: value for name, value in state.items() if not name.startswith(EXTRA)})
        with torch.no_grad():
            self.weight.copy_(state[EXTRA + "weight"])
            self.bias.copy_(state[EXTRA + "bias"])

    def edit(self) -> Edit:
        """Return the change of the model, without the new row."""
        return self._theta.edit()

    def detach(self) -> None:
        """Take everything off the model."""
        self._theta.detach()


@attrs.frozen(eq=False)
class Expanding:
    """The losses of `BoundaryExpand` as `fit` wants them.

    Args:
        model: the classifier; theta: its trainable change with the new row.
    """

    model: Classifier
    theta: GrownHead

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        values = {}
        for side, batch in batches.items():
            z, y = self.logits(self.model.images(batch)), self.model.labels(batch)
            values[side] = F.cross_entropy(z, torch.full_like(y, z.shape[1] - 1) if side == "forget" else y)
        return values

    def logits(self, images: Tensor) -> Tensor:
        """Return K + 1 logits of images, ``(B, K + 1)``, in one pass through the network."""
        seen: list[Tensor] = []
        # Looked up at every call: an adapter may have taken the place of the module.
        head = self.model.network.get_submodule(cast(Headed, self.model).head)
        handle = head.register_forward_pre_hook(lambda _module, arguments: seen.extend(arguments[:1]))
        try:
            z = self.model.logits(images)  # (B, K)
        finally:
            handle.remove()
        h = seen[-1].flatten(1).float()  # (B, D)
        return torch.cat([z, (h @ self.theta.weight + self.theta.bias)[:, None]], dim=1)
