"""How forget and retain gradients become one update."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.source import Source

if TYPE_CHECKING:
    from torch import Tensor

ConfigT = TypeVar("ConfigT", covariant=True)


class Weighting(Protocol[ConfigT]):
    """The class behind a weighting name.

    Both losses are descended. ``linear``: the coefficients are constants, so one joint backward pass of
    ``a_retain * L_retain + a_forget * L_forget`` suffices and `coefficients` is called once with ``gram=None``.
    Otherwise it is called once per optimiser step with the Gram matrix. One with ``scale_free = True`` looks at the
    direction of each gradient alone, so that a factor on a loss does not shift the balance; methods warn of theirs.

    As any plugin class, one that nobody should use unawares has a text ``caution``, a sentence that plan, record and
    report of a run tell.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    linear: ClassVar[bool]

    def __init__(self, config: ConfigT) -> None: ...

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return ``(a_retain, a_forget)`` of ``g = a_retain * g_retain + a_forget * g_forget``.

        The plain numbers ``(0, 0)`` leave the step out: no update, no weight decay, moments as they were.

        Args:
            gram: float64 ``(2, 2)`` inner products in the order (retain, forget), or ``None`` for a linear weighting.
            losses: detached scalars ``retain`` and ``forget``.
            state: JSON values that live through the run and its resumes; counters, moving averages, and ``flags``,
                a list of words about this step, which the event ``gradient_conflict`` tells.
        """
        ...
