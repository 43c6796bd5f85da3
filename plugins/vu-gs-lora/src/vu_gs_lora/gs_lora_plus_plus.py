"""GS-LoRA++: the features of forgotten classes leave their prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Classifier, Edit, ForgetRetain, Model, Run, Source, setting
from vu_core.training import Schedule, value_at
from vu_gs_lora.answers import Answer, head_of
from vu_gs_lora.gs_lora import DEFAULTS, GsLoraConfig, forget_classes
from vu_gs_lora.prototypes import Prototypes, class_prototypes

SCHEDULES = ("prototype_forget_weight", "prototype_retain_weight", "prototype_bound")
"""Settings that may change from task to task."""


@attrs.frozen
class GsLoraPlusPlusConfig(GsLoraConfig):
    """Settings of `GsLoraPlusPlus`."""

    prototype_forget_weight: Schedule = setting(
        0.01,
        help="g_f, factor on driving features of forget images away: one number, one per task, or from an epoch",
        ge=0,
    )
    prototype_retain_weight: Schedule = setting(
        0.0, help="g_r, factor on holding features of retain images: one number, one per task, or from an epoch", ge=0
    )
    prototype_bound: Schedule = setting(
        18.0, help="BND_pro, the distance at which features are far enough; depends on the model's features", gt=0
    )
    prototype_distance: str = setting(
        "kl", help="kl: of softmax(features) from softmax(prototype); mse", choices=("kl", "mse")
    )
    prototype_source: str = setting(
        "pretrained",
        help="whose features are averaged. pretrained: the original model; task-start: the model as earlier tasks left "
        "it, as released",
        choices=("pretrained", "task-start"),
    )


class GsLoraPlusPlus:
    """`GsLora` that also drives features of forgotten classes away from their prototypes.

    With the feature h(x), which goes into the head, and the prototype ``p_c``, the mean of h over all training images
    of class c before anything is forgotten, the losses of `GsLora` gain::

        d(x)      = KL(softmax(p_y) || softmax(h(x)))             over the elements of a feature; or mean (p_y - h)^2
        L_forget += g_f * ReLU(BND_pro - mean d(x_f))
        L_retain += g_r * mean d(x_r)

    Prototypes are computed once per task, over exactly the images that the run trains on. Features and logits come out
    of one pass. ``g_r`` is 0 in every released command. d depends on the scale of the features, so ``BND_pro`` must be
    chosen for each model.

    Args:
        config: see `GsLoraPlusPlusConfig`.

    Example:
        >>> GsLoraPlusPlus(GsLoraPlusPlusConfig(prototype_bound=50.0)).config.prototype_forget_weight
        0.01

    Source:
        Zhao et al. 2025, arXiv 2501.09705.

    Deviates:
        Prototypes are those of the original model, as in the paper (released code: of the model at the start of the
        task, ``prototype_source = "task-start"``; for single tasks, of a network with random weights).
    """

    Config: ClassVar[type[GsLoraPlusPlusConfig]] = GsLoraPlusPlusConfig
    source: ClassVar[Source] = Source(
        "GS-LoRA++: Practical Continual Forgetting for Pre-trained Vision Models, Zhao et al. 2025",
        "https://arxiv.org/abs/2501.09705",
        "paper+fixes",
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: GsLoraPlusPlusConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            ConfigError, PlanError, UnlearnError: as `GsLora.unlearn`; ``VU-L115`` when the model does not say where its
                head is.
        """
        head_of(cast(Classifier, model))
        for name in SCHEDULES:  # a list that is too short is told before anything is computed
            value_at(getattr(self.config, name), task=run.task, name=f"unlearner.{name}")
        source = run.pretrained() if self.config.prototype_source == "pretrained" else nullcontext()
        with source:
            prototypes = class_prototypes(model, data, run)
        term = PrototypeTerm(Prototypes.of(prototypes, self.config.prototype_distance), self.config, run.task)
        return forget_classes(model, data, run, self.config, term=term)


@attrs.frozen(eq=False)
class PrototypeTerm:
    """What GS-LoRA++ adds to the losses of GS-LoRA.

    Args:
        prototypes: of all classes; config: settings; task: number of the task, from 0.
    """

    prototypes: Prototypes
    config: GsLoraPlusPlusConfig
    task: int = 0

    def __call__(self, side: str, answer: Answer) -> Tensor:
        """Return ``g_f ReLU(BND_pro - d)`` or ``g_r d``, a float32 scalar; a weight of 0 computes nothing."""
        g = self._value("prototype_forget_weight" if side == "forget" else "prototype_retain_weight", answer.epoch)
        if g == 0:
            return torch.zeros((), device=answer.features.device)
        d = self.prototypes.distance_of(answer.features, answer.labels)
        return g * (d if side == "retain" else F.relu(self._value("prototype_bound", answer.epoch) - d))

    def _value(self, name: str, epoch: int) -> float:
        return value_at(getattr(self.config, name), task=self.task, epoch=epoch, name=f"unlearner.{name}")
