"""Weightings with constant coefficients: ``none`` and ``simple``."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core.setting import setting
from vu_core.source import Source

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class SimpleConfig:
    """Settings of ``simple``."""

    forget_weight: float = setting(1.0, help="factor on the forget loss", ge=0)
    retain_weight: float = setting(1.0, help="factor on the retain loss", ge=0)


class Simple:
    """Weight the losses by constants: ``g = retain_weight * g_retain + forget_weight * g_forget``.

    A weight of 0 leaves the side out, which saves its passes.

    Example:
        >>> Simple(SimpleConfig(forget_weight=0.3)).coefficients(None, {}, {})
        (1.0, 0.3)

    Source:
        FADE uses 0.3 and 1.0: https://arxiv.org/abs/2602.07058.
    """

    Config: ClassVar[type[SimpleConfig]] = SimpleConfig
    source: ClassVar[Source] = Source("Weighted sum of two losses", "https://arxiv.org/abs/2602.07058", "own")
    linear: ClassVar[bool] = True

    def __init__(self, config: SimpleConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(retain_weight, forget_weight)``."""
        return self.config.retain_weight, self.config.forget_weight


@attrs.frozen
class ForgetOnlyConfig:
    """``none`` has no settings."""


class ForgetOnly:
    """Follow the forget gradient alone: ``g = g_forget``.

    The retain side is ignored altogether, so expect the model to lose more than the concept; useful to see what the
    retain loss is good for.

    Example:
        >>> ForgetOnly(ForgetOnlyConfig()).coefficients(None, {}, {})
        (0.0, 1.0)
    """

    Config: ClassVar[type[ForgetOnlyConfig]] = ForgetOnlyConfig
    source: ClassVar[Source] = Source("The forget gradient alone", "https://arxiv.org/abs/2602.07058", "own")
    linear: ClassVar[bool] = True

    def __init__(self, config: ForgetOnlyConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[float, float]:
        """Return ``(0, 1)``."""
        return 0.0, 1.0
