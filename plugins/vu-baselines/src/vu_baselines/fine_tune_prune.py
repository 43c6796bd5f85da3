"""Fine-tuning with pruning: train on what is kept, and zero ever more of the smallest weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from vu_baselines.batch_norm import MovingStatistics
from vu_baselines.fine_tune import FineTuneConfig
from vu_baselines.supervised import cross_entropy, fitted, retain_only
from vu_core import Classifier, Edit, ForgetRetain, Model, PlanError, Run, Source, Theta, setting
from vu_core.ops import pack_mask, top_masks, unpack_mask
from vu_core.training import steps_per_epoch, total_steps

PRUNING_SOURCE = Source(
    "Fine-tuning with pruning, code of Model sparsity can simplify machine unlearning, Jia et al. 2023",
    "https://arxiv.org/abs/2304.04934",
    "code",
)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@attrs.frozen
class FineTunePruneConfig(FineTuneConfig):
    """Settings of `FineTunePrune`."""

    rate: float = setting(0.95, help="share of the weights that are zero in the end", gt=0, lt=1)
    every: int = setting(2, help="epochs from one pruning to the next", ge=1)
    layers: str = setting(
        "all",
        help="all: weights of linear layers and convolutions; convolution: those of convolutions alone",
        choices=("all", "convolution"),
    )


class FineTunePrune:
    """Fine-tune on the retain examples, and every few epochs zero the smallest of the weights that are left.

    With E epochs, P the number of weights of all linear layers and convolutions, ``l`` the cross entropy and D_r the
    retain examples::

        n = floor((E - 1) / every) + 1                     prunings, before the epochs 0, every, 2 * every, ...
        p = 1 - (1 - rate)^(1 / n)                         share of what is left that each of them zeroes

        minimise  mean over D_r of l(theta; x, y)          a weight that was zeroed stays zero

    A pruning zeroes the weights with the smallest absolute values, over all layers together, so that after k of them
    ``floor((1 - p)^k * P)`` are left and in the end ``floor((1 - rate) * P)``. Biases and norms are trained and never
    pruned. A regularizer that puts weights back, such as `hard-mask`, comes after the pruning: its weights stay.

    Args:
        config: see `FineTunePruneConfig`.

    Example:
        >>> [round(share_left(0.95, k, 5), 3) for k in (1, 2, 3, 4, 5)]
        [0.549, 0.302, 0.166, 0.091, 0.05]

    Source:
        Released code of Jia et al. 2023, Model sparsity can simplify machine unlearning, arXiv 2304.04934, and of
        SalUn, Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        Linear layers are pruned too, since a transformer has little else (released code: ``layers = "convolution"``).
        The first pruning comes before the first epoch (released code: before the second one where E is odd, so that
        one of the n is missing and less than ``rate`` is zero). Dropout is off.
    """

    Config: ClassVar[type[FineTunePruneConfig]] = FineTunePruneConfig
    source: ClassVar[Source] = PRUNING_SOURCE
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "full"}}

    def __init__(self, config: FineTunePruneConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on the retain examples, prune them, and return what came of it.

        Raises:
            PlanError: ``VU-L129`` when the run trains no weight that could be pruned.
            UnlearnError: ``VU-U034`` when there are no retain examples; when a loss is not finite.
        """
        on, config, classifier = retain_only(data), self.config, cast(Classifier, model)
        per_epoch = steps_per_epoch(on, run)
        epochs = math.ceil(total_steps(on, run) / per_epoch)
        theta: Theta = run.parameterise(model)
        weights = prunable(theta, config.layers)
        rounds = PruningConfig(config.rate, (epochs - 1) // config.every + 1, config.every * per_epoch)
        pruning = Pruning(rounds, weights)
        if config.batch_norm == "train":
            theta = MovingStatistics.of(theta, run)
        edit = fitted(
            theta,
            data,
            attrs.evolve(run, regularizers=(pruning, *run.regularizers)),  # a hard mask has the last word
            lambda batches: {side: cross_entropy(classifier, batch) for side, batch in batches.items()},
            on=on,
        )
        return attrs.evolve(edit, facts={**edit.facts, "pruned_weights": pruning.zeroed})


def share_left(rate: float, k: int, n: int) -> float:
    """Return ``(1 - p)^k``, the share of the weights that k of n prunings leave; see `FineTunePrune`."""
    return float((1 - rate) ** (k / n))


def prunable(theta: Theta, layers: str) -> dict[str, Tensor]:
    """Return what is trained of the weights of layers, by name.

    Args:
        theta: attached to the model.
        layers: ``all`` or ``convolution``.

    Raises:
        PlanError: ``VU-L129`` when it is nothing.
    """
    kinds = CONVOLUTIONS if layers == "convolution" else (*CONVOLUTIONS, nn.Linear)
    held = {id(module.weight) for module in theta.model.network.modules() if isinstance(module, kinds)}
    found = {name: p for name, p in theta.named_parameters() if id(p) in held}
    if not found:
        of = "of a convolution" if layers == "convolution" else "of a linear layer or a convolution"
        raise PlanError(
            "VU-L129",
            f"Pruning zeroes weights, but this run trains no weight {of}.",
            "Use --parameters full with targets that have such weights, and unlearner.layers=all for linear layers.",
            where="unlearner.parameters",
        )
    return found


@attrs.frozen
class PruningConfig:
    """Settings of `Pruning`."""

    rate: float = setting(help="share of the weights that are zero in the end", gt=0, lt=1)
    times: int = setting(help="n: number of prunings", ge=1)
    every: int = setting(help="steps from one pruning to the next", ge=1)


class Pruning:
    """Zero the smallest weights in rounds, the first time before the first step, and keep zeros zero.

    It travels with a run as a regularizer does, so that checkpoints hold which weights are left.

    Args:
        config: see `PruningConfig`.
        weights: trained tensors by name.

    Source:
        See `FineTunePrune`.
    """

    Config: ClassVar[type[PruningConfig]] = PruningConfig
    source: ClassVar[Source] = PRUNING_SOURCE
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: PruningConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self._weights = dict(weights)
        self._left: dict[str, Tensor] = {}
        self._steps = 0

    @property
    def zeroed(self) -> int:
        """How many weights are zero because they were pruned; another regularizer may have put some back."""
        return sum(int(((self._weights[name] == 0) & ~left).sum()) for name, left in self._left.items())

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Prune for the first time."""
        self._left = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()}
        self._steps = 0
        self._prune()

    def _prune(self) -> None:
        """Choose the weights that are left, and zero the others."""
        done = self._steps // self.config.every + 1
        # A weight that is no number counts as large and stays: the next step finds the loss that comes of it.
        most = torch.finfo(torch.float32).max
        size = {name: torch.nan_to_num(w.detach().abs().float(), nan=most) for name, w in self._weights.items()}
        scores = {name: size[name].masked_fill(~left, -1.0) for name, left in self._left.items()}
        self._left = top_masks(scores, share_left(self.config.rate, done, self.config.times))
        self._zero()

    def _zero(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.masked_fill_(~self._left[name], 0.0)

    def penalty(self) -> None:
        """Return nothing: pruning acts between steps."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Put zeros back that momentum or the gradient moved; at the end of a round prune again."""
        self._steps += 1
        self._zero()
        if self._steps % self.config.every == 0 and self._steps < self.config.times * self.config.every:
            self._prune()

    def state(self) -> Mapping[str, Tensor]:
        """Return the number of steps, and which weights are left as packed bits."""
        left = {f"left.{name}": pack_mask(mask) for name, mask in self._left.items()}
        return {"steps": torch.tensor(self._steps), **left}

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put them back."""
        self._steps = int(state["steps"])
        self._left = {
            name: unpack_mask(state[f"left.{name}"], weight.shape).to(weight.device)
            for name, weight in self._weights.items()
        }
