"""Magnitude: the absolute value of each parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import attrs
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_core import ForgetRetain, Model, Run, Source


@attrs.frozen
class MagnitudeConfig:
    """Settings of `Magnitude`: none."""


class Magnitude:
    """Score each parameter by its absolute value, ``S_p = |p|``; looks at no data.

    Args:
        config: see `MagnitudeConfig`.

    Example:
        >>> Magnitude(MagnitudeConfig()).version
        '1'

    Source:
        Han et al. 2015, arXiv 1506.02626.
    """

    Config: ClassVar[type[MagnitudeConfig]] = MagnitudeConfig
    source: ClassVar[Source] = Source(
        "Learning both weights and connections for efficient neural networks, Han et al. 2015",
        "https://arxiv.org/abs/1506.02626",
        "paper",
    )
    version: ClassVar[str] = "1"

    def __init__(self, config: MagnitudeConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return float32 scores, one tensor per candidate, in the parameter's shape."""
        return {name: p.detach().float().abs() for name, p in named_candidates(model, candidates).items()}
