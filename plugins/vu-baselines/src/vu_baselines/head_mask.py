"""Head mask: the forgotten classes are never answered, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
from torch import Tensor

from vu_baselines.closed_form import edit_of, weights_of
from vu_baselines.supervised import forgotten_classes
from vu_core import Classifier, Edit, ForgetRetain, Headed, Model, PlanError, Run, Source, setting


@attrs.frozen
class HeadMaskConfig:
    """Settings of `HeadMask`."""

    logit: float = setting(-1e4, help="logit of the forgotten classes; 0 = their rows are zero, as released", le=0)


class HeadMask:
    """Fix the logits of the forgotten classes at a low value: fake forgetting, the control of all that is real.

    With C_f the classes that are forgotten as a whole, and (W, b) the head::

        W_k <- 0,   b_k <- logit          for k in C_f          so that z_k = logit for every image

    Everything that the network knows of the forgotten classes is still in its features: a new head on them finds it
    again. Nothing is trained.

    Args:
        config: see `HeadMaskConfig`.

    Example:
        >>> HeadMask(HeadMaskConfig(logit=0.0)).config.logit
        0.0

    Source:
        A control of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.

    Deviates:
        The logit is -1e4 in place of minus infinity, which no edit can hold.
    """

    Config: ClassVar[type[HeadMaskConfig]] = HeadMaskConfig
    source: ClassVar[Source] = Source(
        "Head mask as a control in GS-LoRA, Zhao et al. 2024", "https://arxiv.org/abs/2403.11530", "paper+fixes"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: HeadMaskConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Mask the rows of the forgotten classes and return them as an edit.

        Raises:
            PlanError: ``VU-L117`` when the head has no row per class; ``VU-L119`` when it has no bias for the logit.
            UnlearnError: ``VU-U134`` when no class is forgotten as a whole.
        """
        classifier, weights = cast(Classifier, model), weights_of(model)
        weight, bias = self._head(classifier, weights)
        gone = forgotten_classes(classifier, data, run)
        new = {weight: weights[weight].detach().clone()}
        new[weight][gone] = 0.0
        if bias is not None:
            new[bias] = weights[bias].detach().clone()
            new[bias][gone] = self.config.logit
        return edit_of(weights, new)

    def _head(self, model: Classifier, weights: Mapping[str, Tensor]) -> tuple[str, str | None]:
        """Return the names of weight and bias of the head."""
        head = model.head if isinstance(model, Headed) else None
        weight, bias = f"{head}.weight", f"{head}.bias"
        if weight not in weights or len(weights[weight]) != len(model.classes):
            raise PlanError(
                "VU-L117",
                f"This method needs a head with one row per class, and the classifier {model.facts.name!r} has none.",
                "Choose a method that trains, or another model.",
                where="unlearner.method",
            )
        if bias in weights:
            return weight, bias
        if self.config.logit != 0:
            raise PlanError(
                "VU-L119",
                f"The head of the classifier {model.facts.name!r} has no bias, so a logit of {self.config.logit:g} "
                "cannot be set.",
                "Use --set unlearner.logit=0, which makes the rows of the forgotten classes zero.",
                where="unlearner.logit",
            )
        return weight, None
