"""Checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from vu_core.atomic import sync_folder, write_text

KEPT = 2
"""Checkpoints that are kept per phase."""


@attrs.frozen
class Checkpoint:
    """The state of a phase after some steps.

    Args:
        step: number of finished steps; total: number of steps of the phase.
        tensors: of the parameters, the optimiser and the regularizers.
        values: JSON values: state of the weighting and of the loss scale.
    """

    step: int
    total: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def write(folder: Path, phase: str, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop all but the last two of the phase.

    The tensors go to a temporary file that is synced and renamed; then the JSON file with their length and hash is
    written in the same way. A checkpoint exists when its JSON file does, so a process that is killed in between leaves
    the previous one as the newest.

    Returns:
        The JSON file, ``<phase>-<step>.json``; the tensors lie beside it as ``.safetensors``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{phase}-{checkpoint.step:08d}.safetensors"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        length, sha256 = _fingerprint(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    header = {"format": 1, "phase": phase, "step": checkpoint.step, "total": checkpoint.total, "bytes": length}
    text = json.dumps({**header, "sha256": sha256, "values": checkpoint.values}, sort_keys=True, indent=1)
    write_text(path.with_suffix(".json"), text + "\n")
    _prune(folder, phase)
    return path.with_suffix(".json")


def _prune(folder: Path, phase: str) -> None:
    """Drop old checkpoints of a phase, and what killed processes left behind."""
    found = _found(folder, phase)
    for old in found[KEPT:]:
        old.unlink()
    kept = {path.stem for path in found[:KEPT]}
    leftover = re.compile(rf"(\.?)({re.escape(phase)}-\d+)\.(safetensors|json)(\.\d+\.tmp)?")
    for path in folder.iterdir():
        match = leftover.fullmatch(path.name)
        if match and (match[1] or match[2] not in kept):
            path.unlink()


def exists(folder: Path, phase: str) -> bool:
    """Tell whether a phase has written a checkpoint."""
    return bool(_found(folder, phase))


def newest(folder: Path, phase: str, tell: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or ``None``.

    Args:
        folder: where the checkpoints lie.
        phase: whose.
        tell: is told one sentence for each damaged checkpoint that is passed over.
    """
    for path in _found(folder, phase):
        try:
            return _read(path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            tell(f"The checkpoint {path.name!r} is damaged and passed over: {error}.")
    return None


def _found(folder: Path, phase: str) -> list[Path]:
    """Return the JSON files of a phase, newest first."""
    pattern = re.compile(rf"{re.escape(phase)}-(\d+)\.json")
    found = [(int(match[1]), path) for path in folder.glob("*.json") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = json.loads(path.read_text(encoding="utf-8"))
    file = path.with_suffix(".safetensors")
    if _fingerprint(file) != (header["bytes"], header["sha256"]):
        raise ValueError(f"{file.name} has not the length and hash that were written down")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Checkpoint(int(header["step"]), int(header["total"]), tensors, header["values"])


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
