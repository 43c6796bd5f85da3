"""Models that training stays near, and how much each of their weights matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from vu_core import Model, Run, Theta

Importance = Callable[[], Mapping[str, Tensor]]
"""Measures the model as it is now: a tensor per weight name, in the shape of the weight."""


@attrs.frozen(eq=False)
class Anchor:
    """One model ``theta*`` to stay near.

    Args:
        importance: Omega per weight name; empty = 1 everywhere.
        shift: ``theta_0 - theta*`` per weight name, with ``theta_0`` the model at the start of the run; empty = 0.
    """

    importance: Mapping[str, Tensor] = attrs.field(factory=dict)
    shift: Mapping[str, Tensor] = attrs.field(factory=dict)

    def distance(self, name: str, delta: Tensor) -> Tensor:
        """Return ``sum_i Omega_i (theta_i - theta*_i)^2`` over one weight, for its change ``delta`` of the run."""
        away = delta + self.shift[name] if name in self.shift else delta
        if name not in self.importance:
            return away.square().sum()
        return (away.square() * self.importance[name]).sum()


@attrs.define(eq=False)
class Anchors:
    """The sum over anchors j and weights i, ``factor * sum_j sum_i Omega_ji (theta_i - theta*_ji)^2``.

    Args:
        factor: in front.
    """

    factor: float
    _anchors: tuple[Anchor, ...] = ()
    _theta: Theta | None = None

    def measure(self, model: Model, theta: Theta, run: Run, importance: Importance, *, online: bool) -> None:
        """Set the anchors: the model of the files and after each earlier edit; call it in ``theta.base()``.

        The newest of them is the model at the start of the run, the only one where there are no earlier edits.

        Args:
            model: as it is at the start of the run.
            theta: what is trained.
            run: gives the earlier models.
            importance: measures a model.
            online: keep the newest anchor alone.
        """
        self._theta = theta
        start = Anchor(importance())
        self._anchors = (start,)
        if online:
            return
        names = [name for name, _ in theta.named_deltas()]
        here = {name: model.network.get_parameter(name).detach().clone() for name in names}
        earlier = []
        for enter in run.earlier:
            with enter():
                away = {name: value - model.network.get_parameter(name).detach() for name, value in here.items()}
                earlier.append(Anchor(importance(), away))
        self._anchors = (*earlier, start)

    def penalty(self) -> Tensor:
        """Return the sum, a scalar."""
        if self._theta is None:
            raise RuntimeError("the anchors are set by prepare or load_state")
        parts = [
            anchor.distance(name, delta.float())
            for name, delta in self._theta.named_deltas()
            for anchor in self._anchors
        ]
        return self.factor * torch.stack(parts).sum()

    def state(self) -> dict[str, Tensor]:
        """Return importances and shifts by ``<anchor>.<kind>.<weight>``; the anchors count from the newest, 0."""
        found: dict[str, Tensor] = {}
        for index, anchor in enumerate(reversed(self._anchors)):
            found |= {f"{index}.importance.{name}": tensor for name, tensor in anchor.importance.items()}
            found |= {f"{index}.shift.{name}": tensor for name, tensor in anchor.shift.items()}
        return found

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put back what `state` returned."""
        kept: dict[str, dict[str, dict[str, Tensor]]] = {"0": {}}
        device = theta.parameters()[0].device
        for key, tensor in state.items():
            index, kind, name = key.split(".", 2)
            kept.setdefault(index, {}).setdefault(kind, {})[name] = tensor.to(device)
        self._theta = theta
        self._anchors = tuple(Anchor(**kept[index]) for index in sorted(kept, key=int, reverse=True))
