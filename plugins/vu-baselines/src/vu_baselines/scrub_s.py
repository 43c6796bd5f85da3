"""SCRUB-S: SCRUB, with weights that stay near their moving mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from vu_baselines.relabelled import DEFAULTS
from vu_baselines.scrub import SCRUB_SOURCE, ScrubConfig, scrub
from vu_core import Edit, ForgetRetain, Model, Run, Source, setting


@attrs.frozen
class ScrubSConfig(ScrubConfig):
    """Settings of `ScrubS`."""

    smoothing: float = setting(
        0.1,
        help="sm: factor on the distance to the moving mean; published: 0.05 for one task, 0.1 for four, 0.05 on "
        "ImageNet-100 with gamma 10",
        ge=0,
    )
    decay: float = setting(0.9, help="share of the moving mean that a round leaves", ge=0, le=1)


class ScrubS:
    """Run `Scrub`, and in its min-steps stay near the moving mean of the weights.

    With ``theta_m`` the mean, over all trained tensors::

        R        = sum ||theta - theta_m||_F
        min-step:  L = gamma * CE(x_r, y_r) + a * KD(x_r) + sm * R
        theta_m <- decay * theta_m + (1 - decay) * theta            at the end of each round

    Args:
        config: see `ScrubSConfig`.

    Example:
        >>> ScrubS(ScrubSConfig(smoothing=0.05)).config.smoothing
        0.05

    Source:
        Kurmanji et al. 2023, arXiv 2302.09880; the mean is that of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.

    Deviates:
        As `Scrub`.
    """

    Config: ClassVar[type[ScrubSConfig]] = ScrubSConfig
    source: ClassVar[Source] = SCRUB_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: ScrubSConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            ConfigError: ``VU-C150`` when no side has a turn.
            PlanError: ``VU-L115``, ``VU-L120`` about the head.
        """
        return scrub(model, data, run, self.config, self.config.smoothing, self.config.decay)
