"""GS-LoRA: forget classes up to a bound, keep the others, leave most blocks alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Batch, Classifier, ConfigError, Edit, ForgetRetain, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import Schedule, Training, fit, steps_per_epoch, value_at
from vu_gs_lora.accuracy import accuracies
from vu_gs_lora.answers import Answer, answers
from vu_gs_lora.averaging import AverageConfig, EpochAverage
from vu_gs_lora.group_lasso import GroupLasso
from vu_gs_lora.grouping import blocks_of
from vu_gs_lora.zero_groups import group_facts, group_norms, pruned, tuned_facts

RESCALE = (6 / 51) ** 0.5
"""From ``U(+-1 / sqrt(in))`` to what kaiming-uniform draws with ``a = sqrt(50)`` for ``sqrt(5)``."""
Term = Callable[[str, Answer], Tensor]
"""A further loss of a side, a scalar."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 1.0},
    "parameters": {"name": "lora", "rank": 8, "alpha": 1.0, "init": "kaiming", "dropout": 0.0, "targets": ()},
    "regularizer": {"group-lasso": {"weight": 1e-4}},
}


@attrs.frozen
class GsLoraConfig:
    """Settings of `GsLora`."""

    training: Training = setting(
        Training(
            epochs=100,
            batch_size=48,
            lr=1e-2,
            min_lr=1e-5,
            weight_decay=0.05,
            decay_vectors=False,
            max_grad_norm=0.0,
            epoch_of="retain",
        ),
        help="settings of the training loop",
    )
    forget_weight: Schedule = setting(
        0.2, help="beta, factor on the forget loss: one number, one per task, or {start_epoch, value, before}", ge=0
    )
    bound: Schedule = setting(
        10.0,
        help="BND, the cross entropy at which a forget image counts as forgotten; about log K times a few, and about "
        "105 for heads with a margin",
        gt=0,
    )
    per_sample: bool = setting(
        False, help="cut the loss off per image, not where the mean of the batch is at the bound"
    )
    position: str = setting(
        "ffn",
        help="what is trained in every block: ffn, its two linear maps; or attention",
        choices=("ffn", "attention"),
    )
    parity_reinit: bool = setting(
        False, help="parity: from the second task on begin with A smaller by sqrt(6 / 51), as the released code does"
    )
    ema: bool = setting(False, help="return the average of the adapter over the epochs, not the last one")
    ema_start: int = setting(30, help="with ema: epoch, from 0, after which the average begins", ge=0)
    ema_decay: float = setting(0.9, help="with ema: share of the average that an epoch leaves", ge=0, le=1)
    prune: str = setting(
        "none",
        help="hard: set B = 0 in groups that are functionally zero at the end, and tell what that does to accuracies",
        choices=("none", "hard"),
    )


