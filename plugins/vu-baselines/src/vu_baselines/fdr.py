"""FDR: stay near the function of before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from vu_baselines.relabelled import (
    DEFAULTS,
    Losses,
    Relabelled,
    RelabelledConfig,
    as_classifier,
    published,
    sided,
    train,
    trained,
)
from vu_baselines.teacher import TEACHERS, Teacher
from vu_core import Batch, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import Training


@attrs.frozen
class FdrConfig(RelabelledConfig):
    """Settings of `Fdr`."""

    training: Training = setting(published(1e-3, 1e-8), help="settings of the training loop")
    distillation: float = setting(
        50.0, help="lambda: factor on the distance; published: 50 for one task and for four, 40 on ImageNet-100", ge=0
    )
    teacher: str = setting("pretrained", help=TEACHERS, choices=("pretrained", "task-start"))


class Fdr:
    """Teach wrong labels of what is forgotten, and bound how far the answers to retain examples move.

    With y' a wrong label, z the logits and z_t those of the teacher, over all weights but those of the head::

        L_forget = CE(x_f, y')
        L_retain = lambda * mean_b ||z - z_t||_2                the length, not its square; gradient 0 where it is 0

    Args:
        config: see `FdrConfig`.

    Example:
        >>> Fdr(FdrConfig(distillation=40.0)).config.distillation
        40.0

    Source:
        Measuring and regularizing networks in function space, Benjamin et al. 2018, arXiv 1805.08289, as GS-LoRA,
        arXiv 2403.11530, measures the distance.
    """

    Config: ClassVar[type[FdrConfig]] = FdrConfig
    source: ClassVar[Source] = Source(
        "Measuring and regularizing networks in function space, Benjamin et al. 2018",
        "https://arxiv.org/abs/1805.08289",
        "paper",
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: FdrConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head.
        """
        config, classifier = self.config, as_classifier(model)
        forget = Relabelled.of(classifier, data, run, config.relabel)
        teacher = Teacher.of_logits(classifier, run, config.teacher)

        def make(theta: Theta) -> Losses:
            def retain(batch: Batch) -> Tensor:
                return config.distillation * mean_length(teacher.ask(batch) - teacher(batch, theta))

            return sided(forget, retain)

        seen = attrs.evolve(data, retain=teacher.taught(data.retain))
        return train(model, seen, run, make, targets=trained(model, run, config.train_head))


def mean_length(rows: Tensor) -> Tensor:
    """Return the mean Euclidean length of the rows ``(B, D)``, a scalar; its gradient is 0 for rows of zeros.

    Example:
        >>> mean_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item()
        2.5
    """
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)  # (B,)
    return lengths.mean()
