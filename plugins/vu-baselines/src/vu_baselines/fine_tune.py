"""Fine-tuning: go on training on what is kept, and let the rest fade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs

from vu_baselines.supervised import SALUN_TRAINING, cross_entropy, retain_only, trained
from vu_core import Classifier, Edit, ForgetRetain, Model, Run, Source, setting
from vu_core.training import Training


@attrs.frozen
class FineTuneConfig:
    """Settings of `FineTune`."""

    training: Training = setting(SALUN_TRAINING, help="settings of the training loop; an epoch passes over D_r")
    batch_norm: str = setting(
        "train",
        help="train: batch norm normalises by the batch and its statistics move; eval: it keeps the stored ones",
        choices=("train", "eval"),
    )


class FineTune:
    """Go on training on the retain examples alone; forgetting is left to interference.

    With D_r the retain examples and ``l`` the cross entropy::

        minimise  mean over D_r of l(theta; x, y)              theta starts at the trained weights

    No forget example is ever looked at, so there is no weighting to choose. Every tensor is trained, the head included.

    Args:
        config: see `FineTuneConfig`.

    Example:
        >>> FineTune(FineTuneConfig(batch_norm="eval")).config.training.epochs
        10

    Source:
        A baseline since Golatkar et al. 2020, arXiv 1911.04933; settings of SalUn, Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        Dropout is off.
    """

    Config: ClassVar[type[FineTuneConfig]] = FineTuneConfig
    source: ClassVar[Source] = Source(
        "Fine-tuning as in Golatkar et al. 2020", "https://arxiv.org/abs/1911.04933", "paper"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "full"}}

    def __init__(self, config: FineTuneConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on the retain examples and return what came of it.

        Raises:
            UnlearnError: ``VU-U034`` when there are no retain examples; when a loss is not finite.
        """
        classifier = cast(Classifier, model)
        return trained(
            model,
            data,
            run,
            lambda theta: lambda batches: {side: cross_entropy(classifier, batch) for side, batch in batches.items()},
            on=retain_only(data),
            moving_statistics=self.config.batch_norm == "train",
        )
