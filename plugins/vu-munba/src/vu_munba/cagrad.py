"""CAGrad: near the mean gradient, the direction that helps the worse side most."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import Source, setting
from vu_munba.bargain import Gram

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-12
"""A sum of two vectors whose square is less than this share of their squares is nothing but rounding."""


@attrs.frozen
class CAGradConfig:
    """Settings of `CAGrad`."""

    c: float = setting(0.4, help="radius of the search around the mean gradient, in lengths of it", ge=0, lt=1)
    rescale: str = setting(
        "1/(1+c^2)",
        help="factor on the update, which the search makes longer",
        choices=("none", "1/(1+c^2)", "1/(1+c)"),
    )


class CAGrad:
    """Maximise what the worse side gains within a ball around the mean gradient.

    ``d`` maximises ``min(<g_r, d>, <g_f, d>)`` over ``||d - g_0|| <= phi``, with ``g_0 = (g_r + g_f) / 2`` and
    ``phi = c ||g_0||``. Its dual has one unknown::

        g_w = w g_r + (1 - w) g_f
        w   = argmin over [0, 1] of <g_w, g_0> + phi ||g_w||
        d   = g_0 + phi g_w / ||g_w||            (d = g_0 where g_w = 0)

    Solved in closed form: with ``u = <g_w, g_r - g_f>``, ``A = ||g_r - g_f||^2``, ``m = (||g_r||^2 - ||g_f||^2) / 2``
    and ``E = ||g_r||^2 ||g_f||^2 - <g_r, g_f>^2``, the derivative is zero where ``phi u = -m ||g_w||``, and
    ``A ||g_w||^2 = u^2 + E``, hence ``u = -m sqrt(E / (phi^2 A - m^2))``. Without such a ``u`` the objective is
    monotone.

    Args:
        config: see `CAGradConfig`.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 5.0]])       # g_r = (1, 0), g_f = (-1, 2)
        >>> a_r, a_f = CAGrad(CAGradConfig(rescale="none")).coefficients(gram, {}, {})
        >>> f"{a_r:.3f} {a_f:.3f}"                                # d = (0.4, 1.0)
        '0.900 0.500'

    Source:
        Conflict-Averse Gradient Descent for Multi-task Learning, Liu et al. 2021, arXiv 2110.14048. The factor
        ``1 / (1 + c^2)`` is common practice of released code.

    Deviates:
        Released code searches ``w`` numerically and adds a small constant to ``||g_w||``.
    """

    Config: ClassVar[type[CAGradConfig]] = CAGradConfig
    source: ClassVar[Source] = Source(
        "CAGrad: Conflict-Averse Gradient Descent for Multi-task Learning, Liu et al. 2021",
        "https://arxiv.org/abs/2110.14048",
        "paper+fixes",
    )
    linear: ClassVar[bool] = False

    def __init__(self, config: CAGradConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(a_retain, a_forget)``, plain numbers; flags zero gradients."""
        k = Gram.of(gram)
        state["flags"] = list(k.zeros())
        c = self.config.c
        phi = c * math.sqrt(max(0.0, k.rr + 2 * k.rf + k.ff)) / 2
        w = worse_side(k, phi)
        squares = w * w * k.rr + (1 - w) ** 2 * k.ff
        squared = squares + 2 * w * (1 - w) * k.rf  # ||g_w||^2
        pull = phi / math.sqrt(squared) if squared > ROUNDING * squares else 0.0
        factor = {"none": 1.0, "1/(1+c^2)": 1 / (1 + c * c), "1/(1+c)": 1 / (1 + c)}[self.config.rescale]
        return factor * (0.5 + pull * w), factor * (0.5 + pull * (1 - w))


def worse_side(k: Gram, phi: float) -> float:
    """Return ``w`` in [0, 1], the share of the retain gradient in ``g_w``; see `CAGrad`.

    Args:
        k: inner products.
        phi: radius of the ball.

    Example:
        >>> worse_side(Gram(1.0, -1.0, 5.0), 0.4)
        1.0
    """
    largest = max(k.rr, k.ff)
    if not (largest > 0 and k.finite):
        return 0.5
    # In units of the longer gradient, so that products of inner products neither overflow nor vanish.
    rr, rf, ff = k.rr / largest, k.rf / largest, k.ff / largest
    A, m, E = max(0.0, rr - 2 * rf + ff), (rr - ff) / 2, max(0.0, rr * ff - rf * rf)
    curve = phi * phi / largest * A - m * m
    if curve <= 0:
        return 0.5 if m == 0 else float(m < 0)
    u = -m * math.sqrt(E / curve)
    return max(0.0, min(1.0, (u + ff - rf) / A))
