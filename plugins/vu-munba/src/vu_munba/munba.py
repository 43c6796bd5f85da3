"""MUNBa: forget and retain bargain about the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

from vu_core import Source
from vu_munba.bargain import BargainConfig, Gram, degenerate, scaled

if TYPE_CHECKING:
    from torch import Tensor


class Munba:
    """Combine both gradients by exact two-player Nash bargaining.

    The update maximises ``log <g_r, g> + log <g_f, g>`` over all ``g`` of one length. With the Gram matrix ``K`` of
    both gradients, its coefficients solve ``K a = 1 / a`` elementwise for ``a > 0``, whose only solution is::

        c   = <g_r, g_f> / (||g_r|| ||g_f||)
        a_i = 1 / (||g_i|| sqrt(1 + c))               for c in (-1, 1]
        g   = a_r g_r + a_f g_f                       the bisector of the unit gradients, ||g|| = sqrt(2)

    ``<g_i, g> = ||g_i|| sqrt(1 + c)`` is above 0 for both sides: a small step descends both losses. A factor on a loss
    changes nothing, and neither does the length of its gradient: use ``nash-asymmetric`` to favour a side.

    With ``scale = "nash"`` and ``"unit"`` the update has one length for ever, whatever is left to learn; under AdamW
    that matters little, under SGD it is the length of every step. ``scale`` leaves steps alone in which a gradient is
    zero, and those that ``opposed`` settles otherwise than by ``clamp``: where lengths matter, ``zero = "raw"`` goes
    with ``retain_norm``, ``mean_norm`` and ``simplex``.

    Args:
        config: see `vu_munba.bargain.BargainConfig`.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[25.0, 8.0], [8.0, 4.0]])        # g_r = (3, 4), g_f = (0, 2)
        >>> a_r, a_f = Munba(BargainConfig()).coefficients(gram, {}, {})
        >>> f"{a_r:.6f} {a_f:.6f}"
        '0.149071 0.372678'

    Source:
        MUNBa, Wu and Harandi 2024, arXiv 2411.15537; bargaining between tasks: Navon et al. 2022, arXiv 2202.01017.

    Deviates:
        The paper writes ``sqrt((1 - c) / (sin^2 + xi))`` for ``1 / sqrt(1 + c)``, and the released code adds an
        absolute ``1e-8``: both lose the solution where the gradients agree, or are small. Nothing is added here.
    """

    Config: ClassVar[type[BargainConfig]] = BargainConfig
    source: ClassVar[Source] = Source(
        "MUNBa: Machine Unlearning via Nash Bargaining, Wu and Harandi 2024",
        "https://arxiv.org/abs/2411.15537",
        "paper+fixes",
    )
    linear: ClassVar[bool] = False

    def __init__(self, config: BargainConfig) -> None:
        self.config = config
        self.scale_free = config.opposed != "project"  # projected gradients keep their lengths

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(a_retain, a_forget)``, plain numbers; both 0 where no step is to be taken.

        Raises:
            UnlearnError: ``VU-U100`` when the gradients are not finite, as ``nonfinite`` says.
        """
        k = Gram.of(gram)
        settled = degenerate(k, self.config, state)
        if settled is not None:
            return settled
        s = 1 / math.sqrt(1 + max(k.cosine, self.config.c_min))
        return scaled(s / k.norm_r, s / k.norm_f, k, self.config.scale, math.sqrt(2))
