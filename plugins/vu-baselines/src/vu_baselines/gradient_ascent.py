"""Gradient ascent: climb the loss of what is forgotten, alone or beside the descent of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor

from vu_baselines.supervised import SALUN_TRAINING, cross_entropy, l1_norm, trained
from vu_core import Batch, Classifier, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import Training


@attrs.frozen
class GradientAscentConfig:
    """Settings of `GradientAscent`."""

    training: Training = setting(
        attrs.evolve(SALUN_TRAINING, lr=1e-4), help="settings of the training loop; an epoch passes over D_f"
    )
    cap: float | None = setting(
        None, help="the forget loss is climbed up to this value and no further; absent = without end", gt=0
    )
    l1: float = setting(0.0, help="alpha: weight of ||theta||_1 in the forget loss", ge=0)


class GradientAscent:
    """Climb the cross entropy ``l`` of the forget examples.

    What is minimised of a batch of D_f is::

        L_forget = -l + alpha * ||theta||_1                  without a cap: unbounded below
        L_forget = max(cap - l, 0) + alpha * ||theta||_1     with one: no gradient once l has reached the cap
        L_retain = l                                         of a batch of D_r; its weight is 0 by default

    With a weight of 0 the retain examples cost nothing. Batch norm keeps its statistics.

    Args:
        config: see `GradientAscentConfig`.

    Example:
        >>> GradientAscent(GradientAscentConfig(cap=10.0)).config.cap
        10.0

    Source:
        Graves et al. 2021 and Thudi et al. 2022, arXiv 2109.13398; settings of SalUn, Fan et al. 2023, arXiv
        2310.12508.

    Deviates:
        Batch norm uses the stored statistics (released code: those of the forget batch, which also overwrite the
        stored ones). A loss that is not finite ends the run with an error.
    """

    Config: ClassVar[type[GradientAscentConfig]] = GradientAscentConfig
    source: ClassVar[Source] = Source(
        "Gradient ascent as in Thudi et al. 2022", "https://arxiv.org/abs/2109.13398", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.0},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: GradientAscentConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters and return what came of it.

        Raises:
            UnlearnError: ``VU-U031`` when a loss or a gradient is not finite.
        """
        classifier, config = cast(Classifier, model), self.config
        return trained(model, data, run, lambda theta: Ascent(classifier, theta, config.cap, config.l1))


@attrs.frozen
class NegGradPlusConfig:
    """Settings of `NegGradPlus`."""

    training: Training = setting(SALUN_TRAINING, help="settings of the training loop; an epoch passes over D_r")
    cap: float | None = setting(
        None, help="the forget loss is climbed up to this value and no further; absent = without end", gt=0
    )


class NegGradPlus:
    """Descend the cross entropy ``l`` of the retain examples and climb that of the forget examples.

    With lambda the forget weight of the weighting::

        minimise  L_retain + lambda * L_forget
        L_retain = l                                         of a batch of D_r
        L_forget = -l, or max(cap - l, 0) with a cap         of a batch of D_f

    Batch norm keeps its statistics.

    Args:
        config: see `NegGradPlusConfig`.

    Example:
        >>> NegGradPlus.defaults["weighting"]["forget_weight"]
        0.1

    Source:
        NegGrad+ of Kurmanji et al. 2023, arXiv 2302.09880.

    Deviates:
        The weight of the retain loss is 1 (there: both weights add up to 1, which is another learning rate).
    """

    Config: ClassVar[type[NegGradPlusConfig]] = NegGradPlusConfig
    source: ClassVar[Source] = Source(
        "NegGrad+ in Towards unbounded machine unlearning, Kurmanji et al. 2023",
        "https://arxiv.org/abs/2302.09880",
        "paper",
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 0.1, "retain_weight": 1.0},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: NegGradPlusConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            UnlearnError: ``VU-U031`` when a loss or a gradient is not finite.
        """
        classifier = cast(Classifier, model)
        return trained(model, data, run, lambda theta: Ascent(classifier, theta, self.config.cap))


@attrs.frozen(eq=False)
class Ascent:
    """The losses of `GradientAscent` and `NegGradPlus` as `fit` wants them.

    Args:
        model: the classifier; theta: what is trained.
        cap: where the climb ends, or ``None``; l1: alpha.
    """

    model: Classifier
    theta: Theta
    cap: float | None
    l1: float = 0.0

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        return {side: self._loss(batch) for side, batch in batches.items()}

    def _loss(self, batch: Batch) -> Tensor:
        loss = cross_entropy(self.model, batch)
        if batch.side == "retain":
            return loss
        climbed = -loss if self.cap is None else torch.relu(self.cap - loss)
        return climbed + self.l1 * l1_norm(self.theta) if self.l1 else climbed
