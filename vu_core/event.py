"""What a run tells while it works; listeners watch, `events.jsonl` keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.frozen
class Event:
    """Something that happened in a run.

    Known types: ``stage`` (``state``: ``begin`` or ``end``), ``progress`` (step of total with values, such as losses),
    ``checkpoint``, ``resume``, ``warning`` and ``note`` (``text``), ``score``, ``gradient_conflict``, ``log``,
    ``section`` (``title`` and ``html``, for the report), ``written`` (``file``), ``interrupted``, ``error``. Listeners
    ignore types they do not know.

    Args:
        type: one of the words above.
        stage: stage of the run, such as ``unlearn``.
        values: JSON values; for ``progress``: ``what``, ``step``, ``total`` and numbers such as ``loss_forget``.
        durable: written to ``events.jsonl``; progress ticks between optimiser steps are not.
    """

    type: str
    stage: str
    values: Mapping[str, Any] = attrs.field(factory=dict)
    durable: bool = True


@contextmanager
def stage(emit: Callable[[Event], None], name: str) -> Iterator[None]:
    """Tell that a stage begins, and when it has succeeded, that it ends and how many seconds it took.

    Example:
        >>> seen = []
        >>> with stage(seen.append, "load"):
        ...     pass
        >>> [(event.stage, event.values["state"]) for event in seen]
        [('load', 'begin'), ('load', 'end')]
    """
    emit(Event("stage", name, {"state": "begin"}))
    started = time.monotonic()
    yield
    emit(Event("stage", name, {"state": "end", "seconds": round(time.monotonic() - started, 3)}))
