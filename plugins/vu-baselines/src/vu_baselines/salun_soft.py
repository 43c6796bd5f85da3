"""SalUn with a soft threshold: another method, in which most weights stay where they were at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from vu_baselines.supervised import SALUN_TRAINING
from vu_core import Edit, ForgetRetain, Model, PlanError, Run, Source, setting
from vu_core.training import Training


def _trains_itself(name: str) -> str | None:
    return f"must be another method than {name}" if name in ("salun", "salun-soft") else None


@attrs.frozen
class SalUnSoftConfig:
    """Settings of `SalUnSoft`."""

    training: Training = setting(SALUN_TRAINING, help="settings of the training loop, for the method inside")
    base_method: str = setting("random-label", help="the method inside: what is learned", check=_trains_itself)
    base: Mapping[str, Any] = setting(
        factory=dict,
        help="settings of the method inside, as `vu describe` lists them, without its training",
        settings_of="base_method",
    )


class SalUnSoft:
    """Let another method train, and take the smallest changes back after every step.

    The mask of `SalUn` is fixed before the training; here it is found while training, by the regularizer
    `soft-threshold`, as the weights whose changes outgrow those of the others.

    Args:
        config: see `SalUnSoftConfig`.

    Example:
        >>> SalUnSoft(SalUnSoftConfig()).config.base_method
        'random-label'

    Source:
        Fan et al. 2023, arXiv 2310.12508.
    """

    Config: ClassVar[type[SalUnSoftConfig]] = SalUnSoftConfig
    source: ClassVar[Source] = Source(
        "SalUn with a soft threshold, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 1.0},
        "parameters": {"name": "full"},
        "regularizer": {"soft-threshold": {"ratio": 0.5}},
    }

    def __init__(self, config: SalUnSoftConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Run the method inside and return its edit; the threshold is a regularizer of the run.

        Raises:
            PlanError: ``VU-L096`` when the method inside does not train, ``VU-L097`` when the run has no threshold.
        """
        inside = run.unlearner(self.config.base_method, **self.config.base)
        if not hasattr(inside.Config, "training"):
            raise PlanError(
                "VU-L096",
                f"The method {self.config.base_method!r} takes no steps, so no change could be taken back.",
                "Choose a method that trains, such as random-label.",
                where="unlearner.base_method",
            )
        if not run.regularizers:
            raise PlanError(
                "VU-L097",
                f"The run has no regularizer, and without its threshold salun-soft is {self.config.base_method!r}.",
                "Set regularizer.soft-threshold.ratio; to train without it choose the method itself.",
                where="regularizer",
            )
        edit = inside.unlearn(model, data, run)
        return attrs.evolve(edit, facts={**edit.facts, "base_method": self.config.base_method})
