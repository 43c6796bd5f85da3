"""What the methods that take no steps share: the weights of a network, and an edit from new ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vu_core import Edit, Model
from vu_core.adapters import difference


def weights_of(model: Model) -> dict[str, Tensor]:
    """Return every floating-point parameter of the network by name; a tied one has its first name."""
    return {name: p for name, p in model.network.named_parameters() if p.is_floating_point()}


def edit_of(weights: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Edit:
    """Return the edit that makes new values of weights, in the precision of the weights.

    Args:
        weights: stored tensors by name.
        new: values of the same shapes, for some of them.
    """
    parts = {name: difference(weights[name].detach(), value.detach()) for name, value in new.items()}
    return Edit({name: part for name, part in parts.items() if part is not None})
