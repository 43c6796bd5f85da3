"""Retraining: what the model would be had it never seen what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch

from vu_baselines.batch_norm import MovingStatistics
from vu_baselines.supervised import cross_entropy, fitted, retain_only
from vu_core import Classifier, Edit, ForgetRetain, Fresh, Model, PlanError, Run, Source, Theta, setting
from vu_core.training import Training


@attrs.frozen
class RetrainConfig:
    """Settings of `Retrain`."""

    training: Training = setting(
        Training(
            epochs=182,
            batch_size=256,
            lr=0.1,
            optimizer="sgd",
            schedule="cosine",
            weight_decay=5e-4,
            max_grad_norm=0.0,
            epoch_of="retain",
        ),
        help="the schedule of the original training; an epoch passes over D_r",
    )
    batch_norm: str = setting(
        "train",
        help="train: batch norm normalises by the batch and its statistics move; eval: it keeps fresh ones",
        choices=("train", "eval"),
    )


class Retrain:
    """Train the network anew on the retain examples alone: the reference that unlearning is compared with.

    With D_r the retain examples and ``l`` the cross entropy::

        theta_0  <- a fresh initialisation, drawn from the run's seed
        minimise  mean over D_r of l(theta; x, y)

    Nothing of the trained weights is left, buffers included, so every tensor must be trained; the edit holds the new
    network as a whole. The schedule should be that of the original training: set `training` to it.

    Args:
        config: see `RetrainConfig`. The values are those for a ResNet-18 on CIFAR-10.

    Example:
        >>> Retrain(RetrainConfig()).config.training.epochs
        182

    Source:
        The definition of exact unlearning; settings of SalUn, Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        All retain examples are used (a released continual pipeline: the share that the other methods see; choose it
        by ``[subset]``). Weights are drawn anew (released pipelines: one starts from the trained weights, one draws
        feed-forward networks alone). The learning rate falls as a cosine (there: by 10 at two epochs). Dropout is off.
    """

    Config: ClassVar[type[RetrainConfig]] = RetrainConfig
    source: ClassVar[Source] = Source(
        "Retraining with the settings of SalUn, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "full"}}

    def __init__(self, config: RetrainConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Draw new weights, train them on the retain examples and return them as an edit.

        Raises:
            PlanError: ``VU-L116`` when the run's parameters leave weights as they are.
            UnlearnError: ``VU-U034`` when there are no retain examples; when a loss is not finite.
        """
        fresh = dict(cast(Fresh, model).fresh(run.draw_seed("fresh weights")))
        buffers = {name for name, _ in model.network.named_buffers()}
        theta: Theta = run.parameterise(model)
        self._check_all_trained(model, theta)
        start = {name: tensor for name, tensor in fresh.items() if name in buffers}
        theta = MovingStatistics.of(theta, run, start, moving=self.config.batch_norm == "train")
        with torch.no_grad():
            for name, parameter in theta.named_parameters():
                parameter.copy_(fresh[name])
        classifier = cast(Classifier, model)
        return fitted(
            theta,
            data,
            run,
            lambda batches: {side: cross_entropy(classifier, batch) for side, batch in batches.items()},
            on=retain_only(data),
        )

    def _check_all_trained(self, model: Model, theta: Theta) -> None:
        shapes = {name: p.shape for name, p in theta.named_parameters()}
        with theta.base():
            weights = {name: p.shape for name, p in model.network.named_parameters() if p.is_floating_point()}
        left = [name for name, shape in weights.items() if shapes.get(name) != shape]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise PlanError(
                "VU-L116",
                f"Retraining starts every weight anew, but the run's parameters leave {left[0]!r}{more} as trained.",
                "Use --parameters full without targets.",
                where="unlearner.parameters",
            )
