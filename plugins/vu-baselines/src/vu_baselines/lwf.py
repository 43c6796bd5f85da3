"""LwF: answer retain examples as the model of before, softened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch.nn.functional as F
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
class LwfConfig(RelabelledConfig):
    """Settings of `Lwf`."""

    training: Training = setting(published(1e-4), help="settings of the training loop")
    distillation: float = setting(0.5, help="lambda_kd: factor on the distillation; 0 = the released code", ge=0)
    retained: float = setting(
        10.0,
        help="lambda_r: factor on the cross entropy of retain examples; published: 2 for one task of few classes, 10 "
        "for many, for four tasks and on ImageNet-100",
        ge=0,
    )
    temperature: float = setting(2.0, help="T: answers are divided by it before the softmax", gt=0)
    teacher: str = setting("pretrained", help=TEACHERS, choices=("pretrained", "task-start"))


class Lwf:
    """Teach wrong labels of what is forgotten, and go on answering retain examples as before.

    With y' a wrong label, z the logits and z_t those of the teacher, ``q = softmax(z / T)`` and ``q_t = softmax(z_t /
    T)``, over all weights but those of the head::

        L_forget = CE(x_f, y')
        L_retain = lambda_kd * mean_b(-sum_k q_t log q) + lambda_r * CE(x_r, y_r)

    Args:
        config: see `LwfConfig`.

    Example:
        >>> Lwf(LwfConfig(temperature=4.0)).config.temperature
        4.0

    Source:
        Learning without forgetting, Li and Hoiem 2016, arXiv 1606.09282.

    Deviates:
        The teacher is asked about the images that are retained, as in GS-LoRA (paper: about the new ones). Released
        code of GS-LoRA: the distillation comes to 0 (``distillation = 0``).
    """

    Config: ClassVar[type[LwfConfig]] = LwfConfig
    source: ClassVar[Source] = Source(
        "Learning without forgetting, Li and Hoiem 2016", "https://arxiv.org/abs/1606.09282", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: LwfConfig) -> None:
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
                z = classifier.logits(classifier.images(batch)).float()  # (B, K)
                kept = soft_cross_entropy(z, teacher(batch, theta), config.temperature)
                return config.distillation * kept + config.retained * F.cross_entropy(z, classifier.labels(batch))

            return sided(forget, retain)

        seen = attrs.evolve(data, retain=teacher.taught(data.retain))
        return train(model, seen, run, make, targets=trained(model, run, config.train_head))


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``mean_b(-sum_k q_t log q)`` of the softened answers, a scalar; finite for logits of any size.

    Args:
        student: logits z, ``(B, K)``.
        teacher: logits z_t, ``(B, K)``.
        temperature: T.

    Example:
        >>> import torch
        >>> z_t = 2 * torch.tensor([[0.6, 0.3, 0.1]]).log()  # softened by T = 2, p is back
        >>> round(soft_cross_entropy(torch.zeros(1, 3), z_t, 2.0).item(), 4)
        1.0986
    """
    q_t = (teacher.float() / temperature).softmax(dim=1)  # (B, K)
    return -(q_t * (student.float() / temperature).log_softmax(dim=1)).sum(dim=1).mean()
