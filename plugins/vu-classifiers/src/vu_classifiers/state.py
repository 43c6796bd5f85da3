"""Putting stored tensors into a module: all of them, each in its place, or an error that says which do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from vu_core import ModelError, did_you_mean

SHOWN = 5
"""Tensors of a kind that an error names."""


def fill(module: nn.Module, stored: Mapping[str, Tensor], file: Path) -> None:
    """Copy the stored tensors into the module, in the precision of the module.

    Of tied tensors one name is enough, as safetensors keeps no tensor twice.

    Raises:
        ModelError: ``VU-M095`` with what is missing, surplus and misshapen, and near misses.
    """
    wanted = module.state_dict()
    there = {_place(wanted[name]) for name in stored.keys() & wanted.keys()}
    missing = [name for name in wanted if name not in stored and _place(wanted[name]) not in there]
    surplus = [name for name in stored if name not in wanted]
    misshapen = [name for name in wanted if name in stored and stored[name].shape != wanted[name].shape]
    lines = [
        *_lines("is missing", {name: did_you_mean(name, surplus) for name in missing}),
        *_lines("is of no use to the network", {name: did_you_mean(name, missing) for name in surplus}),
        *_lines("does not fit", {name: _shapes(stored[name], wanted[name]) for name in misshapen}),
    ]
    if lines:
        raise ModelError(
            "VU-M095",
            f"The weights file {file.name!r} is not that of this network:\n  " + "\n  ".join(lines),
            "Name the file that was saved from a network of this factory, with the same classes.",
            where="model.weights",
        )
    module.load_state_dict(dict(stored), strict=False)


def _lines(what: str, told: Mapping[str, str]) -> Sequence[str]:
    lines = [f"{name!r} {what}.{more}" for name, more in list(told.items())[:SHOWN]]
    return lines + ([f"... and {len(told) - SHOWN} more {what}."] if len(told) > SHOWN else [])


def _shapes(stored: Tensor, wanted: Tensor) -> str:
    return f" It is {tuple(stored.shape)}, where the network has {tuple(wanted.shape)}."


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return what two names of one tensor have in common."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()
