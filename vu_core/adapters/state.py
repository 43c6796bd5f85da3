"""Putting saved tensors back into trainable ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vu_core.errors import RecordError


def load_tensors(current: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved values into the current tensors of the same names.

    Raises:
        RecordError: ``VU-R030`` when the names or shapes are not the same; nothing is changed then.
    """
    wrong = sorted(set(current) ^ set(saved)) or [n for n in current if current[n].shape != saved[n].shape]
    if wrong:
        raise RecordError(
            "VU-R030",
            f"The checkpoint belongs to other parameters: {wrong[0]!r} is missing, surplus or of another shape.",
            "Resume with the settings of the run, or start a new one.",
        )
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(saved[name])