class GsLora:
    """Forget classes by raising their cross entropy up to a bound, in as few blocks as possible.

    A LoRA is trained on both linear maps of the feed-forward network of every transformer block, everything else is
    frozen, the head too. With the cross entropy CE, taken at the right labels::

        L_forget = beta * ReLU(BND - mean CE(x_f, y_f))          per_sample: mean of ReLU(BND - CE)
        L_retain = mean CE(x_r, y_r)

    CE is what the head was trained on: one with a margin takes it off the right class, as in the paper. Once the forget
    images are BND wrong, their gradient is exactly zero. The weighting adds both up; the regularizer
    `group-lasso` is on and lets blocks that matter little keep their weights. An epoch is a pass over the retain images
    while the forget ones are cycled, and both batches of a step go through the model as one. With
    ``training.accumulation`` or several processes the mean that meets the bound is that of each portion.

    The facts of the edit tell the norms of its groups, which of them are zero, and the share of the model that was
    tuned; see `vu_gs_lora.zero_groups`. With ``prune = "hard"`` they tell ``pruning``: per side of the training and of
    the validation examples the top-1 accuracy before and after.

    Args:
        config: see `GsLoraConfig`. The values are those for 4 tasks with all training images, but for the bound, which
            is for softmax heads; the released code uses 105 and beta = (0.2, 0.25, 0.25, 0.2), one per task.

    Example:
        >>> GsLora(GsLoraConfig(forget_weight=(0.2, 0.25, 0.25, 0.2))).config.bound
        10.0

    Source:
        Zhao et al. 2024, arXiv 2403.11530.

    Deviates:
        A is drawn alike for every task (released code: smaller by 2.9 after the first, ``parity_reinit``). Dropout of
        the model is off, and the learning rate falls at every step (there: at every epoch).
    """

    Config: ClassVar[type[GsLoraConfig]] = GsLoraConfig
    source: ClassVar[Source] = Source(
        "GS-LoRA: Continual Forgetting for Pre-trained Vision Models, Zhao et al. 2024",
        "https://arxiv.org/abs/2403.11530",
        "paper+fixes",
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: GsLoraConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            ConfigError: ``VU-C054`` when a list has no number for the task; ``VU-C143`` when the average would begin
                too late; ``VU-C144`` when ``parity_reinit`` has no factor A to scale.
            PlanError: ``VU-L113`` when the model names no such weights in its blocks.
            UnlearnError: when a loss or a gradient is not finite.
        """
        return forget_classes(model, data, run, self.config)


def forget_classes(
    model: Model, data: ForgetRetain, run: Run, config: GsLoraConfig, *, term: Term | None = None
) -> Edit:
    """Fit the run's parameters to the objective of `GsLora`, take them off the model and return the edit.

    Args:
        model: a classifier with blocks.
        data: forget and retain examples.
        run: the run.
        config: settings of the objective.
        term: a further loss per side, which is handed features too.
    """
    losses = BoundedForgetting(cast(Classifier, model), config, run.task, steps_per_epoch(data, run), term)
    losses.schedules(0)  # a list that is too short is told before anything is computed
    theta = run.parameterise(model, targets=_targets(model, config.position))
    weights = [name for name, _ in theta.named_deltas()]
    tuned = sum(p.numel() for p in theta.parameters())
    try:
        if config.parity_reinit:
            _shrink_a(theta, run.task)
        average = EpochAverage(AverageConfig(config.ema_start, config.ema_decay))
        watching = (*run.regularizers, average) if config.ema else run.regularizers
        fit(theta, losses, data, attrs.evolve(run, regularizers=watching))
        if config.ema:
            average.put()
        edit = theta.edit()
    finally:
        theta.detach()
    return _with_facts(edit, model, data, run, config, weights, tuned)


def _targets(model: Model, position: str) -> tuple[str, ...]:
    """Return the weights that are trained. Raises: PlanError ``VU-L113``."""
    blocks = blocks_of(model)
    names = tuple(name for block in blocks for name in (block.ffn if position == "ffn" else block.attention))
    if not names:
        raise PlanError(
            "VU-L113",
            f"The model {model.facts.name!r} names no weights of the {position} of its {len(blocks)} blocks.",
            "Choose a vision transformer, or the other unlearner.position.",
            where="unlearner.position",
        )
    return names


@torch.no_grad()
def _shrink_a(theta: Theta, task: int) -> None:
    """Make the A of a task after the first smaller. Raises: ConfigError ``VU-C144`` when there is none."""
    factors = [tensor for name, tensor in theta.named_parameters() if name.endswith(".weight.A")]
    if not factors:
        raise ConfigError(
            "VU-C144",
            "parity_reinit is about the factor A of a LoRA, but the run trains whole weights.",
            "Use --parameters lora, or leave parity_reinit out.",
            where="unlearner.parity_reinit",
        )
    for factor in factors if task else ():
        factor.mul_(RESCALE)


def _with_facts(
    edit: Edit,
    model: Model,
    data: ForgetRetain,
    run: Run,
    config: GsLoraConfig,
    weights: Collection[str],
    tuned: int,
) -> Edit:
    """Return the edit with what is known about its groups, pruned if the settings say so."""
    pruning: dict[str, Any] = {}
    kind = next((lasso.config.groups for lasso in run.regularizers if isinstance(lasso, GroupLasso)), "block")
    norms = group_norms(edit, model.network, blocks_of(model), kind, weights)
    if config.prune == "hard":
        whole, edit = edit, pruned(edit, norms)
        before, after = (accuracies(cast(Classifier, model), data, run, each) for each in (whole, edit))
        pruning = {"pruning": {name: [before[name], after[name]] for name in before}}
        norms = group_norms(edit, model.network, blocks_of(model), kind, weights)
    facts = {"groups": group_facts(norms, kind), **pruning, **tuned_facts(tuned, model.network)}
    return attrs.evolve(edit, facts={**edit.facts, **facts})


@attrs.frozen(eq=False)
class BoundedForgetting:
    """The losses of GS-LoRA as `fit` wants them: called with the batches of one or both sides.

    Args:
        model: the classifier; config: settings.
        task: number of the task, from 0; per_epoch: steps of an epoch.
        term: a further loss per side, or ``None``.
    """

    model: Classifier
    config: GsLoraConfig
    task: int = 0
    per_epoch: int = 1
    term: Term | None = None

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        found = answers(self.model, batches, features=self.term is not None, per_epoch=self.per_epoch)
        losses = {side: self._loss(side, answer) for side, answer in found.items()}
        if self.term is not None:
            losses = {side: loss + self.term(side, found[side]) for side, loss in losses.items()}
        return losses

    def schedules(self, epoch: int) -> tuple[float, float]:
        """Return (beta, BND) of an epoch."""
        beta = value_at(self.config.forget_weight, task=self.task, epoch=epoch, name="unlearner.forget_weight")
        return beta, value_at(self.config.bound, task=self.task, epoch=epoch, name="unlearner.bound")

    def _loss(self, side: str, answer: Answer) -> Tensor:
        if side == "retain":
            return F.cross_entropy(answer.logits, answer.labels)
        beta, bound = self.schedules(answer.epoch)
        each = F.cross_entropy(answer.logits, answer.labels, reduction="none" if self.config.per_sample else "mean")
        return beta * F.relu(bound - each).mean()
