"""DER: give retain examples the logits of before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
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
from vu_core import Batch, Classifier, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import Training

DER_SOURCE = Source(
    "Dark experience for general continual learning, Buzzega et al. 2020",
    "https://arxiv.org/abs/2004.07211",
    "paper+fixes",
)


@attrs.frozen
class DerConfig(RelabelledConfig):
    """Settings of `Der`."""

    training: Training = setting(published(1e-3), help="settings of the training loop; lr 1e-4 on ImageNet-100")
    distillation: float = setting(
        0.01, help="lambda: factor on the distance to the teacher; published: 0.01 throughout", ge=0
    )
    variant: str = setting(
        "paper",
        help="paper: mean squared distance of logits; parity: summed squared distance of features over the batch, as "
        "the released code of GS-LoRA",
        choices=("paper", "parity"),
    )
    teacher: str = setting("pretrained", help=TEACHERS, choices=("pretrained", "task-start"))


class Der:
    """Teach wrong labels of what is forgotten, and give retain examples the logits of before.

    With y' a wrong label, z the logits of K classes and z_t those of the teacher, over all weights but those of the
    head::

        L_forget = CE(x_f, y')
        L_retain = lambda * 1/(B K) sum_b sum_k (z - z_t)^2

    The buffer of the paper is the table of retain examples.

    Args:
        config: see `DerConfig`.

    Example:
        >>> Der(DerConfig(variant="parity")).config.variant
        'parity'

    Source:
        Buzzega et al. 2020, arXiv 2004.07211.

    Deviates:
        Released code of GS-LoRA (``variant = "parity"``): ``lambda * sum_b ||h - h_t||^2`` of the features h, summed
        over the batch, to which the published lambda belongs.
    """

    Config: ClassVar[type[DerConfig]] = DerConfig
    source: ClassVar[Source] = DER_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: DerConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head.
        """
        return distil(model, data, run, self.config)


def distil(
    model: Model,
    data: ForgetRetain,
    run: Run,
    config: DerConfig,
    replay: Callable[[Classifier, Batch], Tensor] | None = None,
) -> Edit:
    """Train on the losses of `Der`, plus ``replay`` of the retain batch, and return the edit.

    Args:
        model: the classifier.
        data: both sides.
        run: the run.
        config: settings.
        replay: a scalar, added to the retain loss.
    """
    classifier = as_classifier(model)
    forget = Relabelled.of(classifier, data, run, config.relabel)
    teacher = _teacher(classifier, run, config)

    def make(theta: Theta) -> Losses:
        def retain(batch: Batch) -> Tensor:
            loss = config.distillation * distance(teacher.ask(batch), teacher(batch, theta), config.variant)
            return loss if replay is None else loss + replay(classifier, batch)

        return sided(forget, retain)

    seen = attrs.evolve(data, retain=teacher.taught(data.retain))
    return train(model, seen, run, make, targets=trained(model, run, config.train_head))


def _teacher(model: Classifier, run: Run, config: DerConfig) -> Teacher:
    if config.variant == "paper":
        return Teacher.of_logits(model, run, config.teacher)
    return Teacher("teacher_features", lambda batch: model.features(model.images(batch)).float(), run, config.teacher)


def distance(student: Tensor, teacher: Tensor, variant: str) -> Tensor:
    """Return the mean (``paper``) or the sum (``parity``) of squared differences, a scalar.

    Args:
        student: answers, ``(B, D)``.
        teacher: those of the teacher, ``(B, D)``.
        variant: ``paper`` or ``parity``.

    Example:
        >>> import torch
        >>> answers = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> [distance(answers, torch.zeros(2, 2), variant).item() for variant in ("paper", "parity")]
        [6.25, 25.0]
    """
    squares = (student - teacher).square()
    return squares.mean() if variant == "paper" else squares.sum()
