"""l1-sparse: fine-tuning that pulls every weight towards zero at first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
from torch import Tensor

from vu_baselines.fine_tune import FineTuneConfig
from vu_baselines.supervised import Losses, cross_entropy, l1_norm, retain_only, trained
from vu_core import Batch, Classifier, ConfigError, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import steps_per_epoch, total_steps


@attrs.frozen
class L1SparseConfig(FineTuneConfig):
    """Settings of `L1Sparse`."""

    alpha: float = setting(5e-4, help="weight of ||theta||_1 in the first epoch", ge=0)
    epochs_without: int = setting(0, help="last epochs that have no penalty", ge=0)


class L1Sparse:
    """Fine-tune on the retain examples under an l1 penalty that fades from epoch to epoch.

    With e the epoch of E, from 0, and E_no the last epochs without a penalty::

        minimise  mean over D_r of l(theta; x, y)  +  gamma_e * ||theta||_1

        gamma_e = alpha * (1 - e / (E - E_no))      for e < E - E_no, else 0

    ``theta`` is what the run trains: weights, or the factors of a LoRA.

    Args:
        config: see `L1SparseConfig`.

    Example:
        >>> [round(fading(1.0, epoch, 10, 0), 1) for epoch in (0, 3, 6, 9)]
        [1.0, 0.7, 0.4, 0.1]

    Source:
        Jia et al. 2023, Model sparsity can simplify machine unlearning, arXiv 2304.04934.

    Deviates:
        Dropout is off.
    """

    Config: ClassVar[type[L1SparseConfig]] = L1SparseConfig
    source: ClassVar[Source] = Source(
        "Model sparsity can simplify machine unlearning, Jia et al. 2023", "https://arxiv.org/abs/2304.04934", "paper"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "full"}}

    def __init__(self, config: L1SparseConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on the retain examples and return what came of it.

        Raises:
            ConfigError: ``VU-C147`` when no epoch has a penalty.
            UnlearnError: ``VU-U034`` when there are no retain examples; when a loss is not finite.
        """
        on, config = retain_only(data), self.config
        classifier, per_epoch = cast(Classifier, model), steps_per_epoch(on, run)
        epochs = math.ceil(total_steps(on, run) / per_epoch)
        if config.epochs_without >= epochs:
            raise ConfigError(
                "VU-C147",
                f"The last {config.epochs_without} epochs have no penalty, but the run has only {epochs}: it would be "
                "plain fine-tuning.",
                "Use a smaller number, train longer, or choose the method fine-tune.",
                where="unlearner.epochs_without",
            )

        def losses_of(theta: Theta) -> Losses:
            def losses(batches: Mapping[str, Batch]) -> dict[str, Tensor]:
                values = {}
                for side, batch in batches.items():
                    gamma = fading(config.alpha, batch.step // per_epoch, epochs, config.epochs_without)
                    values[side] = cross_entropy(classifier, batch) + gamma * l1_norm(theta)
                return values

            return losses

        return trained(model, data, run, losses_of, on=on, moving_statistics=config.batch_norm == "train")


def fading(alpha: float, epoch: int, epochs: int, epochs_without: int) -> float:
    """Return gamma_e, the weight of the penalty in an epoch; see `L1Sparse`."""
    penalised = epochs - epochs_without
    return alpha * (1 - epoch / penalised) if epoch < penalised else 0.0
