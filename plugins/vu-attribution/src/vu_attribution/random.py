"""Random: the control that every attribution must beat."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from vu_attribution.candidates import named_candidates
from vu_core import ForgetRetain, Model, Run, Source


@attrs.frozen
class RandomConfig:
    """Settings of `Random`: none; the numbers come from the seed of the run."""


class Random:
    """Score each parameter element by a uniform number in [0, 1), drawn from (run seed, parameter name).

    Args:
        config: see `RandomConfig`.

    Example:
        >>> Random(RandomConfig()).version
        '1'
    """

    Config: ClassVar[type[RandomConfig]] = RandomConfig
    source: ClassVar[Source] = Source("Random scores, a control", "https://arxiv.org/abs/2602.07058", "own")
    version: ClassVar[str] = "1"

    def __init__(self, config: RandomConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return float32 scores, one tensor per candidate, in the parameter's shape."""
        scores = {}
        for name, p in named_candidates(model, candidates).items():
            scores[name] = torch.rand(p.shape, generator=run.generator("random/score", name)).to(p.device)
        return scores
