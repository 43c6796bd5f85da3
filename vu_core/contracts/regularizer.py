"""Penalties and projections that any gradient method can carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.contracts.parameters import Theta
from vu_core.data import ForgetRetain
from vu_core.source import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Regularizer(Protocol[ConfigT]):
    """The class behind a regularizer name.

    ``side`` says where the penalty joins: the retain loss, the forget loss (both before the weighting), or outside of
    it (its gradient is added after the weighting).
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    side: Literal["retain", "forget", "outside"]

    def __init__(self, config: ConfigT) -> None: ...

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Look at the untouched model, inside ``theta.base()``, before the first step of each `fit`.

        Not called when a checkpoint is continued: `load_state` is.
        """

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to the loss of ``side``, or ``None``."""
        ...

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change parameters after an optimiser step: proximal update, hard mask."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what `prepare` found, for checkpoints."""
        ...

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put back what `state` returned."""
