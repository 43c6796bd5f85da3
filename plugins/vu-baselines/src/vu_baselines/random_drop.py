"""Random drop: zero some weights of every tensor, whatever they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch

from vu_baselines.closed_form import edit_of, weights_of
from vu_core import Edit, ForgetRetain, Model, Run, Source, setting


@attrs.frozen
class RandomDropConfig:
    """Settings of `RandomDrop`."""

    largest_share: float = setting(0.2, help="greatest share of a tensor that is zeroed", gt=0, le=1)


class RandomDrop:
    """Set a random share of every tensor to zero: damage without aim, the control of all that has one.

    For each parameter tensor, with s the largest share::

        u ~ U(0, s),     p_i <- 0 with probability u, for each of its numbers

    Neither side of the data is looked at. Nothing is trained.

    Args:
        config: see `RandomDropConfig`.

    Example:
        >>> RandomDrop(RandomDropConfig(largest_share=0.1)).config.largest_share
        0.1

    Source:
        A control of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.
    """

    Config: ClassVar[type[RandomDropConfig]] = RandomDropConfig
    source: ClassVar[Source] = Source(
        "Random drop as a control in GS-LoRA, Zhao et al. 2024", "https://arxiv.org/abs/2403.11530", "paper"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: RandomDropConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Zero weights and return them as an edit."""
        weights, new = weights_of(model), {}
        for name, weight in weights.items():
            draws = run.generator("random drop", name)
            share = self.config.largest_share * torch.rand((), generator=draws)
            kept = torch.rand(weight.shape, generator=draws) >= share
            new[name] = weight.detach() * kept.to(weight.device)
        return edit_of(weights, new)
