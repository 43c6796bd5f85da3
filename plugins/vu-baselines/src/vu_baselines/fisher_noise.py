"""Fisher noise: blur every weight that the retain examples do not hold in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor

from vu_baselines.closed_form import edit_of, weights_of
from vu_baselines.supervised import labels_of
from vu_core import Classifier, Edit, ForgetRetain, Headed, Model, Run, Source, setting

FLOOR = 1e-8
"""Added to the Fisher information in the variant ``fisher_new``."""
MOST, MOST_OF_HEAD = 1e3, 1e2
"""Greatest inverse Fisher information of a weight and of one in the head, in the variant ``fisher_new``."""
FORGOTTEN_VARIANCE = 1e-4
"""Variance of the head's rows of forgotten classes before it is multiplied, in the variant ``fisher_new``."""
PARITY_LARGEST = 1e-3
"""Greatest standard deviation of the noise, before it is multiplied, in the variant ``parity``."""


@attrs.frozen
class FisherNoiseConfig:
    """Settings of `FisherNoise`."""

    alpha: float = setting(1e-7, help="scale of the variance of the noise", gt=0)
    largest: float = setting(
        1.0,
        help="greatest standard deviation of the noise of a weight, in root mean squares of its tensor; the other "
        "variants have their own",
        gt=0,
    )
    variant: str = setting(
        "paper",
        help="paper: one rule for all weights; parity: at most 1e-3, and 10 times the noise on tensors whose last "
        "dimension is K; fisher_new: variances averaged over inputs, more on the head, rows of forgotten classes drawn "
        "anew",
        choices=("paper", "parity", "fisher_new"),
    )


class FisherNoise:
    """Add noise to every weight, the more the less it matters for what is kept.

    With ``F_p`` the diagonal of the Fisher information on the n retain examples, in which l_i is the cross entropy of
    one example, and W the tensor that p belongs to::

        F_p     = 1/n * sum over i of (d l_i / dp)^2
        s       = largest * sqrt(mean W^2)
        sigma_p = min(sqrt(alpha / F_p), s)                      s where F_p is 0
        p       <- p + sigma_p * N(0, 1)

    Noise as large as the weights themselves leaves nothing of them; more would only blow activations up.
    ``variant = "parity"`` has ``s = 1e-3`` and multiplies sigma by 10 where the last dimension of a tensor is K,
    the number of classes. The variant ``fisher_new`` has instead, per tensor, ``v_p = alpha * min(1 / (F_p + 1e-8),
    1e3)`` (1e2 in the head), its mean over the second dimension where there is one, and in the head's rows of
    classes that are forgotten as a whole ``v = 1e-4`` and a mean of 0; then v times 10 in the head and in vectors,
    and ``p <- mean + sqrt(v) * N(0, 1)``.

    F is the run's attribution, by default `fisher` on the retain side. Nothing is trained.

    Args:
        config: see `FisherNoiseConfig`.

    Example:
        >>> FisherNoise(FisherNoiseConfig(alpha=1e-6)).config.largest
        1.0

    Source:
        Golatkar et al. 2020, Eternal sunshine of the spotless net, arXiv 1911.04933.

    Deviates:
        ``sqrt(alpha / F)`` as in the released code of SalUn, arXiv 2310.12508 (paper: the fourth root, and no greatest
        standard deviation, so that a weight without information would be infinite). F takes the
        labels of the data (paper: labels as the model predicts them). ``fisher_new`` uses the same F of single
        examples (released code: squares of batch means).
    """

    Config: ClassVar[type[FisherNoiseConfig]] = FisherNoiseConfig
    source: ClassVar[Source] = Source(
        "Eternal sunshine of the spotless net, Golatkar et al. 2020", "https://arxiv.org/abs/1911.04933", "paper+fixes"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"attribution": {"name": "fisher", "side": "retain"}}

    def __init__(self, config: FisherNoiseConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Draw the noise and return it as an edit.

        Raises:
            DataError: ``VU-D090`` when there are no retain examples.
        """
        weights = weights_of(model)
        fisher = run.attribute(model, data, candidates=list(weights))
        gone = self._forgotten(cast(Classifier, model), data, run)
        new = {}
        for name, weight in weights.items():
            z = torch.randn(weight.shape, generator=run.generator("fisher noise", name)).to(weight.device)
            mean, sigma = self.moments(name, weight, fisher[name].to(weight.device), model, gone)
            new[name] = mean + sigma * z
        return edit_of(weights, new)

    def moments(
        self, name: str, weight: Tensor, fisher: Tensor, model: Model, gone: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation that a weight is drawn with, in its shape.

        Args:
            name: of the tensor.
            weight: its value.
            fisher: F in its shape.
            model: the classifier.
            gone: the classes that are forgotten as a whole.
        """
        alpha, classes = self.config.alpha, len(cast(Classifier, model).classes)
        mean = weight.detach().float().clone()
        if self.config.variant != "fisher_new":
            parity = self.config.variant == "parity"
            largest = PARITY_LARGEST if parity else self.config.largest * float(mean.square().mean().sqrt())
            sigma = (alpha / fisher).sqrt().clamp(max=largest)
            wide = parity and weight.dim() > 0 and weight.shape[-1] == classes
            return mean, sigma * 10 if wide else sigma
        head = _in_head(name, model) and weight.shape[:1] == (classes,)
        v = alpha * (1 / (fisher + FLOOR)).clamp(max=MOST_OF_HEAD if head else MOST)
        if weight.dim() > 1:
            v = v.mean(dim=1, keepdim=True).expand_as(v).clone()
        if head and gone:
            mean[gone], v[gone] = 0.0, FORGOTTEN_VARIANCE
        return mean, (v * 10 if head or weight.dim() == 1 else v).sqrt()

    def _forgotten(self, model: Classifier, data: ForgetRetain, run: Run) -> list[int]:
        forget = set(labels_of(model, data.forget, run).tolist())
        return sorted(forget - set(labels_of(model, data.retain, run).tolist()))


def _in_head(name: str, model: Model) -> bool:
    return isinstance(model, Headed) and name.startswith(f"{model.head}.")
