"""Nash bargaining between sides of different power."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import Source, setting
from vu_munba.bargain import BargainConfig, Gram, degenerate, scaled

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class NashAsymmetricConfig(BargainConfig):
    """Settings of `NashAsymmetric`."""

    retain_power: float = setting(1.0, help="bargaining power w_r of the retain side", ge=1e-6, le=1e6)
    forget_power: float = setting(1.0, help="bargaining power w_f of the forget side", ge=1e-6, le=1e6)


class NashAsymmetric:
    """Combine both gradients by Nash bargaining in which one side may have more power.

    The update maximises ``w_r log <g_r, g> + w_f log <g_f, g>``; its coefficients solve ``a_i (K a)_i = w_i``. With the
    cosine ``c`` of both gradients, ``x = a_r ||g_r||``, ``y = a_f ||g_f||`` and ``p = x y``::

        B = c (w_r + w_f)          D = sqrt(B^2 + 4 (1 - c^2) w_r w_f)
        p = 2 w_r w_f / (B + D)                  for c >= 0
        p = (D - B) / (2 (1 - c^2))              for c < 0
        x = sqrt(w_r - c p)        y = sqrt(w_f - c p)        ||g||^2 = w_r + w_f

    Equal powers of 1 give ``munba``. Where powers are unequal, the update turns towards the gradient of the stronger
    side; ``<g, g_r>`` and ``<g, g_f>`` stay above 0.

    Args:
        config: see `NashAsymmetricConfig`.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[25.0, 8.0], [8.0, 4.0]])        # g_r = (3, 4), g_f = (0, 2)
        >>> rule = NashAsymmetric(NashAsymmetricConfig(retain_power=2.0))
        >>> a_r, a_f = rule.coefficients(gram, {}, {})
        >>> f"{5 * a_r:.6f} {2 * a_f:.6f}"
        '1.183503 0.632993'

    Source:
        Asymmetric bargaining: Kalai 1977, https://doi.org/10.1007/BF01774658; between gradients: Shamsian et al. 2023,
        arXiv 2301.13501. The closed form for two is ours.

    Deviates:
        Below ``c_min`` the solution is shortened by ``sqrt((1 + c) / (1 + c_min))``, which is 1 at ``c_min`` and 0
        at -1. For equal powers that is the clamp of ``munba``; clamping the cosine itself would ascend the loss of the
        weaker side.
    """

    Config: ClassVar[type[NashAsymmetricConfig]] = NashAsymmetricConfig
    source: ClassVar[Source] = Source(
        "Nonsymmetric Nash solutions and replications of 2-person bargaining, Kalai 1977",
        "https://doi.org/10.1007/BF01774658",
        "own",
    )
    linear: ClassVar[bool] = False

    def __init__(self, config: NashAsymmetricConfig) -> None:
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
        w_r, w_f = self.config.retain_power, self.config.forget_power
        x, y = lengths(k.cosine, w_r, w_f)
        s = 1 / math.sqrt(1 + max(k.cosine, self.config.c_min))
        return scaled(s * x / k.norm_r, s * y / k.norm_f, k, self.config.scale, math.sqrt(w_r + w_f))


def lengths(c: float, w_r: float, w_f: float) -> tuple[float, float]:
    """Return ``sqrt(1 + c) * (x, y)``, which is finite at ``c = -1`` as well.

    Args:
        c: cosine of both gradients, in [-1, 1].
        w_r: power of the retain side, 1e-6 .. 1e6.
        w_f: power of the forget side, the same.

    Example:
        >>> lengths(-1.0, 1.0, 1.0)
        (1.0, 1.0)
    """
    B = c * (w_r + w_f)
    D = math.sqrt(B * B + 4 * (1 - c * c) * w_r * w_f)
    # q = (1 + c) p: for c < 0 the factor 1 + c of 1 - c^2 cancels.
    q = (1 + c) * 2 * w_r * w_f / (B + D) if c >= 0 else (D - B) / (2 * (1 - c))
    strong = math.sqrt((1 + c) * max(w_r, w_f) - c * q)
    weak = q / strong  # x y = p; for c > 0 the difference w - c p has no digit left where powers are far apart
    return (strong, weak) if w_r >= w_f else (weak, strong)
