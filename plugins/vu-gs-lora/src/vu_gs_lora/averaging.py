"""The average of what is trained over the epochs of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_core import ConfigError, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import steps_per_epoch, total_steps


@attrs.frozen
class AverageConfig:
    """Settings of `EpochAverage`."""

    start: int = setting(30, help="epoch, from 0, after which the average begins", ge=0)
    decay: float = setting(0.9, help="d: share of the average that an epoch leaves", ge=0, le=1)


class EpochAverage:
    """Keep ``average <- d * average + (1 - d) * theta``, once per epoch; a regularizer that changes nothing.

    It begins as what is trained after epoch ``start``. ``d = 0`` is the last epoch, ``d = 1`` the first one. Its state
    goes into the checkpoints, so that a resumed run ends with the same average. An unfinished epoch does not count.

    Args:
        config: see `AverageConfig`.

    Source:
        The released code of GS-LoRA, arXiv 2403.11530.

    Deviates:
        It averages the adapter. The released code averages the model without the adapter of the task.
    """

    Config: ClassVar[type[AverageConfig]] = AverageConfig
    source: ClassVar[Source] = Source("Average over epochs in GS-LoRA", "https://arxiv.org/abs/2403.11530", "code")
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: AverageConfig) -> None:
        self.config = config
        self._steps, self._per_epoch = 0, 1
        self._trained: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Count the steps of an epoch.

        Raises:
            ConfigError: ``VU-C143`` when the training ends before the average begins.
        """
        self._steps, self._per_epoch = 0, steps_per_epoch(data, run)
        self._trained, self._average = dict(theta.named_parameters()), {}
        epochs = total_steps(data, run) // self._per_epoch
        if epochs <= self.config.start:
            raise ConfigError(
                "VU-C143",
                f"The average begins after epoch {self.config.start}, counted from 0, but the training has {epochs}.",
                "Train longer, choose a smaller ema_start, or set ema = false.",
                where="unlearner.ema_start",
            )

    def penalty(self) -> Tensor | None:
        """Return nothing."""
        return None

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average at the end of an epoch."""
        self._steps += 1
        if self._steps % self._per_epoch or self._steps // self._per_epoch <= self.config.start:
            return
        if not self._average:
            self._average = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
            return
        for name, average in self._average.items():
            average.mul_(self.config.decay).add_(self._trained[name], alpha=1 - self.config.decay)

    @torch.no_grad()
    def put(self) -> None:
        """Replace what is trained by the average."""
        for name, average in self._average.items():
            self._trained[name].copy_(average)

    def state(self) -> Mapping[str, Tensor]:
        """Return the number of finished steps, the steps per epoch and the average, once it has begun."""
        progress = torch.tensor([self._steps, self._per_epoch])
        return {"progress": progress, **{f"average.{name}": tensor for name, tensor in self._average.items()}}

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put them back."""
        self._steps, self._per_epoch = state["progress"].tolist()
        self._trained = dict(theta.named_parameters())
        saved = {name.removeprefix("average."): tensor for name, tensor in state.items() if name != "progress"}
        self._average = {name: tensor.to(self._trained[name].device, copy=True) for name, tensor in saved.items()}
