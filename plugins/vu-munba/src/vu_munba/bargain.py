"""What both Nash rules share: the numbers of the Gram matrix, and what happens where there is nothing to bargain."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import UnlearnError, setting

if TYPE_CHECKING:
    from torch import Tensor

IN_A_ROW = 5
"""So many steps without finite gradients end a run."""
FLOOR = 1e-30
RELATIVE_FLOOR = 1e-12


@attrs.frozen
class Gram:
    """The inner products of retain gradient ``g_r`` and forget gradient ``g_f``, as plain numbers.

    Args:
        rr: ``<g_r, g_r>``; rf: ``<g_r, g_f>``; ff: ``<g_f, g_f>``.
    """

    rr: float
    rf: float
    ff: float

    @classmethod
    def of(cls, gram: Tensor | None) -> Gram:
        """Fetch the ``(2, 2)`` matrix by one copy from the device.

        Example:
            >>> import torch
            >>> Gram.of(torch.tensor([[25.0, 8.0], [8.0, 4.0]])).cosine
            0.8
        """
        if gram is None:
            raise TypeError("a rule that is not linear needs the Gram matrix")
        (rr, rf), (_, ff) = gram.tolist()
        return cls(rr, rf, ff)

    @property
    def finite(self) -> bool:
        """Whether all three are finite."""
        return all(map(math.isfinite, (self.rr, self.rf, self.ff)))

    @property
    def norm_r(self) -> float:
        """``||g_r||``."""
        return math.sqrt(self.rr)

    @property
    def norm_f(self) -> float:
        """``||g_f||``."""
        return math.sqrt(self.ff)

    @property
    def cosine(self) -> float:
        """Cosine of both gradients, in [-1, 1]; both norms are above 0.

        Divides twice, since the product of the norms may overflow.
        """
        return max(-1.0, min(1.0, self.rf / self.norm_r / self.norm_f))

    def zeros(self, floor: float = FLOOR, relative_floor: float = RELATIVE_FLOOR) -> tuple[str, ...]:
        """Return the flag of the gradients that count as zero: ``both_zero``, ``retain_zero``, ``forget_zero``, none.

        Args:
            floor: a norm up to this is zero.
            relative_floor: so is one up to this share of the other norm.
        """
        if self.norm_r <= floor and self.norm_f <= floor:
            return ("both_zero",)
        if self.norm_r <= max(floor, relative_floor * self.norm_f):
            return ("retain_zero",)
        if self.norm_f <= max(floor, relative_floor * self.norm_r):
            return ("forget_zero",)
        return ()


@attrs.frozen
class BargainConfig:
    """Settings of `vu_munba.munba.Munba`; `vu_munba.asymmetric.NashAsymmetric` adds the two powers."""

    scale: str = setting(
        "nash",
        help="length of the update; nash: constant, sqrt(2) for equal powers; unit: 1; retain_norm: that of the retain "
        "gradient; mean_norm: mean of both; simplex: coefficients add up to 1",
        choices=("nash", "unit", "retain_norm", "mean_norm", "simplex"),
    )
    c_min: float = setting(-0.999, help="below this cosine the gradients count as opposed", gt=-1, lt=0)
    opposed: str = setting(
        "clamp",
        help="opposed gradients; clamp: the update goes to 0 with 1 + cosine; retain_only: unit-norm retain gradient; "
        "skip: no step; project: as pcgrad",
        choices=("clamp", "retain_only", "skip", "project"),
    )
    zero: str = setting(
        "single",
        help="one gradient is zero; single: unit-norm gradient of the other side; raw: that gradient as it is; skip",
        choices=("single", "raw", "skip"),
    )
    nonfinite: str = setting(
        "skip",
        help=f"gradients that are not finite; skip: no step, and an error after {IN_A_ROW} in a row; raise: an error",
        choices=("skip", "raise"),
    )
    floor: float = setting(FLOOR, help="a gradient whose norm is at most this counts as zero", ge=0)
    relative_floor: float = setting(
        RELATIVE_FLOOR, help="so does one whose norm is at most this share of the other norm", ge=0, lt=1
    )


def degenerate(gram: Gram, config: BargainConfig, state: MutableMapping[str, Any]) -> tuple[float, float] | None:
    """Return the coefficients ``(a_retain, a_forget)`` where there is no bargain, or ``None`` where there is one.

    Sets ``state["flags"]``: ``nonfinite``, ``both_zero``, ``retain_zero``, ``forget_zero``, ``opposed`` or nothing.
    Opposed gradients under ``clamp`` are flagged, and the caller shortens the solution by ``sqrt((1 + c) / (1 +
    c_min))``.

    Args:
        gram: of the step.
        config: what to do in each case.
        state: of the weighting; keeps how many steps in a row were not finite.

    Raises:
        UnlearnError: ``VU-U100`` gradients that are not finite, as ``config.nonfinite`` says.
    """
    if not gram.finite:
        return without_finite(state, at_once=config.nonfinite == "raise")
    state.pop("nonfinite_in_a_row", None)
    flags = gram.zeros(config.floor, config.relative_floor)
    state["flags"] = list(flags)
    if flags:
        return one_side(gram, flags[0], config.zero)
    if gram.cosine >= config.c_min:
        return None
    state["flags"] = ["opposed"]
    if config.opposed == "clamp":
        return None
    return {
        "retain_only": (1 / gram.norm_r, 0.0),
        "skip": (0.0, 0.0),
        "project": (1 - gram.rf / gram.rr, 1 - gram.rf / gram.ff),
    }[config.opposed]


def without_finite(state: MutableMapping[str, Any], *, at_once: bool = False) -> tuple[float, float]:
    """Leave out a step whose gradients are not finite.

    Args:
        state: of the weighting; counts these steps.
        at_once: object to the first one already.

    Raises:
        UnlearnError: ``VU-U100`` at the first, or else at the fifth in a row.
    """
    count = state["nonfinite_in_a_row"] = int(state.get("nonfinite_in_a_row", 0)) + 1
    state["flags"] = ["nonfinite"]
    if at_once or count >= IN_A_ROW:
        often = "in this step" if count == 1 else f"{count} steps in a row"
        raise UnlearnError(
            "VU-U100",
            f"The forget or the retain gradient was not finite {often}; none of these steps was taken.",
            "Use a smaller learning rate, or precision fp32; look at the data of both sides.",
            where="unlearner.training.lr",
        )
    return 0.0, 0.0


def one_side(gram: Gram, flag: str, policy: str) -> tuple[float, float]:
    """Return the coefficients when a gradient is zero.

    Args:
        gram: of the step.
        flag: ``both_zero``, ``retain_zero`` or ``forget_zero``.
        policy: ``single`` (unit-norm gradient of the other side), ``raw`` (as it is) or ``skip``.

    Example:
        >>> one_side(Gram(0.0, 0.0, 4.0), "retain_zero", "single")
        (0.0, 0.5)
    """
    if flag == "both_zero" or policy == "skip":
        return 0.0, 0.0
    if flag == "retain_zero":
        return 0.0, 1 / gram.norm_f if policy == "single" else 1.0
    return 1 / gram.norm_r if policy == "single" else 1.0, 0.0


def scaled(a_retain: float, a_forget: float, gram: Gram, scale: str, length: float) -> tuple[float, float]:
    """Give a Nash solution of norm ``length`` the length that ``scale`` names.

    Args:
        a_retain: coefficient of the retain gradient in the solution.
        a_forget: coefficient of the forget gradient.
        gram: of the step.
        scale: a choice of `BargainConfig.scale`.
        length: norm of the solution, ``sqrt(w_r + w_f)``.

    Example:
        >>> scaled(1.0, 3.0, Gram(1.0, 0.0, 1.0), "simplex", 1.0)
        (0.25, 0.75)
    """
    factor = {
        "nash": 1.0,
        "unit": 1 / length,
        "retain_norm": gram.norm_r / length,
        "mean_norm": (gram.norm_r + gram.norm_f) / (2 * length),
        "simplex": 1 / (a_retain + a_forget),
    }[scale]
    return factor * a_retain, factor * a_forget
