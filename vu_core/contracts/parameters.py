"""What is trained, and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.edit import Edit
from vu_core.source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Theta(Protocol):
    """The trainable parameters of a run, attached to a model."""

    model: Model
    """The model they are attached to."""

    def parameters(self) -> list[Tensor]:
        """Return the trainable tensors, always the same list in the same order."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (stable name, trainable tensor) in the order of `parameters`; ``full`` uses the base weights' names."""
        ...

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of the base tensor, differentiable change of it)."""
        ...

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return the trainable tensors by module, for group penalties and reports."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Let the model compute as if it were untouched while entered.

        Nestable; restores on errors; flips no ``requires_grad``.
        """
        ...

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Return the forward and backward passes of an optimiser step, at least one; their gradients are averaged.

        Asked once per step. While a pass is entered, the model computes as it wants, such as with the ranks that an
        elastic adapter has drawn for the step; outside of all passes it computes with everything that is trained. A
        pass is entered once per portion and side, never inside another one. What is drawn comes from ``step`` and
        ``phase`` alone, so that a resumed run and every process draw the same.
        """
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return every tensor that training changes, by a stable name, for checkpoints."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""

    def edit(self) -> Edit:
        """Return the change as a value, detached copies on the CPU.

        Low-rank factors are float32, the training precision of adapters. Whole weights are what they become in the
        precision of the base, since nothing finer can be put back into it.
        """
        ...

    def detach(self) -> None:
        """Take everything off the model; its tensors are the very objects of before."""


class Parameters(Protocol[ConfigT]):
    """The class behind a parameters name: ``full``, ``lora``, ``masked-lora``, ..."""

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]

    def __init__(self, config: ConfigT) -> None: ...

    def candidates(self, model: Model) -> tuple[str, ...]:
        """Return the names of the weights (``unet....to_q.weight``) that the configuration allows to train.

        Raises: PlanError with near misses when the configured targets match nothing.
        """
        ...

    def attach(
        self,
        model: Model,
        run: Run,
        *,
        targets: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Theta:
        """Make the candidates trainable, or only ``targets`` among them, within ``masks``.

        Both are keyed by weight name. A mask ``(out, in)`` or of the weight's shape is boolean. Raises: PlanError
        when this kind of parameters cannot honour masks, UnlearnError when nothing is left to train.
        """
        ...
