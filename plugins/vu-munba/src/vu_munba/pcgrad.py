"""PCGrad: take out of a gradient what works against the other one."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import Source, setting
from vu_munba.bargain import Gram

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class PCGradConfig:
    """Settings of `PCGrad`."""

    reduce: str = setting("sum", help="sum or mean of the projected gradients", choices=("sum", "mean"))
    protect: str = setting(
        "both",
        help="both: each gradient is projected off the other one; retain: only the forget gradient is",
        choices=("both", "retain"),
    )


class PCGrad:
    """Project each gradient off the other one where they conflict, and add them.

    Two gradients conflict where ``<g_r, g_f> < 0``. Then each loses its part along the other one::

        g = (g_r - <g_r, g_f> / <g_f, g_f> g_f) + (g_f - <g_r, g_f> / <g_r, g_r> g_r)

    that is ``a_r = 1 - <g_r, g_f> / ||g_r||^2`` and ``a_f = 1 - <g_r, g_f> / ||g_f||^2``. Elsewhere ``g = g_r + g_f``.
    With ``protect = "retain"`` only the forget gradient is projected: ``a_f = 1``. The step does not ascend the retain
    loss then, but may well ascend the forget loss.

    A gradient counts as zero, and conflicts with nothing, when its norm is 1e-30 or 1e-12 of the other one at most.

    Args:
        config: see `PCGradConfig`.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])       # g_r = (1, 0), g_f = (-1, 1)
        >>> PCGrad(PCGradConfig()).coefficients(gram, {}, {})
        (2.0, 1.5)

    Source:
        Gradient Surgery for Multi-Task Learning, Yu et al. 2020, arXiv 2001.06782. With two sides the random order of
        the projections has no effect.
    """

    Config: ClassVar[type[PCGradConfig]] = PCGradConfig
    source: ClassVar[Source] = Source(
        "PCGrad: Gradient Surgery for Multi-Task Learning, Yu et al. 2020", "https://arxiv.org/abs/2001.06782", "paper"
    )
    linear: ClassVar[bool] = False

    def __init__(self, config: PCGradConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(a_retain, a_forget)``, plain numbers; flags ``projected`` and zero gradients."""
        k = Gram.of(gram)
        share = 0.5 if self.config.reduce == "mean" else 1.0
        state["flags"] = list(k.zeros())
        if state["flags"] or not k.rf < 0:
            return share, share
        state["flags"] = ["projected"]
        a_retain = 1 - k.rf / k.rr
        a_forget = 1 - k.rf / k.ff if self.config.protect == "both" else 1.0
        return share * a_retain, share * a_forget
