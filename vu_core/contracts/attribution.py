"""How much each parameter matters for the forget set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.data import ForgetRetain
from vu_core.source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Attribution(Protocol[ConfigT]):
    """The class behind an attribution name. The result is cached by content; ``version`` is part of the key."""

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    version: ClassVar[str]

    def __init__(self, config: ConfigT) -> None: ...

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return float32 scores, one tensor per candidate parameter, in the parameter's shape.

        ``candidates`` are parameter names; ``None`` means every parameter of the denoiser or classifier. Leaves
        gradients, modes and generators of the model as they were.
        """
        ...
