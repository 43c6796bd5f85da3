"""Two formulas of earlier code, kept to reproduce its numbers; neither is the Nash solution everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import Source, setting
from vu_munba.bargain import Gram, one_side, without_finite

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8
"""What the released code adds to its denominators, whatever the gradients are."""


@attrs.frozen
class MunbaV1CompatConfig:
    """``munba-v1-compat`` has no settings."""


class MunbaV1Compat:
    """Reproduce the formula of an early implementation of MUNBa; known incorrect, use ``munba`` instead.

    With ``k = K`` the Gram matrix in the order (retain, forget)::

        a_r = sqrt((2 k11 k22 + k12 sqrt(k11 k22)) / (k11^2 k22 - k11 k12^2))
        a_f = (1 - k11 a_r^2) / (k12 a_r)

    In terms of the cosine ``c``: ``a_r ||g_r|| = x`` with ``x^2 = (2 + c) / (1 - c^2)`` where the Nash solution has
    ``1 / (1 + c)``; the two meet at ``c = -1/2`` only. For every ``c > 0`` the coefficient of the forget gradient is
    negative: the forget loss is *ascended* exactly where both sides agree.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[25.0, 8.0], [8.0, 4.0]])
        >>> a_r, a_f = MunbaV1Compat(MunbaV1CompatConfig()).coefficients(gram, {}, {})
        >>> f"{a_r:.4f} {a_f:.4f}"
        '0.5578 -1.5189'

    Source:
        The weighting ``munba`` of ``vision-unlearning``, which names version 1 of arXiv 2411.15537.

    Deviates:
        Where a gradient is zero, the step takes the unit-norm gradient of the other side; where the formula has no
        finite value (``c`` of 0, 1 or -1), the step is left out with the flag ``undefined``. The original wrote NaN
        into the weights.
    """

    Config: ClassVar[type[MunbaV1CompatConfig]] = MunbaV1CompatConfig
    source: ClassVar[Source] = Source(
        "MUNBa: Machine Unlearning via Nash Bargaining, Wu and Harandi 2024, as implemented from its version 1",
        "https://arxiv.org/abs/2411.15537v1",
        "parity",
    )
    caution: ClassVar[str] = (
        "known incorrect, reproduces historical behaviour: it ascends the forget loss wherever both gradients agree. "
        "Use 'munba' for anything but a comparison."
    )
    linear: ClassVar[bool] = False
    scale_free: ClassVar[bool] = True

    def __init__(self, config: MunbaV1CompatConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(a_retain, a_forget)``, plain numbers; both 0 where the formula has no finite value.

        Raises:
            UnlearnError: ``VU-U100`` when the gradients are not finite five times in a row.
        """
        k = Gram.of(gram)
        if not k.finite:
            return without_finite(state)
        state.pop("nonfinite_in_a_row", None)
        state["flags"] = list(k.zeros())
        if state["flags"]:
            return one_side(k, state["flags"][0], "single")
        c = k.cosine
        if c != 0 and abs(c) < 1:
            x = math.sqrt((2 + c) / (1 - c * c))
            y = (1 - x * x) / (c * x)
            if math.isfinite(y / k.norm_f):
                return x / k.norm_r, y / k.norm_f
        state["flags"] = ["undefined"]
        return 0.0, 0.0


@attrs.frozen
class MunbaOfficialCompatConfig:
    """Settings of `MunbaOfficialCompat`."""

    fallback: str = setting(
        "diffusion",
        help="unless both are positive; diffusion: L_r + 0.5 L_f; classification: L_r + 0.1 L_f; skip: no step",
        choices=("diffusion", "classification", "skip"),
    )


class MunbaOfficialCompat:
    """Reproduce the coefficients of the released code of MUNBa; use ``munba`` instead.

    With ``k = K`` the Gram matrix in the order (retain, forget)::

        a_r = sqrt((k11 k22 - k12 sqrt(k11 k22)) / (k11^2 k22 - k11 k12^2 + 1e-8))
        a_f = (1 - k11 a_r^2) / (k12 a_r + 1e-8)

    Without the ``1e-8`` that is the Nash solution. With it, it is not where gradients are small: at norms of 0.01 and
    ``c = 0.1`` the coefficients are (0.949, 1.05e5) instead of (95.3, 95.3). If one of them is not positive, as for
    parallel gradients, the released scripts take a fixed sum, each its own: ``fallback``, flag ``fallback``.

    Args:
        config: see `MunbaOfficialCompatConfig`.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[25.0, 8.0], [8.0, 4.0]])
        >>> a_r, a_f = MunbaOfficialCompat(MunbaOfficialCompatConfig()).coefficients(gram, {}, {})
        >>> f"{a_r:.4f} {a_f:.4f}"
        '0.1491 0.3727'

    Source:
        The released code of MUNBa (``JingWu321/MUNBa``), arXiv 2411.15537; from its formula.
    """

    Config: ClassVar[type[MunbaOfficialCompatConfig]] = MunbaOfficialCompatConfig
    source: ClassVar[Source] = Source(
        "MUNBa: Machine Unlearning via Nash Bargaining, Wu and Harandi 2024, as released",
        "https://github.com/JingWu321/MUNBa",
        "parity",
    )
    caution: ClassVar[str] = (
        "known incorrect for small gradients, reproduces historical behaviour. "
        "Use 'munba' for anything but a comparison."
    )
    linear: ClassVar[bool] = False

    def __init__(self, config: MunbaOfficialCompatConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(a_retain, a_forget)``, plain numbers.

        Raises:
            UnlearnError: ``VU-U100`` when the gradients are not finite five times in a row.
        """
        k = Gram.of(gram)
        if not k.finite:
            return without_finite(state)
        state.pop("nonfinite_in_a_row", None)
        a_retain, a_forget = released(k)
        if a_retain > 0 and a_forget > 0 and math.isfinite(a_retain + a_forget):
            state["flags"] = []
            return a_retain, a_forget
        state["flags"] = ["fallback"]
        return {"diffusion": (1.0, 0.5), "classification": (1.0, 0.1), "skip": (0.0, 0.0)}[self.config.fallback]


def released(k: Gram) -> tuple[float, float]:
    """Return the coefficients of the released formula, acceptable or not; 0 and 0 where it divides by zero.

    Example:
        >>> released(Gram(1.0, 1.0, 1.0))                         # identical gradients
        (0.0, 100000000.0)
    """
    product = k.rr * k.ff
    below = k.rr * product - k.rr * k.rf * k.rf + EPSILON
    above = product - k.rf * math.sqrt(product)
    if not below > 0 or not above >= 0:
        return 0.0, 0.0
    a_retain = math.sqrt(above / below)
    below = k.rf * a_retain + EPSILON
    return a_retain, (1 - k.rr * a_retain * a_retain) / below if below else 0.0
