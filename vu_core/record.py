"""A finished run, as the command line shows it and later commands read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vu_core.score import Scorecard


@attrs.frozen
class RunRecord:
    """What lies in a run folder.

    Args:
        folder: the run folder; run_id: 12 hex digits; method: canonical name of the unlearner.
        model, data: plugin names with their refs; forget, overwrite: what the user asked for, as understood.
        scorecard: the scores, or ``None`` when nothing was measured.
        edit_bytes: size of ``edit.safetensors``.
        edit_facts: counts of changed tensors and numbers, and the method's own facts.
        seconds: wall time per stage; environment: versions, threads, machine size.
        files: what was written, relative to the folder, with one line each on what it is.
        notes, warnings: sentences for the user.
    """

    folder: Path
    run_id: str
    method: str
    model: str
    data: str
    forget: tuple[str, ...]
    overwrite: tuple[str, ...]
    scorecard: Scorecard | None
    edit_bytes: int
    edit_facts: Mapping[str, Any] = attrs.field(factory=dict)
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    environment: Mapping[str, Any] = attrs.field(factory=dict)
    files: Mapping[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
