"""A moving mean of what is trained, and the distance to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_core import ForgetRetain, Model, Run, Source, Theta, setting


@attrs.frozen
class SmoothingConfig:
    """Settings of `Smoothing`."""

    strength: float = setting(help="sm: factor on the distance", ge=0)
    decay: float = setting(help="share of the mean that a round leaves", ge=0, le=1)
    every: int = setting(help="steps of a round", ge=1)


class Smoothing:
    """Keep ``theta_m``, a moving mean of what is trained, and measure the distance to it.

    At the end of every round ``theta_m <- decay * theta_m + (1 - decay) * theta``, from the start of the run on. It
    travels with a run as a regularizer does, so that checkpoints hold it; the method adds `distance` to its loss.

    Args:
        config: see `SmoothingConfig`.

    Source:
        SCRUB-S of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.
    """

    Config: ClassVar[type[SmoothingConfig]] = SmoothingConfig
    source: ClassVar[Source] = Source("GS-LoRA, Zhao et al. 2024", "https://arxiv.org/abs/2403.11530", "paper")
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: SmoothingConfig) -> None:
        self.config = config
        self._steps = 0
        self._means: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Begin with what is trained as it is."""
        self._trained = dict(theta.named_parameters())
        self._means = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        self._steps = 0

    def penalty(self) -> None:
        """Return nothing: the distance is part of a loss."""

    def distance(self) -> Tensor:
        """Return ``sm * sum over tensors of ||theta - theta_m||_F``; the gradient is 0 where they are equal."""
        lengths = [torch.linalg.vector_norm(self._trained[name] - mean) for name, mean in self._means.items()]
        return self.config.strength * torch.stack(lengths).sum()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the step; at the end of a round move the mean."""
        self._steps += 1
        if self._steps % self.config.every == 0:
            with torch.no_grad():
                for name, mean in self._means.items():
                    mean.lerp_(self._trained[name], 1 - self.config.decay)

    def state(self) -> Mapping[str, Tensor]:
        """Return the mean and the number of steps."""
        return {"steps": torch.tensor(self._steps), **{f"mean.{name}": mean for name, mean in self._means.items()}}

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put them back."""
        self._trained = dict(theta.named_parameters())
        self._means = {name: state[f"mean.{name}"].to(tensor.device).clone() for name, tensor in self._trained.items()}
        self._steps = int(state["steps"])
